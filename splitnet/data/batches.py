"""Holds images, labels and class names; batches are a function of seed and step."""

import collections

import tensorflow as tf

# images: uint8 [N, height, width, channels]; labels: int32 [N]. They stay uint8 until they are on the device.
Images = collections.namedtuple('Images', 'images labels')

# fine, coarse: lists of names; fine_to_coarse: int array [classes]; source: dict that says which data this is
ClassNames = collections.namedtuple('ClassNames', 'fine coarse fine_to_coarse source')


def training_batches(data, batch_size, seed, first_step=0):
  """Yields endless batches of raw training images, shuffled anew in every epoch.

  The images are a stream of permutations, one per epoch, cut into batches: none is left out, and a batch may reach
  over the end of an epoch. Batch `step` is the same whatever `first_step` is, so a training run that is resumed from
  a checkpoint sees the batches that it would have seen without the interruption.

  Args:
    data: an Images.
    batch_size: images per batch.
    seed: int.
    first_step: step of the first batch.

  Returns:
    tf.data.Dataset of (images uint8 [batch, height, width, channels], labels int32 [batch], step int64 []).
  """
  size = len(data.images)
  epoch, done = divmod(first_step * batch_size, size)
  with tf.device('/CPU:0'):
    images, labels = tf.constant(data.images), tf.constant(data.labels)

  def permutation(epoch):
    # A function of the epoch alone, so that a resumed run has the order of the one that was stopped.
    order = tf.random.experimental.stateless_shuffle(tf.range(size), seed=[seed, tf.cast(epoch, tf.int32)])
    return tf.data.Dataset.from_tensor_slices(order)

  order = tf.data.Dataset.counter(epoch).flat_map(permutation).skip(done).batch(batch_size, drop_remainder=True)
  batches = tf.data.Dataset.zip(order, tf.data.Dataset.counter(first_step))
  batches = batches.map(
    lambda chosen, step: (tf.gather(images, chosen), tf.gather(labels, chosen), step), num_parallel_calls=1
  )
  return batches.prefetch(4)


def evaluation_batches(data, batch_size):
  """Yields the images once, in order; the last batch may be smaller.

  Args:
    data: an Images.
    batch_size: images per batch.

  Returns:
    tf.data.Dataset of (images uint8 [batch, height, width, channels], labels int32 [batch]).
  """
  return tf.data.Dataset.from_tensor_slices((data.images, data.labels)).batch(batch_size).prefetch(4)
