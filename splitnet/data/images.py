"""Reads images from files: decodes, resizes and crops them; batches are a function of seed and step.

JPEG and PNG of any size; grey, CMYK, palette, 16-bit images and images with transparency become RGB, the transparency
is left out. What the name of a file ends in decides nothing. The orientation that a camera noted (EXIF) is not applied.

An image is reduced by averages of 2 x 2, 4 x 4 or 8 x 8 pixels (JPEG: by its own scaled decoding, which is faster) as
long as it stays as large as asked for, and then resized bilinearly.
"""

import dataclasses
import functools
import hashlib
import os

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from splitnet.common.errors import UserError
from splitnet.common.files import whole_file
from splitnet.data import image_files
from splitnet.data.batches import WHOLE, index_batches
from splitnet.data.dataset import DataSet

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ILSVRC's images by channel, values 0 to 1
REDUCTIONS = (1, 2, 4, 8)  # that JPEG can decode to
PREFETCHED = 2  # batches that are ready before they are asked for
CROPS = (1, 10)


@dataclasses.dataclass(frozen=True)
class Crops:
  """How images become squares.

  Attributes:
    size: pixels a side.
    resize: pixels of the shorter side before the crops for evaluation are taken; 256 of 224 as usual, in proportion.
    min_area: least share of the image that a crop for training shows; the largest is all of it, its width is 3/4 to 4/3
      of its height, and it is resized to `size`.
  """

  size: int
  resize: int
  min_area: float = 0.08

  @classmethod
  def of_size(cls, size, min_area=0.08):
    """Makes the usual crops of so many pixels a side."""
    return cls(size, round(size * 256 / 224), min_area)


# --- one image, in a graph ---------------------------------------------------------------------------------------


def _reduction(height, width, target_height, target_width):
  """Returns the number of REDUCTIONS whose result is still at least as large as the target."""
  possible = tf.minimum(height // target_height, width // target_width)
  return sum(tf.cast(possible >= reduction, tf.int32) for reduction in REDUCTIONS[1:])


def _reduce(image, reduction):
  """Averages blocks of pixels; uint8 to uint8."""
  height, width = tf.shape(image)[0] // reduction, tf.shape(image)[1] // reduction
  blocks = tf.reshape(image[: height * reduction, : width * reduction], [height, reduction, width, reduction, 3])
  return tf.cast(tf.round(tf.reduce_mean(tf.cast(blocks, tf.float32), [1, 3])), tf.uint8)


def _resize(image, height, width):
  """Resizes bilinearly; uint8 to uint8."""
  image = tf.cast(image, tf.float32)  # of floats TensorFlow resizes twice as many as of uint8
  return tf.cast(tf.image.resize(image, [height, width]) + 0.5, tf.uint8)


def _decode_other(contents):
  """Decodes what is no JPEG."""
  image = tf.io.decode_image(contents, channels=3, expand_animations=False)
  image.set_shape([None, None, 3])
  return image


def _shape_of_jpeg(contents):
  shape = tf.io.extract_jpeg_shape(contents)
  return shape[0], shape[1]


def _crop_jpeg(contents, box, size):
  """Decodes the part of a JPEG in a box (top, left, height, width), reduced to no less than `size`."""

  def decode(reduction):
    window = tf.stack([box[0] // reduction, box[1] // reduction, box[2] // reduction, box[3] // reduction])
    # The fast cosine transform, as usual for training: a fifth less time, differences of a grey level or two.
    return tf.image.decode_and_crop_jpeg(contents, window, channels=3, ratio=reduction, dct_method='INTEGER_FAST')

  return tf.switch_case(_reduction(box[2], box[3], size, size), [functools.partial(decode, r) for r in REDUCTIONS])


def _crop_decoded(image, box, size):
  """Returns the part of an image in a box (top, left, height, width), reduced to no less than `size`."""
  crop = image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
  return _reduce(crop, tf.gather(REDUCTIONS, _reduction(box[2], box[3], size, size)))


def _draw_box(height, width, seed, min_area):
  """Draws a box (top, left, height, width) in an image, as slim and torchvision do."""
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
    tf.stack([height, width, 3]), tf.zeros([1, 0, 4]), seed, min_object_covered=0.0, aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=(min_area, 1.0), max_attempts=10, use_image_if_no_bounding_boxes=True,
  )  # fmt: skip
  return tf.stack([begin[0], begin[1], size[0], size[1]])


def training_crop(contents, seed, crops):
  """Decodes a random part of an image and resizes it to a square.

  Args:
    contents: the file, a scalar string tensor.
    seed: int64 [2].
    crops: a Crops.

  Returns:
    uint8 [size, size, 3].
  """

  def jpeg():
    box = _draw_box(*_shape_of_jpeg(contents), seed, crops.min_area)
    return _resize(_crop_jpeg(contents, box, crops.size), crops.size, crops.size)

  return tf.cond(
    tf.io.is_jpeg(contents), jpeg, lambda: training_crop_of_decoded(_decode_other(contents), seed, crops)
  )


def training_crop_of_decoded(image, seed, crops):
  """Resizes a random part of a decoded image to a square; as `training_crop`."""
  box = _draw_box(tf.shape(image)[0], tf.shape(image)[1], seed, crops.min_area)
  return _resize(_crop_decoded(image, box, crops.size), crops.size, crops.size)


def shorter_side(contents, resize):
  """Decodes an image and resizes it so that its shorter side has `resize` pixels: uint8 [height, width, 3]."""

  def jpeg():
    height, width = _shape_of_jpeg(contents)
    branches = [functools.partial(tf.io.decode_jpeg, contents, channels=3, ratio=r) for r in REDUCTIONS]
    return height, width, tf.switch_case(_reduction(height, width, resize, resize), branches)

  def other():
    image = _decode_other(contents)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    return height, width, _reduce(image, tf.gather(REDUCTIONS, _reduction(height, width, resize, resize)))

  height, width, image = tf.cond(tf.io.is_jpeg(contents), jpeg, other)
  scale = resize / tf.minimum(height, width)
  height, width = (tf.cast(tf.round(tf.cast(side, tf.float64) * scale), tf.int32) for side in (height, width))
  return _resize(image, height, width)


def evaluation_crops(image, size, count):
  """Cuts squares out of an image whose shorter side is that of `Crops.resize`.

  Args:
    image: uint8 [height, width, 3]; size: pixels a side of the squares.
    count: 1: the centre; 10: the centre and the four corners, and their mirror images.

  Returns:
    uint8 [count, size, size, 3].
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
  """Reads one image as for evaluation: its centre.

  Args:
    path: of a JPEG or PNG file; crops: a Crops.

  Returns:
    uint8 array [size, size, 3].

  Raises:
    UserError: the file is missing, damaged, or neither JPEG nor PNG.
  """
  fault = image_files.fault(path)
  if fault:
    raise UserError(f'the image {image_files.quoted(path)} {fault}')
  with tf.device('/CPU:0'):
    return _reader(crops)(tf.io.read_file(os.fsencode(path))).numpy()


# --- on the device -----------------------------------------------------------------------------------------------


def flip(images, seed, share=None):
  """Mirrors half of the images, drawn at random.

  Args:
    images: [batch, height, width, channels], any type.
    seed: int32 tensor [2].
    share: if the images are a part of a batch, an object whose `batch` is the size of the whole and whose
      `take(values)` picks this part's rows; None: they are the whole batch.

  Returns:
    Images of the same shape and type.
  """
  draw = tf.random.stateless_uniform([share.batch if share else tf.shape(images)[0]], seed, 0, 2, tf.int32)
  draw = share.take(draw) if share else draw
  return tf.where(draw[:, None, None, None] == 1, tf.reverse(images, [2]), images)


def no_augmentation(images, seed, share=None):
  """Returns the images as they are."""
  del seed, share
  return images


def normalize(images):
  """Shifts and scales each channel by ILSVRC's mean and deviation: uint8 or float to float32."""
  mean, deviation = (255 * tf.constant(values, tf.float32) for values in (MEAN, DEVIATION))
  return (tf.cast(images, tf.float32) - mean) / deviation


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

  crops = Crops.of_size(size, settings.min_crop_area)
  return DataSet(
    names, size, load, augment=flip if settings.flip else no_augmentation, prepare=normalize,
    read=functools.partial(read_image, crops=crops), notes=tuple(notes),
  )  # fmt: skip


# --- many images -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
  """Images in files, which are read and decoded when their batch is due.

  Attributes:
    root: folder of the files.
    files: their paths below it, bytes [N] (object array).
    labels: int32 [N].
    crops: a Crops.
    places: int64 [N, 3] if files hold several images each: how many bytes of its file stand before an image, are its
      own, and stand behind it; None: a file is an image.
    decoded: the one file of all images that `decode_all` wrote, with `places` in it; None: they are not decoded.
  """

  root: str
  files: np.ndarray
  labels: np.ndarray
  crops: Crops
  places: np.ndarray | None = None
  decoded: str | None = None

  def take(self, chosen):
    """Makes an ImageFiles of the images that an index or mask chooses."""
    places = None if self.places is None else self.places[chosen]
    return dataclasses.replace(self, files=self.files[chosen], labels=self.labels[chosen], places=places)

  def mixed(self, limit=None):
    """Takes so many images (None: all) in a random order, the same each time, so that any beginning has all classes.

    Raises:
      UserError: there are fewer.
    """
    if limit is not None and limit > len(self.labels):
      raise UserError(f"{limit} images of '{self.root}' were asked for, but it holds only {len(self.labels)}")
    return self.take(np.random.RandomState(0).permutation(len(self.labels))[:limit])

  def digest(self):
    """Computes a digest of the files' names and labels, which workers compare: 64 hexadecimal digits."""
    content = hashlib.sha256(b'\0'.join(self.files.tolist()))
    content.update(np.ascontiguousarray(self.labels, np.int32))
    return content.hexdigest()

  def training_batches(self, batch_size, seed, first_step=0, part=WHOLE):
    """Yields endless batches of random crops in the order of `index_batches`.

    The crop of an image is a function of the seed, the step, and the image's position in the batch.

    Args:
      batch_size, seed, first_step: as of `index_batches`.
      part: the Part of each batch whose images are read; the labels are always those of the whole batch.

    Returns:
      tf.data.Dataset of (images uint8 [rows, size, size, 3], labels int32 [batch], step int64 []).
    """
    begin, end = part.rows(batch_size)
    read, labels = self._reading()
    crop = training_crop_of_decoded if self.decoded else training_crop

    def rows(chosen, step):
      positions = step * batch_size + tf.range(begin, end, dtype=tf.int64)
      return tf.data.Dataset.from_tensor_slices((chosen[begin:end], positions))

    def image(index, position):
      return crop(read(index), tf.stack([tf.constant(seed, tf.int64), position]), self.crops)

    order = index_batches(len(self.labels), batch_size, seed, first_step)
    images = order.flat_map(rows).map(image, num_parallel_calls=tf.data.AUTOTUNE)
    images = images.batch(end - begin, drop_remainder=True)
    others = order.map(lambda chosen, step: (tf.gather(labels, chosen), step))
    batches = tf.data.Dataset.zip(images, others).map(lambda images, others: (images, *others))
    return batches.prefetch(PREFETCHED)

  def evaluation_batches(self, batch_size, part=WHOLE, crops=1):
    """Yields crops of the images once, in order; the last batch may be smaller.

    Args:
      batch_size: images per batch.
      part: the Part of each batch whose images are read; the labels are always those of the whole batch.
      crops: 1: the centre; 10: `evaluation_crops`, one after the other.

    Returns:
      tf.data.Dataset of (images uint8 [rows * crops, size, size, 3], labels int32 [batch]).
    """
    read, _ = self._reading()
    size = self.crops.size

    def image(index):
      whole = read(index) if self.decoded else shorter_side(read(index), self.crops.resize)
      return evaluation_crops(whole, size, crops)

    def batches(first, count, images):  # so many batches of as many images
      begin, end = part.rows(images)
      labels = tf.data.Dataset.from_tensor_slices(self.labels[first : first + count * images]).batch(images)
      if begin == end:
        return labels.map(lambda labels: (tf.zeros([0, size, size, 3], tf.uint8), labels))
      starts = tf.data.Dataset.range(first, first + count * images, images)
      indices = starts.flat_map(lambda start: tf.data.Dataset.range(start + begin, start + end))
      pixels = indices.map(image, num_parallel_calls=tf.data.AUTOTUNE).batch(end - begin)
      pixels = pixels.map(lambda images: tf.reshape(images, [-1, size, size, 3]))
      return tf.data.Dataset.zip(pixels, labels)

    whole, rest = divmod(len(self.labels), batch_size)
    parts = [batches(0, whole, batch_size)] if whole else []
    parts += [batches(whole * batch_size, 1, rest)] if rest else []
    return (parts[0] if len(parts) == 1 else parts[0].concatenate(parts[1])).prefetch(PREFETCHED)

  def _reading(self):
    """Returns a function from an index to the file's bytes or, if decoded, to the image; and the labels."""
    with tf.device('/CPU:0'):
      files, labels = tf.constant(self.files), tf.constant(self.labels)
      places = None if self.places is None else tf.constant(self.places)
      root = tf.constant(os.path.join(os.fsencode(self.root), b''))
      decoded = None if self.decoded is None else tf.constant(os.fsencode(self.decoded))

    def read(index):
      path = root + files[index] if decoded is None else decoded
      if places is None:
        return tf.io.read_file(path)
      before, length, behind = tf.unstack(places[index])
      record = tf.data.FixedLengthRecordDataset(path, length, before, behind, buffer_size=length).get_single_element()
      return _pixels(record) if decoded is not None else record

    return read, labels

  def find_fault(self, indices):
    """Returns the first of some images that cannot be decoded, and why, as the end of a sentence; None if all can."""
    for index in indices:
      place = None if self.places is None else self.places[index]
      path = os.path.join(self.root, os.fsdecode(self.files[index]))
      reason = None if self.decoded else image_files.fault(path, place)
      if reason:
        return f'the image {image_files.quoted(path)} {reason}'
    return None

  def explain(self, error, batch_size, step, seed=None):
    """Raises what made reading a batch fail in one sentence; the error itself if no image explains it.

    Args:
      error: the exception; batch_size: of the batch.
      step: of the batch for training, or the number of the one for evaluation.
      seed: of the batches for training; None: they are those for evaluation.

    Raises:
      UserError: an image of the batch cannot be decoded.
    """
    if seed is None:
      chosen = range(step * batch_size, min((step + 1) * batch_size, len(self.labels)))
    else:
      chosen = next(iter(index_batches(len(self.labels), batch_size, seed, step)))[0].numpy()
    reason = self.find_fault(chosen)
    if reason is None:
      raise error
    raise UserError(f'{reason}: restore it and run again, or start anew with --skip_damaged') from error

  def decode_all(self, path):
    """Decodes all images once into a file, if it is not there already: shorter side `Crops.resize`.

    Args:
      path: of the file, whose name must be a new one for other images or other `crops`; an index goes beside it.

    Returns:
      An ImageFiles of the decoded images.

    Raises:
      UserError: the disk is full or cannot be written.
    """
    index = path + '.npy'
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
      raise UserError(f"--cache: '{path}' is damaged: remove it and '{index}', or leave --cache out")
    ends = np.cumsum(lengths)
    return dataclasses.replace(self, places=np.stack([ends - lengths, lengths, ends[-1] - ends], 1), decoded=path)

  def _decode_to(self, path, index):
    read, _ = self._reading()
    images = tf.data.Dataset.range(len(self.labels)).map(
      lambda i: shorter_side(read(i), self.crops.resize), num_parallel_calls=tf.data.AUTOTUNE
    )
    lengths = []
    with whole_file(path, 'wb') as f:
      for image in tqdm(images.as_numpy_iterator(), 'decoding', len(self.labels), unit='image', disable=None):
        lengths.append(f.write(np.array(image.shape[:2], '<i4').tobytes()) + f.write(image.data))
    with whole_file(index, 'wb') as f:
      np.save(f, np.array(lengths, np.int64))


def _pixels(record):
  """Returns the image in a record of a file of decoded images."""
  values = tf.io.decode_raw(record, tf.uint8)
  shape = tf.bitcast(tf.reshape(values[:8], [2, 4]), tf.int32)
  return tf.reshape(values[8:], [shape[0], shape[1], 3])
