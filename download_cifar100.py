"""Downloads CIFAR-100 (or reads an archive, or draws images), and divides it.

  train.npz, val.npz, train_val.npz, test.npz
      images uint8 [N, 32, 32, 3], RGB; labels uint8 [N], fine class; coarse_labels uint8 [N], superclass
  names.json
      fine, coarse: the names of classes and superclasses; fine_to_coarse: each class's superclass;
      source, seed, num_val_instance, images_per_class: where the files come from

train_val holds all training images in the archive's order; train and val are its two parts, each in that order again.
names.json is written last: if it is there, the four others are whole.

The data set: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import contextlib
import os
import posixpath
import sys

import numpy as np
import six

from splitnet.common import schema
from splitnet.common.errors import UserError, program
from splitnet.common.files import check_folder, locked, remove_leftovers, whole_file, write_json
from splitnet.common.flags import Parser, integer, switch
from splitnet.data import readers, safe_pickle, safe_tar, synthetic
from splitnet.data.download import download, md5_of

URL = 'https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz'
SIZE = 169001437  # bytes
MD5 = 'eb9058c3a382ffc7106e4002c42a8d85'
OTHER_WAYS = 'pass --archive FILE to read a local copy of the archive, or --synthetic to generate images instead'

CLASSES, SUPERCLASSES = 100, 20
TRAIN_IMAGES, TEST_IMAGES = 50000, 10000
MAX_IMAGES_PER_CLASS = 5000  # of synthetic images

SUBSETS = ('train', 'val', 'train_val', 'test')


@schema.record
class Provenance(schema.TypedDict):
  """Describes what names.json says of the files beside it."""

  source: schema.Text
  seed: schema.Count
  num_val_instance: schema.Count
  images_per_class: schema.Count


PROVENANCE = tuple(Provenance.__annotations__)


def read_archive(path):
  """Reads and verifies a tar of CIFAR-100's Python layout: as synthetic.make.

  Raises UserError if the file is missing, not a whole tar, dangerous, or its content is not CIFAR-100's.
  """
  alternative = (
    f'give --archive a tar of plain files cifar-100-python/{{train,test,meta}} with {TRAIN_IMAGES} + {TEST_IMAGES} '
    f'images in {CLASSES} classes of {SUPERCLASSES} superclasses'
  )
  members = safe_tar.read_members(path, 'cifar-100-python', ('train', 'test', 'meta'), alternative)
  try:
    meta, train, test = (safe_pickle.load(members.pop(name)) for name in ('meta', 'train', 'test'))
    data = {'fine': _names(meta, 'fine_label_names', CLASSES)}
    data['coarse'] = _names(meta, 'coarse_label_names', SUPERCLASSES)
    data['train_images'], data['train_labels'], train_pairs = _images(train, 'train', TRAIN_IMAGES)
    data['test_images'], data['test_labels'], test_pairs = _images(test, 'test', TEST_IMAGES)
    data['fine_to_coarse'] = _fine_to_coarse(train_pairs, test_pairs)
  except ValueError as e:
    raise UserError(f'{path} is not a CIFAR-100 archive ({e}): {alternative}') from None
  return data


def _names(meta, key, count):
  """Returns the `count` different names under `key`, as str."""
  try:
    names = [six.ensure_str(name) for name in meta.get(key)]
  except (TypeError, UnicodeDecodeError):
    raise ValueError(f'meta has no list of names {key}') from None
  if len(names) != count or len(set(names)) != count or '' in names:
    raise ValueError(f'{key} of meta are {len(set(names))} different names in {len(names)} instead of {count}')
  return names


def _images(batch, member, count):
  """Returns images, labels, and the [n, 2] pairs of fine and coarse in use."""
  images = batch.get('data')
  if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != (count, 3 * 32 * 32):
    what = f'{images.dtype} {images.shape}' if isinstance(images, np.ndarray) else 'no array'
    raise ValueError(f'data of {member} is {what} instead of uint8 {(count, 3 * 32 * 32)}')
  fine = _labels(batch, member, 'fine_labels', count, CLASSES)
  coarse = _labels(batch, member, 'coarse_labels', count, SUPERCLASSES)
  images = np.ascontiguousarray(images.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1))
  return images, fine, np.unique(np.stack([fine, coarse], axis=1), axis=0)


def _labels(batch, member, key, count, classes):
  """Returns the labels under `key`, uint8 [count], each below `classes`."""
  labels = batch.get(key)
  if isinstance(labels, list):  # of texts or huge numbers, NumPy would make more than is there
    labels = np.array(labels if all(type(label) is int and abs(label) < 1 << 31 for label in labels) else [])
  if not isinstance(labels, np.ndarray) or labels.shape != (count,) or labels.dtype.kind not in 'iu':
    raise ValueError(f'{key} of {member} is not a list of {count} integers')
  if labels.min() < 0 or labels.max() >= classes:
    raise ValueError(f'{key} of {member} are {labels.min()} to {labels.max()} instead of 0 to {classes - 1}')
  return labels.astype(np.uint8)


def _fine_to_coarse(train_pairs, test_pairs):
  """Returns each class's superclass: exactly one, and the same in train and test."""
  fine, coarse = train_pairs.T.tolist()
  if fine != list(range(CLASSES)):
    raise ValueError(f'not every one of the {CLASSES} classes is in exactly one superclass')
  if len(set(coarse)) != SUPERCLASSES:
    raise ValueError(f'not every one of the {SUPERCLASSES} superclasses occurs')
  if not np.array_equal(train_pairs, test_pairs):
    raise ValueError('test does not have the classes and superclasses of train')
  return coarse


def train_and_val(count, num_val, seed):
  """Divides range(count) at random into two sorted int arrays, train and val."""
  order = np.random.RandomState(seed).permutation(count)
  return np.sort(order[num_val:]), np.sort(order[:num_val])


def write(data, data_dir, provenance):
  """Writes the five files, each whole or not at all, names.json last."""
  names = os.path.join(data_dir, 'names.json')
  with contextlib.suppress(FileNotFoundError):
    os.remove(names)  # first, so that it never vouches for a mixture of old and new files
  train, val = train_and_val(len(data['train_labels']), provenance['num_val_instance'], provenance['seed'])
  coarse = np.asarray(data['fine_to_coarse'], np.uint8)
  for subset, rows in (('train', train), ('val', val), ('train_val', slice(None)), ('test', slice(None))):
    part = 'test' if subset == 'test' else 'train'
    images, labels = data[part + '_images'][rows], data[part + '_labels'][rows]
    with whole_file(os.path.join(data_dir, subset + '.npz'), 'wb') as f:
      np.savez(f, images=images, labels=labels, coarse_labels=coarse[labels])
  write_json(names, {**{key: data[key] for key in ('fine', 'coarse', 'fine_to_coarse')}, **provenance})


def is_done(data_dir, wanted):
  """Returns whether a folder holds it whole; UserError if it holds another data set."""
  names = os.path.join(data_dir, 'names.json')
  if not os.path.lexists(names):
    return False
  stored = schema.read_json(names, Provenance, 'pass --force to overwrite it, or another --data_dir')
  stored = {key: stored[key] for key in PROVENANCE}
  if stored != wanted:
    raise UserError(
      f'{data_dir} holds {describe(stored)}, and what is asked for is {describe(wanted)}: '
      'pass --force to overwrite it, or another --data_dir'
    )
  count, num_val = CLASSES * wanted['images_per_class'], wanted['num_val_instance']
  counts = {'train': count - num_val, 'val': num_val, 'train_val': count}
  return all(_is_readable(os.path.join(data_dir, subset + '.npz'), counts.get(subset)) for subset in SUBSETS)


def _is_readable(path, count):
  """Returns whether a file holds a whole subset of `count` (None: any) images."""
  try:
    arrays = readers.read_arrays(
      path, {'images': ('u1', (32, 32, 3)), 'labels': ('iu', ()), 'coarse_labels': ('iu', ())}, ''
    )
  except UserError:
    return False
  return count in (None, len(arrays['labels']))


def describe(provenance):
  """Describes in a few words which data set `provenance` is and how it is divided."""
  return (
    'the {source} data set (seed {seed}, {num_val_instance} validation images, '
    '{images_per_class} training images per class)'
  ).format(**provenance)


def parse_flags(argv=None):
  """Parses the command line; a wrong one ends the program with exit code 2."""
  parser = Parser(
    'Fetches CIFAR-100 (169 MB), verifies it, and writes the files that training reads:\n'
    'train, val, train_val and test (.npz) and names.json, 340 MB together.',
    epilog='examples:\n'
    '  python download_cifar100.py\n'
    '  python download_cifar100.py --archive ~/Downloads/cifar-100-python.tar.gz\n'
    '  python download_cifar100.py --synthetic --images_per_class 100 --data_dir synthetic/train_val_split',
  )
  add = parser.add_argument
  text = 'folder for the files, made if need be; a download is kept there too [%(default)s]'
  add('--data_dir', default='cifar100/train_val_split', metavar='DIR', help=text)
  source = parser.add_mutually_exclusive_group()
  text = 'read this tar (.tar, .tar.gz, .tar.bz2, .tar.xz) instead; its content is verified, not its checksum'
  source.add_argument('--archive', metavar='FILE', help=text)
  switch(source, 'synthetic', 'generate images of 100 classes in 20 superclasses; needs neither network nor archive')
  text = 'with --synthetic: training images per class, and a fifth as many test images, at least 1 [500]'
  add('--images_per_class', type=integer(1, MAX_IMAGES_PER_CLASS), metavar='N', help=text)
  text = 'training images to set aside for validation [a tenth of them]'
  add('--num_val_instance', type=integer(1, CLASSES * MAX_IMAGES_PER_CLASS), metavar='N', help=text)
  text = 'draws the validation and the synthetic images; the same seed gives the same bytes [%(default)s]'
  add('--seed', type=integer(0, 2**32 - 1), default=0, metavar='N', help=text)
  switch(parser, 'force', 'write the files even if there are some already')
  flags = parser.parse_args(argv)
  if flags.images_per_class is not None and not flags.synthetic:
    parser.error(f'--images_per_class {flags.images_per_class} goes with --synthetic only: drop it or add --synthetic')
  return flags


def provenance_of(flags):
  """Returns what the flags ask for, a dict with keys PROVENANCE."""
  count = CLASSES * (flags.images_per_class or 500) if flags.synthetic else TRAIN_IMAGES
  num_val = count // 10 if flags.num_val_instance is None else flags.num_val_instance
  if num_val >= count:
    raise UserError(
      f'--num_val_instance {num_val} leaves none of the {count} training images to train on: give 1 to {count - 1}'
    )
  source = 'synthetic' if flags.synthetic else 'official' if flags.archive is None else 'archive'
  return dict(zip(PROVENANCE, (source, flags.seed, num_val, count // CLASSES)))


def get_data(flags, images_per_class):
  """Returns the data set that the flags ask for, as read_archive does."""
  if flags.synthetic:
    print(f'generating {CLASSES * images_per_class} training images and their test images ...', flush=True)
    return synthetic.make(images_per_class, flags.seed)
  archive = os.path.join(flags.data_dir, posixpath.basename(URL)) if flags.archive is None else flags.archive
  if flags.archive is None and not (os.path.exists(archive) and md5_of(archive) == MD5):
    download(URL, archive, SIZE, MD5, OTHER_WAYS)
  print(f'reading {archive} ...', flush=True)
  return read_archive(archive)


@program('download_cifar100.py', lasting=True)
def main(argv):
  """Brings --data_dir to what the flags ask for; UserError if that cannot be done."""
  flags = parse_flags(argv)
  wanted = provenance_of(flags)
  try:
    if not flags.force and is_done(flags.data_dir, wanted):
      print(f'already done: {flags.data_dir} holds {describe(wanted)}')
      return
    check_folder('--data_dir', flags.data_dir)  # before the minutes that fetching takes
    taken = f"another process writes to --data_dir '{flags.data_dir}': wait for it, or give another"
    with locked(flags.data_dir, taken):
      if not flags.force and is_done(flags.data_dir, wanted):  # by the process that had it until now
        print(f'already done: {flags.data_dir} holds {describe(wanted)}')
        return
      remove_leftovers(flags.data_dir, {'names.json', *(f'{subset}.npz' for subset in SUBSETS)})
      write(get_data(flags, wanted['images_per_class']), flags.data_dir, wanted)
    print(f'wrote {describe(wanted)} to {flags.data_dir}')
  except OSError as e:
    raise UserError(
      f'cannot write to --data_dir {flags.data_dir} ({e}): free some space, change its mode, or give another --data_dir'
    ) from e
  except MemoryError as e:
    raise UserError('the memory does not suffice: close other programs, or give a smaller --images_per_class') from e
  except KeyboardInterrupt:
    print('interrupted: every file under its final name is whole; run again to resume', file=sys.stderr)
    raise


if __name__ == '__main__':
  sys.exit(main())
