"""Tells which workers are missing while TensorFlow waits for them.

A process of its own does it: TensorFlow waits for ever, and keeps Python from running meanwhile. It needs the standard
library only, and ends when its standard input does.
"""

import contextlib
import select
import signal
import socket
import subprocess
import sys

FIRST, NEXT = 30, 60  # seconds of waiting before the first note and between the others
TIMEOUT = 5  # seconds that a connection may take


@contextlib.contextmanager
def telling_of_missing(addresses, first=FIRST):
  """Opens a context in which notes on stderr tell the state of workers, 'host:port'."""
  command = [sys.executable, '-I', '-S', __file__, str(first), *addresses]
  with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
    try:
      yield
    finally:
      process.stdin.close()
      process.terminate()


def state_of(address):
  """Returns what connecting to 'host:port' comes to, the end of a sentence."""
  host, port = address.rsplit(':', 1)
  try:
    socket.create_connection((host, int(port)), TIMEOUT).close()
  except (OSError, ValueError, OverflowError) as e:
    return f'cannot be reached ({getattr(e, "strerror", None) or e})'
  return 'takes connections, but has not joined'


def main(first, *addresses):
  """Prints notes until standard input ends."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # the program that waits tells of it
  waited, pause = 0, float(first)
  while not select.select([sys.stdin], [], [], pause)[0]:
    waited, pause = waited + pause, NEXT
    states = '; '.join(f'{address} {state_of(address)}' for address in addresses)
    print(
      f'note: waiting for {waited:g} s: {states}. Start the same command there, with the same TF_CONFIG but for the '
      'index; Ctrl-C gives up',
      file=sys.stderr, flush=True,
    )  # fmt: skip


if __name__ == '__main__':
  main(*sys.argv[1:])
