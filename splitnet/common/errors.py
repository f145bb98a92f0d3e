"""Ends programs: a user's mistake is one sentence on stderr, never a traceback."""

import os
import sys


class UserError(Exception):
  """Tells a user's mistake in one sentence, printed instead of a traceback."""


def run_program(name, run):
  """Runs a program and returns its exit code.

  Args:
    name: of the program, before the sentence of a UserError.
    run: the program, a function without arguments.

  Returns:
    0 done, 1 a UserError, 130 interrupted; also 0 if whoever read the output has seen enough.
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
