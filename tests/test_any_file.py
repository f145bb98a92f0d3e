"""Every reader of files, given anything: it reads it or says in one sentence, which names the file, why not."""

import functools
import io
import json
import os
import zipfile

import archives
import helpers
import hypothesis.extra.numpy as arrays
import numpy as np
import pictures
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_runs import finish, make_runs

import cifar100
import download_cifar100 as dl
import image_folder
import resnet_split
from paper import runs
from serving import infer
from splitnet.common.errors import UserError
from splitnet.data import readers, safe_pickle, safe_tar
from splitnet.data.dataset import DataSettings
from splitnet.network import grouping
from splitnet.reporting import compare
from splitnet.training import checkpoints, log_files, replicas

few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(
  [-1, 0, 1, 2**53, 10**30, '', '..', 'a/b', '\x1b[2J', '\ud800', 'NaN', 0.5]
)  # fmt: skip
VALUES = st.recursive(
  SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
DEEP = [b'[' * 100_000, b'{"a":' * 100_000, b'', b'\xff', b'9' * 10_000, b'{"fine": %b}' % (b'[' * 190 + b']' * 190)]


@st.composite
def altered(draw, content):
  """Draws what a JSON value is after one of the values in it, at any depth, is replaced or removed."""
  content = json.loads(json.dumps(content))
  node, depth = content, 0
  while isinstance(node, (dict, list)) and node:
    key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
    if not isinstance(node[key], (dict, list)) or not node[key] or draw(st.integers(0, 3)) == 0:
      if draw(st.booleans()):
        del node[key]
      else:
        node[key] = draw(VALUES)
      return content
    node, depth = node[key], depth + 1
  return draw(VALUES)


def dump(value):
  return json.dumps(value).encode()


def reads_or_says(path, content, read):
  """Asserts that a file of these bytes is read, or refused in a sentence that names it."""
  with open(path, 'wb') as f:
    f.write(content)
  try:
    read()
  except UserError as e:
    assert str(path) in str(e) or os.path.dirname(path) in str(e)
    assert str(e).isprintable() and len(str(e)) < 1000, str(e)


NAMES = {
  'fine': ['a', 'b', 'c'], 'coarse': ['x', 'y'], 'fine_to_coarse': [0, 1, 1], 'source': 'synthetic', 'seed': 0,
  'num_val_instance': 1, 'images_per_class': 1,
}  # fmt: skip
RESULT = {
  'accuracy': 0.5, 'top5_accuracy': 0.9, 'parameters': 1000, 'flops': 10_000, 'images': 10, 'split': 'test',
  'groups': [['a'], ['b', 'c']], 'agreement': 0.5, 'superclass_of_class': {'a': 'x', 'b': 'y', 'c': 'y'},
}  # fmt: skip
CONFIG = resnet_split.WideResNet(k=1, num_residual_units=1, num_classes=4, ngroups3=1)
GRAPH = CONFIG.graph()
CONFIGURATION = {
  'mode': 'split', 'network': {'k': 1, 'num_residual_units': 1, 'num_classes': 4, 'ngroups3': 1}, 'settings': {},
  'graph': GRAPH.to_dict(), 'data': {'source': 'synthetic'},
  'groups': {u.name: [i % u.groups for i in range(u.size)] for u in GRAPH.units.values()},
}  # fmt: skip
OLDER = {key: value for key, value in CONFIGURATION.items() if key != 'graph'}
MANIFEST = {'models': [{'name': 'whole', 'path': 'whole/1', 'reads': {'images': None}, 'class_names': ['a', 'b']}]}
CLUSTER = {'cluster': {'worker': ['a:1', 'b:2']}, 'task': {'type': 'worker', 'index': 0}}
LINE = {
  'step': 1, 'kind': 'train', 'total': 1.0, 'accuracy': 0.5, 'images_per_second': 9.5, 'confidence': {'split_q1': 0.5},
}  # fmt: skip


def read_run(run):
  """Reads a run's folder as tables.sh does, for a table and for what is left to do."""
  runs.read_result(run, None)
  runs.read_result(run, {'source': 'synthetic'})


def make_run(folder):
  run = make_runs(folder / 'out', '--k', 1)['split-2-2-2']
  finish(run, 0.5, groups=[['a'], ['b', 'c']], agreement=0.5)
  return run


def read_grouping(path):
  names = readers.read_names(os.path.join(os.path.dirname(path), 'names.json'), cifar100.Names, '')
  graph = resnet_split.WideResNet(num_classes=3, ngroups1=2, ngroups2=2, ngroups3=1).graph()
  grouping.read_file(path, cifar100.ClassNames(names['fine'], names['coarse'], None, {}), graph)


def read_progress(folder):
  list(log_files.read_metrics(folder))
  runs.print_progress(runs.Run(folder, None, {'max_steps': 100}), 0, 60)


# For each kind of file: its name, what it may hold, and a function from folder and path to what reads it.
READERS = {
  'names.json': ('names.json', NAMES, lambda folder, path: lambda: cifar100.load_names(str(folder))),
  'names.json, data there': (
    'names.json', NAMES, lambda folder, path: lambda: dl.is_done(str(folder), {n: NAMES[n] for n in dl.PROVENANCE}),
  ),
  'eval.json': ('eval.json', RESULT, lambda folder, path: lambda: compare.show([f'name={path}'])),
  'config.json': (
    'config.json', CONFIGURATION,
    lambda folder, path: lambda: checkpoints.read_configuration(str(folder), resnet_split.read_older),
  ),
  'config.json before': (
    'config.json', OLDER,
    lambda folder, path: lambda: checkpoints.read_configuration(str(folder), resnet_split.read_older),
  ),
  'manifest.json': ('manifest.json', MANIFEST, lambda folder, path: lambda: infer.Export(str(folder))),
  'grouping': ('mine.json', [['a'], ['b', 'c']], lambda folder, path: lambda: read_grouping(path)),
  'metrics.jsonl': ('metrics.jsonl', LINE, lambda folder, path: lambda: read_progress(str(folder))),
}  # fmt: skip


@pytest.mark.parametrize('kind', READERS)
def test_any_json(kind, tmp_path):
  name, good, reader = READERS[kind]
  path = str(tmp_path / name)
  (tmp_path / 'names.json').write_text(json.dumps(NAMES))
  check = functools.partial(reads_or_says, path, read=reader(tmp_path, path))

  @few
  @given(st.binary(max_size=200) | st.sampled_from(DEEP) | (VALUES | altered(good) | altered(good)).map(dump))
  def holds(content):
    check(content + b'\n')

  check(dump(good) + b'\n')
  holds()


@pytest.mark.parametrize('name', ['settings.json', 'eval.json', 'grouped.json', 'cost.json'])
def test_any_file_of_a_run(name, tmp_path):
  run = make_run(tmp_path)
  path = os.path.join(run.folder, name)
  good = {'accuracy': 0.5, 'seconds': 1.5, 'device': 'one'}
  if os.path.exists(path):
    with open(path, encoding='utf-8') as f:
      good = json.load(f)

  @few
  @given(st.binary(max_size=200) | st.sampled_from(DEEP) | (VALUES | altered(good)).map(dump))
  def holds(content):
    reads_or_says(path, content, lambda: read_run(run))

  reads_or_says(path, dump(good), lambda: read_run(run))
  holds()


@pytest.mark.parametrize('name', ['superclasses.json', '.splitnet/subsets.json', '.splitnet/checked.json'])
def test_any_file_of_an_image_folder(name, tmp_path):
  folder = pictures.folder(tmp_path / 'images', ['a', 'b'], 4)
  (tmp_path / 'images' / 'superclasses.json').write_text(json.dumps({'x': ['a'], 'y': ['b']}))

  def read():
    image_folder.open_dataset(DataSettings(data_dir=str(folder)))

  read()
  path = str(tmp_path / 'images' / name)
  with open(path, encoding='utf-8') as f:
    good = json.load(f)

  @few
  @given(st.binary(max_size=200) | st.sampled_from(DEEP) | (VALUES | altered(good)).map(dump))
  def holds(content):
    reads_or_says(path, content, read)

  holds()


@few
@given(st.text(max_size=50) | (VALUES | altered(CLUSTER)).map(json.dumps))
def test_any_environment(text):
  try:
    replicas.read_cluster(text)
  except UserError as e:
    assert str(e).startswith('TF_CONFIG ') and str(e).isprintable()


def test_json_that_is_right_is_read(tmp_path):
  for name, content in (('names.json', NAMES), ('config.json', CONFIGURATION)):
    (tmp_path / name).write_text(json.dumps(content))
  assert cifar100.load_names(str(tmp_path)).fine == ['a', 'b', 'c']
  read = functools.partial(checkpoints.read_configuration, str(tmp_path), resnet_split.read_older)
  assert read() == CONFIGURATION
  (tmp_path / 'config.json').write_text(json.dumps(OLDER))
  assert read()['graph'] == GRAPH.to_dict()


# --- arrays ----------------------------------------------------------------------------------------------------------


def pack(compression=zipfile.ZIP_STORED, **contents):
  """Makes an .npz of arrays or bytes."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', compression) as archive:
    for name, content in contents.items():
      if isinstance(content, np.ndarray):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, content, allow_pickle=content.dtype == object)
        content = buffer.getvalue()
      archive.writestr(f'{name}.npy', content)
  return file.getvalue()


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
LABELS = np.arange(3, dtype=np.uint8)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 28, 32, 64]), max_size=5).map(tuple)
SIZES = SHAPES.filter(lambda shape: np.prod(shape) < 100_000)


def with_header(shape, dtype='|u1', fortran=False, content=b''):
  """Makes an array's file that says what it likes in its header."""
  header = f"{{'descr': {dtype!r}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}".encode().ljust(117) + b'\n'
  return b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header + content


def load(folder):
  """Reads a subset, and asserts that it is one that a network of three classes can take."""
  data = cifar100.load(str(folder), 'test')
  assert data.images.dtype == np.uint8 and data.images.shape[1:] == (32, 32, 3) and len(data.images) > 0
  assert data.labels.dtype == np.int32 and data.labels.shape == (len(data.images),)
  assert data.labels.min() >= 0 and data.labels.max() < 3


FAULTS = {
  '64 x 64 pixels': (dict(images=np.zeros((3, 64, 64, 3), np.uint8)), "'images' is uint8 [3, 64, 64, 3]"),
  '28 x 28 pixels': (dict(images=np.zeros((3, 28, 28, 3), np.uint8)), 'it must be uint8 [N, 32, 32, 3]'),
  'four channels': (dict(images=np.zeros((3, 32, 32, 4), np.uint8)), '[3, 32, 32, 4]'),
  'no channels': (dict(images=np.zeros((3, 32, 32), np.uint8)), '[3, 32, 32]'),
  'float images': (dict(images=IMAGES / 255), 'float64'),
  'not a number': (dict(images=np.full((3, 32, 32, 3), np.nan, np.float32)), 'float32'),
  'uint16 images': (dict(images=IMAGES.astype(np.uint16)), 'uint16'),
  'objects': (dict(images=np.array([{}, {}, {}], object)), 'object'),
  'labels from 1': (dict(labels=LABELS + 1), 'its labels are 1 to 3, but the classes are 0 to 2'),
  'labels from -1': (dict(labels=LABELS.astype(np.int64) - 1), 'its labels are -1 to 1'),
  'labels as numbers of 64 bits': (dict(labels=LABELS + np.uint64(2**63)), 'its labels are'),
  'float labels': (dict(labels=LABELS.astype(np.float32)), "'labels' is float32"),
  'one-hot labels': (dict(labels=np.eye(3, dtype=np.uint8)), "'labels' is uint8 [3, 3]"),
  'fewer labels': (dict(labels=LABELS[:2]), '3 images, 2 labels'),
  'no images': (dict(images=IMAGES[:0], labels=LABELS[:0]), 'N at least 1'),
  'no array of labels': (dict(labels=None), "no array 'labels'"),
  'a header of a terabyte': (dict(images=with_header((1 << 30, 32, 32, 3))), 'bytes'),
  'fewer bytes than its header says': (dict(images=with_header((3, 32, 32, 3), content=b'x')), 'fewer bytes'),
  'more bytes than its header says': (dict(labels=with_header((3,), content=bytes(4))), 'more bytes'),
  'a header that overflows': (dict(images=with_header((2**62, 32, 32, 3))), 'bytes'),
  'a header of text': (dict(images=b'\x93NUMPY\x01\x00\x04\x00(((('), 'damaged'),
}  # fmt: skip


@pytest.mark.parametrize('fault', FAULTS)
def test_a_subset_that_does_not_fit_is_named(fault, tmp_path):
  (tmp_path / 'names.json').write_text(json.dumps(NAMES))
  changed, said = FAULTS[fault]
  contents = {'images': IMAGES, 'labels': LABELS, **changed}
  contents = {name: value for name, value in contents.items() if value is not None}
  (tmp_path / 'test.npz').write_bytes(pack(**contents))
  with pytest.raises(UserError) as error:
    load(tmp_path)
  assert said in str(error.value) and str(tmp_path / 'test.npz') in str(error.value)
  (tmp_path / 'test.npz').write_bytes(pack(images=IMAGES, labels=LABELS))
  load(tmp_path)


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize('array', ['images', 'labels'])
def test_a_flipped_bit_of_a_subset_is_found(compression, array, tmp_path):
  (tmp_path / 'names.json').write_text(json.dumps(NAMES))
  content = bytearray(pack(compression, images=IMAGES, labels=LABELS))
  with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
    member = archive.getinfo(f'{array}.npy')
  begin = member.header_offset + 30 + len(member.filename)
  content[begin + member.compress_size - (2 if compression == zipfile.ZIP_STORED else 12)] ^= 1
  (tmp_path / 'test.npz').write_bytes(content)
  with pytest.raises(UserError, match='damaged'):
    load(tmp_path)


def test_any_subset(tmp_path):
  (tmp_path / 'names.json').write_text(json.dumps(NAMES))
  good = pack(images=IMAGES, labels=LABELS)
  types = arrays.scalar_dtypes() | st.just(np.dtype(object))
  some = st.builds(lambda shape, dtype: np.zeros(shape, dtype), SIZES, types)
  codes = st.sampled_from(['|u1', '<i8', '|O', '<U9', 'x'])
  headers = st.builds(with_header, SHAPES | st.just((2**40,)), codes, st.booleans(), st.binary())
  packed = st.builds(
    pack, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), images=some | headers | st.just(IMAGES),
    labels=some | headers | st.just(LABELS),
  )  # fmt: skip

  @few
  @given(st.binary(max_size=100) | packed | damaged(good))
  def holds(content):
    reads_or_says(str(tmp_path / 'test.npz'), content, lambda: load(tmp_path))

  holds()


def damaged(good):
  """Draws what bytes are after some of them are changed, cut off or put in."""

  def change(place, length, new):
    begin = int(place * len(good))
    return good[:begin] + new + good[begin + length :]

  return st.builds(change, st.floats(0, 1), st.integers(0, 600), st.binary(max_size=600))


# --- archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:xz'])
def test_any_archive(mode, tmp_path):
  files = {'folder/a': np.random.RandomState(0).bytes(3000), 'folder/b': b'b' * 300}
  with open(archives.pack(tmp_path / 'good.tar', files, mode), 'rb') as f:
    good = f.read()
  path = str(tmp_path / 'a.tar')

  def read():
    found = safe_tar.read_members(path, 'folder', ('a', 'b'), '')
    if mode != 'w':  # a compressed one carries a checksum
      assert found == {'a': files['folder/a'], 'b': files['folder/b']}

  @few
  @given(st.binary(max_size=600) | damaged(good))
  def holds(content):
    reads_or_says(path, content, read)

  holds()


GOOD = archives.pickled({'x': {'data': IMAGES.reshape(3, -1), 'names': ['a', 'b'], 'n': 1}})['cifar-100-python/x']
PIECES = [
  b'(', b')', b']', b'}', b'l', b't', b'd', b'\x85', b'\x86', b'\x87', b'e', b'a', b's', b'u', b'0', b'1', b'2',
  b'b', b'R', b'N', b'K\x01', b'U\x01a', b'X\x01\x00\x00\x00a', b'q\x00', b'h\x00', b'cnumpy\ndtype\n', b'\x93',
  b'\x94', b'.', b'cnumpy.core.multiarray\n_reconstruct\n', b'c_codecs\nencode\n', b'cos\nsystem\n', b'\x81',
  b'\x8f', b'\x91', b'\x96',
]  # fmt: skip


@settings(few, max_examples=200)
@given(st.binary(max_size=50) | damaged(GOOD) | st.lists(st.sampled_from(PIECES), max_size=30).map(b''.join))
def test_any_pickle(content):
  try:
    loaded = safe_pickle.load(content)
  except ValueError as e:
    assert str(e).startswith('a pickle in it is refused: ') and str(e).isprintable()
  else:
    assert all(isinstance(key, str) for key in loaded)


@pytest.mark.parametrize('kind', ['a pipe', 'a device', 'a folder'])
@pytest.mark.parametrize('name', ['names.json', 'test.npz', 'config.json', 'eval.json', 'metrics.jsonl'])
def test_what_is_no_file_is_not_waited_for(kind, name, tmp_path):
  (tmp_path / 'names.json').write_text(json.dumps(NAMES))
  path = tmp_path / name
  path.unlink(missing_ok=True)
  make = {'a pipe': os.mkfifo, 'a device': lambda path: os.symlink('/dev/zero', path), 'a folder': os.mkdir}
  make[kind](path)
  read = READERS[name][2](tmp_path, str(path)) if name in READERS else functools.partial(load, tmp_path)
  with pytest.raises(UserError, match='no regular file'):
    read()


def test_programs_say_it_in_one_line(tmp_path, capsys):
  data = helpers.write(tmp_path / 'data')
  with np.load(os.path.join(data, 'test.npz')) as f:
    contents = dict(f)
  np.savez(os.path.join(data, 'test.npz'), **dict(contents, labels=contents['labels'].astype(int) - 1))
  arguments = ['--checkpoint', helpers.RELEASED, '--data_dir', data]
  code, _, error = helpers.call(helpers.evaluation, arguments, capsys)
  assert code == 1 and error.count('\n') == 1 and 'its labels are -1 to' in error
  for flags, said in ((['--num_residual_units', 1_000_000], '5,000 layers'), (['--k', 20_000], '131,072')):
    code, _, error = helpers.call(helpers.train, helpers.flags('baseline', data, tmp_path / 'run', *flags), capsys)
    assert code == 1 and error.count('\n') == 1 and said in error, error
