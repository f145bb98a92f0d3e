"""Makes batches of images in files, as a function of seed and step."""

import dataclasses
import functools
import hashlib
import os

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from splitnet.common.errors import UserError
from splitnet.common.files import whole_file
from splitnet.data import image_files, images
from splitnet.data.batches import UNREADABLE, WHOLE, index_batches
from splitnet.data.dataset import DataSet

PREFETCHED = 2  # batches that are ready before they are asked for
INDEX = '.npy'  # ends the name of the index beside a file of decoded images


def make_dataset(names, subsets, settings, size, notes):
  """Makes the DataSet of images in files.

  Args:
    names: a ClassNames.
    subsets: dict from the name of a subset to its ImageFiles.
    settings: the DataSettings; size: pixels a side.
    notes: list of sentences for the user.
  """
  folder = settings.data_dir

  def load(subset, limit=None):
    if subset not in subsets:
      raise UserError(f"'{folder}' has no subset '{subset}', it has {', '.join(subsets)}")
    chosen = subsets[subset].mixed(limit)
    if not settings.cache:
      return chosen
    stamps = image_files.stamps_digest(chosen.root, chosen.files)
    name = f'decoded-{chosen.crops.resize}-{chosen.digest()[:16]}-{stamps}'
    return chosen.decode_all(image_files.notebook(folder, name))

  return DataSet(
    names, size, load, augment=images.flip if settings.flip else images.no_augmentation, prepare=images.normalize,
    read=functools.partial(images.read_image, crops=images.Crops.of_size(size, settings.min_crop_area)),
    notes=tuple(notes),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
  """Decodes images of files when their batch is due; does what batches.Images does."""

  root: str  # folder of the files
  files: np.ndarray  # their paths below it, bytes [N] (object array)
  labels: np.ndarray  # int32 [N]
  crops: images.Crops
  # int64 [N, 2] if files hold several images each: how many bytes of its file stand before an image, and are its own.
  # None: a file is an image.
  places: np.ndarray | None = None
  decoded: str | None = None  # the one file of all images that `decode_all` wrote, with `places` in it

  def take(self, chosen):
    """Makes an ImageFiles of the images that an index or mask chooses."""
    places = None if self.places is None else self.places[chosen]
    return dataclasses.replace(self, files=self.files[chosen], labels=self.labels[chosen], places=places)

  def mixed(self, limit=None):
    """Takes so many images (None: all) in a random order, the same each time.

    So any beginning has images of all classes. Raises UserError if there are fewer.
    """
    if limit is not None and limit > len(self.labels):
      raise UserError(f"{limit} images of '{self.root}' were asked for, but it holds only {len(self.labels)}")
    return self.take(np.random.RandomState(0).permutation(len(self.labels))[:limit])

  def digest(self):
    """Computes a digest of the files' names and labels: 64 hexadecimal digits."""
    content = hashlib.sha256(b'\0'.join(self.files.tolist()))
    content.update(np.ascontiguousarray(self.labels, np.int32))
    return content.hexdigest()

  def training_batches(self, batch_size, seed, first_step=0, part=WHOLE):
    """Yields batches as Images does, of random crops, uint8 [rows, size, size, 3].

    The crop of an image is a function of the seed, the step, and the image's position in the batch.
    """
    begin, end = part.rows(batch_size)
    read, labels = self._reading()
    crop = images.training_crop_of_decoded if self.decoded else images.training_crop

    def rows(chosen, step):
      positions = step * batch_size + tf.range(begin, end, dtype=tf.int64)
      return tf.data.Dataset.from_tensor_slices((chosen[begin:end], positions))

    def image(index, position):
      return crop(read(index), tf.stack([tf.constant(seed, tf.int64), position]), self.crops)

    order = index_batches(len(self.labels), batch_size, seed, first_step)
    pixels = order.flat_map(rows).map(image, num_parallel_calls=tf.data.AUTOTUNE)
    pixels = pixels.batch(end - begin, drop_remainder=True)
    others = order.map(lambda chosen, step: (tf.gather(labels, chosen), step))
    batches = tf.data.Dataset.zip(pixels, others).map(lambda pixels, others: (pixels, *others))
    return batches.prefetch(PREFETCHED)

  def evaluation_batches(self, batch_size, part=WHOLE, crops=1):
    """Yields batches as Images does, uint8 [rows * crops, size, size, 3].

    `crops` is 1 for the centre, or 10 for images.evaluation_crops, one after the other.
    """
    read, _ = self._reading()
    size = self.crops.size

    def image(index):
      whole = read(index) if self.decoded else images.shorter_side(read(index), self.crops.resize)
      return images.evaluation_crops(whole, size, crops)

    def batches(first, count, of):  # so many batches of as many images
      begin, end = part.rows(of)
      labels = tf.data.Dataset.from_tensor_slices(self.labels[first : first + count * of]).batch(of)
      if begin == end:
        return labels.map(lambda labels: (tf.zeros([0, size, size, 3], tf.uint8), labels))
      starts = tf.data.Dataset.range(first, first + count * of, of)
      indices = starts.flat_map(lambda start: tf.data.Dataset.range(start + begin, start + end))
      pixels = indices.map(image, num_parallel_calls=tf.data.AUTOTUNE).batch(end - begin)
      pixels = pixels.map(lambda pixels: tf.reshape(pixels, [-1, size, size, 3]))
      return tf.data.Dataset.zip(pixels, labels)

    whole, rest = divmod(len(self.labels), batch_size)
    parts = [batches(0, whole, batch_size)] if whole else []
    parts += [batches(whole * batch_size, 1, rest)] if rest else []
    return (parts[0] if len(parts) == 1 else parts[0].concatenate(parts[1])).prefetch(PREFETCHED)

  def _reading(self):
    """Returns a function from index to bytes (if decoded, to the image); and labels."""
    with tf.device('/CPU:0'):
      files, labels = tf.constant(self.files), tf.constant(self.labels)
      places = None if self.places is None else tf.constant(self.places)
      root = tf.constant(os.path.join(os.fsencode(self.root), b''))
      decoded = None if self.decoded is None else tf.constant(os.fsencode(self.decoded))

    def read(index):
      path = root + files[index] if decoded is None else decoded
      if places is None:
        return tf.io.read_file(path)
      before, length = tf.unstack(places[index])
      record = tf.ensure_shape(tf.numpy_function(_bytes_of, [path, before, length], tf.string), [])
      return _pixels(record) if decoded is not None else record

    return read, labels

  def explain(self, error, batch_size, step, seed=None):
    """Raises a UserError that names what made reading a batch fail, or the error.

    Args:
      error: the exception; batch_size: of the batch.
      step: of the batch for training, or the number of the one for evaluation.
      seed: of the batches for training; None: they are those for evaluation.
    """
    if self.decoded:
      raise _damaged(self.decoded) from error
    if seed is None:
      chosen = range(step * batch_size, min((step + 1) * batch_size, len(self.labels)))
    else:
      chosen = next(iter(index_batches(len(self.labels), batch_size, seed, step)))[0].numpy()
    for index in chosen:
      path = os.path.join(self.root, os.fsdecode(self.files[index]))
      reason = image_files.fault(path, None if self.places is None else self.places[index])
      if reason:
        raise UserError(
          f'the image {image_files.quoted(path)} {reason}: restore it and run again, or leave it '
          'out with --skip_damaged True (training then starts anew, with another --train_dir)'
        ) from error
    raise error

  def decode_all(self, path):
    """Returns an ImageFiles of these images, decoded into one file.

    Their shorter side is `Crops.resize`. The file is made if it is missing; its name must be a new one for other images
    or other `crops`; an index goes beside it. Raises UserError if it cannot be written or is damaged, or an image is.
    """
    index = path + INDEX
    if not os.path.exists(index):
      try:
        self._decode_to(path, index)
      except OSError as e:
        raise UserError(
          f"--cache: '{path}' cannot be written ({e.strerror}): free some space, or leave --cache out"
        ) from e
    try:
      lengths = np.load(index)
      whole = lengths.shape == (len(self.labels),) and lengths.dtype.kind in 'iu' and lengths.min(initial=0) >= 0
      whole = whole and lengths.sum() == os.path.getsize(path)
    except (OSError, ValueError, EOFError):
      whole = False
    if not whole:
      raise _damaged(path)
    ends = np.cumsum(lengths)
    return dataclasses.replace(self, places=np.stack([ends - lengths, lengths], 1), decoded=path)

  def _decode_to(self, path, index):
    read, _ = self._reading()
    decoded = tf.data.Dataset.range(len(self.labels)).map(
      lambda i: images.shorter_side(read(i), self.crops.resize), num_parallel_calls=tf.data.AUTOTUNE
    )
    lengths = []
    with whole_file(path, 'wb') as f:
      try:
        for image in tqdm(decoded.as_numpy_iterator(), 'decoding', len(self.labels), unit='image', disable=None):
          lengths.append(f.write(np.array(image.shape[:2], '<i4').tobytes()) + f.write(image.data))
      except UNREADABLE as e:
        self.explain(e, 1, len(lengths))
    with whole_file(index, 'wb') as f:
      np.save(f, np.array(lengths, np.int64))


def _damaged(path):
  """Returns the UserError for a damaged file of decoded images."""
  return UserError(f"--cache: '{path}' is damaged: remove it and '{path}{INDEX}', or leave --cache out")


def _bytes_of(path, before, length):
  """Reads so many bytes in the middle of a file; TensorFlow's readers would read all that stands before them, too."""
  with open(path, 'rb', buffering=0) as f:
    content = os.pread(f.fileno(), int(length), int(before))
  if len(content) < length:
    raise EOFError(f'{os.fsdecode(path)} is cut short')
  return content


def _pixels(record):
  """Returns the image in a record of a file of decoded images."""
  values = tf.io.decode_raw(record, tf.uint8)
  shape = tf.bitcast(tf.reshape(values[:8], [2, 4]), tf.int32)
  return tf.reshape(values[8:], [shape[0], shape[1], 3])
