"""Tests folders of images: their layouts, how they are divided, superclasses, and what is refused."""

import json
import os

import helpers
import numpy as np
import pictures
import pytest

import eval as evaluation
import image_folder
import train
from serving import accuracy, export, infer
from splitnet.common.errors import UserError
from splitnet.data.dataset import DataSettings

CLASSES = ['cat', 'dog', 'été']


def opened(folder, **settings):
  return image_folder.open_dataset(DataSettings(str(folder), image_size=16, **settings))


def shown(data):
  """The (class, number) that the images of a subset tell, and checks their labels."""
  [[images, labels]] = data.evaluation_batches(1000)
  classes, numbers = pictures.numbers(images)
  np.testing.assert_array_equal(classes, labels)
  return set(zip(classes.tolist(), numbers.tolist()))


@pytest.fixture
def folder(tmp_path):
  """20 images in each of three classes, without subfolders."""
  return pictures.folder(tmp_path / 'mine', CLASSES, 20)


@pytest.mark.slow
def test_without_subfolders_subsets_are_drawn_once_and_written_down(folder):
  first = opened(folder)
  assert first.names.fine == CLASSES and first.names.coarse is None and first.image_size == 16
  assert first.names.source == {'source': 'image_folder'} and first.prepare is image_folder.prepare
  [note] = first.notes
  assert 'val and test were drawn' in note
  subsets = {name: shown(first.load(name)) for name in ('train', 'val', 'test', 'train_val')}
  assert [len(subsets[name]) for name in ('train', 'val', 'test', 'train_val')] == [48, 6, 6, 54]
  assert subsets['train'] | subsets['val'] == subsets['train_val'] and len(subsets['train_val'] | subsets['test']) == 60
  again = opened(folder)
  assert not again.notes and all(shown(again.load(name)) == subset for name, subset in subsets.items())


@pytest.mark.slow
def test_images_that_come_later_are_trained_on(folder):
  before = {name: shown(opened(folder).load(name)) for name in ('train', 'val', 'test')}
  pictures.write(os.path.join(folder, 'cat', 'a.png'), pictures.colour(0, 45))
  after = {name: shown(opened(folder).load(name)) for name in ('train', 'val', 'test')}
  assert after == {**before, 'train': before['train'] | {(0, 45)}}


def test_the_same_folder_elsewhere_is_divided_alike(folder, tmp_path):
  other = pictures.folder(tmp_path / 'other', CLASSES, 20)
  assert shown(opened(other).load('val')) == shown(opened(folder).load('val'))


@pytest.mark.parametrize('val', ['val', 'valid', 'Validation'])
def test_folders_of_subsets_are_taken_as_they_are(tmp_path, val):
  pictures.folder(tmp_path / 'train', CLASSES, 6)
  pictures.folder(tmp_path / val, CLASSES[:2], 2)
  data = opened(tmp_path)
  assert [len(data.load(name).labels) for name in ('train', 'val', 'train_val')] == [18, 4, 22] and not data.notes
  with pytest.raises(UserError, match=r"no subset 'test', it has train, val, train_val"):
    data.load('test')


def test_val_is_drawn_from_train_if_it_has_no_folder(tmp_path):
  pictures.folder(tmp_path / 'train', CLASSES, 10)
  pictures.folder(tmp_path / 'test', CLASSES, 2)
  data = opened(tmp_path)
  assert [len(data.load(name).labels) for name in ('train', 'val', 'test')] == [27, 3, 6]


def test_few_images_leave_some_to_train_on(tmp_path):
  data = opened(pictures.folder(tmp_path, CLASSES, 4))
  assert [len(data.load(name).labels) for name in ('train', 'val', 'test')] == [6, 3, 3]


def test_superclasses_are_optional(folder):
  with open(os.path.join(folder, 'superclasses.json'), 'w', encoding='utf-8') as f:
    json.dump({'season': ['été'], 'animal': ['dog', 'cat']}, f)
  names = opened(folder).names
  assert names.coarse == ['season', 'animal'] and names.fine_to_coarse.tolist() == [1, 1, 0]


@pytest.mark.parametrize('content, sentence', [
  ({'a': ['cat'], 'b': ['dog']}, "names the class 'été' 0 times"), ({'a': [*CLASSES, 'cat']}, "'cat' 2 times"),
  ({'a': [*CLASSES, 'cow']}, "names the class 'cow', which"), (['cat'], 'is damaged'), ({'a': 3}, 'is damaged'),
  ({'a': [1, *CLASSES]}, 'is damaged'),
])  # fmt: skip
def test_wrong_superclasses_are_refused(folder, content, sentence):
  with open(os.path.join(folder, 'superclasses.json'), 'w', encoding='utf-8') as f:
    json.dump(content, f)
  with pytest.raises(UserError, match=sentence):
    opened(folder)


def test_damaged_images_are_named_or_left_out(folder):
  whole = {name: shown(opened(folder).load(name)) for name in ('train', 'val', 'test')}
  pictures.write(os.path.join(folder, 'cat', '03.jpg'), b'')
  pictures.write(os.path.join(folder, 'dog', '04.jpg'), b'text')
  with pytest.raises(UserError, match=r"2 of the 60 images .*'cat/03.jpg' is empty; 'dog/04.jpg' is a text"):
    opened(folder)
  data = opened(folder, skip_damaged=True)
  assert '2 of the 60 images' in data.notes[0]
  for name, subset in whole.items():
    assert shown(data.load(name)) == subset - {(0, 3), (1, 4)}


def test_a_class_of_damaged_images_only_is_refused(folder):
  for i in range(20):
    pictures.write(os.path.join(folder, 'cat', f'{i:02d}.jpg'), b'')
  with pytest.raises(UserError, match="no image of the class 'cat'"):
    opened(folder, skip_damaged=True)


@pytest.mark.slow
def test_decoded_images_are_kept_until_a_file_changes(folder):
  plain, kept = opened(folder), opened(folder, cache=True)
  for name in ('train', 'val'):
    assert shown(kept.load(name)) == shown(plain.load(name))
  decoded = kept.load('val').decoded
  assert decoded == opened(folder, cache=True).load('val').decoded != kept.load('train').decoded
  changed = sorted(os.fsdecode(file) for file in plain.load('val').files)[0]
  pictures.write(os.path.join(folder, changed), pictures.colour(0, 44))
  assert (0, 44) in shown(opened(folder, cache=True).load('val'))


def test_a_user_may_ask_for_crops_and_no_mirror_images(folder):
  data = opened(folder, min_crop_area=0.5, flip=False)
  assert data.load('train').crops.min_area == 0.5
  images = np.arange(24).reshape(1, 2, 4, 3)
  assert data.augment(images, [0, 0]) is images


def test_an_image_is_read_for_the_network(folder):
  image = opened(folder).read(os.path.join(folder, 'dog', '07.jpg'))
  assert [int(value[0]) for value in pictures.numbers(image[None])] == [1, 7]


def test_folders_in_classes_are_told(folder):
  pictures.write(os.path.join(folder, 'cat', 'more', 'x.jpg'), pictures.colour(0, 1))
  pictures.write(os.path.join(folder, 'dog', 'more', 'x.jpg'), pictures.colour(0, 1))
  assert any("'cat/more' and 1 more" in note for note in opened(folder).notes)


def test_names_of_every_kind_are_read(tmp_path):
  folder = pictures.folder(tmp_path, ['a b', 'new\nline', 'ünï 🐱'], 10, '{}/{:02d}\n {{}}*.jpg')
  data = opened(folder)
  assert len(shown(data.load('train'))) == 24
  assert shown(opened(folder).load('val')) == shown(data.load('val'))


@pytest.mark.parametrize('make, sentence', [
  (lambda path: None, 'holds images of 0 classes'),
  (lambda path: pictures.folder(path, ['one'], 3), 'holds images of 1 classes'),
  (lambda path: pictures.folder(path / 'val', CLASSES, 3), "a folder 'val' but no folder 'train'"),
  (lambda path: [pictures.folder(path / 'train', CLASSES, 3), pictures.folder(path / 'val', ['cow'], 3)],
   "val of .* has a class 'cow' that train does not have"),
  (lambda path: [pictures.folder(path / 'train', CLASSES, 3), os.mkdir(path / 'val')], 'val of .* holds no images'),
  (lambda path: pictures.folder(path, CLASSES, 1), 'no image is left for val'),
  (lambda path: [pictures.folder(path, CLASSES, 9), pictures.write(path / '.splitnet' / 'subsets.json', b'{"val": 1}')],
   'is damaged'),
])  # fmt: skip
def test_what_is_no_data_set_is_refused(tmp_path, make, sentence):
  make(tmp_path)
  with pytest.raises(UserError, match=sentence):
    opened(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
  with pytest.raises(UserError, match=r"'.*none' cannot be read \(No such file"):
    opened(tmp_path / 'none')
  with pytest.raises(UserError, match='--data_dir is missing'):
    image_folder.open_dataset(DataSettings())


@pytest.mark.slow
def test_a_network_of_own_images_goes_the_whole_way(folder, tmp_path, capsys):
  """As in docs/data.md: three stages, evaluation, export; then what the export and the checkpoint say of files."""
  base, result, exported = None, str(tmp_path / 'eval.json'), str(tmp_path / 'exported')
  for mode, more in (
    ('baseline', [*helpers.NETWORK, '--image_size', 16, '--max_steps', 60]),
    ('group', ['--assignment_start', 'spectral', '--max_steps', 2]), ('split', ['--max_steps', 20]),
  ):  # fmt: skip
    run = str(tmp_path / mode)
    given = [*more, '--dataset', 'image_folder', '--min_crop_area', 0.9, *(['--basemodel', base] if base else [])]
    assert train.main(helpers.flags(mode, folder, run, *given)) == 0
    base = run
  assert evaluation.main(['--checkpoint', base, '--output_file', result]) == 0
  assert export.main(['--checkpoint', base, '--branches', '--out', exported]) == 0
  test = opened(folder).load('test')
  paths = [os.path.join(test.root, os.fsdecode(file)) for file in test.files]

  def answers(*flags):
    code, out, err = helpers.call(infer, [*flags, '--top', 1, *paths], capsys)
    assert (code, err) == (0, '')
    lines = out.splitlines()
    assert lines[::2] == paths
    percent, names = zip(*(line.replace('%', '').split()[:2] for line in lines[1::2]))
    return np.array(percent, float), names

  percent, names = answers('--export', exported)
  for more in (['--export', exported, '--branches'], ['--checkpoint', base]):
    again = answers(*more)
    np.testing.assert_allclose(again[0], percent, atol=0.11)
    assert again[1] == names
  right = np.mean([name == CLASSES[label] for name, label in zip(names, test.labels)])
  with open(result, encoding='utf-8') as f:
    assert json.load(f)['accuracy'] == pytest.approx(right) and right > 0.5
  code, out, _ = helpers.call(accuracy, ['--export', exported, '--data_dir', folder], capsys)
  assert code == 0 and out.count(f'{100 * right:.2f} %') == 2 and '6 test images' in out
  code, _, err = helpers.call(accuracy, ['--export', exported], capsys)
  assert code == 1 and '--data_dir is missing' in err
