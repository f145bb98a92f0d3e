"""Tests that images of every kind decode right, and that batches are a function of seed and step."""

import os
import types

import numpy as np
import pictures
import pytest
import tensorflow as tf

from splitnet.common.errors import UserError
from splitnet.data import images
from splitnet.data.batches import Images, Part, numbered_batches
from splitnet.data.image_batches import ImageFiles
from splitnet.data.images import Crops

CROPS = Crops(16, 16)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """23 images in three classes, which tell their class and number: an ImageFiles."""
  root = tmp_path_factory.mktemp('images')
  made = [(os.fsencode(f'{label}-{number}.x'), label) for label in range(3) for number in range(8)][:23]
  for name, label in made:
    pictures.write(root / os.fsdecode(name), pictures.colour(label, int(name[2:3])))
  names, labels = zip(*made)
  return ImageFiles(str(root), np.array(names, object), np.array(labels, np.int32), CROPS)


def batches_of(dataset, count=None):
  return [[value.numpy() for value in batch] for batch in (dataset if count is None else dataset.take(count))]


# --- one image ---------------------------------------------------------------------------------------------------


def centre(contents, size=16):
  crops = Crops(size, size)
  return images.evaluation_crops(images.shorter_side(tf.constant(contents), crops.resize), size, 1)[0].numpy()


@pytest.mark.parametrize('contents, expected', [
  (pictures.CMYK_JPEG, (255, 0, 0)), (pictures.PALETTE_PNG, (255, 0, 0)),
  (pictures.png(np.full((16, 16, 1), 90, np.uint8)), (90, 90, 90)),
  (pictures.jpeg(np.full((16, 16, 1), 90, np.uint8)), (90, 90, 90)),
  (pictures.png(np.full((16, 16, 2), 90, np.uint8)), (90, 90, 90)),
  (pictures.png(np.broadcast_to(np.array([10, 20, 30, 0], np.uint8), (16, 16, 4))), (10, 20, 30)),
  (pictures.png(np.full((16, 16, 3), 90 * 257, np.uint16)), (90, 90, 90)),
], ids=['CMYK', 'palette', 'grey PNG', 'grey JPEG', 'grey and alpha', 'alpha', '16 bit'])  # fmt: skip
def test_images_of_every_kind_have_their_colours(contents, expected):
  for image in (centre(contents), images.training_crop(tf.constant(contents), tf.constant([1, 2], tf.int64), CROPS)):
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image, np.broadcast_to(expected, (16, 16, 3)), atol=3)


@pytest.mark.parametrize('encode', [pictures.jpeg, pictures.png])
@pytest.mark.parametrize('height, width', [(40, 40), (33, 60), (200, 90), (700, 400), (10, 14)])
def test_the_shorter_side_is_resized_and_the_centre_is_cut_out(encode, height, width):
  whole = images.shorter_side(tf.constant(encode(pictures.gradient(height, width))), 32).numpy()
  assert whole.shape == ((32, round(width * 32 / height), 3) if height < width else (round(height * 32 / width), 32, 3))
  np.testing.assert_allclose(whole, pictures.gradient(*whole.shape[:2]), atol=255 / 2 / min(height, 32) + 4)
  top, left = (whole.shape[0] - 24) // 2, (whole.shape[1] - 24) // 2
  np.testing.assert_array_equal(
    images.evaluation_crops(whole, 24, 1)[0], whole[top : top + 24, left : left + 24]
  )


def test_ten_crops_are_centre_and_corners_and_their_mirror_images():
  whole = pictures.gradient(20, 26)
  crops = images.evaluation_crops(whole, 16, 10).numpy()
  places = [(2, 5), (0, 0), (0, 10), (4, 0), (4, 10)]
  for crop, mirrored, (top, left) in zip(crops[:5], crops[5:], places):
    np.testing.assert_array_equal(crop, whole[top : top + 16, left : left + 16])
    np.testing.assert_array_equal(mirrored, crop[:, ::-1])


@pytest.mark.parametrize('encode', [pictures.jpeg, pictures.png])
@pytest.mark.parametrize('height, width', [(60, 80), (400, 250)])
def test_training_crops_are_parts_of_the_image_of_every_size(encode, height, width):
  contents = tf.constant(encode(pictures.gradient(height, width)))
  crop = tf.function(lambda contents, seed: images.training_crop(contents, seed, CROPS))
  areas = []
  for i in range(60):
    image = crop(contents, tf.constant([0, i], tf.int64)).numpy().astype(float)
    assert image.shape == (16, 16, 3)
    rows, columns = image[..., 0].mean(1), image[..., 1].mean(0)
    for values in (rows, columns):  # still even steps: nothing is warped but the two sides
      np.testing.assert_allclose(np.diff(values, 2)[1:-1], 0, atol=5)
    tall, wide = (height * (rows[-1] - rows[0]) / 255 * 16 / 15, width * (columns[-1] - columns[0]) / 255 * 16 / 15)
    assert 0.6 < wide / tall < 1.6
    areas.append(tall * wide / height / width)
  assert 0.04 < min(areas) < 0.25 and 0.6 < max(areas) < 1.1


def test_what_is_averaged_is_what_jpeg_decodes_smaller():
  noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
  image = np.repeat(np.repeat(noise, 24, 0), 24, 1)  # 8 x 8 blocks of 24 pixels
  for encode in (pictures.jpeg, pictures.png):
    np.testing.assert_allclose(centre(encode(image), 8).astype(int), noise, atol=6)


def test_an_image_of_a_user_is_read_as_for_evaluation(tmp_path):
  path = pictures.write(tmp_path / 'a b.JPG', pictures.png(pictures.gradient(40, 60)))
  image = images.read_image(path, Crops.of_size(28))
  np.testing.assert_array_equal(image, centre_of(path, Crops.of_size(28)))
  with pytest.raises(UserError, match=r"'.*gone.jpg' cannot be read"):
    images.read_image(str(tmp_path / 'gone.jpg'), CROPS)
  with pytest.raises(UserError, match='is a text'):
    images.read_image(pictures.write(tmp_path / 'text.jpg', b'hello'), CROPS)


def centre_of(path, crops):
  root, name = os.path.split(path)
  data = ImageFiles(root, np.array([os.fsencode(name)], object), np.zeros(1, np.int32), crops)
  return batches_of(data.evaluation_batches(1))[0][0][0]


# --- batches -----------------------------------------------------------------------------------------------------


def test_every_epoch_is_a_permutation_and_images_go_with_their_labels(files):
  seen = []
  for expected_step, (pixels, labels, step) in enumerate(batches_of(files.training_batches(5, 3), 23)):
    assert pixels.shape == (5, 16, 16, 3) and pixels.dtype == np.uint8 and step == expected_step
    shown, numbers = pictures.numbers(pixels)
    np.testing.assert_array_equal(shown, labels)
    seen += list(zip(shown, numbers))
  for epoch in range(5):
    assert len(set(seen[epoch * 23 : epoch * 23 + 23])) == 23


def test_the_order_is_that_of_images_in_memory(files):
  index = np.arange(23)
  memory = Images(np.zeros([23, 1, 1, 1], np.uint8), index.astype(np.int32))
  numbered = ImageFiles(files.root, files.files, index.astype(np.int32), CROPS)
  expected, actual = (batches_of(data.training_batches(7, 1, 2), 8) for data in (memory, numbered))
  for one, other in zip(actual, expected):
    np.testing.assert_array_equal(one[1], other[1])


@pytest.fixture(scope='module')
def patterned(tmp_path_factory):
  """9 images that look different wherever they are cut: an ImageFiles."""
  root = tmp_path_factory.mktemp('patterned')
  for i in range(9):
    image = np.random.default_rng(i).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    pictures.write(root / str(i), (pictures.jpeg if i % 2 else pictures.png)(image))
  names = np.array([b'%d' % i for i in range(9)], object)
  return ImageFiles(str(root), names, np.arange(9, dtype=np.int32), CROPS)


@pytest.mark.parametrize('first_step', [1, 2, 5])
def test_a_later_first_step_gives_the_crops_of_an_uninterrupted_run(patterned, first_step):
  whole = batches_of(patterned.training_batches(4, 7), first_step + 3)
  for one, other in zip(batches_of(patterned.training_batches(4, 7, first_step), 3), whole[first_step:]):
    for value, expected in zip(one, other):
      np.testing.assert_array_equal(value, expected)


def test_crops_differ_by_seed_by_step_and_by_position(patterned):
  same = patterned.take(np.zeros(9, int))  # nine times the same image
  pixels = np.concatenate([batch[0] for seed in (0, 1) for batch in batches_of(same.training_batches(4, seed), 3)])
  assert len({image.tobytes() for image in pixels}) == 24


@pytest.mark.slow
@pytest.mark.parametrize('replicas, batch_size', [(2, 6), (3, 7), (4, 5)])
def test_workers_read_their_rows_of_every_batch(patterned, replicas, batch_size):
  whole = batches_of(patterned.training_batches(batch_size, 2, 3), 3)
  for begin, end in ((0, 1), (1, replicas)):
    part = Part(begin, end, replicas)
    rows = slice(*part.rows(batch_size))
    for (pixels, labels, step), other in zip(batches_of(patterned.training_batches(batch_size, 2, 3, part), 3), whole):
      np.testing.assert_array_equal(pixels, other[0][rows])
      np.testing.assert_array_equal(labels, other[1])
      assert step == other[2]


@pytest.mark.parametrize('batch_size', [4, 9, 20])
@pytest.mark.parametrize('part', [Part(0, 1, 1), Part(1, 3, 4), Part(0, 1, 4)])
def test_evaluation_batches_are_in_order_and_workers_read_their_rows(patterned, batch_size, part):
  memory = Images(batches_of(patterned.evaluation_batches(9))[0][0], np.arange(9, dtype=np.int32))
  expected = batches_of(memory.evaluation_batches(batch_size, part))
  actual = batches_of(patterned.evaluation_batches(batch_size, part))
  assert len(actual) == len(expected) == -(-9 // batch_size)
  for one, other in zip(actual, expected):
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_the_first_of_ten_crops_is_the_centre(patterned):
  [[pixels, labels]] = batches_of(patterned.evaluation_batches(9, crops=10))
  assert pixels.shape == (90, 16, 16, 3) and labels.shape == (9,)
  np.testing.assert_array_equal(pixels[::10], batches_of(patterned.evaluation_batches(9))[0][0])


def test_probabilities_of_crops_are_averaged():
  logits = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(np.exp(images.average_crops(logits, 10)), p.reshape(3, 10, 4).mean(1), rtol=1e-5)
  assert images.average_crops(logits, 1) is logits


def test_the_images_of_a_limit_are_of_all_classes(files):
  chosen = files.mixed(12)
  assert set(chosen.labels) == {0, 1, 2} and len(chosen.labels) == len(chosen.files) == 12
  assert chosen.digest() == files.mixed(12).digest() != files.digest()
  with pytest.raises(UserError, match=r'24 images of .* but it holds only 23'):
    files.mixed(24)


# --- decoded once ------------------------------------------------------------------------------------------------


def test_decoded_images_evaluate_alike_and_are_cropped_alike(patterned, tmp_path):
  kept = patterned.decode_all(str(tmp_path / 'decoded'))
  expected, actual = (batches_of(data.evaluation_batches(9))[0][0] for data in (patterned, kept))
  np.testing.assert_array_equal(actual, expected)
  one, again, other = (batches_of(kept.training_batches(4, 0, step), 2) for step in (2, 2, 3))
  np.testing.assert_array_equal(one[1][0], other[0][0])
  np.testing.assert_array_equal(one[0][0], again[0][0])
  assert kept.digest() == patterned.digest()
  written = os.stat(tmp_path / 'decoded').st_mtime_ns
  patterned.decode_all(str(tmp_path / 'decoded'))
  assert os.stat(tmp_path / 'decoded').st_mtime_ns == written


def test_a_decoded_file_that_is_damaged_meanwhile_is_named(patterned, tmp_path):
  data = patterned.decode_all(str(tmp_path / 'decoded'))
  os.truncate(tmp_path / 'decoded', 100)
  with pytest.raises(UserError, match=r'--cache: .*decoded. is damaged: remove it and'):
    list(numbered_batches(data, 4))


def test_what_stands_before_an_image_in_its_file_is_not_read(tmp_path):
  contents, before = pictures.png(pictures.gradient(16, 16)), 1 << 40
  with open(tmp_path / 'records', 'wb') as f:  # with a hole of a terabyte, which takes no room
    f.seek(before)
    f.write(contents)
  data = ImageFiles(
    str(tmp_path), np.array([b'records'], object), np.zeros(1, np.int32), CROPS,
    np.array([[before, len(contents)]], np.int64),
  )  # fmt: skip
  ((pixels, _),) = batches_of(data.evaluation_batches(1))
  np.testing.assert_array_equal(pixels[0], centre(contents))
  os.truncate(tmp_path / 'records', before + 9)
  with pytest.raises(UserError, match=r'records.* is cut short or damaged: restore it and run again'):
    list(numbered_batches(data, 1))


def test_a_damaged_image_leaves_no_decoded_file(patterned, tmp_path):
  for i in range(9):
    pictures.write(tmp_path / 'images' / str(i), b'\xff\xd8\xff text')
  with pytest.raises(UserError, match=r"the image '.*/0' is cut short or damaged"):
    ImageFiles(str(tmp_path / 'images'), patterned.files, patterned.labels, CROPS).decode_all(str(tmp_path / 'decoded'))
  assert os.listdir(tmp_path) == ['images']


# --- what fails --------------------------------------------------------------------------------------------------


def test_a_damaged_image_is_named_with_its_step(files, tmp_path):
  for name, label in zip(files.files, files.labels):
    pictures.write(tmp_path / os.fsdecode(name), pictures.colour(label, 1))
  data = ImageFiles(str(tmp_path), files.files, files.labels, CROPS)
  pictures.write(tmp_path / '1-3.x', pictures.colour(1, 3)[:200])
  batches = iter(data.training_batches(5, 0))
  with pytest.raises(UserError, match=r"the image '.*1-3.x' is cut short or damaged: restore it and run again"):
    for step in range(5):
      try:
        next(batches)
      except tf.errors.OpError as e:
        data.explain(e, 5, step, seed=0)
  with pytest.raises(KeyError):  # none of the images' doing
    files.explain(KeyError(), 5, 0, seed=0)
  with pytest.raises(UserError, match=r"1-3.x' is cut"):
    data.explain(KeyError(), 5, 2)


# --- on the device -----------------------------------------------------------------------------------------------


def test_half_of_the_images_are_mirrored_and_replicas_draw_their_share():
  batch = np.random.default_rng(0).integers(0, 256, (200, 4, 6, 3)).astype(np.uint8)
  seed = tf.constant([3, 4])
  flipped = images.flip(batch, seed).numpy()
  mirrored = [np.array_equal(one, other[:, ::-1]) for one, other in zip(flipped, batch)]
  assert all(m or np.array_equal(one, other) for m, one, other in zip(mirrored, flipped, batch))
  assert 70 < sum(mirrored) < 130
  share = types.SimpleNamespace(batch=200, take=lambda values: values[50:120])
  np.testing.assert_array_equal(images.flip(batch[50:120], seed, share), flipped[50:120])
  assert images.no_augmentation(batch, seed, share) is batch


def test_channels_are_normalised():
  pixels = np.broadcast_to(np.array([0, 255, 100], np.uint8), (2, 4, 4, 3))
  expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (100 / 255 - 0.406) / 0.225]
  np.testing.assert_allclose(images.normalize(pixels)[1, 2, 3], expected, rtol=1e-5)
