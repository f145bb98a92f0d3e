"""export.py and infer.py: the same logits without this project's code, whole and put together; what is refused."""

import errno
import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys

import helpers
import networks
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import cifar100
from serving import export, infer
from serving.images import MAX_BYTES
from splitnet.common.errors import UserError
from splitnet.network import counting
from splitnet.training import checkpoints

NAMES = [f'class_{i:02}' for i in range(100)]

# Given to a bare Python: knows manifest.json and TensorFlow only.
SERVE = """
import json, os, sys
import numpy as np
import tensorflow as tf

images = np.load(sys.argv[1])
answers = {}
for folder in sys.argv[2:]:
  with open(os.path.join(folder, 'manifest.json')) as f:
    models = json.load(f)['models']
  loaded = {model['name']: tf.saved_model.load(os.path.join(folder, model['path'])) for model in models}
  for size in (1, len(images)):
    outputs = {}
    for model in models:
      signature = loaded[model['name']].signatures['serving_default']
      given = {n: outputs[s['model']][s['output']] if s else tf.constant(images[:size])
               for n, s in model['reads'].items()}
      outputs[model['name']] = signature(**given)
    for name, tensors in outputs.items():
      for key, value in tensors.items():
        value = value.numpy().astype('S') if value.dtype == tf.string else value.numpy()
        answers['%s|%d|%s|%s' % (os.path.basename(folder), size, name, key)] = value
assert not {'resnet_split', 'splitnet', 'serving', 'cifar100', 'utils'} & set(sys.modules), sys.modules
np.savez('answers.npz', **answers)
"""

TREES = {
  'two': dict(num_residual_units=1),
  'deep': networks.TREES['2-4-4'],
  'all': networks.TREES['2-4-4 all'],
  'uneven': networks.TREES['1-2-3'],
  'logits': networks.TREES['1-1-4'],
  'rounded': dict(num_residual_units=1, dtype=tf.bfloat16),
}


@pytest.fixture(scope='module')
def images(data):
  return cifar100.load(data, 'test').images[:7]


def write(folder, network, branches=True):
  """Exports a network as export.py does; returns the manifest."""
  models = export.build(network, NAMES, branches)
  content = export.manifest(models, NAMES)
  export.write(folder, models, content, False)
  return content


@pytest.fixture(scope='module')
def originals(runs):
  """The networks that are exported, by the name of their export."""
  originals = {name: networks.make(**tree) for name, tree in TREES.items()}
  originals['split'] = checkpoints.load_network(helpers.read_checkpoint(runs['split']))
  originals['hardened'] = checkpoints.load_network(helpers.read_checkpoint(runs['group']), harden=True)
  originals['baseline'] = checkpoints.load_network(helpers.read_checkpoint(runs['baseline']))
  return originals


@pytest.fixture(scope='module')
def exports(tmp_path_factory, originals, runs, data):
  """Folders of exports: those of checkpoints made by the program."""
  folder = tmp_path_factory.mktemp('exports')
  for name, more in (('split', ['--branches']), ('hardened', ['--harden', '--branches']), ('baseline', [])):
    stage = 'group' if name == 'hardened' else name
    given = ['--checkpoint', runs[stage], '--data_dir', data, '--out', str(folder / name)]
    assert export.main(given + more) == 0
  for name in TREES:
    write(str(folder / name), originals[name])
  return {name: str(folder / name) for name in originals}


@pytest.fixture(scope='module')
def served(tmp_path_factory, exports, images):
  """What all models answer in a process that has nothing of this project: dict from export to a dict of arrays."""
  folder = tmp_path_factory.mktemp('elsewhere')
  np.save(folder / 'images.npy', images)
  command = [sys.executable, '-I', '-c', SERVE, 'images.npy', *exports.values()]
  environment = dict(os.environ, CUDA_VISIBLE_DEVICES='-1', TF_CPP_MIN_LOG_LEVEL='2')
  done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  answers = {name: {} for name in exports}
  with np.load(folder / 'answers.npz') as f:
    for key in f:
      name, size, model, output = key.split('|')
      answers[name][int(size), model, output] = f[key]
  return answers


def manifest(folder):
  with open(os.path.join(folder, 'manifest.json'), encoding='utf-8') as f:
    return json.load(f)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*TREES, 'split', 'hardened', 'baseline'])
def test_a_process_without_this_project_computes_the_same_logits(originals, exports, images, served, name):
  expected = originals[name](cifar100.whiten(images)).numpy()
  tolerance = 0.02 if name == 'rounded' else 1e-5
  branches = [m for m in manifest(exports[name])['models'] if m['name'].startswith('branch_')]
  for size in (1, len(images)):
    answers = served[name]
    logits = answers[size, 'whole', 'logits']
    networks.assert_close(logits, expected[:size], tolerance)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(answers[size, 'whole', 'probabilities'], odds / odds.sum(1, keepdims=True), atol=1e-6)
    names = answers[size, 'whole', 'class_names']
    assert names.shape == (size, 100) and [n.decode() for n in names[-1]] == NAMES
    together = np.full((size, 100), np.nan, np.float32)
    for model in branches:
      ids = answers[size, model['name'], 'class_ids']
      np.testing.assert_array_equal(ids, [model['class_ids']] * size)
      together[:, ids[0]] = answers[size, model['name'], 'logits']
      names = answers[size, model['name'], 'class_names']
      assert [n.decode() for n in names[-1]] == [NAMES[i] for i in ids[0]] == model['class_names']
    if name != 'baseline':
      networks.assert_close(together, logits, 1e-5)
  assert len(branches) == {'baseline': 0, 'two': 2, 'rounded': 2, 'uneven': 2, 'split': 2, 'hardened': 2}.get(name, 4)


@pytest.mark.parametrize('name', TREES)
def test_the_manifest_says_which_model_reads_what(originals, exports, name):
  content, network = manifest(exports[name]), originals[name]
  whole, trunk, *branches = content['models']
  assert whole['class_ids'] == list(range(100)) and content['class_names'] == NAMES
  assert whole['inputs'] == trunk['inputs'] == {'images': 'uint8 [batch, 32, 32, 3]'}
  assert whole['reads'] == trunk['reads'] == {'images': None}
  for model in branches:
    assert model['reads']['features']['model'] == 'trunk'
    assert model['inputs']['features'] == trunk['outputs'][model['reads']['features']['output']]
    assert model['outputs']['logits'] == f"float32 [batch, {len(model['class_ids'])}]"
  assert {m['reads']['features']['output'] for m in branches} == set(trunk['outputs'])
  assert sorted(i for m in branches for i in m['class_ids']) == list(range(100))
  groups = network.groups['split_q1']
  for model in branches:
    inside = set(groups[model['class_ids']])
    assert sum(np.isin(groups, list(inside))) == len(model['class_ids'])  # whole groups
  for model in content['models']:
    assert os.listdir(os.path.join(exports[name], model['path'])).count('saved_model.pb') == 1
  assert sorted(os.listdir(exports[name])) == sorted(['manifest.json'] + [m['name'] for m in content['models']])


def test_what_is_sent_to_a_branch_is_what_it_reads(exports):
  features = {name: manifest(exports[name])['models'][1]['outputs'] for name in TREES}
  half = 'float32 [batch, 32, 32, 8]'  # 8 of the 16 channels
  for name in ('two', 'deep', 'rounded'):
    assert features[name] == {'features_0': half, 'features_1': half}
  assert features['all'] == {'features_0': 'float32 [batch, 32, 32, 16]'}
  assert features['logits'] == {f'features_{i}': 'float32 [batch, 16]' for i in range(4)}


def convolutions(network, name):
  """How many convolutions a model has."""
  model = next(m for m in export.build(network, NAMES, True) if m.name == name)
  return sum(node.op == 'Conv2D' for node in model.function.get_concrete_function().graph.as_graph_def().node)


def test_a_branch_has_its_path_down_to_the_trunk_and_nothing_else(originals):
  # init_conv and unit_1 (with k = 1 without shortcut); unit_2; unit_3
  assert [convolutions(originals['two'], m) for m in ('trunk', 'branch_0', 'branch_1')] == [3, 6, 6]
  assert [convolutions(originals['deep'], m) for m in ('trunk', 'branch_0', 'branch_3')] == [3, 6, 6]
  assert [convolutions(originals['uneven'], m) for m in ('trunk', 'branch_0', 'branch_1')] == [6, 3, 3]
  assert [convolutions(originals['logits'], m) for m in ('trunk', 'branch_0', 'branch_3')] == [9, 0, 0]


@pytest.mark.parametrize(
  'counts, dealt',
  [
    ((2, 2, 2), [([0], [0], [0]), ([1], [1], [1])]),
    ((2, 4, 4), [([0], [0], [0]), ([0], [1], [1]), ([1], [2], [2]), ([1], [3], [3])]),
    ((2, 2, 4), [([0], [0], [0, 1]), ([1], [1], [2, 3])]),
    ((2, 3, 5), [([0], [0], [0, 1]), ([0], [1], [2, 3]), ([1], [2], [4])]),
    ((1, 2, 3), [([0], [0, 1]), ([1], [2])]),
    ((1, 1, 3), [([0],), ([1],), ([2],)]),
  ],
)
def test_there_is_a_model_for_each_branch_of_the_last_stage(counts, dealt):
  depths = ('trunk', 'unit_2', 'unit_3', 'logits')
  expected = [dict(zip(depths[-len(held) :], held)) for held in dealt]
  assert export.deal(dict(zip(depths, (1, *counts)))) == expected


def test_each_models_size_is_told(originals, exports):
  sizes = {name: {m['name']: m for m in manifest(exports[name])['models']} for name in TREES}
  for key in ('parameters', 'flops'):
    two, deep = ({name: m[key] for name, m in sizes[tree].items()} for tree in ('two', 'deep'))
    assert two['whole'] == two['trunk'] + two['branch_0'] + two['branch_1'] and two['branch_0'] == two['branch_1']
    # In the deep tree two branches compute the same unit_2 each.
    repeated = deep['trunk'] + sum(deep[f'branch_{i}'] for i in range(4)) - deep['whole']
    counts = [c for c in counting.counts(originals['deep']) if 'unit_2' in c.name and any(c.counted)]
    assert repeated == sum(getattr(c, key) for c in counts) > 0


# --- what is there already ----------------------------------------------------------------------------------------


def test_an_export_is_replaced_with_force_only(runs, data, tmp_path, capsys):
  out = str(tmp_path / 'made' / 'export')
  given = ['--data_dir', data, '--out', out, '--checkpoint']
  assert helpers.call(export, [*given, runs['split'], '--branches'], capsys)[0] == 0
  before = helpers.files(str(tmp_path))
  code, _, stderr = helpers.call(export, [*given, runs['baseline']], capsys)
  assert code == 1 and stderr.count('\n') == 1 and out in stderr and '--force' in stderr
  assert helpers.files(str(tmp_path)) == before
  assert helpers.call(export, [*given, runs['baseline'], '--force'], capsys)[0] == 0
  assert sorted(os.listdir(out)) == ['manifest.json', 'whole'] and os.listdir(os.path.dirname(out)) == ['export']


STRANGERS = ['notes.txt', 'whole/2/saved_model.pb', 'whole/1/notes.txt', 'other/1/x', 'whole/1/variables/x']


@pytest.mark.parametrize('stranger', [*STRANGERS, 'whole/1/assets/link', 'link to a folder'])
def test_what_is_not_of_an_export_is_not_replaced_with_it(tmp_path, capsys, stranger):
  out = str(tmp_path / 'export')
  write(out, networks.make(num_residual_units=1), branches=False)
  path = os.path.join(out, stranger)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  if 'link' in stranger:
    (tmp_path / 'mine').mkdir()
    os.symlink(tmp_path / 'mine', path)
  else:
    with open(path, 'w', encoding='utf-8') as f:
      f.write('mine')
  before = helpers.files(str(tmp_path))
  code, _, stderr = helpers.call(export, ['--checkpoint', 'none', '--out', out, '--force'], capsys)
  assert code == 1 and stderr == (
    f"export.py: --out: '{out}' holds more than an export ({stranger}): move that away, or name another folder\n"
  )
  assert helpers.files(str(tmp_path)) == before


MANIFESTS = {
  'empty': '', 'text': 'x', 'a list': '[]', 'deep': '[' * 100_000, 'of something else': '{"models": []}',
  'of other models': '{"class_names": [], "models": [{"name": "a", "path": "a/1"}]}',
  'of no file': '{"class_names": [], "models": [{"name": "whole", "path": "whole/1"}]}',
  'that leads away': '{"class_names": [], "models": [{"name": "whole", "path": "../whole/1"}]}',
  'of numbers': '{"class_names": [], "models": [1]}',
}  # fmt: skip


@pytest.mark.parametrize('case', MANIFESTS)
def test_a_folder_with_any_other_manifest_is_no_export(tmp_path, capsys, case):
  out = tmp_path / 'web extension'
  out.mkdir()
  (out / 'manifest.json').write_text(MANIFESTS[case])
  (out / 'my work').write_text('mine')
  before = helpers.files(str(tmp_path))
  code, _, stderr = helpers.call(export, ['--checkpoint', 'none', '--out', str(out), '--force'], capsys)
  assert code == 1 and 'is no export' in stderr and stderr.count('\n') == 1
  assert helpers.files(str(tmp_path)) == before


def test_what_killed_exports_left_is_cleared_away(tmp_path, capsys):
  out = str(tmp_path / 'a [b]')
  write(out, networks.make(num_residual_units=1), branches=False)
  whole = {path.removeprefix(out): content for path, content in helpers.files(out).items()}
  os.rename(out, str(tmp_path / '.a [b].old-4000001'))
  for name in ('.a [b].new-4000002', '.a [b].new-4000003', '.a [b].new-x', '.other.new-4000004'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'part').write_text('x')
  descriptor = os.open(tmp_path / '.a [b].new-4000003', os.O_RDONLY)
  fcntl.flock(descriptor, fcntl.LOCK_EX)  # another export that is at work
  code, _, stderr = helpers.call(export, ['--checkpoint', 'none', '--out', out], capsys)
  os.close(descriptor)
  assert code == 1 and 'holds an export already' in stderr
  assert {path.removeprefix(out): content for path, content in helpers.files(out).items()} == whole
  assert sorted(os.listdir(tmp_path)) == ['.a [b].new-4000003', '.a [b].new-x', '.other.new-4000004', 'a [b]']


@pytest.mark.parametrize('fails', ['save', 'rename', 'second rename'])
def test_an_export_that_fails_leaves_what_was_there(runs, data, tmp_path, capsys, monkeypatch, fails):
  out = str(tmp_path / 'export')
  given = ['--data_dir', data, '--out', out, '--checkpoint', runs['split'], '--branches', '--force']
  write(out, networks.make(num_residual_units=1), branches=False)
  before = helpers.files(str(tmp_path))
  calls = []

  def failing(real, at):
    def function(*arguments, **keywords):
      calls.append(arguments)
      if len(calls) == at:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      return real(*arguments, **keywords)

    return function

  if fails == 'save':
    monkeypatch.setattr(tf.saved_model, 'save', failing(tf.saved_model.save, 3))
  else:
    monkeypatch.setattr(os, 'rename', failing(os.rename, 1 if fails == 'rename' else 2))
  code, _, stderr = helpers.call(export, given, capsys)
  assert code == 1 and stderr == f"export.py: --out: '{out}' cannot be written (No space left on device)\n"
  assert len(calls) == {'save': 3, 'rename': 1, 'second rename': 3}[fails]
  assert helpers.files(str(tmp_path)) == before


REFUSED = {
  'no checkpoint': (['--checkpoint', 'RUNS/nothing'], 1, ['RUNS/nothing', 'no checkpoint']),
  'no flag': ([], 2, ['--checkpoint']),
  'precision': (['--checkpoint', 'RUNS/split', '--precision', 'half'], 1, ["'half'", 'bfloat16']),
  'branches of a baseline': (['--checkpoint', 'RUNS/baseline', '--branches'], 1, ['RUNS/baseline', 'leave --branches']),
  'branches of a grouping': (['--checkpoint', 'RUNS/group', '--branches'], 1, ['RUNS/group', 'add --harden']),
  'harden a split': (['--checkpoint', 'RUNS/split', '--harden'], 1, ['RUNS/split', 'only a grouping one']),
  'no data': (['--checkpoint', 'RUNS/split', '--data_dir', 'RUNS/none'], 1, ['RUNS/none', 'download_cifar100.py']),
  'a folder of something': (['--checkpoint', 'RUNS/split', '--out', 'RUNS'], 1, ['RUNS', 'is no export']),
  'of something, forced': (['--checkpoint', 'RUNS/split', '--out', 'RUNS', '--force'], 1, ['RUNS', 'is no export']),
  'a file': (['--checkpoint', 'RUNS/split', '--out', 'RUNS/split/config.json'], 1, ['config.json', 'is no export']),
  'in a file': (['--checkpoint', 'RUNS/split', '--out', 'RUNS/split/config.json/x'], 1, ['config.json', 'be made']),
  'nowhere': (['--checkpoint', 'RUNS/split', '--out', ''], 1, ['--out is empty']),
  'too long a name': (['--checkpoint', 'RUNS/split', '--out', 'RUNS/' + 'x' * 300], 1, ['xxx', 'too long']),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_a_mistake_in_exporting_is_told_in_one_sentence(runs, data, tmp_path, capsys, case):
  given, expected_code, words = REFUSED[case]
  folder = os.path.dirname(runs['split'])
  given = [text.replace('RUNS', folder) for text in given]
  given += [] if '--data_dir' in given else ['--data_dir', data]
  given += [] if '--out' in given else ['--out', str(tmp_path / 'out')]
  before = helpers.files(folder)
  code, _, stderr = helpers.call(export, given, capsys)
  assert code == expected_code and stderr.count('\n') == 1, stderr
  for word in words:
    assert word.replace('RUNS', folder) in stderr
  assert helpers.files(folder) == before and os.listdir(tmp_path) == []


# --- infer.py -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, images):
  """A folder with images as they are (PNG), and a larger one with the first in its middle."""
  folder = tmp_path / 'pictures'
  folder.mkdir()
  for i, image in enumerate(images[:3]):
    Image.fromarray(image).save(folder / f'{i}.png')
  wide = np.zeros((96, 200, 3), np.uint8)
  wide[:, 52:148] = np.kron(images[0], np.ones((3, 3, 1), np.uint8))
  Image.fromarray(wide).save(folder / 'wide.PNG')
  (folder / 'notes.txt').write_text('no image')
  return str(folder)


def expected_lines(network, paths, images, top):
  """What infer.py prints of images, from the network itself."""
  lines = []
  for path, probabilities in zip(paths, tf.nn.softmax(network(cifar100.whiten(np.stack(images)))).numpy()):
    lines.append(path)
    lines += [f'  {100 * probabilities[i]:5.1f} %  {NAMES[i]}' for i in np.argsort(-probabilities)[:top]]
  return lines


@pytest.mark.parametrize('more', [[], ['--branches']])
def test_infer_prints_the_networks_most_probable_classes(originals, exports, images, pictures, capsys, more):
  single = os.path.join(pictures, '1.png')
  code, stdout, stderr = helpers.call(infer, ['--export', exports['two'], pictures, single, *more], capsys)
  assert (code, stderr) == (0, '')
  paths = [os.path.join(pictures, name) for name in ('0.png', '1.png', '2.png', 'wide.PNG')] + [single]
  shown = [infer.read_image(path) for path in paths]
  np.testing.assert_array_equal(shown[:3], images[:3])
  assert stdout.splitlines() == expected_lines(originals['two'], paths, shown, 5)
  code, stdout, _ = helpers.call(infer, ['--export', exports['two'], single, '--top', 2, *more], capsys)
  assert stdout.splitlines() == expected_lines(originals['two'], [single], [images[1]], 2)


def test_many_images_are_done_in_batches(originals, exports, images, pictures, capsys, monkeypatch):
  monkeypatch.setattr(infer, 'BATCH', 2)
  paths = [os.path.join(pictures, f'{i % 3}.png') for i in range(5)]
  code, stdout, _ = helpers.call(infer, ['--export', exports['two'], *paths], capsys)
  assert code == 0
  assert stdout.splitlines() == expected_lines(originals['two'], paths, [images[i % 3] for i in range(5)], 5)


def test_the_middle_square_is_resized(tmp_path, pictures, images):
  # Three equal pixels in a row are averaged with some of their neighbours: the middle one is what most of it is.
  wide = infer.read_image(os.path.join(pictures, 'wide.PNG')).astype(float)
  assert np.abs(wide - images[0]).mean() < 0.5 * np.abs(images[0] - images[0].mean((0, 1))).mean()
  halves = np.zeros((60, 40, 3), np.uint8)
  halves[:, 20:] = 200
  Image.fromarray(halves).save(tmp_path / 'halves.png')
  read = infer.read_image(str(tmp_path / 'halves.png'))
  assert read.shape == (32, 32, 3) and read.dtype == np.uint8
  assert (read[:, :14] == 0).all() and (read[:, 18:] == 200).all()


def test_other_kinds_of_images_are_read(tmp_path, images):
  image = Image.fromarray(images[0])
  image.convert('L').save(tmp_path / 'grey.png')
  image.convert('RGBA').save(tmp_path / 'alpha.png')
  image.save(tmp_path / 'photo.jpg', quality=95)
  Image.fromarray(images[0][:1, :1]).save(tmp_path / 'dot.png')
  grey = infer.read_image(str(tmp_path / 'grey.png'))
  np.testing.assert_array_equal(grey, np.repeat(np.array(image.convert('L'))[..., None], 3, 2))
  np.testing.assert_array_equal(infer.read_image(str(tmp_path / 'alpha.png')), images[0])
  with Image.open(tmp_path / 'photo.jpg') as photo:  # another decoder, which rounds in its own way
    assert np.abs(infer.read_image(str(tmp_path / 'photo.jpg')).astype(int) - np.array(photo)).mean() < 2
  assert (infer.read_image(str(tmp_path / 'dot.png')) == images[0][0, 0]).all()


@pytest.mark.slow
def test_a_bad_image_is_told_and_the_others_are_done(originals, exports, images, pictures, tmp_path, capfd):
  bad = {'cut.png': open(os.path.join(pictures, '2.png'), 'rb').read()[:500], 'empty.jpg': b'', 'text.png': b'text'}
  for name, content in bad.items():
    with open(os.path.join(pictures, name), 'wb') as f:
      f.write(content)
  (tmp_path / 'nothing').mkdir()
  given = [str(tmp_path / 'missing.png'), str(tmp_path / 'nothing'), pictures, os.path.join(pictures, 'notes.txt')]
  process = helpers.start('serving.infer', ['--export', exports['two'], *given])
  stdout, stderr = process.communicate()
  assert process.returncode == 1
  paths = [os.path.join(pictures, name) for name in ('0.png', '1.png', '2.png', 'wide.PNG')]
  assert stdout.splitlines() == expected_lines(originals['two'], paths, [infer.read_image(p) for p in paths], 5)
  told = [*given[:2], *(os.path.join(pictures, name) for name in bad), given[3]]
  assert len(stderr.splitlines()) == len(told)
  for path, line in zip(told, stderr.splitlines()):
    assert line.startswith('infer.py: ') and f"'{path}'" in line


@pytest.mark.slow
def test_what_is_no_file_is_told_and_never_read(originals, exports, images, pictures, tmp_path):
  """Pipes and devices have no end, and an image that says that it is huge is not decoded."""
  os.mkfifo(os.path.join(pictures, '00.png'))
  os.symlink('/dev/zero', os.path.join(pictures, '01.png'))
  huge = os.path.join(pictures, '02.png')
  with open(huge, 'wb') as f:
    f.truncate(MAX_BYTES + 1)
  bomb = os.path.join(pictures, '03.png')
  with open(os.path.join(pictures, '0.png'), 'rb') as f, open(bomb, 'wb') as g:
    content = f.read()
    g.write(content[:16] + struct.pack('>II', 60_000, 60_000) + content[24:])
  process = helpers.start('serving.infer', ['--export', exports['two'], '/dev/zero', pictures, pictures + '/00.png'])
  try:
    stdout, stderr = process.communicate(timeout=300)
  finally:
    process.kill()
  paths = [os.path.join(pictures, name) for name in ('0.png', '1.png', '2.png', 'wide.PNG')]
  assert process.returncode == 1
  assert stdout.splitlines() == expected_lines(originals['two'], paths, [infer.read_image(p) for p in paths], 5)
  special = 'it is no regular file'
  words = [special, special, special, 'more than 268,435,456 bytes', '3,600,000,000 pixels', special]
  assert len(stderr.splitlines()) == len(words)
  assert all(word in line for word, line in zip(words, stderr.splitlines())), stderr


@pytest.mark.parametrize('head', [b'\x89PNG', b'GIF', b'BM', b'\xff\xd8', b'', b'text'])
def test_an_image_that_ends_in_its_header_is_told(tmp_path, head):
  path = tmp_path / 'image.png'
  for length in (len(head), 12, 30):
    path.write_bytes(head.ljust(length, b'\xff'))
    with pytest.raises(UserError, match=r"image.png' (is no image|has [\d,]* pixels)"):
      infer.read_image(str(path))


@pytest.mark.slow
def test_a_file_name_that_is_not_utf8_is_shown_and_the_others_are_done(originals, exports, images, pictures):
  odd = os.fsdecode(os.path.join(os.fsencode(pictures), b'0\xff.png'))
  os.rename(os.path.join(pictures, '1.png'), odd)
  environment = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'CUDA_VISIBLE_DEVICES': '-1'}
  command = [sys.executable, '-m', 'serving.infer', '--export', exports['two'], pictures]
  done = subprocess.run(command, cwd=helpers.PROJECT, capture_output=True, text=True, env=environment)
  assert (done.returncode, done.stderr) == (0, '')
  shown = [line.rsplit('/', 1)[1] for line in done.stdout.splitlines() if line.startswith('/')]
  assert shown == ['0.png', '0\\udcff.png', '2.png', 'wide.PNG']


@pytest.mark.parametrize('case', ['no folder', 'no export', 'no branches', 'manifest', 'model', 'missing model', 'top'])
def test_a_wrong_export_is_told_in_one_sentence(exports, pictures, tmp_path, capfd, case):
  folder, more, word = str(tmp_path / 'export'), [], 'is damaged'
  if case == 'no export':
    folder, word = pictures, 'no export'
  elif case == 'no branches':
    folder, more, word = exports['baseline'], ['--branches'], 'no branches'
  elif case == 'top':
    folder, more, word = exports['baseline'], ['--top', '0'], '--top'
  elif case == 'no folder':
    word = 'no export'
  else:
    shutil.copytree(exports['baseline'], folder)
    path = os.path.join(folder, 'manifest.json' if case == 'manifest' else 'whole/1/saved_model.pb')
    if case == 'missing model':
      os.remove(path)
    else:
      with open(path, 'r+b') as f:
        f.truncate(os.path.getsize(path) // 2)
  code = infer.main(['--export', folder, pictures, *more])
  stdout, stderr = capfd.readouterr()
  assert code == 1 and stdout == '' and stderr.count('\n') == 1 and word in stderr, stderr
  assert case == 'top' or folder in stderr
