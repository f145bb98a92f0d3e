"""Tests of download_cifar100.py and synthetic.py: no network but a server on this computer, small archives."""

import errno
import hashlib
import http.server
import io
import json
import os
import pickle
import socket
import struct
import sys
import tarfile
import threading

import numpy as np
import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

import download_cifar100 as dl
from splitnet.data import synthetic

TRAIN, TEST = 200, 100  # rows of the small archives
FILES = {'train.npz', 'val.npz', 'train_val.npz', 'test.npz', 'names.json'}


# --- archives as Python 2 wrote them -------------------------------------------------------------------------------


def py2(value):
  """The opcodes with which Python 2's protocol 2 writes dicts, lists, tuples, strings, integers and uint8 arrays."""
  if isinstance(value, dict):
    return b'}(' + b''.join(py2(k) + py2(v) for k, v in value.items()) + b'u'
  if isinstance(value, list):
    return b'](' + b''.join(map(py2, value)) + b'e'
  if isinstance(value, tuple):
    return b'(' + b''.join(map(py2, value)) + b't'
  if isinstance(value, str):
    value = value.encode('latin-1')
  if isinstance(value, bytes):
    return (b'U' + bytes([len(value)]) if len(value) < 256 else b'T' + struct.pack('<i', len(value))) + value
  if isinstance(value, (int, np.integer)):
    return b'J' + struct.pack('<i', value)
  assert value.dtype == np.uint8
  dtype = b'cnumpy\ndtype\n' + py2(('u1', 0, 1)) + b'R(' + py2(3) + py2('|') + b'NNN' + py2(-1) * 2 + py2(0) + b'tb'
  array = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n' + py2((0,)) + py2('b') + b'tR'
  return array + b'(' + py2(1) + py2(value.shape) + dtype + b'\x89' + py2(value.tobytes()) + b'tb'


def content():
  """The three dicts of a small archive with the real layout: 2 training images and 1 test image a class."""
  rng = np.random.RandomState(1)
  superclass = rng.permutation(100) // 5

  def batch(rows, name):
    fine = rng.permutation(rows) % 100
    return {
      'filenames': [f'{name}_s_{i:06d}.png' for i in range(rows)],
      'batch_label': f'{name} batch 1 of 1',
      'fine_labels': fine.tolist(),
      'coarse_labels': superclass[fine].tolist(),
      'data': rng.randint(0, 256, (rows, 3072)).astype(np.uint8),
    }

  meta = {
    'fine_label_names': [f'class_{i}' for i in range(100)],
    'coarse_label_names': [f'super_{i}' for i in range(20)],
  }
  return {'train': batch(TRAIN, 'training'), 'test': batch(TEST, 'testing'), 'meta': meta}


def pack(path, members, mode='w'):
  """Writes a tar of {name: bytes or TarInfo}."""
  with tarfile.open(str(path), mode) as tar:
    for name, data in members.items():
      if isinstance(data, tarfile.TarInfo):
        tar.addfile(data)
      else:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  return str(path)


def pickled(parts):
  return {'cifar-100-python/' + name: b'\x80\x02' + py2(part) + b'.' for name, part in parts.items()}


@pytest.fixture
def small(monkeypatch):
  """Lets archives of TRAIN + TEST images pass; all else is checked as ever."""
  monkeypatch.setattr(dl, 'TRAIN_ROWS', TRAIN)
  monkeypatch.setattr(dl, 'TEST_ROWS', TEST)


@pytest.fixture
def archive(small, tmp_path):
  return pack(tmp_path / 'small.tar.gz', pickled(content()), 'w:gz')


def load(folder):
  """{split: {key: array}} and names.json of a folder."""
  splits = {}
  for split in dl.SPLITS:
    with np.load(os.path.join(str(folder), split + '.npz'), allow_pickle=False) as f:
      splits[split] = {key: f[key] for key in f.files}
  with open(os.path.join(str(folder), 'names.json')) as f:
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
  assert (dl.TRAIN_ROWS, dl.TEST_ROWS, dl.NUM_FINE, dl.NUM_COARSE) == (50000, 10000, 100, 20)
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


def test_split_files(archive, tmp_path, capsys):
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
  train, val = dl.split_indices(1000, 100, 0)
  assert sorted(np.concatenate([train, val]).tolist()) == list(range(1000)) and len(val) == 100
  assert np.array_equal(val, dl.split_indices(1000, 100, 0)[1])
  assert not np.array_equal(val, dl.split_indices(1000, 100, 1)[1])


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
    (lambda p: p['test'].update(fine_labels=[[1], [2, 3]]), 'fine_labels of test'),
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
  sentence(capsys, path, said, 'give a tar of')


def link(name, kind, target):
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, target
  return {name: info}


@pytest.mark.parametrize(
  'extra',
  [
    {'../outside': b'x'},
    {'/absolute': b'x'},
    {'cifar-100-python/../../outside': b'x'},
    {'..\\outside': b'x'},
    {'C:\\outside': b'x'},
    link('cifar-100-python/soft', tarfile.SYMTYPE, '/etc/passwd'),
    link('cifar-100-python/hard', tarfile.LNKTYPE, 'cifar-100-python/train'),
    link('cifar-100-python/device', tarfile.CHRTYPE, ''),
  ],
)
def test_outside_members_are_refused(small, tmp_path, capsys, extra):
  path = pack(tmp_path / 'a.tar', {**pickled(content()), **extra})
  assert dl.main(['--archive', path, '--data_dir', str(tmp_path / 'out')]) == 1
  sentence(capsys, path, 'is refused because its member', repr(next(iter(extra))))


class Call:
  """Pickles as a call of os.system that would make the file `mark`."""

  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return os.system, (f'touch {self.mark}',)


ALTERS = b'\x80\x02}(U\x01acnumpy.core.multiarray\n_reconstruct\n}U\x06doctorU\x04evilsbu.'
NEGATIVE = py2(np.zeros(4, np.uint8)).replace(py2((4,)), py2((-1,)))
TOO_LARGE = py2(np.zeros(4, np.uint8)).replace(py2((4,)), py2((1 << 30,)))


@pytest.mark.parametrize(
  'make',
  [
    lambda mark: pickle.dumps({'data': Call(mark)}, 2),
    lambda mark: pickle.dumps({'data': np.array([Call(mark)], object)}, 2),
    lambda mark: pickle.dumps({'data': np.array([1, 'a'], object)}, 2),
    lambda mark: pickle.dumps({'data': np.zeros(2, [('a', 'u1')])}, 2),
    lambda mark: pickle.dumps({'data': np.float64(1)}, 2),
    lambda mark: pickle.dumps({'data': {1, 2}}, 2),
    lambda mark: b'\x80\x02}U\x01ac__builtin__\neval\nU\x011\x85Rs.',
    lambda mark: ALTERS,
    lambda mark: b'\x80\x02}U\x01a' + NEGATIVE + b's.',
    lambda mark: b'\x80\x02}U\x01a' + TOO_LARGE + b's.',
    lambda mark: b'\x80\x02](K\x01e.',
    lambda mark: pickle.dumps({'data': 1}, 2)[:-3],
    lambda mark: b'',
  ],
)
def test_dangerous_and_damaged_pickles_are_refused(small, tmp_path, capsys, make):
  mark = tmp_path / 'mark'
  members = {**pickled(content()), 'cifar-100-python/train': make(mark)}
  path = pack(tmp_path / 'a.tar', members)
  assert dl.main(['--archive', path, '--data_dir', str(tmp_path / 'out')]) == 1
  sentence(capsys, path, 'a pickle in it is refused')
  assert not mark.exists()


@pytest.mark.parametrize('name', ['tar', 'tar.gz', 'tar.xz'])
@pytest.mark.parametrize('share', [0, 0.3, 0.9])
def test_truncated_archive(small, tmp_path, capsys, name, share):
  path = pack(tmp_path / f'a.{name}', pickled(content()), 'w:' + name[4:])
  with open(path, 'r+b') as f:
    f.truncate(int(share * os.path.getsize(path)))
  assert dl.main(['--archive', path, '--data_dir', str(tmp_path / 'out')]) == 1
  sentence(capsys, path, 'cut short')


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
    (['--synthetic', '--seed', '-1'], '-1 is not an integer from 0'),
    (['--seed', '1.5'], '1.5 is not an integer'),
    (['--seed', str(2**32)], str(2**32)),
    (['--synthetic', '--images_per_class', '0'], '0 is not an integer from 1'),
    (['--num_val_instance', '0'], '0 is not an integer from 1'),
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


def test_unwritable_folder(tmp_path, capsys, monkeypatch):
  (tmp_path / 'file').write_text('')
  argv = ['--synthetic', '--images_per_class', '1', '--data_dir']
  for folder in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    assert dl.main([*argv, str(folder)]) == 1
    sentence(capsys, folder, 'another --data_dir')
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  assert dl.main([*argv, str(tmp_path / 'out')]) == 1
  sentence(capsys, tmp_path / 'out', 'not writable')


# --- what is there already -----------------------------------------------------------------------------------------


def test_done_already(archive, tmp_path, capsys):
  argv = ['--archive', archive, '--data_dir', str(tmp_path / 'out')]
  assert dl.main(argv) == 0
  before = {name: (tmp_path / 'out' / name).stat().st_mtime_ns for name in FILES}
  os.remove(archive)  # not needed any more
  capsys.readouterr()
  assert dl.main(argv) == 0
  assert 'Already done' in capsys.readouterr().out
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
  sentence(capsys, 'No space left' if code == 1 else 'Interrupted')
  assert set(os.listdir(str(out))) == FILES - {'names.json'}  # nothing half-made, nothing that vouches for a mixture
  assert hashlib.sha256((out / 'train_val.npz').read_bytes()).hexdigest() == before['train_val.npz']
  assert dl.main(argv) == 0
  assert digests(out) == before


# --- download ------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves server.payload as server.mode says; notes the Range of each request."""

  def do_GET(self):
    server, payload = self.server, self.server.payload
    asked = self.headers.get('Range')
    server.asked.append(asked)
    mode = server.mode.pop(0) if len(server.mode) > 1 else server.mode[0]
    begin = int(asked[len('bytes=') : -1]) if asked and mode not in ('ignore', 'page') else 0
    if mode in ('404', '416'):
      return self.send_error(int(mode))
    body = b'<html>please log in</html>' if mode == 'page' else payload[begin:]
    self.send_response(206 if begin else 200)
    if begin:
      shown = begin + 1 if mode == 'shifted' else begin
      self.send_header('Content-Range', f'bytes {shown}-{len(payload) - 1}/{len(payload)}')
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body[: len(body) // 2] if mode == 'cut' else b'' if mode == 'drop' else body)

  def log_message(self, *args):
    pass


@pytest.fixture
def server(archive, monkeypatch):
  """A server of the small archive, which the program takes for the official one."""
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    with open(archive, 'rb') as f:
      server.payload = f.read()
    server.mode, server.asked = ['range'], []
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(dl, 'URL', f'http://127.0.0.1:{server.server_port}/cifar-100-python.tar.gz')
    monkeypatch.setattr(dl, 'SIZE', len(server.payload))
    monkeypatch.setattr(dl, 'MD5', hashlib.md5(server.payload).hexdigest())
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def part(tmp_path):
  """The place of the unfinished download; its folder exists."""
  (tmp_path / 'out').mkdir()
  return tmp_path / 'out' / 'cifar-100-python.tar.gz.part'


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


def test_download_goes_on_where_it_stopped(server, tmp_path, part):
  part.write_bytes(server.payload[:1000])
  assert run(tmp_path) == 0
  assert server.asked == ['bytes=1000-']
  assert not part.exists()


def test_broken_connections_are_resumed(server, tmp_path):
  server.mode = ['cut', 'cut', 'range']
  size = len(server.payload)
  assert run(tmp_path) == 0
  second = size // 2
  assert server.asked == [None, f'bytes={second}-', f'bytes={second + (size - second) // 2}-']


def test_connection_that_stays_broken_keeps_what_came(server, tmp_path, part, capsys):
  server.mode = ['cut', 'drop']
  half = len(server.payload) // 2
  assert run(tmp_path) == 1
  sentence(capsys, f'{half} of {dl.SIZE} bytes', '--archive', '--synthetic')
  assert part.read_bytes() == server.payload[:half]
  server.mode = ['range']
  assert run(tmp_path) == 0
  assert server.asked[-1] == f'bytes={half}-'


@pytest.mark.parametrize('mode, asked', [('ignore', ['bytes=1000-']), ('416', ['bytes=1000-', None])])
def test_server_without_ranges(server, tmp_path, part, mode, asked):
  part.write_bytes(b'x' * 1000)  # would give a wrong checksum, were it kept
  server.mode = [mode, 'ignore']
  assert run(tmp_path) == 0
  assert server.asked == asked


@pytest.mark.parametrize('extra, asked', [(b'', []), (b'x', [None])])
def test_complete_and_overlong_part(server, tmp_path, part, extra, asked):
  part.write_bytes(server.payload + extra)
  assert run(tmp_path) == 0
  assert server.asked == asked


@pytest.mark.parametrize('have', [0, 1000, None])
def test_wrong_checksum(server, tmp_path, part, capsys, have):
  good = server.payload
  server.payload = good[:-1] + bytes([good[-1] ^ 1])
  part.write_bytes(server.payload[:have])
  assert run(tmp_path) == 1
  sentence(capsys, dl.MD5, hashlib.md5(server.payload).hexdigest(), 'removed', '--archive', '--synthetic')
  assert os.listdir(str(tmp_path / 'out')) == []
  server.payload = good
  assert run(tmp_path) == 0
  assert server.asked[-1] is None


@pytest.mark.parametrize('mode, said', [('page', 'offers 26 bytes'), ('shifted', 'another range'), ('404', '404')])
def test_wrong_answers_do_not_touch_what_came(server, tmp_path, part, capsys, mode, said):
  part.write_bytes(server.payload[:1000])
  server.mode = [mode]
  assert run(tmp_path) == 1
  sentence(capsys, dl.URL, said, '--archive', '--synthetic')
  assert part.read_bytes() == server.payload[:1000]


def test_spoilt_archive_is_fetched_again(server, tmp_path, part):
  (tmp_path / 'out' / 'cifar-100-python.tar.gz').write_bytes(b'spoilt')
  assert run(tmp_path) == 0
  assert server.asked == [None]


def test_no_network(tmp_path, capsys, monkeypatch):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))  # bound but not listening: connections are refused
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(dl, 'URL', f'http://127.0.0.1:{s.getsockname()[1]}/cifar-100-python.tar.gz')
    assert run(tmp_path) == 1
  sentence(capsys, f'Could not download {dl.URL} ([Errno', '--archive', '--synthetic')
  assert os.listdir(str(tmp_path / 'out')) == []


def test_full_disk_while_downloading(server, tmp_path, part, capsys):
  part.mkdir()  # a stand-in for any trouble with the file itself
  assert run(tmp_path) == 1
  sentence(capsys, tmp_path / 'out', 'another --data_dir')


def test_interrupted_download(server, tmp_path, capsys, monkeypatch):
  def interrupt(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(dl, 'md5_of', interrupt)
  assert run(tmp_path) == 130
  sentence(capsys, 'Interrupted')
  assert os.listdir(str(tmp_path / 'out')) == ['cifar-100-python.tar.gz.part']


# --- synthetic images ----------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def images():
  return synthetic.make(20, 0)


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


def test_synthetic_names():
  fine, coarse, fine_to_coarse, _ = synthetic.classes()
  assert len(set(fine)) == 100 and len(set(coarse)) == 20
  assert np.bincount(fine_to_coarse).tolist() == [5] * 20
  assert [name[:-2] for name in fine] == [coarse[group] for group in fine_to_coarse]
  assert len({name.split('_')[2] for name in coarse}) == 20  # no shape in two superclasses
  family_and_ground = [tuple(name.split('_')[:2]) for name in coarse]
  assert {place: family_and_ground.count(place) for place in family_and_ground} == dict.fromkeys(
    [('night', 'starry'), ('night', 'rainy'), ('day', 'checked'), ('day', 'wavy')], 5
  )
  neighbours = np.mean(np.diff(fine_to_coarse) == 0)
  assert neighbours < 0.15  # 0.8, were the classes numbered by superclass


def test_every_class_has_its_own_emblem():
  emblems = synthetic.emblems()
  assert np.array_equal(emblems, emblems[..., ::-1])
  cells = emblems.reshape(20, 5, -1)
  differing = (cells[:, None, :, None] != cells[None, :, None, :]).mean(-1)  # of two superclasses and two letters
  assert (differing.reshape(20, 20, 25) == 0).sum() == 100  # each with itself only
  letters = differing[~np.eye(20, dtype=bool)].mean(0)  # [5, 5], over the pairs of superclasses
  same, other = np.diag(letters).mean(), letters[~np.eye(5, dtype=bool)].mean()
  assert abs(same - other) < 0.03  # 0.2 and more, were a superclass's emblems repeated in the next


@pytest.fixture(scope='module')
def prototypes():
  """The classes' mean images, whitened, by place: float [20, 5, features]; no thing is far away."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(synthetic, 'FAR', np.float32(0))
    images = synthetic.make(60, 0)
  number = synthetic.classes()[3]
  whitened = images['train_images'].astype(np.float32)
  whitened -= whitened.mean((1, 2), keepdims=True)
  whitened /= whitened.std((1, 2), keepdims=True)
  means = np.stack([whitened[images['train_labels'] == label].mean(0) for label in range(100)])
  return means.reshape(100, -1)[number]


def cosines(prototypes):
  """Cosines [20, 5, 20, 5] between the classes, from their common mean."""
  features = prototypes.reshape(100, -1) - prototypes.mean((0, 1))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  return (features @ features.T).reshape(20, 5, 20, 5)


def levels(distances):
  """Mean distance of two classes of one superclass, of one ground, of one family, and of different families."""
  at = np.arange(100).reshape(20, 5, 1, 1), np.arange(100).reshape(1, 1, 20, 5)
  shared = np.select([at[0] == at[1]] + [at[0] // size == at[1] // size for size in (5, 25, 50)], [9, 0, 1, 2], 3)
  return [distances[shared == level].mean() for level in range(4)]


def test_the_tree_can_be_seen(prototypes):
  superclass, ground, family, none = levels(1 - cosines(prototypes))
  assert superclass < 0.85 * ground and ground < 0.9 * family and family < 0.3 * none
  shuffled = np.random.RandomState(0).permutation(prototypes.reshape(100, -1)).reshape(prototypes.shape)
  assert np.ptp(levels(1 - cosines(shuffled))) < 0.15  # the measure itself can fail


def by_letter(cosine):
  """How much more alike two superclasses' classes of one letter are than those of two letters."""
  letters = cosine.transpose(0, 2, 1, 3)[~np.eye(20, dtype=bool)].mean(0)  # [5, 5], over the pairs of superclasses
  return np.diag(letters).mean() - letters[~np.eye(5, dtype=bool)].mean()


def test_nothing_cuts_across_the_superclasses(prototypes):
  assert abs(by_letter(cosines(prototypes))) < 0.01
  spread = prototypes.std()
  crossing = prototypes + spread * np.random.RandomState(0).randn(5, prototypes.shape[-1])
  assert by_letter(cosines(crossing)) > 0.1  # the measure itself can fail


def test_classes_of_a_superclass_differ():
  """Drawn with the same random numbers, two classes of a superclass differ on the thing and nowhere else."""
  emblems = synthetic.emblems()
  for s, superclass in enumerate(synthetic.SUPERCLASSES):
    one, other = (synthetic.draw(*superclass, emblems[s, [c] * 20], np.random.default_rng(3)) for c in (0, 1))
    share = (one != other).any(-1).mean((1, 2))
    assert share.mean() > 0.01 and share.max() < 0.25


def test_images_of_a_class_vary(images):
  assert len({image.tobytes() for image in images['train_images']}) == 2000
  one = images['train_images'][images['train_labels'] == 0].astype(float)
  assert one.std(axis=0).mean() > 20
