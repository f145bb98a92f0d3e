"""Tests download_cifar100.py on small archives, without a network."""

import errno
import hashlib
import json
import os
import pickle
import socket

import numpy as np
import pytest
from archives import TEST, TRAIN, content, pack, pickled, serve

import download_cifar100 as dl
from splitnet.common import files

FILES = {'train.npz', 'val.npz', 'train_val.npz', 'test.npz', 'names.json'}


@pytest.fixture
def small(monkeypatch):
  """Lets archives of TRAIN + TEST images pass; all else is checked as ever."""
  monkeypatch.setattr(dl, 'TRAIN_IMAGES', TRAIN)
  monkeypatch.setattr(dl, 'TEST_IMAGES', TEST)


@pytest.fixture
def archive(small, tmp_path):
  return pack(tmp_path / 'small.tar.gz', pickled(content()), 'w:gz')


def load(folder):
  """{split: {key: array}} and names.json of a folder."""
  splits = {}
  for subset in dl.SUBSETS:
    with np.load(os.path.join(str(folder), subset + '.npz'), allow_pickle=False) as f:
      splits[subset] = {key: f[key] for key in f.files}
  with open(os.path.join(str(folder), 'names.json'), encoding='utf-8') as f:
    return splits, json.load(f)


def digests(folder):
  return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def sentence(capsys, *parts):
  """Asserts that stderr is one line that holds all `parts`; progress bars aside."""
  err = capsys.readouterr().err
  lines = [line for line in err.replace('\r', '\n').split('\n') if line.strip() and '%|' not in line]
  assert len(lines) == 1, err
  for part in parts:
    assert str(part) in lines[0]


# --- reading an archive --------------------------------------------------------------------------------------------


def test_the_defaults_are_the_real_data_set(tmp_path, capsys):
  assert (dl.TRAIN_IMAGES, dl.TEST_IMAGES, dl.CLASSES, dl.SUPERCLASSES) == (50000, 10000, 100, 20)
  assert (dl.SIZE, dl.MD5) == (169001437, 'eb9058c3a382ffc7106e4002c42a8d85')
  path = pack(tmp_path / 'small.tar', pickled(content()))
  assert dl.main(['--archive', path, '--data_dir', str(tmp_path / 'out')]) == 1
  sentence(capsys, path, '(200, 3072)', '(50000, 3072)')
  assert os.listdir(str(tmp_path / 'out')) == []


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:bz2', 'w:xz'])
def test_archive_is_read(small, tmp_path, mode):
  parts = content()
  data = dl.read_archive(pack(tmp_path / 'a.tar', pickled(parts), mode))
  assert data['train_images'].shape == (TRAIN, 32, 32, 3) and data['train_images'].dtype == np.uint8
  for part in ('train', 'test'):
    rows = parts[part]['data']
    for c in range(3):
      assert np.array_equal(data[part + '_images'][..., c].reshape(len(rows), 1024), rows[:, 1024 * c : 1024 * (c + 1)])
    assert data[part + '_labels'].tolist() == parts[part]['fine_labels']
    assert [data['fine_to_coarse'][i] for i in data[part + '_labels']] == parts[part]['coarse_labels']
  assert data['fine'] == parts['meta']['fine_label_names'] and data['coarse'] == parts['meta']['coarse_label_names']


def test_archive_of_python_3_is_read(small, tmp_path):
  parts = content()
  parts['train']['data'] = np.asfortranarray(parts['train']['data'])
  parts['train']['fine_labels'] = np.array(parts['train']['fine_labels'], '>i8')
  members = {'./cifar-100-python/' + name: pickle.dumps(part, 2) for name, part in parts.items()}
  data = dl.read_archive(pack(tmp_path / 'a.tar', members))
  assert data['train_labels'].tolist() == parts['train']['fine_labels'].tolist()
  assert np.array_equal(data['train_images'][..., 2].reshape(TRAIN, 1024), parts['train']['data'][:, 2048:])


def test_subset_files(archive, tmp_path, capsys):
  out = tmp_path / 'new' / 'out'
  assert dl.main(['--archive', archive, '--data_dir', str(out), '--num_val_instance', '30', '--seed', '4']) == 0
  assert set(os.listdir(str(out))) == FILES
  splits, names = load(out)
  assert {split: len(arrays['labels']) for split, arrays in splits.items()} == {
    'train': 170,
    'val': 30,
    'train_val': 200,
    'test': 100,
  }
  for arrays in splits.values():
    assert set(arrays) == {'images', 'labels', 'coarse_labels'}
    assert all(array.dtype == np.uint8 for array in arrays.values())
    assert arrays['images'].shape[1:] == (32, 32, 3)
    assert np.array_equal(np.array(names['fine_to_coarse'])[arrays['labels']], arrays['coarse_labels'])
  assert [names[key] for key in dl.PROVENANCE] == ['archive', 4, 30, 2]
  rows = {split: [image.tobytes() for image in arrays['images']] for split, arrays in splits.items()}
  assert not set(rows['train']) & set(rows['val'])
  assert sorted(rows['train'] + rows['val']) == sorted(rows['train_val'])
  for part in ('train', 'val'):  # each in the archive's order, its labels still its own
    where = [rows['train_val'].index(row) for row in rows[part]]
    assert where == sorted(where)
    assert np.array_equal(splits['train_val']['labels'][where], splits[part]['labels'])
  assert [row.transpose(2, 0, 1).tobytes() for row in splits['test']['images']] == [
    row.tobytes() for row in content()['test']['data']
  ]


def test_seed_draws_the_validation_images():
  train, val = dl.train_and_val(1000, 100, 0)
  assert sorted(np.concatenate([train, val]).tolist()) == list(range(1000)) and len(val) == 100
  assert np.array_equal(val, dl.train_and_val(1000, 100, 0)[1])
  assert not np.array_equal(val, dl.train_and_val(1000, 100, 1)[1])


def broken(change):
  parts = content()
  change(parts)
  return pickled(parts)


def swap_superclass(parts):
  parts['train']['coarse_labels'][0] = (parts['train']['coarse_labels'][0] + 1) % 20


def swap_superclass_of_test(parts):
  parts['test']['coarse_labels'][0] = (parts['test']['coarse_labels'][0] + 1) % 20


def merge_superclasses(parts):
  for part in ('train', 'test'):
    parts[part]['coarse_labels'] = [min(label, 18) for label in parts[part]['coarse_labels']]


@pytest.mark.parametrize(
  'change, said',
  [
    (lambda p: p['train'].update(data=p['train']['data'][:-1]), '(199, 3072)'),
    (lambda p: p['train'].update(data=p['train']['data'][:, :-1].copy()), '(200, 3071)'),
    (lambda p: p['test'].pop('data'), 'data of test'),
    (lambda p: p['test'].pop('fine_labels'), 'fine_labels of test'),
    (lambda p: p['test'].update(fine_labels=[[1], [2, 3]]), 'more than arrays and lists of'),
    (lambda p: p['test'].update(fine_labels=['1'] * 100), 'fine_labels of test'),
    (lambda p: p['train']['fine_labels'].pop(), 'fine_labels of train'),
    (lambda p: p['train']['fine_labels'].__setitem__(3, 100), '0 to 100'),
    (lambda p: p['train']['fine_labels'].__setitem__(3, -1), '-1 to 99'),
    (lambda p: p['train']['coarse_labels'].__setitem__(3, 20), '0 to 20'),
    (lambda p: p['meta']['fine_label_names'].pop(), 'fine_label_names'),
    (lambda p: p['meta']['fine_label_names'].__setitem__(0, 'class_1'), '99 different names'),
    (lambda p: p['meta'].pop('coarse_label_names'), 'coarse_label_names'),
    (swap_superclass, 'exactly one superclass'),
    (swap_superclass_of_test, 'superclasses of train'),
    (merge_superclasses, '20 superclasses occurs'),
  ],
)
def test_wrong_content_is_refused(small, tmp_path, capsys, change, said):
  path = pack(tmp_path / 'a.tar', broken(change))
  assert dl.main(['--archive', path, '--data_dir', str(tmp_path / 'out')]) == 1
  sentence(capsys, path, said, 'give --archive a tar of')


def test_a_dangerous_pickle_is_refused(small, tmp_path, capsys):
  members = {**pickled(content()), 'cifar-100-python/train': b'\x80\x02}U\x01ac__builtin__\neval\nU\x011\x85Rs.'}
  path = pack(tmp_path / 'a.tar', members)
  assert dl.main(['--archive', path, '--data_dir', str(tmp_path / 'out')]) == 1
  sentence(capsys, path, 'a pickle in it is refused: it names __builtin__.eval')


# --- the user's mistakes -------------------------------------------------------------------------------------------


def test_archive_mistakes(small, tmp_path, capsys):
  out = ['--data_dir', str(tmp_path / 'out')]
  assert dl.main(['--archive', str(tmp_path / 'none.tar'), *out]) == 1
  sentence(capsys, tmp_path / 'none.tar', '--archive')
  text = tmp_path / 'text.tar'
  text.write_bytes(b'hello ' * 1000)
  assert dl.main(['--archive', str(text), *out]) == 1
  sentence(capsys, text, 'no tar archive', '--archive')
  path = pack(tmp_path / 'a.tar', {'cifar-100-python/meta': b'x', 'cifar-10/train': b'x'})
  assert dl.main(['--archive', path, *out]) == 1
  sentence(capsys, path, 'lacks cifar-100-python/train and cifar-100-python/test')


@pytest.mark.parametrize(
  'argv, said',
  [
    (['--archive', 'a.tar', '--synthetic'], 'not allowed with'),
    (['--synthetic', '--seed', '-1'], "'-1'; it must be a whole number, from 0 to"),
    (['--seed', '1.5'], "'1.5'; it must be a whole number"),
    (['--seed', str(2**32)], str(2**32)),
    (['--synthetic', '--images_per_class', '0'], "'0'; it must be a whole number, from 1 to"),
    (['--num_val_instance', '0'], "'0'; it must be a whole number, from 1 to"),
    (['--images_per_class', '10'], '--images_per_class 10 goes with --synthetic only'),
    (['--synth'], '--synth'),
  ],
)
def test_bad_flags(capsys, argv, said):
  with pytest.raises(SystemExit) as end:
    dl.main(argv)
  assert end.value.code == 2
  assert said in capsys.readouterr().err


def test_help_names_every_flag(capsys):
  with pytest.raises(SystemExit) as end:
    dl.main(['--help'])
  assert end.value.code == 0
  text = capsys.readouterr().out
  for flag in ('data_dir', 'archive', 'synthetic', 'images_per_class', 'num_val_instance', 'seed', 'force'):
    assert '--' + flag in text


def test_validation_must_leave_images(tmp_path, capsys):
  argv = ['--synthetic', '--images_per_class', '1', '--data_dir', str(tmp_path / 'out'), '--num_val_instance']
  assert dl.main([*argv, '100']) == 1
  sentence(capsys, '--num_val_instance 100', '1 to 99')
  assert dl.main([*argv, '99']) == 0


def test_unwritable_folder(tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  argv = ['--synthetic', '--images_per_class', '1', '--data_dir']
  for folder in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    assert dl.main([*argv, str(folder)]) == 1
    sentence(capsys, '--data_dir', folder, 'name another')
  assert dl.main([*argv, '/proc/self']) == 1
  sentence(capsys, '/proc/self', 'cannot be written to')


# --- what is there already -----------------------------------------------------------------------------------------


def test_done_already(archive, tmp_path, capsys):
  argv = ['--archive', archive, '--data_dir', str(tmp_path / 'out')]
  assert dl.main(argv) == 0
  before = {name: (tmp_path / 'out' / name).stat().st_mtime_ns for name in FILES}
  os.remove(archive)  # not needed any more
  capsys.readouterr()
  assert dl.main(argv) == 0
  assert 'already done' in capsys.readouterr().out
  assert before == {name: (tmp_path / 'out' / name).stat().st_mtime_ns for name in FILES}


@pytest.mark.parametrize(
  'harm',
  [
    lambda out: os.remove(str(out / 'val.npz')),
    lambda out: os.truncate(str(out / 'train.npz'), 1000),
    lambda out: (out / 'test.npz').write_bytes(b''),
    lambda out: (out / 'val.npz').write_bytes((out / 'test.npz').read_bytes()),
    lambda out: os.remove(str(out / 'names.json')),
  ],
)
def test_damaged_files_are_written_again(archive, tmp_path, harm):
  out = tmp_path / 'out'
  argv = ['--archive', archive, '--data_dir', str(out)]
  assert dl.main(argv) == 0
  before = digests(out)
  harm(out)
  assert dl.main(argv) == 0
  assert digests(out) == before


@pytest.mark.parametrize(
  'other, said',
  [
    (['--synthetic', '--images_per_class', '2'], 'the synthetic data set'),
    (['--seed', '1'], 'seed 1'),
    (['--num_val_instance', '21'], '21 validation images'),
    ([], 'the official data set'),
  ],
)
def test_another_data_set_is_not_overwritten(archive, tmp_path, capsys, other, said):
  out = tmp_path / 'out'
  assert dl.main(['--archive', archive, '--data_dir', str(out)]) == 0
  before = digests(out)
  capsys.readouterr()
  source = ['--archive', archive] if '--synthetic' not in other and other else []
  assert dl.main([*source, *other, '--data_dir', str(out)]) == 1
  sentence(capsys, out, 'the archive data set (seed 0, 20 validation images', said, '--force', '--data_dir')
  assert digests(out) == before


def test_force_overwrites(archive, tmp_path):
  argv = ['--archive', archive, '--data_dir', str(tmp_path / 'out')]
  assert dl.main(argv) == 0
  assert dl.main([*argv, '--seed', '7', '--force']) == 0
  assert load(tmp_path / 'out')[1]['seed'] == 7


def test_foreign_names_file(archive, tmp_path, capsys):
  (tmp_path / 'names.json').write_text('{"fine": []}')
  assert dl.main(['--archive', archive, '--data_dir', str(tmp_path)]) == 1
  sentence(capsys, tmp_path / 'names.json', '--force')


@pytest.mark.parametrize(
  'failure, code',
  [
    (OSError(errno.ENOSPC, 'No space left on device'), 1),
    (KeyboardInterrupt(), 130),
  ],
)
def test_failure_while_writing_leaves_whole_files(archive, tmp_path, capsys, monkeypatch, failure, code):
  out = tmp_path / 'out'
  argv = ['--archive', archive, '--data_dir', str(out)]
  assert dl.main(argv) == 0
  before = digests(out)
  savez, calls = np.savez, []

  def fail_in_the_third(f, **arrays):
    calls.append(f)
    if len(calls) == 3:
      f.write(b'PK half of it')
      raise failure
    savez(f, **arrays)

  with monkeypatch.context() as patch:
    patch.setattr(np, 'savez', fail_in_the_third)
    capsys.readouterr()
    assert dl.main([*argv, '--seed', '3', '--force']) == code
  sentence(capsys, 'No space left' if code == 1 else 'interrupted')
  assert set(os.listdir(str(out))) == FILES - {'names.json'}  # nothing half-made, nothing that vouches for a mixture
  assert hashlib.sha256((out / 'train_val.npz').read_bytes()).hexdigest() == before['train_val.npz']
  assert dl.main(argv) == 0
  assert digests(out) == before


# --- download ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(archive, monkeypatch):
  """A server of the small archive, which the program takes for the official one."""
  with open(archive, 'rb') as f:
    payload = f.read()
  with serve(payload) as (server, url):
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(dl, 'URL', url)
    monkeypatch.setattr(dl, 'SIZE', len(payload))
    monkeypatch.setattr(dl, 'MD5', hashlib.md5(payload).hexdigest())
    yield server


def run(tmp_path, *flags):
  return dl.main(['--data_dir', str(tmp_path / 'out'), *flags])


def test_download(server, tmp_path, capsys):
  assert run(tmp_path) == 0
  assert 'cifar-100-python.tar.gz: 100%' in capsys.readouterr().err
  assert set(os.listdir(str(tmp_path / 'out'))) == FILES | {'cifar-100-python.tar.gz'}
  assert load(tmp_path / 'out')[1]['source'] == 'official'
  assert run(tmp_path) == 0
  assert run(tmp_path, '--force', '--seed', '1') == 0
  assert server.asked == [None]  # the archive is kept and used again


def test_spoilt_archive_is_fetched_again(server, tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'cifar-100-python.tar.gz').write_bytes(b'spoilt')
  assert run(tmp_path) == 0
  assert server.asked == [None]


def test_no_network(tmp_path, capsys, monkeypatch):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))  # bound but not listening: connections are refused
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(dl, 'URL', f'http://127.0.0.1:{s.getsockname()[1]}/cifar-100-python.tar.gz')
    assert run(tmp_path) == 1
  sentence(capsys, f'could not download {dl.URL} ([Errno', '--archive', '--synthetic')
  assert os.listdir(str(tmp_path / 'out')) == []


def test_full_disk_while_downloading(server, tmp_path, capsys):
  (tmp_path / 'out' / 'cifar-100-python.tar.gz.part').mkdir(parents=True)  # stands for any trouble with the file
  assert run(tmp_path) == 1
  sentence(capsys, tmp_path / 'out', 'another --data_dir')


def test_interrupted_download(server, tmp_path, capsys, monkeypatch):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'cifar-100-python.tar.gz.part').write_bytes(server.payload[:1000])

  def interrupt(*args, **keywords):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr('urllib.request.urlopen', interrupt)
    assert run(tmp_path) == 130
  sentence(capsys, 'interrupted')
  assert os.listdir(str(tmp_path / 'out')) == ['cifar-100-python.tar.gz.part']
  assert run(tmp_path) == 0
  assert server.asked == ['bytes=1000-']


# --- synthetic images ----------------------------------------------------------------------------------------------


def test_synthetic_files(tmp_path):
  argv = ['--synthetic', '--images_per_class', '2', '--seed', '5', '--data_dir']
  assert dl.main([*argv, str(tmp_path / 'a')]) == 0
  assert dl.main([*argv, str(tmp_path / 'b')]) == 0
  assert digests(tmp_path / 'a') == digests(tmp_path / 'b')
  splits, names = load(tmp_path / 'a')
  assert {split: len(arrays['labels']) for split, arrays in splits.items()} == {
    'train': 180,
    'val': 20,
    'train_val': 200,
    'test': 100,
  }
  assert np.bincount(splits['train_val']['labels'], minlength=100).tolist() == [2] * 100
  assert np.bincount(splits['test']['labels'], minlength=100).tolist() == [1] * 100
  assert [names[key] for key in dl.PROVENANCE] == ['synthetic', 5, 20, 2]
  assert dl.main([*argv[:3], '--seed', '6', '--data_dir', str(tmp_path / 'c')]) == 0
  assert digests(tmp_path / 'c')['test.npz'] != digests(tmp_path / 'a')['test.npz']


def test_two_do_not_write_to_the_same_folder(tmp_path, capsys):
  folder = str(tmp_path / 'data')
  arguments = ['--synthetic', '--images_per_class', '1', '--data_dir', folder]
  with files.locked(folder, 'taken'):
    (tmp_path / 'data' / 'other').touch()
    assert dl.main(arguments) == 1
    assert 'another process writes to' in capsys.readouterr().err
    assert sorted(os.listdir(folder)) == ['lock', 'other']
  (tmp_path / 'data' / 'train.npz.1.tmp').touch()  # of one that was killed
  assert dl.main(arguments) == 0 and not (tmp_path / 'data' / 'train.npz.1.tmp').exists()
  with files.locked(folder, 'taken'):
    assert dl.main(arguments) == 0  # what is there may be used
