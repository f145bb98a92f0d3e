"""Reads one image of a file: decodes it, and resizes and crops it to a square.

JPEG and PNG of any size; grey, CMYK, palette, 16-bit images and images with transparency become RGB, the transparency
is left out. What the name of a file ends in decides nothing. The orientation that a camera noted (EXIF) is not applied.

An image is reduced by averages of 2 x 2, 4 x 4 or 8 x 8 pixels (JPEG: by its own scaled decoding, which is faster) as
long as it stays as large as asked for, and then resized bilinearly.
"""

import dataclasses
import functools
import os

import numpy as np
import tensorflow as tf

from splitnet.common.errors import UserError
from splitnet.data import image_files

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ILSVRC's images by channel, values 0 to 1
REDUCTIONS = (1, 2, 4, 8)  # that JPEG can decode to
CROPS = (1, 10)


@dataclasses.dataclass(frozen=True)
class Crops:
  """Says how images become squares."""

  size: int  # pixels a side
  resize: int  # of the shorter side before the crops for evaluation are taken; 256 of 224 as usual, in proportion
  # Least share of the image that a crop for training shows; the largest is all of it, its width is 3/4 to 4/3 of its
  # height, and it is resized to `size`.
  min_area: float = 0.08

  @classmethod
  def of_size(cls, size, min_area=0.08):
    """Makes the usual crops of so many pixels a side."""
    return cls(size, round(size * 256 / 224), min_area)


# --- one image, in a graph; all are uint8 [height, width, 3] ---------------------------------------------------------


def _reduction(height, width, size):
  """Returns the number of REDUCTIONS whose result is still at least `size` a side."""
  possible = tf.minimum(height, width) // size
  return sum(tf.cast(possible >= reduction, tf.int32) for reduction in REDUCTIONS[1:])


def _reduce(image, size):
  """Averages blocks of pixels, as few as leave at least `size` a side."""
  reduction = tf.gather(REDUCTIONS, _reduction(tf.shape(image)[0], tf.shape(image)[1], size))
  height, width = tf.shape(image)[0] // reduction, tf.shape(image)[1] // reduction
  blocks = tf.reshape(image[: height * reduction, : width * reduction], [height, reduction, width, reduction, 3])
  return tf.cast(tf.round(tf.reduce_mean(tf.cast(blocks, tf.float32), [1, 3])), tf.uint8)


def _resize(image, height, width):
  """Resizes bilinearly."""
  image = tf.cast(image, tf.float32)  # of floats TensorFlow resizes twice as many as of uint8
  return tf.cast(tf.image.resize(image, [height, width]) + 0.5, tf.uint8)


def _decode_other(contents):
  """Decodes what is no JPEG."""
  return tf.ensure_shape(tf.io.decode_image(contents, channels=3, expand_animations=False), [None, None, 3])


def _draw_box(height, width, seed, min_area):
  """Draws a box (top, left, height, width) in an image, as slim and torchvision do."""
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
    tf.stack([height, width, 3]), tf.zeros([1, 0, 4]), seed, min_object_covered=0.0, aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=(min_area, 1.0), max_attempts=10, use_image_if_no_bounding_boxes=True,
  )  # fmt: skip
  return tf.stack([begin[0], begin[1], size[0], size[1]])


def training_crop(contents, seed, crops):
  """Decodes a random part of an image and resizes it to a square, [size, size, 3].

  Args:
    contents: the file, a scalar string tensor.
    seed: int64 [2].
    crops: a Crops.
  """

  def jpeg():
    box = _draw_box(*tf.unstack(tf.io.extract_jpeg_shape(contents))[:2], seed, crops.min_area)

    def decode(reduction):
      # The fast cosine transform, as usual for training: a fifth less time, differences of a grey level or two.
      return tf.image.decode_and_crop_jpeg(
        contents, box // reduction, channels=3, ratio=reduction, dct_method='INTEGER_FAST'
      )

    decoders = [functools.partial(decode, reduction) for reduction in REDUCTIONS]
    return _resize(tf.switch_case(_reduction(box[2], box[3], crops.size), decoders), crops.size, crops.size)

  return tf.cond(
    tf.io.is_jpeg(contents), jpeg, lambda: training_crop_of_decoded(_decode_other(contents), seed, crops)
  )


def training_crop_of_decoded(image, seed, crops):
  """Resizes a random part of a decoded image to a square; as `training_crop`."""
  box = _draw_box(tf.shape(image)[0], tf.shape(image)[1], seed, crops.min_area)
  image = image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
  return _resize(_reduce(image, crops.size), crops.size, crops.size)


def shorter_side(contents, resize):
  """Decodes an image and resizes it so that its shorter side has `resize` pixels."""

  def jpeg():
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(contents))
    decoders = [functools.partial(tf.io.decode_jpeg, contents, channels=3, ratio=ratio) for ratio in REDUCTIONS]
    return height, width, tf.switch_case(_reduction(height, width, resize), decoders)

  def other():
    image = _decode_other(contents)
    return tf.shape(image)[0], tf.shape(image)[1], _reduce(image, resize)

  height, width, image = tf.cond(tf.io.is_jpeg(contents), jpeg, other)
  scale = resize / tf.minimum(height, width)
  height, width = (tf.cast(tf.round(tf.cast(side, tf.float64) * scale), tf.int32) for side in (height, width))
  return _resize(image, height, width)


def evaluation_crops(image, size, count):
  """Cuts squares out of an image as of `shorter_side`: [count, size, size, 3].

  `count` is 1 for the centre, or 10 for the centre, the four corners, and their mirror images.
  """
  bottom, right = tf.shape(image)[0] - size, tf.shape(image)[1] - size
  corners = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
  squares = tf.stack([image[y : y + size, x : x + size] for y, x in corners[: 1 if count == 1 else 5]])
  squares = squares if count == 1 else tf.concat([squares, tf.reverse(squares, [2])], 0)
  return tf.ensure_shape(squares, [count, size, size, 3])


def average_crops(logits, count):
  """Averages the class probabilities of the crops of each image.

  Args:
    logits: float array [images * count, classes], the crops of an image one after the other.
    count: crops per image.

  Returns:
    float array [images, classes], logarithms of the mean probabilities; the logits themselves if `count` is 1.
  """
  if count == 1:
    return logits
  logits = logits.reshape(-1, count, logits.shape[-1])
  logits = logits - logits.max(2, keepdims=True)
  probabilities = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
  return np.log(np.maximum(probabilities.mean(1), np.finfo(logits.dtype).tiny))


@functools.cache
def _reader(crops):
  return tf.function(
    lambda contents: evaluation_crops(shorter_side(contents, crops.resize), crops.size, 1)[0],
    input_signature=[tf.TensorSpec([], tf.string)],
  )


def read_image(path, crops):
  """Reads an image file as for evaluation, its centre: uint8 array [size, size, 3].

  `crops` is a Crops. Raises UserError if the file is missing, damaged, or neither JPEG nor PNG.
  """
  fault = image_files.fault(path)
  if fault:
    raise UserError(f'the image {image_files.quoted(path)} {fault}')
  with tf.device('/CPU:0'):
    return _reader(crops)(tf.io.read_file(os.fsencode(path))).numpy()


# --- batches, on the device ------------------------------------------------------------------------------------------


def flip(images, seed, share=None):
  """Mirrors half of the images, drawn at random; see DataSet.augment."""
  draw = tf.random.stateless_uniform([share.batch if share else tf.shape(images)[0]], seed, 0, 2, tf.int32)
  draw = share.take(draw) if share else draw
  return tf.where(draw[:, None, None, None] == 1, tf.reverse(images, [2]), images)


def no_augmentation(images, seed, share=None):
  """Returns the images as they are."""
  del seed, share
  return images


def normalize(images):
  """Shifts and scales each channel by ILSVRC's mean and deviation: to float32."""
  mean, deviation = (255 * tf.constant(values, tf.float32) for values in (MEAN, DEVIATION))
  return (tf.cast(images, tf.float32) - mean) / deviation
