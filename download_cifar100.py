"""Makes the CIFAR-100 split files: fetch (or read, or generate), verify, split, write.

Under --data_dir it leaves

  train.npz, val.npz, train_val.npz, test.npz
      images         uint8 [N, 32, 32, 3], RGB, 0-255
      labels         uint8 [N], fine class, 0-99
      coarse_labels  uint8 [N], superclass, 0-19
  names.json
      fine, coarse      the names of the 100 classes and of the 20 superclasses
      fine_to_coarse    for each of the 100 classes the number of its superclass
      source, seed, num_val_instance, images_per_class    where the files come from

train_val holds all training images in the archive's order; train and val are its two parts, each in that order again.
names.json is written last: where it is, the four others are whole.

The data set: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import argparse
import functools
import hashlib
import io
import json
import lzma
import os
import pickle
import posixpath
import re
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import six
from six.moves import http_client
from six.moves.urllib import error, request
from tqdm import tqdm

from splitnet.data import synthetic

URL = 'https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz'
SIZE = 169001437  # bytes
MD5 = 'eb9058c3a382ffc7106e4002c42a8d85'
TIMEOUT = 30  # seconds without a byte
TRIES = 5  # connections in one run

NUM_FINE = 100
NUM_COARSE = 20
TRAIN_ROWS = 50000
TEST_ROWS = 10000
ROW_BYTES = 3 * 32 * 32
MEMBERS = ('train', 'test', 'meta')
MAX_MEMBER_BYTES = 1 << 29  # the largest real one has 155 MB

SPLITS = ('train', 'val', 'train_val', 'test')
NAMES = 'names.json'
PROVENANCE = ('source', 'seed', 'num_val_instance', 'images_per_class')
MAX_IMAGES_PER_CLASS = 5000
OTHER_WAYS = 'pass --archive FILE to read a local copy of the archive, or --synthetic to generate images instead'


class DataError(Exception):
  """What went wrong and the way out, in one sentence for the user."""


# --- download ----------------------------------------------------------------------------------------------------


def download(path):
  """Fetches URL to `path`, going on from `path`.part where an earlier run stopped.

  The file gets its name only once its MD5 is right; one with a wrong MD5 is removed, lest it be resumed for ever.

  Raises:
    DataError: no connection, the connection keeps breaking, or the checksum is wrong.
    OSError: the disk is full or not writable.
  """
  part = path + '.part'
  reason = 'the connection closed'
  for _ in range(TRIES):
    have = _part_size(part)
    if have == SIZE:
      break
    try:
      _fetch(part, have)
    except (error.URLError, http_client.HTTPException, OSError) as e:
      if getattr(e, 'filename', None) == part:
        raise  # the disk, not the network
      reason = _one_line(e.reason if type(e) is error.URLError else e)
      if _part_size(part) == have:
        break  # nothing came: trying again at once would not help
  have = _part_size(part)
  if have != SIZE:
    kept = f'; the {have} of {SIZE} bytes that came are kept for the next run' if have else ''
    raise DataError(f'Could not download {URL} ({reason}{kept}): {OTHER_WAYS}.')
  found = md5_of(part)
  if found != MD5:
    os.remove(part)
    raise DataError(
      f'{URL} came with the MD5 checksum {found} instead of {MD5} and was removed: run again to fetch it anew, '
      f'or {OTHER_WAYS}.'
    )
  os.replace(part, path)


def _part_size(part):
  """Bytes in `part`, 0 where there is none; one longer than the archive is no beginning of it and is removed."""
  size = os.path.getsize(part) if os.path.exists(part) else 0
  if size > SIZE:
    os.remove(part)
    return 0
  return size


def _fetch(part, have):
  """Adds to `part`, which has `have` bytes, what one connection gives; raises the connection's own errors."""
  headers = {'Range': f'bytes={have}-'} if have else {}
  try:
    response = request.urlopen(request.Request(URL, headers=headers), timeout=TIMEOUT)
  except error.HTTPError as e:
    if e.code == 416:
      os.remove(part)  # the server has no such range: the next connection begins anew
    raise
  with response:
    begin, total = 0, response.headers.get('Content-Length')  # 200: all of it, whatever was asked for
    if response.getcode() == 206:
      match = re.match(r'bytes (\d+)-\d+/(\d+)$', response.headers.get('Content-Range', ''))
      if not match or int(match.group(1)) != have:
        raise http_client.HTTPException('the server sent another range than asked for')
      begin, total = have, match.group(2)
    if total is not None and int(total) != SIZE:
      # A login page, say: the .part must not begin with it.
      raise http_client.HTTPException(f'the server offers {total} bytes instead of {SIZE}')
    name = posixpath.basename(URL)
    with (
      open(part, 'ab' if begin else 'wb') as out,
      tqdm(total=SIZE, initial=begin, unit='B', unit_scale=True, desc=name) as bar,
    ):
      while begin < SIZE:
        chunk = response.read(1 << 18)
        if not chunk:
          break
        try:
          out.write(chunk)
        except OSError as e:
          e.filename = part
          raise
        begin += len(chunk)
        bar.update(len(chunk))


def md5_of(path):
  """MD5 of a file, as 32 hexadecimal digits."""
  digest = hashlib.md5(usedforsecurity=False)
  with open(path, 'rb') as f:
    for chunk in iter(lambda: f.read(1 << 20), b''):
      digest.update(chunk)
  return digest.hexdigest()


# --- pickles -----------------------------------------------------------------------------------------------------


class _StandIn:
  """Stands where a pickle names a function: it can be called, but not altered, which BUILD does to real ones."""

  __slots__ = ('_make',)

  def __init__(self, make):
    self._make = make

  def __call__(self, *args):
    return self._make(*args)

  def __setstate__(self, state):
    raise pickle.UnpicklingError('it alters a function')


class _Dtype:
  """What a pickle says of a dtype; only integers of 1 to 8 bytes are believed."""

  __slots__ = ('code', 'order')

  def __init__(self, code, *_):
    self.code, self.order = six.ensure_str(code), '|'
    if not re.match(r'[iu][1248]$', self.code):
      raise pickle.UnpicklingError(f'it holds an array of dtype {self.code}')

  def __setstate__(self, state):
    self.order = six.ensure_str(state[1])


class _Array:
  """What a pickle says of an array: NumPy's own unpickling, which also builds objects, has no part in it."""

  __slots__ = ('state',)

  def __init__(self, *_):
    self.state = None

  def __setstate__(self, state):
    self.state = state

  def numpy(self):
    _, shape, dtype, fortran, raw = self.state
    values = np.frombuffer(raw, np.dtype(dtype.code).newbyteorder(dtype.order))
    if any(side < 0 for side in shape):  # reshape would infer it
      raise pickle.UnpicklingError(f'it holds an array of shape {shape}')
    return values.reshape(shape, order='F' if fortran else 'C')


_STAND_INS = {
  ('numpy.core.multiarray', '_reconstruct'): _StandIn(_Array),
  ('numpy._core.multiarray', '_reconstruct'): _StandIn(_Array),  # NumPy 2
  ('numpy', 'ndarray'): _StandIn(_Array),
  ('numpy', 'dtype'): _StandIn(_Dtype),
  # So Python 3 writes bytes for Python 2.
  ('_codecs', 'encode'): _StandIn(lambda text, encoding: text.encode('latin-1')),
}


class _PlainUnpickler(pickle.Unpickler):
  """Builds lists, dicts, strings, numbers and the stand-ins of arrays; nothing a pickle names is ever imported."""

  def find_class(self, module, name):
    if (module, name) not in _STAND_INS:
      raise pickle.UnpicklingError(f'it names {module}.{name}')
    return _STAND_INS[module, name]


def load_pickle(data):
  """Reads a pickled dict of integer arrays, lists, strings and numbers without running anything that it names.

  Args:
    data: bytes of a pickle of Python 2 or 3.
  Returns:
    dict with str keys; arrays are np.ndarray, strings of Python 2 stay bytes.
  Raises:
    DataError: the bytes are no such pickle, or ask for anything else.
  """
  try:
    loaded = _PlainUnpickler(io.BytesIO(data), encoding='bytes').load()
    if not isinstance(loaded, dict):
      raise pickle.UnpicklingError('it holds no dict')
    return {six.ensure_str(key): value.numpy() if isinstance(value, _Array) else value for key, value in loaded.items()}
  except Exception as e:  # a hostile or damaged pickle raises whatever its opcodes lead to
    raise DataError(f'a pickle in it is refused: {_one_line(e)}') from None


# --- archive -----------------------------------------------------------------------------------------------------


def read_archive(path):
  """Reads a tar of CIFAR-100's Python layout and checks its content; nothing is extracted.

  Args:
    path: tar file, plain or compressed (.gz, .bz2, .xz), with cifar-100-python/{train,test,meta}.
  Returns:
    dict: `train_images`, `test_images` uint8 [N, 32, 32, 3]; `train_labels`, `test_labels` uint8 [N];
    `fine`, `coarse` lists of names; `fine_to_coarse` list of NUM_FINE ints.
  Raises:
    DataError: the file is missing, not a whole tar, dangerous, or its content is not CIFAR-100's.
  """
  found = _read_members(path)
  try:
    meta, train, test = (load_pickle(found.pop(member)) for member in ('meta', 'train', 'test'))
    data = {'fine': _names(meta, 'fine_label_names', NUM_FINE)}
    data['coarse'] = _names(meta, 'coarse_label_names', NUM_COARSE)
    data['train_images'], data['train_labels'], train_pairs = _rows(train, 'train', TRAIN_ROWS)
    data['test_images'], data['test_labels'], test_pairs = _rows(test, 'test', TEST_ROWS)
    data['fine_to_coarse'] = _fine_to_coarse(train_pairs, test_pairs)
  except DataError as e:
    raise DataError(f'{path} is not a CIFAR-100 archive ({e}): {_right_layout()}.') from None
  return data


def _right_layout():
  return (
    f'give a tar of cifar-100-python/{{train,test,meta}} with {TRAIN_ROWS} + {TEST_ROWS} images '
    f'in {NUM_FINE} classes of {NUM_COARSE} superclasses'
  )


def _read_members(path):
  """The pickles in the tar: {'train': bytes, 'test': bytes, 'meta': bytes}."""
  if not os.path.isfile(path):
    raise DataError(f'There is no file {path}: give --archive the path of a tar of CIFAR-100.')
  found = {}
  try:
    with tarfile.open(path, 'r:*') as tar:
      for member in tar:  # in the file's order: going back in a compressed file would start it anew
        _refuse_outside(path, member)
        folder, _, name = posixpath.normpath(member.name).rpartition('/')
        if folder == 'cifar-100-python' and name in MEMBERS and member.isfile():
          if member.size > MAX_MEMBER_BYTES:
            raise DataError(f'{path} has a member {member.name} of {member.size} bytes: {_right_layout()}.')
          found[name] = tar.extractfile(member).read()
  except PermissionError:
    raise DataError(f'{path} may not be read: change its mode or give another --archive.') from None
  except (tarfile.TarError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error):
    raise DataError(f'{path} is no tar archive, or cut short or damaged: give a whole one to --archive.') from None
  missing = [f'cifar-100-python/{name}' for name in MEMBERS if name not in found]
  if missing:
    raise DataError(f'{path} lacks {" and ".join(missing)}, or is cut short: {_right_layout()}.')
  return found


def _refuse_outside(path, member):
  """Raises DataError for a member, used here or not, that an honest archive of plain files would not have."""
  parts = re.split(r'[/\\]', member.name)
  plain = (member.isfile() and not member.issparse()) or member.isdir()
  if not plain or '..' in parts or parts[0] == '' or parts[0].endswith(':'):
    fault = 'points outside it' if plain else 'is a link, a device or sparse'
    raise DataError(f'{path} is refused because its member {member.name!r} {fault}: give a tar of plain files.')


def _names(meta, key, count):
  """The `count` different names under `key`, as str."""
  try:
    names = [six.ensure_str(name) for name in meta.get(key)]
  except (TypeError, UnicodeDecodeError):
    raise DataError(f'meta has no list of names {key}') from None
  if len(names) != count or len(set(names)) != count or '' in names:
    raise DataError(f'{key} of meta are {len(set(names))} different names in {len(names)} instead of {count}')
  return names


def _rows(batch, member, count):
  """Images uint8 [count, 32, 32, 3], labels uint8 [count], and the [n, 2] pairs of fine and coarse that occur."""
  images = batch.get('data')
  if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != (count, ROW_BYTES):
    found = f'{images.dtype} {images.shape}' if isinstance(images, np.ndarray) else 'no array'
    raise DataError(f'data of {member} is {found} instead of uint8 {(count, ROW_BYTES)}')
  fine = _labels(batch, member, 'fine_labels', count, NUM_FINE)
  coarse = _labels(batch, member, 'coarse_labels', count, NUM_COARSE)
  images = np.ascontiguousarray(images.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1))
  return images, fine, np.unique(np.stack([fine, coarse], axis=1), axis=0)


def _labels(batch, member, key, count, classes):
  """The labels under `key`, uint8 [count], each below `classes`."""
  try:
    labels = np.asarray(batch.get(key))
  except ValueError:  # lists of unequal lengths
    labels = np.empty(0)
  if labels.shape != (count,) or labels.dtype.kind not in 'iu':
    raise DataError(f'{key} of {member} is not a list of {count} integers')
  if labels.min() < 0 or labels.max() >= classes:
    raise DataError(f'{key} of {member} are {labels.min()} to {labels.max()} instead of 0 to {classes - 1}')
  return labels.astype(np.uint8)


def _fine_to_coarse(train_pairs, test_pairs):
  """Each class's superclass, from the pairs that occur: exactly one, and the same in train and test."""
  if train_pairs[:, 0].tolist() != list(range(NUM_FINE)):
    raise DataError(f'not every one of the {NUM_FINE} classes is in exactly one superclass')
  if len(set(train_pairs[:, 1].tolist())) != NUM_COARSE:
    raise DataError(f'not every one of the {NUM_COARSE} superclasses occurs')
  if not np.array_equal(train_pairs, test_pairs):
    raise DataError('test does not have the classes and superclasses of train')
  return train_pairs[:, 1].tolist()


# --- split files -------------------------------------------------------------------------------------------------


def split_indices(count, num_val, seed):
  """Draws `num_val` of `count` at random. Returns two sorted int arrays that part range(count): train, val."""
  order = np.random.RandomState(seed).permutation(count)
  return np.sort(order[num_val:]), np.sort(order[:num_val])


def write_split(data, data_dir, provenance):
  """Writes the five files, each whole or not at all, names.json last.

  Args:
    data: dict as read_archive returns it.
    data_dir: folder that exists.
    provenance: dict with the keys PROVENANCE.
  Raises:
    OSError: a file cannot be written; whatever carries a final name is whole nevertheless.
  """
  names = os.path.join(data_dir, NAMES)
  if os.path.exists(names):
    os.remove(names)  # first, so that it never vouches for a mixture of old and new files
  train, val = split_indices(len(data['train_labels']), provenance['num_val_instance'], provenance['seed'])
  coarse = np.asarray(data['fine_to_coarse'], np.uint8)
  for split, rows in (('train', train), ('val', val), ('train_val', slice(None)), ('test', slice(None))):
    part = 'test' if split == 'test' else 'train'
    images, labels = data[part + '_images'][rows], data[part + '_labels'][rows]
    write = functools.partial(np.savez, images=images, labels=labels, coarse_labels=coarse[labels])
    _write_whole(os.path.join(data_dir, split + '.npz'), write)
  text = json.dumps({**{key: data[key] for key in ('fine', 'coarse', 'fine_to_coarse')}, **provenance}, indent=1)
  _write_whole(names, lambda f: f.write(text.encode('utf-8')))


def _write_whole(path, write):
  """Calls `write(file)` on a temporary file beside `path`, which gets that name once it is whole on the disk."""
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    with open(temporary, 'wb') as f:
      write(f)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def is_done(data_dir, wanted):
  """Whether `data_dir` holds, whole and readable, the files that `wanted` (a dict with keys PROVENANCE) asks for.

  Raises:
    DataError: it holds another data set or split, which is not to be overwritten unasked.
  """
  names = os.path.join(data_dir, NAMES)
  if not os.path.exists(names):
    return False
  try:
    with open(names, 'rb') as f:
      held = json.loads(f.read().decode('utf-8'))
    held = {key: held[key] for key in PROVENANCE}
  except (ValueError, KeyError, TypeError):
    raise DataError(f'{names} is not of this program: pass --force to overwrite it, or another --data_dir.') from None
  if held != wanted:
    raise DataError(
      f'{data_dir} holds {describe(held)}, and what is asked for is {describe(wanted)}: '
      f'pass --force to overwrite it, or another --data_dir.'
    )
  rows, num_val = NUM_FINE * wanted['images_per_class'], wanted['num_val_instance']
  counts = {'train': rows - num_val, 'val': num_val, 'train_val': rows}
  return all(_is_readable(os.path.join(data_dir, split + '.npz'), counts.get(split)) for split in SPLITS)


def _is_readable(path, count):
  """Whether `path` is a whole split file of `count` images (None: of any number)."""
  try:
    with np.load(path, allow_pickle=False) as f:
      images, labels, coarse = f['images'], f['labels'], f['coarse_labels']
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
    return False
  count = len(labels) if count is None else count
  return images.shape == (count, 32, 32, 3) and labels.shape == coarse.shape == (count,)


def describe(provenance):
  """A few words that say which data set and split `provenance` is."""
  return (
    'the {source} data set (seed {seed}, {num_val_instance} validation images, '
    '{images_per_class} training images per class)'
  ).format(**provenance)


# --- command line ------------------------------------------------------------------------------------------------


def _integer(low, high):
  """An argparse type: an integer from `low` to `high`."""

  def parse(text):
    value = int(text) if re.match(r'-?[0-9]+$', text) else None
    if value is None or not low <= value <= high:
      raise argparse.ArgumentTypeError(f'{text} is not an integer from {low} to {high}')
    return value

  return parse


def parse_flags(argv=None):
  """Parses the command line; a wrong one ends the program with a sentence and exit code 2."""
  parser = argparse.ArgumentParser(
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description='Fetches CIFAR-100 (169 MB), checks it, and writes the split files that training reads:\n'
    'train, val, train_val and test (.npz) and names.json, 340 MB together.',
    epilog='examples:\n'
    '  python download_cifar100.py\n'
    '  python download_cifar100.py --archive ~/Downloads/cifar-100-python.tar.gz\n'
    '  python download_cifar100.py --synthetic --images_per_class 100 --data_dir synthetic/train_val_split',
  )
  parser.add_argument(
    '--data_dir',
    default=os.path.join('cifar100', 'train_val_split'),
    metavar='DIR',
    help='folder for the split files, made if need be; a download is kept there too (default: %(default)s)',
  )
  source = parser.add_mutually_exclusive_group()
  source.add_argument(
    '--archive',
    metavar='FILE',
    help='read this tar (.tar, .tar.gz, .tar.bz2, .tar.xz) instead of the network; its content is '
    'checked, not its checksum',
  )
  source.add_argument(
    '--synthetic',
    action='store_true',
    help='generate images of 100 classes in 20 superclasses; needs neither network nor archive',
  )
  parser.add_argument(
    '--images_per_class',
    type=_integer(1, MAX_IMAGES_PER_CLASS),
    metavar='N',
    help=f'with --synthetic: training images per class, 1 to {MAX_IMAGES_PER_CLASS}, and a fifth as '
    'many test images, at least 1 (default: 500, as in CIFAR-100)',
  )
  parser.add_argument(
    '--num_val_instance',
    type=_integer(1, NUM_FINE * MAX_IMAGES_PER_CLASS),
    metavar='N',
    help="training images to set aside for validation (default: one tenth of them, which is 5000 of CIFAR-100's 50000)",
  )
  parser.add_argument(
    '--seed',
    type=_integer(0, 2**32 - 1),
    default=0,
    metavar='N',
    help='draws the validation images and, with --synthetic, the images themselves; the same seed '
    'gives the same files, byte for byte (default: %(default)s)',
  )
  parser.add_argument('--force', action='store_true', help='write the split files even if there are some already')
  flags = parser.parse_args(argv)
  if flags.images_per_class is not None and not flags.synthetic:
    parser.error(f'--images_per_class {flags.images_per_class} goes with --synthetic only: drop it or add --synthetic')
  return flags


def wanted_provenance(flags):
  """What `flags` ask for, defaults filled in. Raises DataError where no image would be left to train on."""
  rows = NUM_FINE * (flags.images_per_class or 500) if flags.synthetic else TRAIN_ROWS
  num_val = rows // 10 if flags.num_val_instance is None else flags.num_val_instance
  if num_val >= rows:
    raise DataError(
      f'--num_val_instance {num_val} leaves none of the {rows} training images to train on: give 1 to {rows - 1}.'
    )
  source = 'synthetic' if flags.synthetic else 'official' if flags.archive is None else 'archive'
  return {'source': source, 'seed': flags.seed, 'num_val_instance': num_val, 'images_per_class': rows // NUM_FINE}


def get_data(flags, images_per_class):
  """The data set that `flags` ask for, as read_archive returns it."""
  if flags.synthetic:
    print(f'Generating {NUM_FINE * images_per_class} training images and their test images ...', flush=True)
    return synthetic.make(images_per_class, flags.seed)
  archive = flags.archive
  if archive is None:
    archive = os.path.join(flags.data_dir, posixpath.basename(URL))
    if not os.path.exists(archive) or md5_of(archive) != MD5:
      download(archive)
  print(f'Reading {archive} ...', flush=True)
  return read_archive(archive)


def prepare(flags):
  """Brings --data_dir to what `flags` ask for. Raises DataError or OSError."""
  wanted = wanted_provenance(flags)
  if not flags.force and is_done(flags.data_dir, wanted):
    print(f'Already done: {flags.data_dir} holds {describe(wanted)}.')
    return
  os.makedirs(flags.data_dir, exist_ok=True)
  if not os.access(flags.data_dir, os.W_OK | os.X_OK):  # told before the minutes that fetching takes
    raise DataError(f'--data_dir {flags.data_dir} is not writable: change its mode or give another --data_dir.')
  data = get_data(flags, wanted['images_per_class'])
  write_split(data, flags.data_dir, wanted)
  print(f'Wrote {describe(wanted)} to {flags.data_dir}.')


def _one_line(e):
  return ' '.join(str(e).split()) or type(e).__name__


def main(argv=None):
  """Runs the program. Returns its exit code: 0 done, 1 a sentence on stderr says why not, 130 interrupted."""
  flags = parse_flags(argv)
  try:
    prepare(flags)
  except DataError as e:
    print(e, file=sys.stderr)
    return 1
  except OSError as e:
    print(
      f'Cannot write to --data_dir {flags.data_dir} ({_one_line(e)}): free some space, change its mode, '
      'or give another --data_dir.',
      file=sys.stderr,
    )
    return 1
  except MemoryError:
    print(
      'The memory does not suffice: close other programs, or give --synthetic a smaller --images_per_class.',
      file=sys.stderr,
    )
    return 1
  except KeyboardInterrupt:
    print('Interrupted: every file under its final name is whole; run again to go on.', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main())
