"""Reads your own images: one folder per class, JPEG or PNG of any size.

  DIR/CLASS/*.jpg                    a tenth of every class is drawn for val, another for test
  DIR/{train,val,test}/CLASS/*.jpg   without val a tenth of train is drawn for it; without test there is none

What is drawn is written down in DIR/.splitnet (or in the user's cache if DIR cannot be written), so that every program
divides the images alike; images that come later are trained on. DIR/superclasses.json, {"superclass": ["class", ...]},
is optional. Every image is decoded once, before anything else, and damaged ones are named.
"""

import os

import numpy as np

from splitnet.common import schema
from splitnet.common.errors import UserError
from splitnet.common.files import write_json
from splitnet.data import image_files
from splitnet.data.batches import ClassNames
from splitnet.data.image_batches import ImageFiles, make_dataset
from splitnet.data.images import Crops, normalize

IMAGE_SIZE = 64  # pixels a side, unless something else is asked for
SEED = 0  # of the division
SHARE = 10  # one in so many images of a class goes to a subset that is drawn
prepare = normalize  # see dataset.py
FOLDERS = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation'), 'test': ('test', 'testing')}


def open_dataset(settings):
  """Opens the folder that DataSettings name, a DataSet.

  Raises UserError if it is missing, holds no classes, or images are damaged and are not to be left out.
  """
  data_dir = settings.data_dir
  if data_dir is None:
    raise UserError('--data_dir is missing: name the folder of your images, which holds a folder for each class')
  notes = []
  listed = _list(data_dir, notes)
  classes = sorted({name for name, _ in listed['train']})
  _check_classes(data_dir, classes, listed)
  listed = _draw(data_dir, listed, notes)
  rows = [(subset, name, file) for subset, images in listed.items() for name, file in images]
  files = np.array([file for _, _, file in rows], object)
  kept, note = image_files.leave_out(data_dir, files, settings.skip_damaged)
  notes += [note] if note else []
  number = {name: i for i, name in enumerate(classes)}
  labels = np.array([number[name] for _, name, _ in rows], np.int32)
  of = np.array([subset for subset, _, _ in rows])
  size = settings.image_size or IMAGE_SIZE
  every = ImageFiles(data_dir, files, labels, Crops.of_size(size, settings.min_crop_area))
  subsets = {subset: every.take(kept & (of == subset)) for subset in listed}
  subsets['train_val'] = every.take(kept & np.isin(of, ['train', 'val']))
  for name in set(classes) - {classes[label] for label in subsets['train'].labels}:
    raise UserError(f"no image of the class '{name}' in '{data_dir}' can be trained on: add some, or remove its folder")
  names = _class_names(data_dir, classes, {'source': 'image_folder'})
  return make_dataset(names, subsets, settings, size, notes)


def _list(data_dir, notes):
  """Returns the images that are there, a dict from subset to list of (class, file)."""
  folders = image_files.folders_in(data_dir)
  known = {subset: next((f for f in folders if f.lower() in spellings), None) for subset, spellings in FOLDERS.items()}
  if known['train'] is None:
    if known['val'] or known['test']:
      raise UserError(
        f"'{data_dir}' has a folder '{known['val'] or known['test']}' but no folder 'train': add it, or put the "
        f"folders of the classes into '{data_dir}' itself"
      )
    return {'train': _list_classes(data_dir, '', notes)}
  return {subset: _list_classes(data_dir, folder, notes) for subset, folder in known.items() if folder is not None}


def _list_classes(data_dir, subset, notes):
  """Returns the images of a subset's folder, list of (class, file)."""
  images, below = [], []
  for name in image_files.folders_in(os.path.join(data_dir, subset)):
    path = os.path.join(subset, name)
    found = image_files.images_in(os.path.join(data_dir, path))
    images += [(name, os.path.join(os.fsencode(path), file)) for file in found]
    below += [os.path.join(path, folder) for folder in image_files.folders_in(os.path.join(data_dir, path))]
  if below:
    more = f' and {len(below) - 1} more' if len(below) > 1 else ''
    notes.append(f"what is in folders inside the classes' folders is not read: {image_files.quoted(below[0])}{more}")
  return images


def _check_classes(data_dir, classes, listed):
  """Checks that there are classes, and in every subset only those of train."""
  if len(classes) < 2:
    raise UserError(
      f"'{data_dir}' holds images of {len(classes)} classes, and at least 2 are needed: it must hold a folder of JPEG "
      'or PNG images for each class, or folders train, val and test that do'
    )
  for subset, images in listed.items():
    other = sorted({name for name, _ in images} - set(classes))
    if other:
      raise UserError(f"{subset} of '{data_dir}' has a class {image_files.quoted(other[0])} that train does not have")
    if not images:
      raise UserError(f"{subset} of '{data_dir}' holds no images: add some, or remove the folder")


def _draw(data_dir, listed, notes):
  """Draws subsets without a folder out of train, or reads what was drawn before."""
  drawn = ['val', 'test'] if len(listed) == 1 else ['val'] if 'val' not in listed else []
  if not drawn:
    return listed
  path = image_files.notebook(data_dir, 'subsets.json')
  stored = None
  if os.path.exists(path):
    stored = schema.read_json(path, Subsets, 'remove it, and the images are divided anew')
    stored.pop('seed', None)
  if stored is None or sorted(stored) != sorted(drawn):
    stored = _divide(listed['train'], drawn)
    write_json(path, {'seed': SEED, **stored})
    notes.append(f"{' and '.join(drawn)} were drawn from the images of '{data_dir}', as '{path}' says")
  subset_of = {file: subset for subset in drawn for file in stored[subset]}
  divided = {'train': [], **{subset: [] for subset in drawn}}
  for name, file in listed['train']:
    divided[subset_of.get(image_files.text_of(file), 'train')].append((name, file))
  for subset in divided:
    if not divided[subset]:
      raise UserError(f"no image is left for {subset} as '{path}' divides them: remove that file to divide them anew")
  return {**divided, **{subset: images for subset, images in listed.items() if subset != 'train'}}


def _divide(images, drawn):
  """Draws one in SHARE images of every class, at least one if that leaves two."""
  random = np.random.RandomState(SEED)
  chosen = {subset: [] for subset in drawn}
  by_class = {}
  for name, file in images:
    by_class.setdefault(name, []).append(image_files.text_of(file))
  for name in sorted(by_class):
    order = [by_class[name][i] for i in random.permutation(len(by_class[name]))]
    count = max(len(order) // SHARE, 1 if len(order) >= 2 + len(drawn) else 0)
    for i, subset in enumerate(drawn):
      chosen[subset] += sorted(order[i * count : (i + 1) * count])
  return chosen


@schema.record
class Subsets(schema.TypedDict):
  """Describes subsets.json: the files that were drawn."""

  val: schema.NotRequired[list[str]]
  test: schema.NotRequired[list[str]]


def _class_names(data_dir, classes, source):
  """Returns the ClassNames, with superclasses if there is a file of them."""
  path = os.path.join(data_dir, 'superclasses.json')
  if not os.path.lexists(path):
    return ClassNames(classes, None, None, source)
  advice = 'it must be such as {"animal": ["cat", "dog"], ...}'
  content = schema.read_json(path, dict[schema.Text, list[schema.Text]], advice)
  members = [(superclass, name) for superclass, names in content.items() for name in names]
  counts = {name: sum(member == name for _, member in members) for name in {*classes, *(name for _, name in members)}}
  for name, count in sorted(counts.items()):
    if name not in classes:
      raise UserError(f"'{path}' names the class '{name}', which '{data_dir}' does not have")
    if count != 1:
      raise UserError(f"'{path}' names the class '{name}' {count} times; it must be in one superclass")
  coarse = [superclass for superclass, names in content.items() if names]
  superclass_of = {name: coarse.index(superclass) for superclass, name in members}
  return ClassNames(classes, coarse, np.array([superclass_of[name] for name in classes]), source)
