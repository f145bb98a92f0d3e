"""Makes small image files, odd and damaged ones too, for the tests of what reads them."""

import base64
import os
import struct
import zlib

import numpy as np
import tensorflow as tf

# What TensorFlow cannot write: a red JPEG in CMYK and a red PNG with a palette, both of 16 x 16 pixels.
CMYK_JPEG = zlib.decompress(base64.b85decode(
  'c-mcwI}(C07zRHuk(h*-9~0y@jzcFyM?>piVdZJOf`zBB@DM)k;1yz0>dscX;SoMC+v&7FU_v6i(PEb8$q0*b!8v1G7R6j>skM?ym8P<#A)}P7Ev='
  'mQUN6^8?V8GY7jAF@7M8Vyo-h(RLb$^t%kax0W@rB^!V8AA=rN)LHn<*#^X`(y^9xRG8gl'
))  # fmt: skip
PALETTE_PNG = zlib.decompress(base64.b85decode(
  'c-rd>@N?(olHy`uVBq!ia0vp^0wB!63?wyl`GXl4m>B|mLR|kdFpQ#6G-A<IAICCqCUJ2LshE?TAi;Wqfq_wgfpNiP!KFY622WQ%mvv4FO#tYP4tD'
))  # fmt: skip


def gradient(height, width, channels=3):
  """An image whose rows show in red, whose columns show in green, and whose blue is 100: uint8."""
  rows, columns = np.meshgrid(*((np.arange(side) + 0.5) / side * 255 for side in (height, width)), indexing='ij')
  image = np.stack([rows, columns, np.full_like(rows, 100), np.full_like(rows, 255)], -1)
  return image[..., :channels].round().astype(np.uint8)


def jpeg(image):
  """Encodes an image as JPEG, with little loss: bytes."""
  return tf.io.encode_jpeg(image, quality=98, chroma_downsampling=False).numpy()


def png(image):
  """Encodes an image as PNG: bytes."""
  return tf.io.encode_png(image).numpy()


def png_of_size(height, width):
  """The beginning of a PNG that says that it is as large as that: bytes."""
  header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))


def write(path, contents):
  """Writes bytes, making the folder; returns the path as text."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with open(path, 'wb') as f:
    f.write(contents)
  return str(path)


def colour(label, number):
  """A JPEG that tells its class (red: 20 times the label) and its number (green: 5 times it): bytes."""
  return jpeg(np.broadcast_to(np.array([20 * label, 5 * number, 50], np.uint8), (24, 32, 3)))


def numbers(images):
  """What `colour` told: (labels, numbers), int arrays, of a batch of images."""
  centre = np.asarray(images)[:, 4, 4].astype(int)
  return np.round(centre[:, 0] / 20).astype(int), np.round(centre[:, 1] / 5).astype(int)


def folder(root, classes, count, form='{}/{:02d}.jpg'):
  """Writes `count` images of each class, whose labels are the classes' ranks; returns the folder as text."""
  for label, name in enumerate(sorted(classes)):
    for number in range(count):
      write(os.path.join(root, form.format(name, number)), colour(label, number))
  return str(root)
