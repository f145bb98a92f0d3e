"""ILSVRC 2012 as people have it on their disks; also the program that unpacks the official archives.

  DIR/train/nXXXXXXXX/*.JPEG, DIR/val/nXXXXXXXX/*.JPEG    what `prepare` writes; torchvision's folders
  DIR/val/*.JPEG, flat                                    with LOC_val_solution.csv (Kaggle), the devkit (its folder or
                                                          its .tar.gz), val.txt (file and label a line), or
                                                          imagenet_2012_validation_synset_labels.txt in DIR
  DIR/ILSVRC/Data/CLS-LOC/{train,val}                     Kaggle's archive
  DIR/{train,validation}-?????-of-?????                   TFRecords of tensorflow/models, also in folders of these names

The label of a class is the rank of its WordNet id, beginning with 0. A folder may have fewer of the 1000 classes; then
the rank is that among those it has. imagenet_classes.json has ids, names and superclasses.

The data set: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015, https://image-net.org
"""

import csv
import glob
import hashlib
import io
import json
import mmap
import os
import re
import shutil
import sys
import tarfile

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
from tqdm import tqdm

from splitnet.common import schema
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import check_folder, whole_file
from splitnet.common.flags import Parser
from splitnet.data import image_files, safe_tar
from splitnet.data.batches import ClassNames
from splitnet.data.images import Crops, ImageFiles, make_dataset, normalize

prepare = normalize
IMAGE_SIZE = 224
CLASSES = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'imagenet_classes.json')
ID = re.compile(r'n\d{8}')
# Name, bytes and MD5 of the official archives.
ARCHIVES = {
  'train_tar': ('ILSVRC2012_img_train.tar', 147897477120, '1d675b47d978889d74fa0da5fadfb00e'),
  'val_tar': ('ILSVRC2012_img_val.tar', 6744924160, '29b22e2961454d5413ddabcf34fc5622'),
  'devkit': ('ILSVRC2012_devkit_t12.tar.gz', None, 'fa75699e90414af021442c21a62c3abf'),
}
BLOCK = 4096  # bytes that a file takes at least on most disks
WAYS = 'unpack the official archives with `python imagenet.py prepare`, or see docs/data.md for what else is read'


# --- the classes -------------------------------------------------------------------------------------------------


def read_classes():
  """Reads imagenet_classes.json: its dict."""
  with open(CLASSES, encoding='utf-8') as f:
    return json.load(f)


def class_names(ids):
  """Returns the ClassNames of some classes.

  Args:
    ids: their WordNet ids, sorted.
  """
  content = read_classes()
  by_id = {row[0]: row for row in content['classes']}
  first = [by_id[key][1].split(', ')[0] for key in ids]
  fine = [f'{name} ({key})' if first.count(name) > 1 else name for name, key in zip(first, ids)]
  superclasses = np.array([by_id[key][2] for key in ids])
  used, fine_to_coarse = np.unique(superclasses, return_inverse=True)
  coarse = [content['superclasses'][i] for i in used]
  return ClassNames(fine, coarse, fine_to_coarse, {'source': 'imagenet'}, list(ids))


# --- the images --------------------------------------------------------------------------------------------------


def open_dataset(settings):
  """Opens ILSVRC 2012 for the programs: a DataSet.

  Its images are not decoded beforehand, but with `skip_damaged` they are, once.

  Args:
    settings: a DataSettings with the `data_dir`.

  Raises:
    UserError: the images or the labels of the validation images are missing.
  """
  data_dir = settings.data_dir
  if data_dir is None:
    raise UserError(f'--data_dir is missing: {WAYS}')
  size = settings.image_size or IMAGE_SIZE
  crops = Crops.of_size(size, settings.min_crop_area)
  records = {'train': _record_files(data_dir, 'train'), 'val': _record_files(data_dir, 'validation')}
  notes = []
  if records['train']:
    ids, subsets = _read_records(data_dir, records, crops)
  else:
    ids, subsets = _read_folders(data_dir, crops)
  if settings.skip_damaged:
    for subset, data in subsets.items():
      kept, note = image_files.leave_out(data.root, data.files, True, data.places)
      subsets[subset] = data.take(kept)
      notes += [note] if note else []
  if len(ids) < len(read_classes()['classes']):
    notes.append(f"'{data_dir}' has {len(ids)} of the {len(read_classes()['classes'])} classes")
  return make_dataset(class_names(ids), subsets, settings, size, notes)


def _read_folders(data_dir, crops):
  """Returns the ids of the classes, and a dict from subset to ImageFiles."""
  root = next(
    (path for path in (os.path.join(data_dir, *below) for below in ((), ('ILSVRC', 'Data', 'CLS-LOC'),
                                                                     ('Data', 'CLS-LOC')))
     if os.path.isdir(os.path.join(path, 'train'))), None,
  )  # fmt: skip
  if root is None:
    raise UserError(f"there is no ILSVRC 2012 in '{data_dir}' (no folder train, no TFRecords): {WAYS}")
  ids = [name for name in image_files.folders_in(os.path.join(root, 'train')) if ID.fullmatch(name)]
  _check_ids(ids, os.path.join(root, 'train'))
  rank = {key: i for i, key in enumerate(ids)}
  rows = [(os.path.join(b'train', key.encode(), file), rank[key])
          for key in ids for file in image_files.images_in(os.path.join(root, 'train', key))]  # fmt: skip
  subsets = {'train': _image_files(root, rows, crops)}
  empty = np.flatnonzero(np.bincount(subsets['train'].labels, minlength=len(ids)) == 0)
  if len(empty):
    raise UserError(f"'{os.path.join(root, 'train', ids[empty[0]])}' holds no images: unpack it again, or remove it")
  if os.path.isdir(os.path.join(root, 'val')):
    subsets['val'] = _image_files(root, _list_validation(data_dir, root, rank), crops)
  return ids, subsets


def _check_ids(ids, path):
  """Checks that there are classes, and of ILSVRC only."""
  known = {row[0] for row in read_classes()['classes']}
  other = [key for key in ids if key not in known]
  if other or len(ids) < 2:
    what = f"'{other[0]}' in '{path}' is none of the 1000 classes" if other else f"'{path}' has {len(ids)} classes"
    raise UserError(f'{what}; --dataset image_folder reads any folders of images')


def _image_files(root, rows, crops, places=None):
  files = np.array([file for file, _ in rows], object)
  return ImageFiles(root, files, np.array([label for _, label in rows], np.int32), crops, places)


def _list_validation(data_dir, root, rank):
  """Returns the validation images that are of the classes: list of (file, label)."""
  folder = os.path.join(root, 'val')
  below = [key for key in image_files.folders_in(folder) if ID.fullmatch(key)]
  if below:
    rows = [(os.path.join(b'val', key.encode(), file), rank[key])
            for key in below if key in rank for file in image_files.images_in(os.path.join(folder, key))]  # fmt: skip
  else:
    names = image_files.images_in(folder)
    folders = [data_dir, root, os.path.dirname(os.path.abspath(data_dir))]
    id_of = _validation_ids(folders, [os.fsdecode(name) for name in names])
    keys = [id_of.get(os.fsdecode(name).partition('.')[0]) for name in names]
    missing = [name for name, key in zip(names, keys) if key is None]
    if missing:
      raise UserError(f"the labels in '{data_dir}' have none for {image_files.quoted(missing[0])} in '{folder}'")
    rows = [(os.path.join(b'val', name), rank[key]) for name, key in zip(names, keys) if key in rank]
  if not rows:
    raise UserError(f"'{folder}' holds no images of the classes in '{os.path.join(root, 'train')}'")
  return rows


def _validation_ids(folders, names):
  """Returns the WordNet id of each validation image of a flat folder: dict from file name without ending to id.

  Args:
    folders: where the labels may be; names: sorted names of the files.
  """

  def find(*spellings):
    paths = [os.path.join(folder, name) for folder in folders for name in spellings]
    return next((path for path in paths if os.path.exists(path)), None)

  path = find('LOC_val_solution.csv')
  if path:
    rows = list(csv.reader(_read(path).splitlines()))
    return {row[0]: row[1].split()[0] for row in rows[1:] if len(row) > 1 and row[1].strip()}
  path = find('val.txt')
  if path:
    ids = [row[0] for row in read_classes()['classes']]
    try:
      rows = [line.split() for line in _read(path).splitlines() if line.strip()]
      return {os.path.basename(row[0]).partition('.')[0]: ids[int(row[1])] for row in rows}
    except (ValueError, IndexError) as e:
      raise UserError(f"'{path}' is damaged ({e}): a line must be such as 'ILSVRC2012_val_00000001.JPEG 65'") from e
  stems = [name.partition('.')[0] for name in names]
  path = find('imagenet_2012_validation_synset_labels.txt')
  if path:
    return _in_order(stems, _read(path).split(), path)
  path = find('meta.mat', 'data/meta.mat', 'ILSVRC2012_devkit_t12/data/meta.mat', ARCHIVES['devkit'][0])
  if path:
    return _in_order(stems, read_devkit(path if path.endswith('.gz') else os.path.dirname(path)), path)
  raise UserError(
    f"'{folders[0]}' has validation images in one folder, but not their labels: put {ARCHIVES['devkit'][0]} there, or "
    "Kaggle's LOC_val_solution.csv"
  )


def _in_order(stems, ids, path):
  """Pairs the sorted names with ids; official names say which number they have, should some be missing."""
  numbers = [re.fullmatch(r'ILSVRC2012_val_(\d{8})', stem) for stem in stems]
  if all(numbers) and all(1 <= int(match.group(1)) <= len(ids) for match in numbers):
    return {match.group(0): ids[int(match.group(1)) - 1] for match in numbers}
  if len(stems) != len(ids):
    raise UserError(f"'{path}' has labels of {len(ids)} validation images, but there are {len(stems)}")
  return dict(zip(stems, ids))


def _read(path):
  try:
    with open(path, encoding='utf-8') as f:
      return f.read()
  except (OSError, ValueError) as e:
    raise UserError(f"'{path}' cannot be read ({e}): copy it anew") from e


def read_devkit(path):
  """Reads the WordNet ids of the validation images, in the order of their names, from the devkit.

  Args:
    path: its .tar.gz, or the folder of meta.mat and ILSVRC2012_validation_ground_truth.txt.

  Raises:
    UserError: it is missing or damaged.
  """
  import scipy.io

  truth, meta = 'ILSVRC2012_validation_ground_truth.txt', 'meta.mat'
  try:
    if os.path.isdir(path):
      contents = {name: schema.read_bytes(os.path.join(path, name), 1 << 26) for name in (truth, meta)}
    else:
      contents = safe_tar.read_members(path, None, (truth, meta), 'download it again')
    synsets = scipy.io.loadmat(io.BytesIO(contents[meta]), squeeze_me=True, struct_as_record=True)['synsets']
    id_of = {int(synset['ILSVRC2012_ID']): str(synset['WNID']) for synset in synsets}
    return [id_of[int(number)] for number in contents[truth].split()]
  except Exception as e:  # a damaged matrix raises what it likes
    raise UserError(f"the devkit '{path}' is damaged, or not ILSVRC 2012's ({' '.join(str(e).split())})") from e


# --- TFRecords ---------------------------------------------------------------------------------------------------


def _record_files(data_dir, prefix):
  """Lists the TFRecord files of a subset.

  Raises:
    UserError: there are some, but not all.
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


def _read_records(data_dir, records, crops):
  """Returns the ids of the classes, and a dict from subset to ImageFiles; finds the images once, and notes where."""
  tables = {subset: _record_table(data_dir, subset, paths) for subset, paths in records.items() if paths}
  every = [row[0] for row in read_classes()['classes']]
  present = np.unique(tables['train'][:, 1])
  if len(present) < 2 or not 1 <= present[0] <= present[-1] <= len(every):
    what = f'labels {present[0]} to {present[-1]}' if len(present) else 'no images'
    raise UserError(f"the TFRecords in '{data_dir}' have {what} instead of several labels from 1 to {len(every)}")
  rank = np.full(len(every) + 1, -1)
  rank[present] = np.arange(len(present))
  subsets = {}
  for subset, table in tables.items():
    table = table[rank[table[:, 1]] >= 0]
    names = np.array([os.fsencode(os.path.relpath(path, data_dir)) for path in records[subset]], object)
    subsets[subset] = ImageFiles(
      data_dir, names[table[:, 0]], rank[table[:, 1]].astype(np.int32), crops, table[:, 2:].astype(np.int64)
    )
  return [every[label - 1] for label in present], subsets


def _record_table(data_dir, subset, paths):
  """Returns where the images are: int64 [N, 5], each file, label, and bytes before, of and behind it."""
  stamps = image_files.stamps_digest('', [os.fsencode(os.path.abspath(path)) for path in paths])
  noted = image_files.notebook(data_dir, f'records-{subset}-{stamps}.npy')
  if not os.path.exists(noted):
    table = [
      (number, *row) for number, path in enumerate(tqdm(paths, f'finding the images of {subset}', disable=None))
      for row in _records_of(path)
    ]  # fmt: skip
    with whole_file(noted, 'wb') as f:
      np.save(f, np.array(table, np.int64))
  try:
    table = np.load(noted)
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 5:
      raise ValueError('it is no such table')
    return table
  except (OSError, ValueError, EOFError) as e:
    raise UserError(f"'{noted}' is damaged ({' '.join(str(e).split())}): remove it, and it is made anew") from e


def _records_of(path):
  """Yields label, and bytes before, of and behind its image, for every record of a TFRecord file."""
  size = os.path.getsize(path)
  if not size:
    return
  with open(path, 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
    at = 0
    try:
      while at < size:
        length = int.from_bytes(content[at : at + 8], 'little')
        begin, end = at + 12, at + 12 + length
        if end + 4 > size:
          raise ValueError('it is cut short')
        label, (first, last) = _example(content, begin, end)
        yield label, first, last - first, size - last
        at = end + 4
    except (ValueError, KeyError, IndexError, StopIteration, TypeError) as e:
      raise UserError(f"'{path}' is damaged, or no file of tensorflow/models' ILSVRC 2012, at byte {at} ({e})") from e


def _example(content, begin, end):
  """Returns label, and begin and end of the image, in a tf.train.Example; what it skips is not read from the disk."""
  found = {}
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
  """Yields number, and value (an int) or begin and end, of every field of a protocol buffer's message."""
  while at < end:
    tag, at = _varint(content, at)
    value, at = _varint(content, at)
    if tag & 7 == 2:
      value, at = (at, at + value), at + value
    elif tag & 7 != 0:
      raise ValueError(f'a field of type {tag & 7}')
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


# --- the program -------------------------------------------------------------------------------------------------


class _Verified(io.RawIOBase):
  """Reads a file, computing its MD5 and moving a progress bar."""

  def __init__(self, path, title):
    self._file, self.md5 = open(path, 'rb', buffering=0), hashlib.md5(usedforsecurity=False)
    self._bar = tqdm(total=os.path.getsize(path), unit='B', unit_scale=True, desc=title, disable=None)

  def readable(self):
    return True

  def readinto(self, buffer):
    count = self._file.readinto(buffer)
    self.md5.update(memoryview(buffer)[:count])
    self._bar.update(count)
    return count

  def close(self):
    self._file.close()
    self._bar.close()
    super().close()


def _unpack(path, name, md5, add):
  """Reads a tar once: calls `add(tar, member)` for every file, then compares its MD5.

  Raises:
    UserError: it is not the official archive.
  """
  with _Verified(path, name) as verified, io.BufferedReader(verified, 1 << 20) as stream:
    try:
      with tarfile.open(fileobj=stream, mode='r|', bufsize=1 << 20) as tar:
        for member in tar:
          if member.isfile():
            add(tar, member)
      while stream.read(1 << 20):
        pass
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as e:
      raise UserError(f"'{path}' is no tar archive, or cut short or damaged ({e}): download it again") from e
    found = verified.md5.hexdigest()
  if found != md5:
    raise UserError(f"'{path}' has the MD5 checksum {found} instead of {md5}: download it again")


def _save(tar, member, path):
  """Writes one file of a tar; one that is there already is whole if it has its size."""
  if not os.path.exists(path) or os.path.getsize(path) != member.size:
    with open(path, 'wb') as f:
      shutil.copyfileobj(tar.extractfile(member), f, 1 << 20)


def prepare_train(path, folder):
  """Unpacks the training archive, a tar of one tar per class, into folder/train, whole or not at all; resumes."""
  part = os.path.join(folder, 'train.part')

  def add(tar, member):
    key = member.name.removesuffix('.tar')
    if not ID.fullmatch(key):
      raise UserError(f"'{path}' holds '{member.name}', which is no class of ILSVRC 2012: give the official archive")
    done = os.path.join(part, key)
    if os.path.exists(done):
      return
    shutil.rmtree(done + '.part', ignore_errors=True)  # of an interrupted run
    os.makedirs(done + '.part')
    with tarfile.open(fileobj=tar.extractfile(member), mode='r|') as images:
      for image in images:
        if not re.fullmatch(key + r'_\d+\.JPEG', image.name) or not image.isfile():
          raise UserError(f"'{path}' holds '{image.name}' in '{member.name}': give the official archive")
        _save(images, image, os.path.join(done + '.part', image.name))
    os.replace(done + '.part', done)

  _make_whole('train_tar', path, part, os.path.join(folder, 'train'), add)


def prepare_val(path, devkit, folder):
  """Unpacks the validation archive into folder/val, one folder per class, whole or not at all; resumes."""
  part, ids = os.path.join(folder, 'val.part'), read_devkit(devkit)

  def add(tar, member):
    match = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', member.name)
    if not match or not 1 <= int(match.group(1)) <= len(ids):
      raise UserError(f"'{path}' holds '{member.name}', which the devkit has no label of: give the official archives")
    key = os.path.join(part, ids[int(match.group(1)) - 1])
    os.makedirs(key, exist_ok=True)
    _save(tar, member, os.path.join(key, member.name))

  _make_whole('val_tar', path, part, os.path.join(folder, 'val'), add)


def _make_whole(flag, path, part, final, add):
  name, _, md5 = ARCHIVES[flag]
  os.makedirs(part, exist_ok=True)
  try:
    _unpack(path, name, md5, add)
  except UserError:
    shutil.rmtree(part, ignore_errors=True)  # of a wrong archive nothing is to be resumed
    raise
  os.sync()
  os.replace(part, final)


def check_archives(flags):
  """Checks, before the hour that unpacking takes, that archives are there, of the right size, and fit the disk.

  Raises:
    UserError: they are not.
  """
  needed = 0
  for flag, (name, size, md5) in ARCHIVES.items():
    path = getattr(flags, flag)
    if path is None:
      continue
    if not os.path.isfile(path):
      raise UserError(f"--{flag}: there is no file '{path}': give the path of {name}")
    found = os.path.getsize(path)
    if size is not None and found != size:
      raise UserError(f"--{flag}: '{path}' has {found} bytes, but {name} has {size}: download it again")
    if flag == 'devkit':
      with open(path, 'rb') as f:
        actual = hashlib.md5(f.read(), usedforsecurity=False).hexdigest()
      if actual != md5:
        raise UserError(f"--devkit: '{path}' has the MD5 checksum {actual} instead of {md5}: download it again")
    elif not os.path.exists(os.path.join(flags.data_dir, flag.removesuffix('_tar'))):
      part = os.path.join(flags.data_dir, flag.removesuffix('_tar') + '.part')
      needed += found - _bytes_in(part) + found // 100_000 * BLOCK // 2  # an image has 100 kB or so
  free = shutil.disk_usage(flags.data_dir).free
  if needed > free:
    raise UserError(
      f"--data_dir: unpacking takes {needed / 1e9:.1f} GB, but '{flags.data_dir}' has {free / 1e9:.1f} GB left: free "
      'some, or name a folder on another disk'
    )


def _bytes_in(folder):
  return sum(os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(folder) for name in names)


def parse_flags(argv=None):
  """Parses the command line; a wrong one ends the program with exit code 2."""
  parser = Parser(
    'Unpacks the official archives of ILSVRC 2012 (https://image-net.org, 155 GB) into DIR/train and DIR/val, one\n'
    'folder per class, verifies their MD5 checksums, and goes on if it was interrupted.'
  )
  parser.add_argument('command', choices=['prepare'], help='what to do')
  add = parser.add_argument
  for flag, (name, *_) in ARCHIVES.items():
    needs = ', which --val_tar needs' if flag == 'devkit' else ''
    add(f'--{flag}', metavar='FILE', help=f'path of {name}{needs}')
  add('--data_dir', default='imagenet', metavar='DIR', help='folder for the images, made if need be [%(default)s]')
  flags = parser.parse_args(argv)
  if not flags.train_tar and not flags.val_tar:
    parser.error('nothing to do: give --train_tar FILE, --val_tar FILE with --devkit FILE, or all three')
  if flags.val_tar and not flags.devkit:
    parser.error('--val_tar needs --devkit FILE, which says of what classes the validation images are')
  return flags


def run(flags):
  """Brings --data_dir to what the flags ask for; UserError if that cannot be done."""
  check_folder('--data_dir', flags.data_dir)
  check_archives(flags)
  try:
    for flag in ('val_tar', 'train_tar'):  # the smaller first: a mistake shows sooner
      path, final = getattr(flags, flag), os.path.join(flags.data_dir, flag.removesuffix('_tar'))
      if path and os.path.exists(final):
        print(f"already done: '{final}'")
      elif path:
        if flag == 'train_tar':
          prepare_train(path, flags.data_dir)
        else:
          prepare_val(path, flags.devkit, flags.data_dir)
        print(f"wrote '{final}'")
  except BrokenPipeError:
    raise
  except OSError as e:
    raise UserError(
      f"cannot write to --data_dir '{flags.data_dir}' ({e}): free some space or change its mode, and run again to go on"
    ) from e
  except KeyboardInterrupt:
    print('interrupted: run again to go on', file=sys.stderr)
    raise


def main(argv=None):
  """Runs the program; returns its exit code."""
  return run_program('imagenet.py', lambda: run(parse_flags(argv)))


if __name__ == '__main__':
  sys.exit(main())
