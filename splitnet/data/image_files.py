"""Finds image files in folders, and tells before the first step what is damaged.

What is learned about a folder of images (how it is divided, which files have been checked) is written down beside it,
in `.splitnet`, or in the user's cache if the folder cannot be written.
"""

import collections
import concurrent.futures
import hashlib
import json
import os
import stat
import struct

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from splitnet.common import schema
from splitnet.common.errors import UserError
from splitnet.common.files import write_json

MAX_PIXELS = 100_000_000  # of an image: more would take the memory of a whole batch
MAX_BYTES = 1 << 28
MIN_SIDE = 8
MAX_ASPECT = 20  # longer side by shorter side
UNREADABLE = 'cannot be read'
MAX_NOTES = 1 << 30  # bytes of what is known of the images; of a million 80 MB
NAMED = 10  # damaged images that a message names
EXTENSIONS = (
  'jpg', 'jpeg', 'jpe', 'jfif', 'png', 'gif', 'bmp', 'webp', 'tif', 'tiff', 'heic', 'heif', 'avif', 'ppm', 'pgm', 'jp2',
)  # fmt: skip
OTHER_FORMATS = {
  b'GIF8': 'a GIF', b'BM': 'a BMP', b'II*\0': 'a TIFF', b'MM\0*': 'a TIFF', b'RIFF': 'a WebP',
  b'\0\0\0\x0cjP': 'a JPEG 2000',
}  # fmt: skip

# An image that cannot be used: its number among those that were checked, its name, and the end of a sentence.
Fault = collections.namedtuple('Fault', 'index name reason')


def quoted(path):
  """Returns a path in quotation marks for a message, whatever characters are in it."""
  text = os.fsdecode(path)
  return f"'{text}'" if text.isprintable() else ascii(text)


def text_of(file):
  """Returns the path of a file, bytes, as text that JSON can hold."""
  return file.decode('utf-8', 'backslashreplace')


# --- one file ----------------------------------------------------------------------------------------------------


def fault(path, place=None):
  """Returns why a file is no image that can be decoded, the end of a sentence.

  None if it is one. `place` are the bytes before the image in it and of it; None: the file is the image.
  """
  try:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
      return 'is no file'
    if place is None and status.st_size > MAX_BYTES:
      return f'has {status.st_size} bytes, and at most {MAX_BYTES} are read'
    with open(path, 'rb') as f:
      if place is not None:
        f.seek(place[0])
      contents = f.read() if place is None else f.read(int(place[1]))
  except OSError as e:
    return f'{UNREADABLE} ({e.strerror})'
  if not contents:
    return 'is empty'
  size = _size_of_jpeg(contents) if contents[:2] == b'\xff\xd8' else _size_of_png(contents)
  if size is None:
    return f'is {_format(contents)}, and only JPEG and PNG are read'
  height, width = size
  if height * width > MAX_PIXELS:
    return f'has {width} x {height} pixels, and at most {MAX_PIXELS // 10**6} million are read'
  if min(height, width) < MIN_SIDE:
    return f'has {width} x {height} pixels, and at least {MIN_SIDE} a side are needed'
  if max(height, width) > MAX_ASPECT * min(height, width):
    return f'has {width} x {height} pixels: its longer side is more than {MAX_ASPECT} times the shorter one'
  try:
    with tf.device('/CPU:0'):
      tf.io.decode_image(contents, channels=3, expand_animations=False)
  except (tf.errors.OpError, ValueError):
    return 'is cut short or damaged'
  return None


def _size_of_jpeg(contents):
  """Returns height and width; MIN_SIDE if decoding will tell what is wrong."""
  at = 2
  while at + 9 <= len(contents) and contents[at] == 0xFF:
    marker = contents[at + 1]
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      return struct.unpack_from('>HH', contents, at + 5)
    if marker == 0xFF:  # a byte that fills
      at += 1
    elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # a marker alone
      at += 2
    else:
      at += 2 + struct.unpack_from('>H', contents, at + 2)[0]
  return MIN_SIDE, MIN_SIDE


def _size_of_png(contents):
  """Returns height and width, or None if it is no PNG."""
  if contents[:8] != b'\x89PNG\r\n\x1a\n':
    return None
  if len(contents) < 24:
    return MIN_SIDE, MIN_SIDE  # decoding will tell
  width, height = struct.unpack_from('>II', contents, 16)
  return height, width


def _format(contents):
  """Tells what a file is that is neither JPEG nor PNG."""
  for beginning, name in OTHER_FORMATS.items():
    if contents.startswith(beginning):
      return name
  if contents[4:8] == b'ftyp':
    return 'a HEIC, AVIF or video'
  return 'a text' if all(32 <= byte < 127 or byte in b'\t\r\n' for byte in contents[:64]) else 'no image'


# --- a folder ----------------------------------------------------------------------------------------------------


def folders_in(path):
  """Lists the folders in a folder, sorted, without hidden ones."""
  return sorted(entry.name for entry in _entries(path) if _is_folder(entry))


def images_in(path):
  """Lists the files in a folder whose names are those of images: sorted, bytes."""
  entries = [entry for entry in _entries(path) if is_image_name(entry.name) and not _is_folder(entry)]
  return sorted(os.fsencode(entry.name) for entry in entries)


def is_image_name(name):
  """Returns whether a name is that of an image file that is not hidden."""
  return name[0] != '.' and name.rpartition('.')[2].lower() in EXTENSIONS


def _entries(path):
  try:
    with os.scandir(path) as entries:
      return [entry for entry in entries if entry.name[0] != '.']
  except OSError as e:
    raise UserError(f'the folder {quoted(path)} cannot be read ({e.strerror}): name another, or change its mode') from e


def _is_folder(entry):
  try:
    return entry.is_dir()
  except OSError:  # a link in a circle
    return False


def notebook(data_dir, name):
  """Returns the path at which something about a folder of images is written down.

  Its own folder exists. Raises UserError if it cannot be written anywhere.
  """
  data_dir = os.path.realpath(data_dir)
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  elsewhere = os.path.join(cache, 'splitnet', hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16])
  for folder in (os.path.join(data_dir, '.splitnet'), elsewhere):
    try:
      os.makedirs(folder, exist_ok=True)
    except OSError:
      continue
    if os.access(folder, os.W_OK | os.X_OK):
      return os.path.join(folder, name)
  raise UserError(
    f"neither '{data_dir}' nor '{elsewhere}' can be written, where it is written down how the images are divided and "
    'which have been checked: set XDG_CACHE_HOME to a folder that can'
  )


def find_faults(data_dir, files, places=None):
  """Decodes every image that has not been checked before; returns the Faults.

  What was found is written down by name, size and time, so that a file is checked once.

  Args:
    data_dir: folder; files: paths of the images below it, bytes.
    places: as of image_batches.ImageFiles.
  """
  path = notebook(data_dir, 'checked.json')
  try:
    known = schema.parse_json(schema.read_bytes(path, MAX_NOTES), dict[str, tuple[list[int] | None, str | None]])
  except (OSError, ValueError):  # missing or damaged: all are checked
    known = {}
  paths = [os.path.join(os.fsencode(data_dir), file) for file in files]
  stamps = _stamps(paths)
  names = [text_of(file) for file in files]
  if places is not None:
    names = [f'{name} at byte {place[0]}' for name, place in zip(names, places)]
  new = [i for i, name in enumerate(names) if _is_stale(known.get(name), stamps[i])]
  if new:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      reasons = pool.map(lambda i: fault(paths[i], None if places is None else places[i]), new)
      for i, reason in zip(new, tqdm(reasons, 'checking', len(new), unit='image', disable=None, leave=False)):
        known[names[i]] = [stamps[i], reason]
    write_json(path, known)
  return [Fault(i, name, known[name][1]) for i, name in enumerate(names) if known[name][1]]


def leave_out(data_dir, files, skip_damaged, places=None):
  """Returns which images are to be read, and a sentence about the others.

  Returns (bool array [files], the sentence or None). Raises UserError if some are damaged, and `skip_damaged` does not
  say that they are to be left out.
  """
  faults = find_faults(data_dir, files, places)
  kept = np.ones(len(files), bool)
  if not faults:
    return kept, None
  report = notebook(data_dir, 'damaged.json')
  write_json(report, {name: reason for _, name, reason in faults})
  named = '; '.join(f'{quoted(name)} {reason}' for _, name, reason in faults[:NAMED])
  rest = f'; and {len(faults) - NAMED} more' if len(faults) > NAMED else ''
  what = f"{len(faults)} of the {len(files)} images in '{data_dir}' cannot be used: {named}{rest} (all in '{report}')"
  if not skip_damaged:
    raise UserError(
      f'{what}: mend or remove them, or leave them out with --skip_damaged True (a run that had them goes on only with '
      'them)'
    )
  kept[[index for index, _, _ in faults]] = False
  return kept, what + '; they are left out'


def stamps_digest(root, files):
  """Computes a digest of the sizes and times of files: 16 hexadecimal digits."""
  stamps = _stamps([os.path.join(os.fsencode(root), file) for file in files])
  return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]


def _is_stale(known, stamp):
  """Returns whether what is known of a file (its stamp, its fault) may be outdated."""
  return known is None or stamp is None or known[0] != stamp or (known[1] or '').startswith(UNREADABLE)


def _stamps(paths):
  """Returns size and time of every file, None of those that cannot be read."""
  known = {}  # a file may hold many images
  for path in paths:
    if path not in known:
      try:
        status = os.stat(path)
        known[path] = [status.st_size, status.st_mtime_ns]
      except OSError:
        known[path] = None
  return [known[path] for path in paths]
