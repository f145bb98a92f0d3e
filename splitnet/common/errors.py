"""Ends programs: what a user or a machine did is one sentence, never a traceback.

A program that writes files goes on if whoever reads its output goes away (`| head`, `| tee` at Ctrl-C).
"""

import contextlib
import errno
import os
import re
import signal
import socket
import sys
import threading


class UserError(Exception):
  """Tells a user's mistake in one sentence, printed instead of a traceback.

  What in it cannot be printed, such as a line's end in a file's name, is escaped.
  """

  def __str__(self):
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


# What a disk, a machine or a user's path does. Not among them: what only a bug asks for, such as EBADF and EINVAL.
OUTSIDE_NAMES = (
  'ENOSPC EDQUOT EFBIG EIO EROFS EACCES EPERM ENAMETOOLONG EISDIR ENOTDIR ENOENT EEXIST ELOOP ENOTEMPTY EBUSY ETXTBSY '
  'EMFILE ENFILE ENOMEM ENXIO ENODEV ESTALE EILSEQ EXDEV ENOLCK EREMOTEIO EPIPE EAGAIN EADDRINUSE EADDRNOTAVAIL '
  'ECONNREFUSED ECONNRESET ECONNABORTED EHOSTUNREACH ENETUNREACH ENETDOWN ETIMEDOUT'
)
OUTSIDE = {getattr(errno, name) for name in OUTSIDE_NAMES.split() if hasattr(errno, name)}
MEMORY = 'the memory does not suffice: give smaller batches or a smaller network, or close other programs'


def outside_cause(error):
  """Returns what a user, a disk or a machine did that an exception tells of.

  None for any other exception, which may be a bug.
  """
  tensorflow = sys.modules.get('tensorflow')  # what has not been imported has raised nothing
  if isinstance(error, MemoryError):
    return MEMORY
  if isinstance(error, UnicodeError):
    return f'a name or a file is not text as it must be ({first_line(error)[:200]})'
  if isinstance(error, (socket.gaierror, socket.herror)):
    return f'the host is not known ({first_line(error.strerror or error)[:200]})'
  if isinstance(error, OSError):
    if error.errno == errno.ENOMEM:
      return MEMORY
    if error.errno not in OUTSIDE:
      return None
    files = [repr(os.fsdecode(f)) for f in (error.filename, error.filename2) if isinstance(f, (str, bytes))]
    return ': '.join([error.strerror, ' and '.join(files)] if files else [error.strerror]) + _way_out(error.errno)
  if tensorflow and isinstance(error, tensorflow.errors.OpError):
    message = re.sub(r'{{.*?}}', '', str(error.message))  # names of nodes and devices
    for number in OUTSIDE:
      found = re.search(rf"([^\s;'\"{{]*/[^;\n]*)?; {re.escape(os.strerror(number))}(?!\w)", message)
      if found:
        return os.strerror(number) + (f": '{found.group(1)}'" if found.group(1) else '') + _way_out(number)
    if isinstance(error, tensorflow.errors.ResourceExhaustedError):
      return f'{MEMORY} ({first_line(message)[:200]})'
  return None


def first_line(error):
  """Returns the first line of an error's text, its kind if it has none."""
  return str(error).strip().split('\n')[0] or type(error).__name__


def _way_out(number):
  """Returns what to do about an errno, the end of a sentence, or ''."""
  if number in (errno.ENOSPC, errno.EDQUOT):
    return ' (free some space, or write elsewhere)'
  if number == errno.EFBIG:
    return ' (the file system or ulimit -f allows no larger file)'
  if number in (errno.EMFILE, errno.ENFILE):
    return ' (raise ulimit -n)'
  return ''


class Terminated(KeyboardInterrupt):
  """Is raised, as Ctrl-C is, for a signal that asks a program to end."""

  def __init__(self, number):
    super().__init__()
    self.exit_code = 128 + number  # of the program


@contextlib.contextmanager
def handling(handler, numbers):
  """Gives signals a handler in a context."""
  before = {number: signal.signal(number, handler) for number in numbers}
  try:
    yield
  finally:
    for number, own in before.items():
      signal.signal(number, own)


def terminable():
  """Opens a context in which SIGTERM and SIGHUP are raised like Ctrl-C, unless ignored (nohup)."""

  def stop(number, frame):
    raise Terminated(number)

  numbers = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
  return handling(stop, [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL])


class Output:
  """Replaces a standard stream that may be written to if nobody reads it any more."""

  def __init__(self, stream, lasting):
    self._stream, self._lasting = stream, lasting
    self.error = None  # or the OSError of the first text that could not be written; it and all others are dropped

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text):
    """Writes a text."""
    return self._attempt(self._stream.write, text)

  def flush(self):
    """Writes what is buffered."""
    return self._attempt(self._stream.flush)

  def _attempt(self, function, *arguments):
    try:
      return function(*arguments)
    except OSError as e:
      self.error = self.error or e
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, self._stream.fileno())  # also for what is still buffered when Python ends
      os.close(nowhere)
      if not self._lasting:
        raise


@contextlib.contextmanager
def _outputs(lasting):
  """Opens a context in which stdout and stderr are Outputs; yields stdout."""
  before = sys.stdout, sys.stderr
  streams = [open(os.devnull, 'w', encoding='utf-8') if stream is None else stream for stream in before]
  for stream in streams:
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')  # a name that the console cannot show ends no program
  sys.stdout, sys.stderr = (Output(stream, lasting) for stream in streams)
  try:
    yield sys.stdout
  finally:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError):
        stream.flush()
    sys.stdout, sys.stderr = before


def run_program(name, run, lasting=False):
  """Runs a program and returns its exit code.

  With `python -X dev` a cause that is not the program's own shows its traceback, too.

  Args:
    name: of the program, before the sentence of a UserError.
    run: the program, a function without arguments.
    lasting: whether it goes on if nobody reads its output any more, since it writes files, too.

  Returns:
    0 done, also if whoever read the output has seen enough; 1 a UserError or an `outside_cause`, or the output could
    not be written; 130 interrupted; 128 and the signal's number for another signal.
  """
  if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # while a program was imported
    signal.signal(signal.SIGINT, signal.default_int_handler)
  with _outputs(lasting) as out:
    try:
      run()
      out.flush()
      if out.error is None or isinstance(out.error, BrokenPipeError):
        return 0
      sentence = f'the output could not be written ({outside_cause(out.error) or out.error})'
    except UserError as e:
      sentence = e
    except KeyboardInterrupt as e:
      return getattr(e, 'exit_code', 130)
    except BrokenPipeError:
      return 0
    except Exception as e:
      sentence = outside_cause(e)
      if sentence is None or sys.flags.dev_mode:
        raise
    print(f'{name}: {sentence}', file=sys.stderr)
    return 1


def program(name, **keywords):
  """Makes of a function of the arguments a program that returns an exit code."""
  return lambda function: lambda argv=None: run_program(name, lambda: function(argv), **keywords)


def last_line(output):
  """Returns the last line of a program's output that is not empty."""
  return ([line.strip() for line in output.splitlines() if line.strip()] or ['no output'])[-1]
