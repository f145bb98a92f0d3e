"""A user's mistakes, told in one sentence, and how a program ends."""

import os
import sys


class UserError(Exception):
  """A user's mistake: its text is the one sentence that the programs print instead of a traceback."""


def run_program(name, run):
  """Runs a program's `run()`; returns its exit code, with a user's mistake told in one sentence on stderr."""
  try:
    run()
    sys.stdout.flush()
    return 0
  except UserError as e:
    print('%s: %s' % (name, e), file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    return 130
  except BrokenPipeError:  # whoever read the output has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
