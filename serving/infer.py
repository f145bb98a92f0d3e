"""Prints the most probable classes of images, by an export of export.py; needs TensorFlow and the export only.

An image of any size is cropped to the largest square in its middle and resized to 32 x 32 (tf.image.resize, bilinear
with antialiasing); one of 32 x 32 is used as it is.
"""

import itertools
import os
import re
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # the decoders log what they raise as well

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

from splitnet.common.errors import UserError, run_program
from splitnet.common.files import read_json
from splitnet.common.flags import Parser, add, integer, switch

EXTENSIONS = ('.png', '.jpg', '.jpeg')  # of the images in a folder
SIZE = 32  # pixels, height and width
BATCH = 100  # images at once


def parse_flags(argv):
  """Parses and checks the flags; a UserError says which value is out of range."""
  parser = Parser(__doc__)
  parser.add_argument('images', nargs='+', metavar='IMAGE', help='PNG or JPEG files, or folders of them')
  add(parser, 'export', str, None, 'folder that export.py made', required=True)
  switch(parser, 'branches', 'use the trunk and the branches, not the whole network')
  add(parser, 'top', integer(1), 5, 'classes to print for an image')
  return parser.parse_args(argv)


class Export:
  """The models of an export, loaded and put together.

  Attributes:
    class_names: list of str, in the order of the probabilities.
  """

  def __init__(self, folder, branches=False):
    """Loads an export, or the trunk and the branches of it."""
    if not os.path.exists(os.path.join(folder, 'manifest.json')):
      raise UserError(f"there is no export in '{folder}': name a folder that export.py made")
    try:
      content = read_json(os.path.join(folder, 'manifest.json'))
      self._models = [m for m in content['models'] if (m['name'] != 'whole') == branches]
      self._loaded = {m['name']: tf.saved_model.load(os.path.join(folder, m['path'])) for m in self._models}
      self._classifiers = [m['name'] for m in self._models if 'class_names' in m]
      self.class_names = [name for m in self._models for name in m.get('class_names', [])]
    except Exception as e:  # a damaged model raises what it likes
      raise UserError(f"the export in '{folder}' is damaged ({_reason(e)}): export it again") from e
    if not self._models:
      raise UserError(f"the export in '{folder}' has no branches: leave --branches out, or export them")

  def __call__(self, images):
    """Returns probabilities float32 [batch, classes] of uint8 [batch, 32, 32, 3]."""
    outputs = {}
    for model in self._models:  # each stands behind those that it reads
      inputs = {
        name: outputs[source['model']][source['output']] if source else tf.constant(images)
        for name, source in model['reads'].items()
      }
      outputs[model['name']] = self._loaded[model['name']].signatures['serving_default'](**inputs)
    return tf.nn.softmax(tf.concat([outputs[name]['logits'] for name in self._classifiers], 1)).numpy()


def read_image(path):
  """Reads an image: uint8 [32, 32, 3]; grey becomes RGB, transparency is dropped."""
  try:
    with open(path, 'rb') as f:
      image = tf.io.decode_image(f.read(), channels=3, expand_animations=False)
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
    images = (image for file in files for image in attempt(read_image, file))
    while batch := list(itertools.islice(images, BATCH)):
      paths, pixels = zip(*batch)
      for path, probabilities in zip(paths, export(np.stack(pixels))):
        print(path)
        for i in np.argsort(-probabilities, kind='stable')[: flags.top]:
          print(f'  {100 * probabilities[i]:5.1f} %  {export.class_names[i]}')

  return run_program('infer.py', run) or int(bool(errors))


if __name__ == '__main__':
  sys.exit(main())
