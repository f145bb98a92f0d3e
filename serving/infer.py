"""Prints the most probable classes of images, by an export of export.py.

An image of any size is cropped to the largest square in its middle and resized to 32 x 32 (tf.image.resize, bilinear
with antialiasing); one of 32 x 32 is used as it is. Needs TensorFlow and the export, no checkpoint and no network code.
"""

import itertools
import json
import os
import re
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # the decoders log what they raise as well

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

from splitnet.common.errors import UserError, run_program
from splitnet.common.flags import Parser, add, integer

EXTENSIONS = ('.png', '.jpg', '.jpeg')  # of the images in a folder
SIZE = 32  # pixels, height and width
BATCH = 100  # images at once


def parse_flags(argv):
  """Parses and checks the flags; a UserError says which value is out of range."""
  parser = Parser(__doc__)
  parser.add_argument('images', nargs='+', metavar='IMAGE', help='PNG or JPEG files, or folders of them')
  add(parser, 'export', str, None, 'folder that export.py made', required=True)
  parser.add_argument('--branches', action='store_true', help='use the trunk and the branches, not the whole network')
  add(parser, 'top', integer(1), 5, 'classes to print for an image')
  return parser.parse_args(argv)


class Export:
  """The models of an export, loaded and put together.

  Attributes:
    class_names: list of str, in the order of the probabilities.
  """

  def __init__(self, folder, branches=False):
    """Loads an export.

    Args:
      folder: that export.py made.
      branches: use the trunk and the branches instead of the whole network.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    try:
      with open(os.path.join(folder, 'manifest.json')) as f:
        content = f.read()
    except OSError as e:
      raise UserError(f"there is no export in '{folder}': name a folder that export.py made") from e
    try:
      self._models = [m for m in json.loads(content)['models'] if (m['name'] != 'whole') == branches]
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
  """Reads an image: uint8 [32, 32, 3], NumPy.

  Grey images become RGB, transparency is dropped.

  Raises:
    UserError: if it cannot be read.
  """
  try:
    with open(path, 'rb') as f:
      image = tf.io.decode_image(f.read(), channels=3, expand_animations=False)
  except OSError as e:
    raise UserError(f"'{path}' cannot be read ({e.strerror})") from e
  except tf.errors.OpError as e:
    raise UserError(f"'{path}' is no image that can be read ({_reason(e)})") from e
  height, width, _ = image.shape
  if (height, width) == (SIZE, SIZE):
    return image.numpy()
  side = min(height, width)
  image = tf.image.crop_to_bounding_box(image, (height - side) // 2, (width - side) // 2, side, side)
  image = tf.image.resize(image, (SIZE, SIZE), antialias=True)
  return tf.saturate_cast(tf.round(image), tf.uint8).numpy()


def _reason(error):
  """Returns the first line of an error, without names of TensorFlow's operations."""
  return re.sub(r'\{\{.*?\}\} ?| ?\[Op:.*\]', '', str(error).split('\n')[0]) or type(error).__name__


def find_images(path):
  """Returns the image files of a path: itself, or those in the folder, by name.

  Raises:
    UserError: if there are none.
  """
  if not os.path.isdir(path):
    return [path]
  try:
    names = sorted(name for name in os.listdir(path) if name.lower().endswith(EXTENSIONS))
  except OSError as e:
    raise UserError(f"the folder '{path}' cannot be read ({e.strerror})") from e
  if not names:
    raise UserError(f"there is no PNG or JPEG in the folder '{path}'")
  return [os.path.join(path, name) for name in names]


def read_images(paths, complain):
  """Yields (path, image) of all images; calls `complain` with other UserErrors."""
  for path in paths:
    try:
      files = find_images(path)
    except UserError as e:
      complain(e)
      continue
    for file in files:
      try:
        yield file, read_image(file)
      except UserError as e:
        complain(e)


def run(flags, complain):
  """Prints the most probable classes of the images.

  Args:
    flags: as parsed.
    complain: called with the UserError of each image that cannot be read.
  """
  export = Export(flags.export, flags.branches)
  images = read_images(flags.images, complain)
  while batch := list(itertools.islice(images, BATCH)):
    for (path, _), probabilities in zip(batch, export(np.stack([image for _, image in batch]))):
      print(path)
      for i in np.argsort(-probabilities, kind='stable')[: flags.top]:
        print(f'  {100 * probabilities[i]:5.1f} %  {export.class_names[i]}')


def main(argv=None):
  """Runs the program; returns its exit code: 1 if an image could not be read."""
  errors = []

  def complain(error):
    errors.append(error)
    print(f'infer.py: {error}', file=sys.stderr)

  return run_program('infer.py', lambda: run(parse_flags(argv), complain)) or int(bool(errors))


if __name__ == '__main__':
  sys.exit(main())
