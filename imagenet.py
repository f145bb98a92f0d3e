"""Reads ILSVRC 2012 as people have it; as a program unpacks its archives.

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

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import sys

from splitnet.common.flags import Parser, answer_early

# Name, bytes and MD5 of the official archives.
ARCHIVES = {
  'train_tar': ('ILSVRC2012_img_train.tar', 147897477120, '1d675b47d978889d74fa0da5fadfb00e'),
  'val_tar': ('ILSVRC2012_img_val.tar', 6744924160, '29b22e2961454d5413ddabcf34fc5622'),
  'devkit': ('ILSVRC2012_devkit_t12.tar.gz', None, 'fa75699e90414af021442c21a62c3abf'),
}


def make_parser():
  """Returns the parser of the flags."""
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
  return parser


if __name__ == '__main__':
  answer_early('imagenet.py', make_parser)

import csv
import io
import json
import os
import re
import shutil

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np

from splitnet.common import schema
from splitnet.common.errors import UserError, program
from splitnet.common.files import check_folder
from splitnet.data import image_archives, image_files, safe_tar, tfrecords
from splitnet.data.batches import ClassNames
from splitnet.data.download import md5_of
from splitnet.data.image_batches import ImageFiles, make_dataset
from splitnet.data.images import Crops, normalize

IMAGE_SIZE = 224
CLASSES = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'imagenet_classes.json')
ID = re.compile(r'n\d{8}')
prepare = normalize  # see dataset.py
WAYS = 'unpack the official archives with `python imagenet.py prepare`, or see docs/data.md for what else is read'


# --- the classes -------------------------------------------------------------------------------------------------


def read_classes():
  """Reads imagenet_classes.json: its dict."""
  with open(CLASSES, encoding='utf-8') as f:
    return json.load(f)


def class_names(ids):
  """Returns the ClassNames of the classes of some sorted WordNet ids."""
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
  """Opens the folder that DataSettings name, a DataSet.

  Its images are not decoded beforehand, but with `skip_damaged` they are, once. Raises UserError if the images or the
  labels of the validation images are missing.
  """
  data_dir = settings.data_dir
  if data_dir is None:
    raise UserError(f'--data_dir is missing: {WAYS}')
  size = settings.image_size or IMAGE_SIZE
  crops = Crops.of_size(size, settings.min_crop_area)
  records = {'train': tfrecords.files_of(data_dir, 'train'), 'val': tfrecords.files_of(data_dir, 'validation')}
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
  roots = (os.path.join(data_dir, *below) for below in ((), ('ILSVRC', 'Data', 'CLS-LOC'), ('Data', 'CLS-LOC')))
  root = next((path for path in roots if os.path.isdir(os.path.join(path, 'train'))), None)
  if root is None:
    raise UserError(f"there is no ILSVRC 2012 in '{data_dir}' (no folder train, no TFRecords): {WAYS}")
  train = os.path.join(root, 'train')
  ids = [name for name in image_files.folders_in(train) if ID.fullmatch(name)]
  other = sorted(set(ids) - {row[0] for row in read_classes()['classes']})
  if other or len(ids) < 2:
    what = f"'{other[0]}' in '{train}' is none of the 1000 classes" if other else f"'{train}' has {len(ids)} classes"
    raise UserError(f'{what}; --dataset image_folder reads any folders of images')
  rank = {key: i for i, key in enumerate(ids)}
  subsets = {'train': _image_files(root, _rows_of_folders(root, 'train', ids, rank), crops)}
  empty = np.flatnonzero(np.bincount(subsets['train'].labels, minlength=len(ids)) == 0)
  if len(empty):
    raise UserError(f"'{os.path.join(train, ids[empty[0]])}' holds no images: unpack it again, or remove it")
  if os.path.isdir(os.path.join(root, 'val')):
    subsets['val'] = _image_files(root, _list_validation(data_dir, root, rank), crops)
  return ids, subsets


def _image_files(root, rows, crops):
  files = np.array([file for file, _ in rows], object)
  return ImageFiles(root, files, np.array([label for _, label in rows], np.int32), crops)


def _rows_of_folders(root, subset, ids, rank):
  """Returns the images in a subset's folders of classes: list of (file, label)."""
  names = ((key, name) for key in ids if key in rank for name in image_files.images_in(os.path.join(root, subset, key)))
  return [(os.path.join(subset.encode(), key.encode(), name), rank[key]) for key, name in names]


def _list_validation(data_dir, root, rank):
  """Returns the validation images that are of the classes: list of (file, label)."""
  folder = os.path.join(root, 'val')
  below = [key for key in image_files.folders_in(folder) if ID.fullmatch(key)]
  if below:
    rows = _rows_of_folders(root, 'val', below, rank)
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
  """Returns the ids of a flat folder's images: dict from name without ending.

  `folders` are where the labels may be, `names` the sorted names of the images.
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
  """Pairs sorted names with ids; official names say their number."""
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
  """Reads the ids of the validation images, in the order of names, from the devkit.

  The path is its .tar.gz, or the folder of meta.mat and ILSVRC2012_validation_ground_truth.txt. Raises UserError if it
  is missing or damaged.
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


def _read_records(data_dir, records, crops):
  """Returns as `_read_folders`; where the images are is found once and noted."""
  tables = {subset: tfrecords.find_images(data_dir, subset, paths) for subset, paths in records.items() if paths}
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


# --- the program -------------------------------------------------------------------------------------------------


def _folder(flags, flag):
  return os.path.join(flags.data_dir, flag.removesuffix('_tar'))


def check_archives(flags):
  """Checks first that archives are there, of the right size, and fit the disk.

  Raises UserError if not.
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
      image_archives.check_md5(f"--devkit: '{path}'", md5_of(path), md5)
    elif not os.path.exists(folder := _folder(flags, flag)):
      needed += image_archives.bytes_needed(path, folder)
  free = shutil.disk_usage(flags.data_dir).free
  if needed > free:
    raise UserError(
      f"--data_dir: unpacking takes {needed / 1e9:.1f} GB, but '{flags.data_dir}' has {free / 1e9:.1f} GB left: free "
      'some, or name a folder on another disk'
    )


def parse_flags(argv):
  """Parses the command line; a wrong one ends the program with exit code 2."""
  parser = make_parser()
  flags = parser.parse_args(argv)
  if not flags.train_tar and not flags.val_tar:
    parser.error('nothing to do: give --train_tar FILE, --val_tar FILE with --devkit FILE, or all three')
  if flags.val_tar and not flags.devkit:
    parser.error('--val_tar needs --devkit FILE, which says of what classes the validation images are')
  return flags


def place_of(flag, ids):
  """Returns a function from a file's name in an archive to its path, or None.

  `ids` are the classes of the validation images, in the order of their names.
  """

  def train(name):
    match = re.fullmatch(r'(n\d{8})\.tar/(\1_\d+\.JPEG)', name)
    return match and os.path.join(*match.groups())

  def val(name):
    match = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', name)
    return os.path.join(ids[int(match.group(1)) - 1], name) if match and 1 <= int(match.group(1)) <= len(ids) else None

  return {'train_tar': train, 'val_tar': val}[flag]


@program('imagenet.py')
def main(argv):
  """Brings --data_dir to what the flags ask for; UserError if that cannot be done."""
  flags = parse_flags(argv)
  check_folder('--data_dir', flags.data_dir)
  check_archives(flags)
  try:
    for flag in ('val_tar', 'train_tar'):  # the smaller first: a mistake shows sooner
      path, folder = getattr(flags, flag), _folder(flags, flag)
      if path and os.path.exists(folder):
        print(f"already done: '{folder}'")
      elif path:
        ids = read_devkit(flags.devkit) if flag == 'val_tar' else None
        image_archives.unpack(path, ARCHIVES[flag][2], folder, place_of(flag, ids))
        print(f"wrote '{folder}'")
  except BrokenPipeError:
    raise
  except OSError as e:
    raise UserError(
      f"cannot write to --data_dir '{flags.data_dir}' ({e}): free some space or change its mode, and run again to go on"
    ) from e
  except KeyboardInterrupt:
    print('interrupted: run again to go on', file=sys.stderr)
    raise


if __name__ == '__main__':
  sys.exit(main())
