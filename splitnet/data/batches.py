"""Holds images, labels and class names; batches are a function of seed and step."""

import collections
import dataclasses
import hashlib

import numpy as np
import tensorflow as tf

# fine, coarse: lists of names, each once; fine_to_coarse: int array [classes], both None without superclasses; source:
# dict that says which data this is; ids: list of other keys of the classes, such as WordNet's, or None
ClassNames = collections.namedtuple('ClassNames', 'fine coarse fine_to_coarse source ids', defaults=(None,))


class Part(collections.namedtuple('Part', 'begin end of')):
  """Marks a worker's part of a batch: the replicas `begin` to `end - 1` of `of`."""

  def rows(self, batch):
    """Returns the first row of this part of a batch, and the one after its last."""
    return batch * self.begin // self.of, batch * self.end // self.of


WHOLE = Part(0, 1, 1)


def index_batches(size, batch_size, seed, first_step=0):
  """Yields endless batches, a tf.data.Dataset: (indices int32 [batch], step int64).

  They are a stream of permutations of all `size` images, one per epoch, cut into batches: none is left out, and a batch
  may reach over the end of an epoch. Batch `step` is a function of the seed alone, whatever `first_step` is, so a
  training run that is resumed from a checkpoint sees the batches that it would have seen without the interruption.
  """
  epoch, done = divmod(first_step * batch_size, size)

  def permutation(epoch):
    # A function of the epoch alone, so that a resumed run has the order of the one that was stopped.
    order = tf.random.experimental.stateless_shuffle(tf.range(size), seed=[seed, tf.cast(epoch, tf.int32)])
    return tf.data.Dataset.from_tensor_slices(order)

  order = tf.data.Dataset.counter(epoch).flat_map(permutation).skip(done).batch(batch_size, drop_remainder=True)
  return tf.data.Dataset.zip(order, tf.data.Dataset.counter(first_step))


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """Holds images in memory, which stay uint8 until they are on the device."""

  images: np.ndarray  # uint8 [N, height, width, channels]
  labels: np.ndarray  # int32 [N]

  def training_batches(self, batch_size, seed, first_step=0, part=WHOLE):
    """Yields endless batches of raw images in the order of `index_batches`.

    Args:
      batch_size, seed, first_step: as of `index_batches`.
      part: the Part of each batch whose images are read; the labels are always those of the whole batch.

    Returns:
      tf.data.Dataset of (images uint8 [rows, height, width, channels], labels int32 [batch], step int64 []).
    """
    begin, end = part.rows(batch_size)
    with tf.device('/CPU:0'):
      images, labels = tf.constant(self.images), tf.constant(self.labels)
    batches = index_batches(len(self.labels), batch_size, seed, first_step).map(
      lambda chosen, step: (tf.gather(images, chosen[begin:end]), tf.gather(labels, chosen), step), num_parallel_calls=1
    )
    return batches.prefetch(4)

  def evaluation_batches(self, batch_size, part=WHOLE):
    """Yields (images, labels) once, in order; the last batch may be smaller."""
    batches = tf.data.Dataset.from_tensor_slices((self.images, self.labels)).batch(batch_size)
    if part != WHOLE:

      def own(images, labels):
        begin, end = part.rows(tf.size(labels))
        return images[begin:end], labels

      batches = batches.map(own)
    return batches.prefetch(4)

  def explain(self, error, batch_size, step, seed=None):
    """Raises an error again: no image in memory makes reading a batch fail."""
    del batch_size, step, seed
    raise error

  def digest(self):
    """Computes a digest, which workers compare, of images and labels: 64 digits."""
    content = hashlib.sha256(np.ascontiguousarray(self.images))
    content.update(np.ascontiguousarray(self.labels))
    return content.hexdigest()


# What reading a batch of files fails with.
UNREADABLE = (
  tf.errors.InvalidArgumentError, tf.errors.NotFoundError, tf.errors.PermissionDeniedError, tf.errors.DataLossError,
  tf.errors.FailedPreconditionError, tf.errors.UnknownError, tf.errors.OutOfRangeError,
)  # fmt: skip


def numbered_batches(data, batch_size, limit=0, **options):
  """Yields (number, images, labels) of the first evaluation batches.

  `data` is an Images or an ImageFiles; a limit of 0 takes all. The options are those of `evaluation_batches`. Raises
  UserError if an image cannot be read.
  """
  count = -(-len(data.labels) // batch_size)
  batches = iter(data.evaluation_batches(batch_size, **options))
  # Outside a graph an iterator first waits for all that runs on any device, so for ever if a worker is silent.
  take = tf.function(batches.get_next, autograph=False).get_concrete_function()
  for i in range(min(limit, count) if limit else count):
    try:
      images, labels = take()
    except UNREADABLE as e:
      data.explain(e, batch_size, i)
    yield i, images, labels
