"""Starts Python programs without importing TensorFlow anew, which takes most of the time of a tiny run.

A server imports what the programs import, computes nothing, and forks for each of them. A program runs as if a shell
had started it: in a process of its own, with its own arguments, environment, streams and signals. (Linux. Between it
and the server is a process that waits for it, since only a parent can.)
"""

import concurrent.futures
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import warnings

TESTS = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.dirname(TESTS)
AT_IMPORT = ('TF_CPP_MIN_LOG_LEVEL', 'TF_ENABLE_ONEDNN_OPTS')  # what TensorFlow reads when it is imported
servers = {}  # (connection, process) by the values of these


class Program:
  """A running program, to be used as a subprocess.Popen with pipes of text."""

  def __init__(self, command, **environment):
    """Starts it in the project's folder, without a GPU.

    Args:
      command: list, as Python takes it: a path, or -m and a module, or -c and text, and the arguments.
      **environment: what differs from this process's.
    """
    paths = os.pathsep.join([PROJECT, TESTS])
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1', 'PYTHONPATH': paths, **environment}
    ends = [os.pipe() for _ in range(3)]
    request = {'command': [str(c) for c in command], 'environment': environment}
    socket.send_fds(_server(environment), [json.dumps(request).encode()], [writing for _, writing in ends])
    for _, writing in ends:
      os.close(writing)
    self.args = request['command']
    self.stdout, self.stderr, self._status = (open(reading, encoding='utf-8') for reading, _ in ends)
    self.pid = int(self._status.readline())
    self.returncode = None

  def wait(self, timeout=None):
    """Waits until it has ended, at most so many seconds; returns its exit code, of a signal -N."""
    if self.returncode is None:
      if not self._has_ended(timeout):
        raise subprocess.TimeoutExpired(self.args, timeout)
      self.returncode = int(self._status.readline())
    return self.returncode

  def communicate(self, timeout=None):
    """Waits until it has ended; returns what it wrote and nobody has read yet: (stdout, stderr)."""
    if self.stdout.closed:
      return '', ''
    with concurrent.futures.ThreadPoolExecutor(2) as readers:
      written = [readers.submit(stream.read) for stream in (self.stdout, self.stderr)]
      if timeout is not None and concurrent.futures.wait(written, timeout).not_done:
        self.kill()
        raise subprocess.TimeoutExpired(self.args, timeout)
      self.wait()
    for stream in (self.stdout, self.stderr, self._status):
      stream.close()
    return tuple(text.result() for text in written)

  def send_signal(self, number):
    """Sends it a signal, unless it has ended."""
    if self.returncode is None and not self._has_ended(0):
      os.kill(self.pid, number)

  def kill(self):
    """Ends it at once."""
    self.send_signal(signal.SIGKILL)

  def _has_ended(self, timeout):
    poll = select.poll()  # select does not take the numbers of files beyond 1,023
    poll.register(self._status, select.POLLIN)
    return bool(poll.poll(None if timeout is None else 1000 * timeout))


def run(command, **environment):
  """Runs a program to its end: a subprocess.CompletedProcess; see Program."""
  program = Program(command, **environment)
  stdout, stderr = program.communicate()
  return subprocess.CompletedProcess(program.args, program.returncode, stdout, stderr)


def _server(environment):
  """Returns the connection to the server that imported TensorFlow with an environment's values of AT_IMPORT."""
  key = tuple(environment.get(name) for name in AT_IMPORT)
  if key not in servers:
    connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, str(other.fileno())]
    with other:
      servers[key] = connection, subprocess.Popen(command, env=environment, pass_fds=[other.fileno()])
  return servers[key][0]


def _serve(connection):
  """Forks for every request until nobody is there any more; in the fork, returns the program's function."""
  os.chdir(PROJECT)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, meant for the tests
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
  while True:
    request, ends, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if not request:
      return None
    watching = os.fork()
    if not watching:
      connection.close()
      return _watch(json.loads(request), *ends)
    for end in ends:
      os.close(end)


def _watch(request, stdout, stderr, status):
  """Forks once more; tells how the program ended, and in the fork, returns it."""
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  program = os.fork()
  if program:
    os.close(stdout)
    os.close(stderr)
    os.write(status, b'%d\n' % program)
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    os.write(status, b'%d\n' % code)
    os._exit(0)
  for end, number in ((os.open(os.devnull, os.O_RDONLY), 0), (stdout, 1), (stderr, 2)):
    os.dup2(end, number)
    os.close(end)
  os.close(status)
  sys.stdin, sys.stdout = (open(i, 'rw'[i], encoding='utf-8', closefd=False) for i in (0, 1))
  sys.stderr = open(2, 'w', buffering=1, encoding='utf-8', errors='backslashreplace', closefd=False)
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.environ.clear()
  os.environ.update(request['environment'])
  return _program(request['command'])


def _program(command):
  """Returns a function that runs what Python is asked to run."""
  first, *rest = command
  if first not in ('-c', '-m'):
    sys.argv, sys.path[0] = command, os.path.dirname(os.path.abspath(first))
    return lambda: runpy.run_path(first, run_name='__main__')
  name, *arguments = rest
  sys.argv, sys.path[0] = [first, *arguments], PROJECT
  if first == '-m':
    return lambda: runpy.run_module(name, run_name='__main__', alter_sys=True)
  main = sys.modules['__main__'].__dict__
  return lambda: exec(compile(name, '<string>', 'exec'), main)


if __name__ == '__main__':
  import eval  # noqa: F401
  import train  # noqa: F401 - with all that it imports

  # Since Python 3.12 a fork beside other threads is warned of; the one here is OpenBLAS's, which is made for it.
  warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
  gc.freeze()  # so that a fork does not touch, and so copy, what it never uses
  run_it = _serve(socket.socket(fileno=int(sys.argv[1])))
  if run_it:
    run_it()
