"""CIFAR-100 for training and evaluation: the split files, batches, augmentation and whitening.

The files are download_cifar100.py's. Images stay uint8 in memory until they are on the device; augmentation and
whitening run there on whole batches. Every random choice is a function of (seed, step), so a training run that goes
on from a checkpoint sees the batches that it would have seen without the interruption.

Source of the recipe: the released code (reflect-pad 4, random crop, random flip, whitening of each image and channel).
"""

import collections
import json
import os

import numpy as np
import tensorflow as tf

from splitnet.common.errors import UserError

IMAGE_SIZE = 32  # pixels, height and width
PADDING = 4  # pixels reflected on each side before cropping
SPLITS = ('train', 'val', 'train_val', 'test')

# images: uint8 [N, 32, 32, 3]; labels: int32 [N]
Split = collections.namedtuple('Split', 'images labels')

# fine, coarse: lists of names; fine_to_coarse: int array [classes]; source: dict that says which data this is
Names = collections.namedtuple('Names', 'fine coarse fine_to_coarse source')


def _missing(data_dir):
  return UserError(
    "there is no CIFAR-100 in '%s': run 'python download_cifar100.py' (or with --archive FILE, or --synthetic), "
    'or name the folder with --data_dir' % data_dir
  )


def load_names(data_dir):
  """Class and superclass names of the data in a folder: a Names.

  Raises:
    UserError: where there is no such data.
  """
  path = os.path.join(data_dir, 'names.json')
  try:
    with open(path) as f:
      names = json.load(f)
    source = {key: names[key] for key in ('source', 'seed', 'num_val_instance', 'images_per_class')}
    return Names(names['fine'], names['coarse'], np.array(names['fine_to_coarse']), source)
  except OSError as e:
    raise _missing(data_dir) from e
  except (ValueError, KeyError, TypeError) as e:
    raise UserError("'%s' is damaged (%s): run download_cifar100.py --force" % (path, e)) from e


def load(data_dir, split, limit=None):
  """Reads one split.

  Args:
    data_dir: folder that download_cifar100.py wrote.
    split: one of SPLITS.
    limit: take only the first `limit` images; None: all.

  Returns:
    A Split.

  Raises:
    UserError: where the files are missing or damaged, or hold fewer than `limit` images.
  """
  path = os.path.join(data_dir, split + '.npz')
  try:
    with np.load(path, allow_pickle=False) as archive:
      images, labels = archive['images'], archive['labels'].astype(np.int32)
  except FileNotFoundError as e:
    raise _missing(data_dir) from e
  except Exception as e:  # a damaged zip raises what it likes
    raise UserError("'%s' is damaged (%s): run download_cifar100.py --force" % (path, e)) from e
  if limit is not None:
    if limit > len(images):
      raise UserError("%d images of '%s' were asked for, but it holds only %d" % (limit, path, len(images)))
    images, labels = images[:limit], labels[:limit]
  return Split(images, labels)


def training_batches(split, batch_size, seed, first_step=0):
  """Endless batches of raw training images, shuffled anew every epoch.

  The images are a stream of permutations, one an epoch, cut into batches: none is left out, and a batch may reach
  over the end of an epoch. Batch `step` is the same whatever `first_step` is.

  Args:
    split: a Split.
    batch_size: images per batch.
    seed: int.
    first_step: step of the first batch.

  Returns:
    tf.data.Dataset of (images uint8 [batch, 32, 32, 3], labels int32 [batch], step int64 []).
  """
  size = len(split.images)
  epoch, done = divmod(first_step * batch_size, size)
  with tf.device('/CPU:0'):
    images, labels = tf.constant(split.images), tf.constant(split.labels)

  def permutation(epoch):
    # Known from the epoch alone, so that a run that goes on has the order of the one that was stopped.
    order = tf.random.experimental.stateless_shuffle(tf.range(size), seed=[seed, tf.cast(epoch, tf.int32)])
    return tf.data.Dataset.from_tensor_slices(order)

  order = tf.data.Dataset.counter(epoch).flat_map(permutation).skip(done).batch(batch_size, drop_remainder=True)
  batches = tf.data.Dataset.zip(order, tf.data.Dataset.counter(first_step))
  batches = batches.map(
    lambda chosen, step: (tf.gather(images, chosen), tf.gather(labels, chosen), step), num_parallel_calls=1
  )
  return batches.prefetch(4)


def evaluation_batches(split, batch_size):
  """The images of a split once, in order; the last batch may be smaller.

  Returns:
    tf.data.Dataset of (images uint8 [batch, 32, 32, 3], labels int32 [batch]).
  """
  return tf.data.Dataset.from_tensor_slices((split.images, split.labels)).batch(batch_size).prefetch(4)


def augment(images, seed, share=None):
  """Reflect-pads by 4, crops 32 x 32 at any of the 81 offsets and flips left-right with probability one half.

  Padding, cropping and flipping only choose which pixel is read, so they are one index per row and one per column.

  Args:
    images: [batch, 32, 32, 3], any type.
    seed: int32 tensor [2].
    share: the strategy.Share of a batch that the images are, whose draws they then get; None: they are all of it.

  Returns:
    Images of the same shape and type.
  """
  batch = share.batch if share else tf.shape(images)[0]
  offsets = 2 * PADDING + 1
  draw = tf.random.stateless_uniform([batch, 1], seed, 0, 2 * offsets * offsets, tf.int32)
  draw = share.take(draw) if share else draw
  flip, draw = draw % 2, draw // 2
  pixels = tf.range(IMAGE_SIZE)[None]
  rows = _reflect(pixels + draw // offsets - PADDING)
  columns = tf.where(flip == 1, IMAGE_SIZE - 1 - pixels, pixels)
  columns = _reflect(columns + draw % offsets - PADDING)
  return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _reflect(index):
  """The pixel that a reflected border shows: -1 -> 1, 32 -> 30 (the edge itself is not repeated)."""
  index = tf.abs(index)
  return tf.minimum(index, 2 * (IMAGE_SIZE - 1) - index)


def whiten(images):
  """Each channel of each image to zero mean and unit deviation.

  The deviation is taken as at least 1 / 32 of a grey level, so that a channel of one value becomes 0 and not NaN
  (the released code divides by zero); any other channel is not affected.

  Args:
    images: [batch, height, width, channels], uint8 or float.

  Returns:
    float32 tensor of the same shape.
  """
  images = tf.cast(images, tf.float32)
  mean, variance = tf.nn.moments(images, (1, 2), keepdims=True)
  return (images - mean) * tf.math.rsqrt(tf.maximum(variance, 1.0 / IMAGE_SIZE**2))
