"""Ends programs: a user's mistake is one sentence on stderr, never a traceback."""

import os
import sys


class UserError(Exception):
  """Tells a user's mistake in one sentence, printed instead of a traceback."""


def run_program(name, run):
  """Runs a program and returns its exit code; the name stands before an error.

  It is 0 done, 1 a UserError, 130 interrupted; also 0 if whoever read the output has seen enough.
  """
  try:
    run()
    sys.stdout.flush()
    return 0
  except UserError as e:
    print(f'{name}: {e}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    return 130
  except BrokenPipeError:  # what is still buffered must not fail when Python ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def program(name, **keywords):
  """Makes of a function of the arguments a program that returns an exit code."""
  return lambda function: lambda argv=None: run_program(name, lambda: function(argv), **keywords)


def last_line(output):
  """Returns the last line of a program's output that is not empty."""
  return ([line.strip() for line in output.splitlines() if line.strip()] or ['no output'])[-1]
