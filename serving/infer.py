"""Prints the most probable classes of images, by an export of export.py or a checkpoint.

  python -m serving.infer photo.jpg                            by a network of pretrained/
  python -m serving.infer --checkpoint runs/split/best photo.jpg folder/
  python -m serving.infer --export exported photo.jpg          needs TensorFlow and the export only

An image of any size is prepared as for evaluation (images.py).
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import sys

from splitnet.common.flags import Parser, add, answer_early, integer, switch


def make_parser():
  """Makes the parser of the flags."""
  parser = Parser(__doc__)
  parser.add_argument('images', nargs='+', metavar='IMAGE', help='PNG or JPEG files, or folders of them')
  add(parser, 'export', str, None, 'folder that export.py made [none]')
  add(parser, 'checkpoint', str, None, "or a run's folder, its 'best' or DIR/ckpt-STEP [of pretrained/ the first]")
  add(parser, 'data_dir', str, None, 'folder of CIFAR-100, if the checkpoint has no names of its classes [its own]')
  switch(parser, 'branches', 'of an export the trunk and the branches, not the whole network')
  add(parser, 'top', integer(1), 5, 'classes to print for an image')
  return parser


if __name__ == '__main__':
  answer_early('infer.py', make_parser)

import functools
import glob
import itertools
import os
from typing import Annotated

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # the decoders log what they raise as well

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf
from pydantic import Field

from serving.images import SIZE, find_images, read_image, reason
from serving.model import Model
from splitnet.common import schema
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import PROJECT, plain_path
from splitnet.data import images as image_reading

BATCH = 100  # images at once


def parse_flags(argv):
  """Parses and checks the flags; a UserError says which value is out of range."""
  flags = make_parser().parse_args(argv)
  if flags.export and flags.checkpoint:
    raise UserError(f"--export '{flags.export}' and --checkpoint '{flags.checkpoint}' are two networks: give one")
  if flags.branches and not flags.export:
    raise UserError('--branches are those of an --export')
  return flags


def pretrained():
  """Returns the first of the networks that come with the project; UserError if there is none."""
  folders = sorted(glob.glob(os.path.join(glob.escape(PROJECT), 'pretrained', '*', 'config.json')))
  if not folders:
    raise UserError('there is no network in pretrained/: name one with --checkpoint or --export')
  return os.path.dirname(folders[0])


@schema.record
class Source(schema.TypedDict):
  """Which output of which model another one reads."""

  model: schema.Text
  output: schema.Text


@schema.record
class Exported(schema.TypedDict):
  """One model of an export; what reads None reads the images."""

  name: schema.Text
  path: Annotated[str, Field(pattern=r'^\w+(/\w+)*$')]
  reads: dict[schema.Text, Source | None]
  class_names: schema.NotRequired[list[schema.Text]]


@schema.record
class Manifest(schema.TypedDict):
  """What manifest.json holds."""

  models: Annotated[list[Exported], Field(min_length=1)]
  image_size: schema.NotRequired[schema.Positive]
  shorter_side: schema.NotRequired[schema.Positive | None]
  dataset: schema.NotRequired[schema.Text]


class Export:
  """The models of an export, loaded and put together.

  Attributes:
    class_names: list of str, in the order of the probabilities.
    crops: the images.Crops of the files that the network was trained on; None: it was CIFAR-100.
  """

  def __init__(self, folder, branches=False):
    """Loads an export.

    Args:
      folder: that export.py made.
      branches: use the trunk and the branches instead of the whole network.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    advice = f"there is no export in '{folder}': name a folder that export.py made"
    content = schema.read_json(os.path.join(folder, 'manifest.json'), Manifest, 'export it again', advice)
    self._models = [model for model in content['models'] if (model['name'] != 'whole') == branches]
    size = content.get('shorter_side')
    self.crops = image_reading.Crops(content.get('image_size', SIZE), size) if size else None
    if not self._models:
      raise UserError(f"the export in '{folder}' has no branches: leave --branches out, or export them")
    try:
      with plain_path(folder) as plain:
        self._loaded = {m['name']: tf.saved_model.load(os.path.join(plain, m['path'])) for m in self._models}
      self._classifiers = [m['name'] for m in self._models if 'class_names' in m]
      self.class_names = [name for m in self._models for name in m.get('class_names', [])]
      size = self.crops.size if self.crops else SIZE
      answers = self(np.zeros([1, size, size, 3], np.uint8)).shape
      if answers != (1, len(self.class_names)):
        raise ValueError(f'its models answer {list(answers)} for {len(self.class_names)} class names')
    except Exception as e:  # a damaged model raises what it likes
      raise UserError(f"the export in '{folder}' is damaged ({reason(e)}): export it again") from e

  def __call__(self, images):
    """Returns probabilities float32 [batch, classes] of uint8 [batch, size, size, 3]."""
    outputs = {}
    for model in self._models:  # each stands behind those that it reads
      inputs = {
        name: outputs[source['model']][source['output']] if source else tf.constant(images)
        for name, source in model['reads'].items()
      }
      outputs[model['name']] = self._loaded[model['name']].signatures['serving_default'](**inputs)
    return tf.nn.softmax(tf.concat([outputs[name]['logits'] for name in self._classifiers], 1)).numpy()


def main(argv=None):
  """Runs the program; returns its exit code: 1 if an image could not be read."""
  errors = []

  def attempt(function, path):
    """Returns what a function returns of a path, in a list, or complains and returns []."""
    try:
      return [(path, function(path))]
    except UserError as e:
      errors.append(e)
      print(f'infer.py: {e}', file=sys.stderr)
      return []

  def run():
    flags = parse_flags(argv)
    if flags.export:
      network = Export(flags.export, flags.branches)
    else:
      network = Model(flags.checkpoint or pretrained(), flags.data_dir)
    files = (file for path in flags.images for _, found in attempt(find_images, path) for file in found)
    read = functools.partial(read_image, crops=network.crops)
    images = (image for file in files for image in attempt(read, file))
    while batch := list(itertools.islice(images, BATCH)):
      paths, pixels = zip(*batch)
      for path, probabilities in zip(paths, network(np.stack(pixels))):
        print(path)
        for i in np.argsort(-probabilities, kind='stable')[: flags.top]:
          print(f'  {100 * probabilities[i]:5.1f} %  {network.class_names[i]}')

  return run_program('infer.py', run) or int(bool(errors))


if __name__ == '__main__':
  sys.exit(main())
