"""Times several things in interleaved rounds, so that other load of the machine slows all of them alike.

Compare what was timed within a round (the median over rounds of their ratio), or the means over all rounds.
"""

import statistics
import sys
import time


def interleaved(timers, rounds, show=None):
  """Calls each function once per round; yields all results so far after each round.

  Args:
    timers: dict from a row's name to a function that does the work once and returns its result, such as its seconds.
    rounds: how many.
    show: called as show(round from 1, rounds, name, result) after each call; None: nothing is shown.
  """
  results = {name: [] for name in timers}
  for number in range(1, rounds + 1):
    for name, timer in timers.items():
      results[name].append(timer())
      if show:
        show(number, rounds, name, results[name][-1])
    yield results


def show_seconds(number, rounds, name, seconds):
  """Prints a call's seconds to stderr; for `interleaved`."""
  print(f'repeat {number} of {rounds}: {name} {seconds:.3f} s', file=sys.stderr, flush=True)


def numbered(items, clock=time.monotonic):
  """Yields each item with a text of how far one is: ('3 of 22, about 5 min left', item)."""
  items, started = list(items), clock()
  for i, item in enumerate(items):
    text = f'{i + 1} of {len(items)}'
    if i:
      seconds = (clock() - started) / i * (len(items) - i)
      text += f', about {max(1, round(seconds))} s left' if seconds < 90 else f', about {round(seconds / 60)} min left'
    yield text, item


def median(values):
  """Returns the median of a list of numbers, or None if there are none."""
  return statistics.median(values) if values else None
