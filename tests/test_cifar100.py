"""Tests augmentation and whitening against NumPy, and what is refused."""

import collections
import itertools
import json
import os

import helpers
import numpy as np
import pytest
import tensorflow as tf

import cifar100
import train
from splitnet.common.errors import UserError
from splitnet.data.dataset import DataSettings


@pytest.fixture(scope='module')
def images():
  """Random images: every pixel tells where it came from."""
  return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)


def variants(image):
  """The 162 images that augmentation may make: dict from (row, column, flipped) to image, from NumPy's own padding."""
  padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode='reflect')
  made = {}
  for row, column, flipped in itertools.product(range(9), range(9), (False, True)):
    crop = padded[row : row + 32, column : column + 32]
    made[row, column, flipped] = crop[:, ::-1] if flipped else crop
  return made


# --- augmentation -----------------------------------------------------------------------------------------------


def test_augmented_images_are_the_numpy_variants_and_all_of_them_occur(images):
  allowed = [{v.tobytes(): key for key, v in variants(image).items()} for image in images]
  assert all(len(a) == 162 for a in allowed)
  repeats = 1500  # a given variant is missing from as many draws once in 10,000 tries
  drawn = cifar100.augment(np.repeat(images, repeats, 0), tf.constant([0, 0])).numpy()
  for i, variants_of_image in enumerate(allowed):
    seen = collections.Counter(variants_of_image.get(d.tobytes()) for d in drawn[i * repeats : (i + 1) * repeats])
    assert None not in seen, 'a drawn image is none of the 162'
    assert len(seen) == 162
    flipped = sum(count for (_, _, flip), count in seen.items() if flip)
    assert 0.4 < flipped / repeats < 0.6
    assert max(seen.values()) < 40  # 9 expected


def test_augmentation_is_drawn_for_each_image_on_its_own(images):
  drawn = cifar100.augment(np.repeat(images[:1], 20, 0), tf.constant([0, 1])).numpy()
  assert len({d.tobytes() for d in drawn}) > 10


def test_augmentation_is_a_function_of_its_seed(images):
  seeds = [tf.constant(seed) for seed in ([3, 7], [3, 7], [3, 8], [4, 7])]
  first, again, other_step, other_seed = [cifar100.augment(np.repeat(images, 5, 0), s).numpy() for s in seeds]
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other_step)
  assert not np.array_equal(first, other_seed)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_augmentation_keeps_type_and_shape_in_a_compiled_step(images, dtype):
  compiled = tf.function(cifar100.augment)
  seed = tf.constant([1, 2])
  drawn = compiled(tf.constant(images.astype(dtype)), seed)
  assert drawn.dtype == dtype
  np.testing.assert_array_equal(drawn.numpy(), cifar100.augment(images, seed).numpy().astype(dtype))


# --- whitening --------------------------------------------------------------------------------------------------


def test_whitening_is_numpys_for_each_image_and_channel(images):
  scaled = (images // np.array([1, 4, 60], np.uint8)).astype(np.uint8)
  x = scaled.astype(np.float64)
  expected = (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
  whitened = cifar100.whiten(scaled)
  assert whitened.dtype == tf.float32
  np.testing.assert_allclose(whitened.numpy(), expected, atol=2e-5)


def test_a_channel_of_one_value_becomes_zero_and_nothing_else_changes(images):
  constant = images.copy()
  constant[1, :, :, 2] = 77
  before, after = cifar100.whiten(images).numpy(), cifar100.whiten(constant).numpy()
  np.testing.assert_array_equal(after[1, :, :, 2], np.zeros((32, 32)))
  before[1, :, :, 2] = 0
  np.testing.assert_array_equal(after, before)


def test_the_faintest_channel_is_still_whitened():
  faint = np.full((1, 32, 32, 1), 200, np.uint8)
  faint[0, 5, 6, 0] = 201  # one pixel, by one grey level
  whitened = cifar100.whiten(faint).numpy()
  assert whitened.std() == pytest.approx(1, rel=0.01)


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('subset', cifar100.SUBSETS)
def test_load_reads_what_the_file_holds(tmp_path_factory, subset):
  folder = helpers.data(tmp_path_factory)
  loaded = cifar100.load(folder, subset)
  with np.load(os.path.join(folder, subset + '.npz')) as archive:
    np.testing.assert_array_equal(loaded.images, archive['images'])
    np.testing.assert_array_equal(loaded.labels, archive['labels'])
  assert loaded.images.dtype == np.uint8 and loaded.labels.dtype == np.int32
  first = cifar100.load(folder, subset, 7)
  np.testing.assert_array_equal(first.images, loaded.images[:7])
  np.testing.assert_array_equal(first.labels, loaded.labels[:7])


def test_names_are_those_of_the_file(tmp_path_factory):
  folder = helpers.data(tmp_path_factory)
  names = cifar100.load_names(folder)
  assert len(names.fine) == 100 and len(names.coarse) == 20
  np.testing.assert_array_equal(names.fine_to_coarse, np.arange(100) % 20)
  assert names.source == {'source': 'synthetic', 'seed': 0, 'num_val_instance': 60, 'images_per_class': 1}


@pytest.mark.parametrize('read', [cifar100.load_names, lambda folder: cifar100.load(folder, 'val')])
def test_missing_data_names_the_folder_and_the_way_out(tmp_path, read):
  folder = str(tmp_path / 'nothing')
  with pytest.raises(UserError) as error:
    read(folder)
  assert folder in str(error.value)
  for way_out in ('download_cifar100.py', '--archive', '--synthetic', '--data_dir'):
    assert way_out in str(error.value)


def cut(content):
  return content[: len(content) // 2]


def flip_a_byte(content):
  middle = len(content) // 2
  return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
  'damage', [cut, flip_a_byte, lambda content: b'', lambda content: b'no archive'], ids=['cut', 'flip', 'empty', 'text']
)
def test_a_damaged_subset_names_the_file_and_the_way_out(tmp_path, damage):
  folder = helpers.write(tmp_path)
  path = os.path.join(folder, 'train.npz')
  with open(path, 'rb') as f:
    content = f.read()
  with open(path, 'wb') as f:
    f.write(damage(content))
  with pytest.raises(UserError) as error:
    cifar100.load(folder, 'train')
  assert path in str(error.value) and 'download_cifar100.py --force' in str(error.value)


def test_a_subset_without_labels_is_damaged(tmp_path):
  folder = helpers.write(tmp_path)
  np.savez(os.path.join(folder, 'val.npz'), images=np.zeros((2, 32, 32, 3), np.uint8))
  with pytest.raises(UserError, match=r'val\.npz.*labels.*--force'):
    cifar100.load(folder, 'val')


@pytest.mark.parametrize('content', ['', '{', '{}', '[]', json.dumps({'fine': ['a'], 'coarse': ['b']})])
def test_damaged_names_name_the_file_and_the_way_out(tmp_path, content):
  folder = helpers.write(tmp_path)
  path = os.path.join(folder, 'names.json')
  with open(path, 'w', encoding='utf-8') as f:
    f.write(content)
  with pytest.raises(UserError) as error:
    cifar100.load_names(folder)
  assert path in str(error.value) and '--force' in str(error.value)


def test_more_images_than_there_are_names_both_numbers(tmp_path_factory):
  with pytest.raises(UserError, match=r'61 images.*only 60'):
    cifar100.load(helpers.data(tmp_path_factory), 'val', 61)


def test_train_tells_of_missing_data_in_one_sentence_and_makes_nothing(tmp_path, capsys):
  arguments = helpers.flags('baseline', str(tmp_path / 'nothing'), str(tmp_path / 'run'))
  code, _, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and str(tmp_path / 'nothing') in stderr and stderr.count('\n') == 1
  assert not os.listdir(tmp_path)


# --- as a data set ----------------------------------------------------------------------------------------------


def test_the_programs_get_names_subsets_and_what_prepares_images(data):
  opened = cifar100.open_dataset(DataSettings(data))
  assert opened.names.source == cifar100.load_names(data).source and len(opened.names.coarse) == 20
  np.testing.assert_array_equal(opened.load('val', 7).images, cifar100.load(data, 'val', 7).images)
  assert opened.image_size == 32 and opened.augment is cifar100.augment and opened.prepare is cifar100.whiten


def test_another_image_size_is_refused(data):
  with pytest.raises(UserError, match='--image_size is 64, but images of CIFAR-100 have 32'):
    cifar100.open_dataset(DataSettings(data, image_size=64))


def test_data_that_are_written_anew_meanwhile_are_refused(tmp_path):
  folder = helpers.write(tmp_path)
  opened = cifar100.open_dataset(DataSettings(folder))
  assert len(opened.load('train').labels) == helpers.SIZES['train']
  helpers.write(tmp_path, seed=1)  # train and val would be of two divisions
  with pytest.raises(UserError, match='has been written anew while it was read'):
    opened.load('val')
  opened = cifar100.open_dataset(DataSettings(folder))
  os.remove(tmp_path / 'names.json')  # what rewriting begins with
  with pytest.raises(UserError, match='there is no CIFAR-100 in'):
    opened.load('val')
