"""Prints the most probable classes of images, by an export of export.py; needs TensorFlow and the export only.

An image of any size is prepared as for evaluation. If the network was trained on image files, its shorter side is
resized and its centre is cut out. If it was trained on CIFAR-100, the largest square in its middle is resized to
32 x 32 (tf.image.resize, bilinear with antialiasing), and an image of 32 x 32 is used as it is.
"""

import functools
import itertools
import os
import re
import struct
import sys
from typing import Annotated

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # the decoders log what they raise as well

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf
from pydantic import Field

from splitnet.common import schema
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import plain_path
from splitnet.common.flags import Parser, add, integer, switch
from splitnet.data import images as image_reading

EXTENSIONS = ('.png', '.jpg', '.jpeg')  # of the images in a folder
SIZE = 32  # pixels, height and width, of CIFAR-100
BATCH = 100  # images at once
MAX_BYTES, MAX_PIXELS = 1 << 28, 10**8  # of an image: its file, and what it takes to decode it


def parse_flags(argv):
  """Parses and checks the flags; a UserError says which value is out of range."""
  parser = Parser(__doc__)
  parser.add_argument('images', nargs='+', metavar='IMAGE', help='PNG or JPEG files, or folders of them')
  add(parser, 'export', str, None, 'folder that export.py made', required=True)
  switch(parser, 'branches', 'use the trunk and the branches, not the whole network')
  add(parser, 'top', integer(1), 5, 'classes to print for an image')
  return parser.parse_args(argv)


@schema.record
class Source(schema.TypedDict):
  """Which output of which model another one reads."""

  model: schema.Text
  output: schema.Text


@schema.record
class Model(schema.TypedDict):
  """One model of an export; what reads None reads the images."""

  name: schema.Text
  path: Annotated[str, Field(pattern=r'^\w+(/\w+)*$')]
  reads: dict[schema.Text, Source | None]
  class_names: schema.NotRequired[list[schema.Text]]


@schema.record
class Manifest(schema.TypedDict):
  """What manifest.json holds."""

  models: Annotated[list[Model], Field(min_length=1)]
  image_size: schema.NotRequired[schema.Positive]
  shorter_side: schema.NotRequired[schema.Positive | None]


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
      raise UserError(f"the export in '{folder}' is damaged ({_reason(e)}): export it again") from e

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


def read_image(path, crops=None):
  """Reads an image: uint8 [size, size, 3]; grey becomes RGB, transparency is dropped.

  `crops` are those of Export; None: of CIFAR-100.
  """
  if crops:
    return image_reading.read_image(path, crops)
  try:
    content = schema.read_bytes(path, MAX_BYTES)
    pixels = _pixels(content)
    if pixels > MAX_PIXELS:
      raise UserError(f"'{path}' has {pixels:,} pixels, more than {MAX_PIXELS:,}: make it smaller first")
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
  except OSError as e:
    raise UserError(f"'{path}' cannot be read ({e.strerror})") from e
  except tf.errors.OpError as e:
    raise UserError(f"'{path}' is no image that can be read ({_reason(e)})") from e
  height, width, _ = image.shape
  if (height, width) != (SIZE, SIZE):
    side = min(height, width)
    image = tf.image.crop_to_bounding_box(image, (height - side) // 2, (width - side) // 2, side, side)
    image = tf.saturate_cast(tf.round(tf.image.resize(image, (SIZE, SIZE), antialias=True)), tf.uint8)
  return image.numpy()


def _pixels(content):
  """Returns how many pixels an image says that it has, before it is decoded; 0 if it is no image."""
  try:
    if content.startswith(b'\x89PNG'):
      height, width = struct.unpack_from('>II', content, 16)
    elif content.startswith(b'GIF'):
      height, width = struct.unpack_from('<HH', content, 6)
    elif content.startswith(b'BM'):
      height, width = struct.unpack_from('<ii', content, 18)
    elif content.startswith(b'\xff\xd8'):
      height, width, _ = tf.io.extract_jpeg_shape(content).numpy()
    else:
      return 0
  except struct.error:
    return 0
  return abs(int(height) * int(width))


def _reason(error):
  """Returns the first line of an error, without names of TensorFlow's operations."""
  return re.sub(r'\{\{.*?\}\} ?| ?\[Op:.*\]', '', str(error).split('\n')[0]) or type(error).__name__


def find_images(path):
  """Returns the image files of a path: itself, or those in the folder, by name."""
  if not os.path.isdir(path):
    return [path]
  try:
    names = sorted(name for name in os.listdir(path) if name.lower().endswith(EXTENSIONS))
  except OSError as e:
    raise UserError(f"the folder '{path}' cannot be read ({e.strerror})") from e
  if not names:
    raise UserError(f"there is no PNG or JPEG in the folder '{path}'")
  return [os.path.join(path, name) for name in names]


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
    export = Export(flags.export, flags.branches)
    files = (file for path in flags.images for _, found in attempt(find_images, path) for file in found)
    read = functools.partial(read_image, crops=export.crops)
    images = (image for file in files for image in attempt(read, file))
    while batch := list(itertools.islice(images, BATCH)):
      paths, pixels = zip(*batch)
      for path, probabilities in zip(paths, export(np.stack(pixels))):
        print(path)
        for i in np.argsort(-probabilities, kind='stable')[: flags.top]:
          print(f'  {100 * probabilities[i]:5.1f} %  {export.class_names[i]}')

  return run_program('infer.py', run) or int(bool(errors))


if __name__ == '__main__':
  sys.exit(main())
