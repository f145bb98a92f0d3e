"""Reads image files of any size as a network wants them; needs TensorFlow only.

If the network was trained on image files, the shorter side is resized and the centre is cut out. If it was trained on
CIFAR-100, the largest square in the middle is resized to 32 x 32 (tf.image.resize, bilinear with antialiasing), and an
image of 32 x 32 is used as it is.
"""

import os
import re
import struct

import tensorflow as tf

from splitnet.common import schema
from splitnet.common.errors import UserError
from splitnet.data import images as image_reading

EXTENSIONS = ('.png', '.jpg', '.jpeg')  # of the images in a folder
SIZE = 32  # pixels, height and width, of CIFAR-100
MAX_BYTES, MAX_PIXELS = 1 << 28, 10**8  # of an image: its file, and what it takes to decode it


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
    raise UserError(f"'{path}' is no image that can be read ({reason(e)})") from e
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


def reason(error):
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
