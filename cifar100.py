"""Reads CIFAR-100 as download_cifar100.py wrote it; augments and whitens images.

Every random choice is a function of (seed, step), so a resumed training run sees the images that it would have seen
without the interruption. Source of the recipe: the released code (reflect-pad 4, random crop, random flip, whitening of
each image and channel).
"""

import contextlib
import os

import numpy as np
import tensorflow as tf

from splitnet.common import schema
from splitnet.common.errors import UserError
from splitnet.data import readers
from splitnet.data.batches import ClassNames, Images
from splitnet.data.dataset import DataSet

IMAGE_SIZE = 32  # pixels, height and width
PADDING = 4  # pixels reflected on each side before cropping
SUBSETS = ('train', 'val', 'train_val', 'test')
DATA_DIR = 'cifar100/train_val_split'  # where download_cifar100.py writes


def open_dataset(settings):
  """Opens the data that DataSettings name, a DataSet; UserError if there are none."""
  if settings.image_size not in (None, IMAGE_SIZE):
    raise UserError(f'--image_size is {settings.image_size}, but images of CIFAR-100 have {IMAGE_SIZE} pixels a side')
  data_dir = settings.data_dir or DATA_DIR
  written = _stamp(data_dir)
  names = load_names(data_dir)

  def load_alike(subset, limit=None):
    images = load(data_dir, subset, limit)
    if _stamp(data_dir) != written:  # the file that vouches for the others is removed first and written last
      raise UserError(f"'{data_dir}' has been written anew while it was read: start again when that is done")
    return images

  return DataSet(names, IMAGE_SIZE, load_alike, augment=augment, prepare=prepare)


def _stamp(data_dir):
  """Identifies the names.json that is there; None if there is none."""
  with contextlib.suppress(OSError):
    status = os.stat(os.path.join(data_dir, 'names.json'))
    return status.st_ino, status.st_mtime_ns


@schema.record
class Names(readers.Names):
  """Describes the names.json that download_cifar100.py writes."""

  source: schema.Text
  seed: schema.Count
  num_val_instance: schema.Count
  images_per_class: schema.Count | None  # of data that download_cifar100.py did not write


ADVICE = 'run download_cifar100.py --force'


def _missing(data_dir):
  return (
    f"there is no CIFAR-100 in '{data_dir}': run 'python download_cifar100.py' (or with --archive FILE, or "
    '--synthetic), or name the folder with --data_dir'
  )


def load_names(data_dir):
  """Reads a folder's ClassNames; UserError if they are missing or damaged."""
  names = readers.read_names(os.path.join(data_dir, 'names.json'), Names, ADVICE, _missing(data_dir))
  source = {key: names[key] for key in ('source', 'seed', 'num_val_instance', 'images_per_class')}
  return ClassNames(names['fine'], names['coarse'], np.array(names['fine_to_coarse']), source)


def load(data_dir, subset, limit=None):
  """Reads one of the SUBSETS, or its first `limit` images: an Images.

  Raises UserError if the file is missing or damaged, or holds fewer images.
  """
  path, classes = os.path.join(data_dir, subset + '.npz'), len(load_names(data_dir).fine)
  images, labels = readers.read_subset(path, IMAGE_SIZE, classes, ADVICE, _missing(data_dir))
  if limit is not None and limit > len(images):
    raise UserError(f"{limit} images of '{path}' were asked for, but it holds only {len(images)}")
  return Images(images[:limit], labels[:limit])


def augment(images, seed, share=None):
  """Reflect-pads by 4, crops 32 x 32 and flips at random; see DataSet.augment.

  There are 81 offsets, and half of the images are flipped. Padding, cropping and flipping only choose which pixel is
  read, so they are one index per row and one per column.
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
  """Returns the pixels that a reflected border shows: -1 -> 1, 32 -> 30."""
  index = tf.abs(index)
  return tf.minimum(index, 2 * (IMAGE_SIZE - 1) - index)


def whiten(images):
  """Gives each channel of each image zero mean and unit deviation, float32.

  The deviation is taken as at least 1 / 32 of a grey level, so that a channel of one value becomes 0 and not NaN
  (the released code divides by zero); any other channel is not affected.
  """
  images = tf.cast(images, tf.float32)
  mean, variance = tf.nn.moments(images, (1, 2), keepdims=True)
  return (images - mean) * tf.math.rsqrt(tf.maximum(variance, 1.0 / IMAGE_SIZE**2))


prepare = whiten  # what makes raw images what a network reads, by the name that every data set has for it
