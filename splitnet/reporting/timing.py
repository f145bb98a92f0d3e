"""Times several things in interleaved rounds, so that other load of the machine slows all of them alike.

Compare what was timed within a round (the median over rounds of their ratio), or the means over all rounds.
"""

import statistics
import sys


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


def median(values):
  """Returns the median of a list of numbers, or None if there are none."""
  return statistics.median(values) if values else None
