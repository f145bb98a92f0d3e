"""Writes files whole or not at all, and checks first that they can be written."""

import contextlib
import json
import os

from splitnet.common.errors import UserError

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@contextlib.contextmanager
def whole_file(path, mode='w'):
  """Opens a file for writing that gets its name only once it is whole on the disk.

  Until then it stands under a temporary name beside `path`; if the block fails, it is removed, and what `path` was
  before is there still. The folder is made if it is missing. The mode is 'w' for text (UTF-8) or 'wb'; raises OSError.
  """
  os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as f:
      yield f
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      os.remove(temporary)


def write_text(path, text):
  """Writes a text file whole or not at all; raises OSError if it cannot be written."""
  with whole_file(path) as f:
    f.write(text)


def write_json(path, content):
  """Writes a JSON file whole or not at all; raises OSError if it cannot be written."""
  write_text(path, json.dumps(content, indent=1) + '\n')


def read_json(path):
  """Reads a JSON file; raises OSError, or ValueError if it holds none."""
  with open(path, encoding='utf-8') as f:
    return json.load(f)


def check_folder(flag, path):
  """Makes the folder that a flag names and checks that files can be written there.

  Raises UserError if not; the flag is for its text, such as '--out'.
  """
  try:
    os.makedirs(path, exist_ok=True)
  except OSError as e:
    raise UserError(f"{flag}: the folder '{path}' cannot be made ({e.strerror}): name another") from e
  if not os.access(path, os.W_OK | os.X_OK):
    raise UserError(f"{flag}: the folder '{path}' cannot be written to: change its mode or name another")


def check_output_file(flag, path):
  """Checks that the file that a flag names can be written, and makes its folder.

  Raises UserError if not; the flag is for its text, such as '--output_file'.
  """
  check_folder(flag, os.path.dirname(path) or '.')
  if os.path.isdir(path):
    raise UserError(f"{flag}: '{path}' is a folder; name a file in it")
