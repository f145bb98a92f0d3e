"""Tests ILSVRC 2012 in miniature: every layout that is on people's disks, and unpacking the official archives."""

import hashlib
import io
import itertools
import json
import os

import archives
import helpers
import numpy as np
import pictures
import pytest
import scipy.io
import tensorflow as tf

import imagenet
import utils
from alexnet_split import AlexNet
from splitnet.common.errors import UserError
from splitnet.data import image_archives
from splitnet.data.dataset import DataSettings
from splitnet.network import grouping
from splitnet.reporting import metrics

IDS = ['n01440764', 'n02012849', 'n03126707']  # tench, crane, crane: labels 0, 134 and 517 of all
VALIDATION = [1, 0, 2, 2, 0]  # ranks among these


def opened(folder, **settings):
  return imagenet.open_dataset(DataSettings(str(folder), image_size=16, **settings))


def shown(data):
  """The (class, number) that the images of a subset tell, sorted, and checks their labels."""
  [[images, labels]] = data.evaluation_batches(1000)
  classes, numbers = pictures.numbers(images)
  np.testing.assert_array_equal(classes, labels)
  return sorted(zip(classes.tolist(), numbers.tolist()))


TRAIN = [(label, number) for label in range(3) for number in range(4)]


def val_name(i):
  return f'ILSVRC2012_val_{i + 1:08d}.JPEG'


def train_folders(root):
  for label, number in TRAIN:
    pictures.write(root / IDS[label] / f'{IDS[label]}_{number}.JPEG', pictures.colour(label, number))


def val_folder(root):
  for i, label in enumerate(VALIDATION):
    pictures.write(root / val_name(i), pictures.colour(label, i))


def devkit_files():
  """meta.mat and the ground truth; the devkit's numbers are in another order than the ids."""
  numbers = {IDS[0]: 2, IDS[1]: 3, IDS[2]: 1}
  rows = [(numbers[key], key, 'words', 0) for key in sorted(IDS, key=numbers.get)] + [(4, 'n00001740', 'entity', 3)]
  synsets = np.array(rows, [(name, object) for name in ('ILSVRC2012_ID', 'WNID', 'words', 'num_children')])[:, None]
  meta = io.BytesIO()
  scipy.io.savemat(meta, {'synsets': synsets})
  truth = ''.join(f'{numbers[IDS[label]]}\n' for label in VALIDATION)
  return {'meta.mat': meta.getvalue(), 'ILSVRC2012_validation_ground_truth.txt': truth.encode()}


def devkit_tar(path):
  return archives.pack(path, {f'ILSVRC2012_devkit_t12/data/{n}': c for n, c in devkit_files().items()}, 'w:gz')


# --- classes -----------------------------------------------------------------------------------------------------


def test_labels_are_ranks_of_ids_and_names_are_unique():
  rows = imagenet.read_classes()['classes']
  ids = [row[0] for row in rows]
  names = imagenet.class_names(ids)
  assert len(ids) == 1000 and ids == sorted(set(ids)) == names.ids
  assert names.fine[0] == 'tench' and names.fine[999] == 'toilet tissue' and len(set(names.fine)) == 1000
  assert names.fine[134] == 'crane (n02012849)' and names.fine[517] == 'crane (n03126707)'
  assert names.fine[638] == 'maillot (n03710637)' and ids.index('n02119789') == 278
  assert len(names.coarse) == 34 and np.bincount(names.fine_to_coarse).max() == 118
  assert names.coarse[names.fine_to_coarse[134]] == 'bird'
  assert 'WordNet 3.0 Copyright 2006 by Princeton University' in imagenet.read_classes()['notice']


def test_what_an_export_prepares_images_with_is_the_data_sets(tmp_path):
  train_folders(tmp_path / 'train')
  train_folders(tmp_path / 'val')
  assert opened(tmp_path).prepare is imagenet.prepare


def test_fewer_classes_are_ranked_among_themselves():
  names = imagenet.class_names(IDS)
  assert names.fine == ['tench', 'crane (n02012849)', 'crane (n03126707)']
  assert [names.coarse[i] for i in names.fine_to_coarse] == ['fish', 'bird', 'other device']


# --- layouts -----------------------------------------------------------------------------------------------------


def layout_torchvision(root):
  train_folders(root / 'train')
  for i, label in enumerate(VALIDATION):
    pictures.write(root / 'val' / IDS[label] / val_name(i), pictures.colour(label, i))


def layout_flat_devkit_folder(root):
  train_folders(root / 'train')
  val_folder(root / 'val')
  for name, content in devkit_files().items():
    pictures.write(root / 'ILSVRC2012_devkit_t12' / 'data' / name, content)


def layout_flat_devkit_tar(root):
  train_folders(root / 'train')
  val_folder(root / 'val')
  devkit_tar(root / 'ILSVRC2012_devkit_t12.tar.gz')


def layout_flat_labels_by_rank(root):
  train_folders(root / 'train')
  val_folder(root / 'val')
  ranks = [0, 134, 517]
  lines = ''.join(f'val/{val_name(i)} {ranks[label]}\n' for i, label in enumerate(VALIDATION))
  pictures.write(root / 'val.txt', lines.encode())


def layout_flat_labels_by_id(root):
  train_folders(root / 'train')
  val_folder(root / 'val')
  lines = ''.join(f'{IDS[label]}\n' for label in VALIDATION)
  pictures.write(root / 'imagenet_2012_validation_synset_labels.txt', lines.encode())


def layout_kaggle(root):
  train_folders(root / 'ILSVRC' / 'Data' / 'CLS-LOC' / 'train')
  val_folder(root / 'ILSVRC' / 'Data' / 'CLS-LOC' / 'val')
  lines = [f'{val_name(i)[:-5]},{IDS[label]} 1 2 3 4 {IDS[label]} 5 6 7 8 ' for i, label in enumerate(VALIDATION)]
  pictures.write(root / 'LOC_val_solution.csv', '\n'.join(['ImageId,PredictionString', *lines[::-1]]).encode())


def record(label, contents, i):
  """A record as tensorflow/models writes it."""
  def feature(**kind):
    return tf.train.Feature(**kind)

  ranks = [0, 134, 517]
  features = {
    'image/height': feature(int64_list=tf.train.Int64List(value=[24])),
    'image/class/label': feature(int64_list=tf.train.Int64List(value=[ranks[label] + 1])),
    'image/class/text': feature(bytes_list=tf.train.BytesList(value=[b'image/encoded'])),
    'image/object/bbox/xmin': feature(float_list=tf.train.FloatList(value=[0.1] * (i % 3))),
    'image/encoded': feature(bytes_list=tf.train.BytesList(value=[contents])),
    'image/filename': feature(bytes_list=tf.train.BytesList(value=[b'x.JPEG'])),
  }
  return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_records(root, train='', validation=''):
  val = [(label, i) for i, label in enumerate(VALIDATION)]
  for prefix, folder, images in (('train', train, TRAIN), ('validation', validation, val)):
    for shard in range(2):
      os.makedirs(root / folder, exist_ok=True)
      with tf.io.TFRecordWriter(str(root / folder / f'{prefix}-{shard:05d}-of-00002')) as writer:
        half = len(images) // 2
        for i, (label, number) in enumerate(images[shard * half : None if shard else half]):
          writer.write(record(label, pictures.colour(label, number), i))


def layout_records(root):
  write_records(root)


def layout_records_in_folders(root):
  write_records(root, 'train', 'validation')


@pytest.mark.slow
@pytest.mark.parametrize('layout', [
  layout_torchvision, layout_flat_devkit_folder, layout_flat_devkit_tar, layout_flat_labels_by_rank,
  layout_flat_labels_by_id, layout_kaggle, layout_records, layout_records_in_folders,
])  # fmt: skip
def test_every_layout_gives_the_same_images_and_labels(tmp_path, layout):
  layout(tmp_path)
  data = opened(tmp_path)
  assert data.names.ids == IDS and data.image_size == 16
  assert data.notes == (f"'{tmp_path}' has 3 of the 1000 classes",)
  assert shown(data.load('train')) == TRAIN
  assert shown(data.load('val')) == sorted((label, i) for i, label in enumerate(VALIDATION))
  images, labels, _ = next(iter(data.load('train').training_batches(5, 0)))
  np.testing.assert_array_equal(pictures.numbers(images)[0], labels)
  assert shown(opened(tmp_path).load('train')) == TRAIN  # what was noted is read as it was found
  with pytest.raises(UserError, match="no subset 'test'"):
    data.load('test')


def test_kaggles_inner_folder_may_be_named_too(tmp_path):
  layout_kaggle(tmp_path)
  assert len(shown(opened(tmp_path / 'ILSVRC').load('val'))) == 5


def test_validation_images_of_other_classes_are_left_out(tmp_path):
  layout_flat_labels_by_id(tmp_path)
  lines = (tmp_path / 'imagenet_2012_validation_synset_labels.txt').read_text().splitlines()
  pictures.write(tmp_path / 'imagenet_2012_validation_synset_labels.txt', '\n'.join(['n01443537', *lines[1:]]).encode())
  assert shown(opened(tmp_path).load('val')) == sorted((label, i) for i, label in enumerate(VALIDATION) if i)


def test_some_of_the_validation_images_have_their_own_labels(tmp_path):
  layout_flat_devkit_tar(tmp_path)
  os.remove(tmp_path / 'val' / val_name(1))
  assert shown(opened(tmp_path).load('val')) == [(0, 4), (1, 0), (2, 2), (2, 3)]


def test_a_png_named_jpeg_is_read_as_the_list_has_one(tmp_path):
  layout_torchvision(tmp_path)
  image = np.broadcast_to(np.array([20, 5, 50], np.uint8), (24, 32, 3))
  pictures.write(tmp_path / 'train' / IDS[1] / f'{IDS[1]}_1.JPEG', pictures.png(image))
  assert shown(opened(tmp_path).load('train')) == TRAIN


def test_damaged_images_are_looked_for_if_they_are_to_be_left_out(tmp_path):
  layout_torchvision(tmp_path)
  pictures.write(tmp_path / 'train' / IDS[1] / f'{IDS[1]}_1.JPEG', b'')
  assert len(opened(tmp_path).load('train').labels) == 12
  data = opened(tmp_path, skip_damaged=True)
  assert 'is empty' in data.notes[0]
  assert shown(data.load('train')) == [row for row in TRAIN if row != (1, 1)]


def test_damaged_records_are_looked_for_too(tmp_path):
  layout_records(tmp_path)
  path = tmp_path / 'train-00000-of-00002'
  image = pictures.colour(0, 2)
  assert path.read_bytes().count(image) == 1
  path.write_bytes(path.read_bytes().replace(image, image[:100] + bytes(len(image) - 100)))
  data = opened(tmp_path, skip_damaged=True)
  assert "1 of the 12 images" in data.notes[0] and "'train-00000-of-00002 at byte" in data.notes[0]
  assert shown(data.load('train')) == [row for row in TRAIN if row != (0, 2)]


@pytest.mark.parametrize('change, sentence', [
  (lambda root: os.rename(root / 'train', root / 'training'), 'there is no ILSVRC 2012 in'),
  (lambda root: os.mkdir(root / 'train' / 'n99999999'), "'n99999999' in .* is none of the 1000 classes"),
  (lambda root: os.mkdir(root / 'train' / 'n01443537'), "n01443537' holds no images"),
  (lambda root: os.remove(root / 'ILSVRC2012_devkit_t12.tar.gz'), 'but not their labels: put ILSVRC2012_devkit'),
  (lambda root: pictures.write(root / 'ILSVRC2012_devkit_t12.tar.gz', b'x'), 'the devkit .* is damaged'),
  (lambda root: pictures.write(root / 'val.txt', b'a.JPEG 1000\n'), 'val.txt. is damaged'),
  (lambda root: pictures.write(root / 'val.txt', b'a.JPEG 1\n'), "have none for 'ILSVRC2012_val_00000001.JPEG'"),
  (lambda root: pictures.write(root / 'imagenet_2012_validation_synset_labels.txt', b'n01440764'),
   'has labels of 1 validation images, but there are 5'),
])  # fmt: skip
def test_what_is_missing_is_told(tmp_path, change, sentence):
  layout_flat_devkit_tar(tmp_path)
  change(tmp_path)
  with pytest.raises(UserError, match=sentence):
    opened(tmp_path)


def test_incomplete_and_damaged_records_are_told(tmp_path):
  layout_records(tmp_path)
  path = tmp_path / 'train-00001-of-00002'
  content = path.read_bytes()
  for damaged in (content[:-20], content[:12] + bytes(40) + content[52:], b'text' * 9):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="train-00001-of-00002' is damaged, or no file of"):
      opened(tmp_path)
  path.unlink()
  with pytest.raises(UserError, match='lacks train-00001-of-00002'):
    opened(tmp_path)


def test_an_image_folder_is_named_if_there_are_no_ids(tmp_path):
  pictures.folder(tmp_path / 'train', ['cat', 'dog'], 1)
  with pytest.raises(UserError, match='has 0 classes; --dataset image_folder'):
    opened(tmp_path)
  with pytest.raises(UserError, match=r'--data_dir is missing: unpack the official archives'):
    imagenet.open_dataset(DataSettings())


@pytest.mark.slow
def test_hundreds_of_thousands_of_images_are_named_and_numbered(tmp_path, monkeypatch):
  train_folders(tmp_path / 'train')
  many = [b'%07d.JPEG' % i for i in range(100_000)]
  real = imagenet.image_files.images_in
  monkeypatch.setattr(imagenet.image_files, 'images_in', lambda path: many if 'train' in path else real(path))
  data = opened(tmp_path).load('train')
  assert len(data.labels) == 300_000 and len(data.digest()) == 64
  with pytest.raises(tf.errors.NotFoundError):  # the batch that would be next, had it images
    next(iter(data.training_batches(256, 0, 1700)))


# --- preparing ---------------------------------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path, monkeypatch):
  """Archives in miniature, which imagenet.py takes for the official ones: dict from flag to path."""
  inner = {}
  for key in IDS:
    members = {f'{key}_{n}.JPEG': pictures.colour(label, n) for label, n in TRAIN if IDS[label] == key}
    archives.pack(tmp_path / 'inner.tar', members)
    inner[f'{key}.tar'] = (tmp_path / 'inner.tar').read_bytes()
  paths = {
    'train_tar': archives.pack(tmp_path / 'train.tar', inner),
    'val_tar': archives.pack(
      tmp_path / 'val.tar', {val_name(i): pictures.colour(VALIDATION[i], i) for i in (3, 0, 4, 1, 2)}
    ),
    'devkit': devkit_tar(tmp_path / 'devkit.tar.gz'),
  }
  take_for_official(monkeypatch, paths)
  return paths


def take_for_official(monkeypatch, paths):
  facts = {}
  for flag, path in paths.items():
    with open(path, 'rb') as f:
      content = f.read()
    size = None if flag == 'devkit' else len(content)
    facts[flag] = (imagenet.ARCHIVES[flag][0], size, hashlib.md5(content).hexdigest())
  monkeypatch.setattr(imagenet, 'ARCHIVES', facts)


def prepare(paths, folder, capsys):
  given = itertools.chain(*((f'--{flag}', path) for flag, path in paths.items()))
  return helpers.call(imagenet, ['prepare', '--data_dir', folder, *given], capsys)


def test_the_official_archives_become_folders(official, tmp_path, capsys):
  folder = tmp_path / 'made'
  code, out, err = prepare(official, folder, capsys)
  assert code == 0 and out.splitlines() == [f"wrote '{folder}/val'", f"wrote '{folder}/train'"]
  assert sorted(os.listdir(folder)) == ['train', 'val']
  data = opened(folder)
  assert shown(data.load('train')) == TRAIN
  assert shown(data.load('val')) == sorted((label, i) for i, label in enumerate(VALIDATION))
  before = {path: os.stat(path).st_mtime_ns for path in helpers.files(folder)}
  code, out, err = prepare(official, folder, capsys)
  assert code == 0 and out.count('already done') == 2
  assert {path: os.stat(path).st_mtime_ns for path in before} == before


def test_unpacking_resumes_and_leaves_no_half(official, tmp_path, capsys, monkeypatch):
  folder = tmp_path / 'made'
  real, written = image_archives.shutil.copyfileobj, []

  def interrupted(content, f, *more):
    if len(written) == 11:
      f.write(b'half')
      raise KeyboardInterrupt
    written.append(f.name)
    real(content, f, *more)

  monkeypatch.setattr(image_archives.shutil, 'copyfileobj', interrupted)
  code, _, err = prepare(official, folder, capsys)
  assert code == 130 and 'run again to go on' in err
  assert sorted(os.listdir(folder)) == ['train.part', 'val']
  monkeypatch.setattr(image_archives.shutil, 'copyfileobj', lambda *given: written.append('') or real(*given))
  assert prepare(official, folder, capsys)[0] == 0
  assert len(written) == len(TRAIN) + len(VALIDATION)  # what was whole was not written again
  assert shown(opened(folder).load('train')) == TRAIN


def test_a_wrong_archive_is_refused_and_leaves_nothing(official, tmp_path, capsys):
  content = bytearray(open(official['train_tar'], 'rb').read())
  content[2000] ^= 1
  pictures.write(official['train_tar'], bytes(content))
  code, _, err = prepare(official, tmp_path / 'made', capsys)
  assert code == 1 and 'has the MD5 checksum' in err and 'download it again' in err
  assert os.listdir(tmp_path / 'made') == ['val']


@pytest.mark.parametrize('flag', ['train_tar', 'val_tar', 'devkit'])
def test_archives_are_checked_before_anything_is_written(official, tmp_path, capsys, flag):
  with open(official[flag], 'ab') as f:
    f.write(b'x')
  code, _, err = prepare(official, tmp_path / 'made', capsys)
  assert code == 1 and f'--{flag}' in err and 'download it again' in err
  os.remove(official[flag])
  assert 'there is no file' in prepare(official, tmp_path / 'made', capsys)[2]
  assert not os.listdir(tmp_path / 'made')


def test_a_full_disk_is_told_first(official, tmp_path, capsys, monkeypatch):
  usage = imagenet.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(imagenet.shutil, 'disk_usage', lambda path: usage._replace(free=1000))
  code, _, err = prepare(official, tmp_path / 'made', capsys)
  assert code == 1 and 'unpacking takes' in err and not os.listdir(tmp_path / 'made')


@pytest.mark.parametrize('name, content', [('../x.tar', b''), ('n01443537.tar', b'no tar'), ('readme.txt', b'')])
def test_an_archive_of_something_else_is_refused(official, tmp_path, capsys, monkeypatch, name, content):
  archives.pack(official['train_tar'], {name: content})
  take_for_official(monkeypatch, official)
  code, _, err = prepare(official, tmp_path / 'made', capsys)
  assert code == 1 and ('give the official archive' in err or 'damaged' in err)
  assert os.listdir(tmp_path / 'made') == ['val'] and not os.path.exists(tmp_path / 'x.tar')


def test_an_image_that_points_elsewhere_is_refused(official, tmp_path, capsys, monkeypatch):
  archives.pack(tmp_path / 'inner.tar', {f'../{IDS[0]}_1.JPEG': b'x'})
  archives.pack(official['train_tar'], {f'{IDS[0]}.tar': (tmp_path / 'inner.tar').read_bytes()})
  take_for_official(monkeypatch, official)
  code, _, err = prepare(official, tmp_path / 'made', capsys)
  assert code == 1 and 'give the official archive' in err


@pytest.mark.parametrize('arguments, sentence', [
  ([], 'the following arguments are required'), (['prepare'], 'nothing to do'),
  (['prepare', '--val_tar', 'x'], '--val_tar needs --devkit'),
])  # fmt: skip
def test_flags_that_do_not_suffice_are_refused(arguments, sentence, capsys):
  code, _, err = helpers.call(imagenet, arguments, capsys)
  assert code == 2 and sentence in err


def test_the_official_numbers_are_those_of_the_list():
  assert imagenet.ARCHIVES['train_tar'][1:] == (147897477120, '1d675b47d978889d74fa0da5fadfb00e')
  with open(imagenet.CLASSES, encoding='utf-8') as f:
    assert len(json.load(f)['superclasses']) == 34


# --- groups of its classes ---------------------------------------------------------------------------------------


def test_the_authors_clusters_are_a_grouping_of_all_classes():
  """The agreement of their released ResNet-50's clusters with the 34 superclasses, beside chance."""
  names = imagenet.class_names([row[0] for row in imagenet.read_classes()['classes']])
  path = os.path.join(helpers.PROJECT, 'paper', 'resnet50_clusters.json')
  five = grouping.read_file(path, names, AlexNet.of_split('1-2-5').graph())
  for groups, sizes, agreement, chance in (
    (five, [130, 177, 498, 105, 90], 0.881, 0.500), (utils.parents(5, 2)[five], [805, 195], 0.975, 0.805),
  ):  # fmt: skip
    assert np.bincount(groups).tolist() == sizes
    assert utils.superclass_agreement(groups, names.fine_to_coarse) == pytest.approx(agreement, abs=6e-4)
    assert metrics.random_agreement(sizes, names.fine_to_coarse)[0] == pytest.approx(chance, abs=5e-3)
