"""Finds the images in TFRecord files of tf.train.Examples without reading them.

They have the fields image/encoded and image/class/label, as tensorflow/models writes ILSVRC 2012.
"""

import glob
import mmap
import os

import numpy as np
from tqdm import tqdm

from splitnet.common.errors import UserError
from splitnet.common.files import whole_file
from splitnet.data import image_files


def files_of(data_dir, prefix):
  """Lists the TFRecord files of a subset in a folder, or in its folder of that name.

  Raises UserError if there are some, but not all.
  """
  for folder in (data_dir, os.path.join(data_dir, prefix)):
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), f'{prefix}-?????-of-?????')))
    if paths:
      count = int(paths[0][-5:])
      numbers = {int(path[-14:-9]) for path in paths}
      if numbers != set(range(count)):
        missing = min(set(range(count)) - numbers, default=count)
        raise UserError(f"'{folder}' lacks {prefix}-{missing:05d}-of-{count:05d}: copy it there too")
      return paths
  return []


def find_images(data_dir, subset, paths):
  """Finds out where the images of a subset are, once, and writes it down.

  Returns an int64 array [N, 4]: each one's file, label, and bytes before and of it. Raises UserError if a file
  is damaged.
  """
  stamps = image_files.stamps_digest('', [os.fsencode(os.path.abspath(path)) for path in paths])
  noted = image_files.notebook(data_dir, f'places-{subset}-{stamps}.npy')
  if not os.path.exists(noted):
    table = [
      (number, *row) for number, path in enumerate(tqdm(paths, f'finding the images of {subset}', disable=None))
      for row in _records_of(path)
    ]  # fmt: skip
    with whole_file(noted, 'wb') as f:
      np.save(f, np.array(table, np.int64))
  try:
    table = np.load(noted)
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 4:
      raise ValueError('it is no such table')
    return table
  except (OSError, ValueError, EOFError) as e:
    raise UserError(f"'{noted}' is damaged ({' '.join(str(e).split())}): remove it, and it is made anew") from e


def _records_of(path):
  """Yields each record's label, and the bytes before and of its image."""
  size = os.path.getsize(path)
  if not size:
    return
  with open(path, 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
    at = 0
    try:
      while at < size:
        begin = at + 12
        end = begin + int.from_bytes(content[at : at + 8], 'little')
        if end + 4 > size:
          raise ValueError('it is cut short')
        label, (first, last) = _example(content, begin, end)
        yield label, first, last - first
        at = end + 4
    except (ValueError, KeyError, IndexError, StopIteration, TypeError) as e:
      raise UserError(f"'{path}' is damaged, or no file of tensorflow/models' ILSVRC 2012, at byte {at} ({e})") from e


def _example(content, begin, end):
  """Returns label and (begin, end) of the image in a tf.train.Example."""
  found = {}  # what is skipped is not read from the disk
  for _, features in _fields(content, begin, end):
    for _, entry in _fields(content, *features):
      fields = dict(_fields(content, *entry))
      key = bytes(content[fields[1][0] : fields[1][1]])
      if key in (b'image/encoded', b'image/class/label'):
        _, values = next(_fields(content, *fields[2]))
        _, found[key] = next(_fields(content, *values))
  label = found[b'image/class/label']
  if isinstance(label, tuple):  # packed
    label = _varint(content, label[0])[0]
  return label, found[b'image/encoded']


def _fields(content, at, end):
  """Yields number and value, or (begin, end), of a protocol buffer's fields."""
  while at < end:
    tag, at = _varint(content, at)
    value, at = _varint(content, at)
    if tag & 7 == 2:
      value, at = (at, at + value), at + value
    elif tag & 7 or not tag >> 3:
      raise ValueError(f'a field {tag >> 3} of type {tag & 7}')
    if at > end:
      raise ValueError('a field is cut short')
    yield tag >> 3, value


def _varint(content, at):
  value = shift = 0
  while True:
    byte = content[at]
    value |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return value, at
