"""Writes files whole or not at all, and checks first that they can be written."""

import contextlib
import fcntl
import io
import json
import os
import re
import stat
import tempfile

from splitnet.common.errors import UserError

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

PROBE_BYTES = 1 << 16  # a folder that takes so many is not full


def is_stream(path):
  """Returns whether a path is a device, a pipe or a stream, which is never replaced."""
  if os.path.abspath(path).startswith(('/dev/fd/', '/dev/stdout', '/dev/stderr', '/proc/')):
    return True
  try:
    mode = os.stat(path).st_mode
  except (OSError, ValueError):
    return False
  return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def whole_file(path, mode='w'):
  """Opens a file for writing that gets its name only once it is whole on the disk.

  Until then it stands under a temporary name beside `path`; if the block fails, it is removed, and what `path` was
  before is there still. The folder is made if it is missing. A symbolic link is followed, and the file that it leads to
  replaced; an earlier file's permissions are kept. What is_stream calls a stream gets the content at the end. The mode
  is 'w' for text (UTF-8) or 'wb'; raises OSError.
  """
  text = {} if 'b' in mode else {'encoding': 'utf-8', 'errors': 'backslashreplace'}
  if is_stream(path):
    content = io.BytesIO() if 'b' in mode else io.StringIO()
    yield content
    with open(path, mode.replace('w', 'a'), **text) as f:
      f.write(content.getvalue())
    return
  path = os.path.realpath(path)
  folder, name = os.path.split(path)
  os.makedirs(folder, exist_ok=True)
  temporary = os.path.join(folder, f'{name[:50]}.{os.getpid()}.tmp')  # a name may be as long as names can be
  try:
    with open(temporary, mode, **text) as f:
      yield f
      f.flush()
      with contextlib.suppress(FileNotFoundError):
        os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
      os.fsync(f.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      os.remove(temporary)


def remove_leftovers(folder, names=None):
  """Removes what killed processes left of files that `whole_file` wrote in a folder.

  Only for whoever keeps the folder (`locked`), as another process may be writing one. `names` are a set of the files;
  None: any.
  """
  with contextlib.suppress(FileNotFoundError, NotADirectoryError):
    for name in os.listdir(folder):
      match = re.fullmatch(r'(.+)\.\d+\.tmp', name)
      if match and (names is None or match.group(1) in names):
        os.remove(os.path.join(folder, name))


@contextlib.contextmanager
def locked(folder, taken, name='lock'):
  """Makes a folder and keeps it for this process as long as the context lasts.

  The file `name` that is locked goes in the end and, if nothing has been written there, so do the folders that were
  made for it. Raises UserError, the sentence `taken`, if another process keeps it, and OSError if it cannot be written.
  """
  made, parent = [], os.path.abspath(folder)
  while not os.path.isdir(parent):
    made.append(parent)
    parent = os.path.dirname(parent)
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, name)
  while True:
    lock = open(path, 'a', encoding='utf-8')
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      lock.close()
      raise UserError(taken) from e
    except OSError:
      break  # a file system without locks
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
        break
    lock.close()  # whoever had it before has removed it: what is locked here is no file of the folder any more
    os.makedirs(folder, exist_ok=True)
  with lock:
    try:
      yield
    finally:
      with contextlib.suppress(OSError):
        os.remove(path)  # whoever has opened it meanwhile sees that it is gone
        for one in made:
          os.rmdir(one)  # fails if something is there


@contextlib.contextmanager
def plain_path(folder):
  """Opens a context with a path to a folder that TensorFlow takes for no pattern."""
  folder = os.path.abspath(folder)
  if not re.search(r'[][*?\\]', folder):
    yield folder
    return
  descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
  try:
    path = f'/proc/self/fd/{descriptor}'
    if not os.path.isdir(path):
      raise UserError(f"TensorFlow takes '{folder}' for a pattern: name a folder without [ ] * ? and \\")
    yield path
  finally:
    os.close(descriptor)


def write_text(path, text):
  """Writes a text file whole or not at all; raises OSError if it cannot be written."""
  with whole_file(path) as f:
    f.write(text)


def write_json(path, content):
  """Writes a JSON file whole or not at all; raises OSError if it cannot be written."""
  write_text(path, json.dumps(content, indent=1) + '\n')


def _reason(error):
  return getattr(error, 'strerror', None) or str(error)


@contextlib.contextmanager
def telling_of_output(flag, path):
  """Makes a failure to write a UserError that names the flag and the path."""
  try:
    yield
  except OSError as e:
    raise UserError(f"{flag}: '{path}' cannot be written ({_reason(e)})") from e


def check_folder(flag, path):
  """Makes the folder that a flag names, and checks by writing that it takes files.

  Raises UserError if not; the flag is for its text, such as '--out'.
  """
  if not path:
    raise UserError(f'{flag} is empty: name a folder')
  try:
    os.makedirs(path, exist_ok=True)
  except (OSError, ValueError) as e:
    raise UserError(f"{flag}: the folder '{path}' cannot be made ({_reason(e)}): name another") from e
  try:
    with tempfile.TemporaryFile(dir=path) as probe:
      probe.write(bytes(PROBE_BYTES))
  except OSError as e:
    raise UserError(
      f"{flag}: the folder '{path}' cannot be written to ({_reason(e)}): change that or name another"
    ) from e


def check_output_file(flag, path):
  """Checks that the file that a flag names can be written, and makes its folder.

  Raises UserError if not; the flag is for its text, such as '--output_file'.
  """
  if not path:
    raise UserError(f'{flag} is empty: name a file')
  try:
    mode = os.stat(path).st_mode
  except (FileNotFoundError, NotADirectoryError):
    mode = None
  except (OSError, ValueError) as e:  # a name too long, a link to itself
    raise UserError(f"{flag}: '{path}' cannot be written ({_reason(e)}): name another") from e
  if (mode and stat.S_ISDIR(mode)) or path.endswith('/'):
    raise UserError(f"{flag}: '{path}' is a folder; name a file in it")
  if is_stream(path):
    if mode and stat.S_ISBLK(mode):
      raise UserError(f"{flag}: '{path}' is a disk; name a file")
    if not os.access(path, os.W_OK):
      raise UserError(f"{flag}: '{path}' cannot be written to: name another")
    return
  check_folder(flag, os.path.dirname(os.path.realpath(path)))
