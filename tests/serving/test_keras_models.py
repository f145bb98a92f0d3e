"""Exports for Keras, LiteRT and ONNX: the same logits, whole and put together from branches; their accuracy."""

import json
import os
import subprocess
import sys

import helpers
import networks
import numpy as np
import pytest
import tensorflow as tf
from graphs import make_tree
from keras_models import MODELS, scrambled

import alexnet_split
import cifar100
import keras_split
from serving import accuracy, conversions, export, keras_models
from splitnet.data import images as image_files
from splitnet.network import hardening, layers
from splitnet.network import network as all_networks
from splitnet.training import checkpoints

NAMES = [f'class_{i}' for i in range(100)]

# Given to a bare Python: knows Keras only.
LOAD = """
import glob, os, sys
import numpy as np
import keras

answers = {}
for path in glob.glob('*/*.keras'):
  model = keras.saving.load_model(path)
  given = np.load(os.path.join(os.path.dirname(path), os.path.basename(path).split('.')[0] + '.npy'))
  y = model.predict_on_batch(given)
  for name, value in (y if isinstance(y, dict) else {'logits': y}).items():
    answers[path + '|' + name] = value
assert not {'keras_split', 'splitnet', 'serving', 'cifar100', 'utils'} & set(sys.modules), sys.modules
np.savez('answers.npz', **answers)
"""


def split_model(name, folder, split='2-2-4', **more):
  """The tree of a small Keras model, hardened by uneven random groups."""
  scrambled(MODELS[name]()).save(folder / f'{name}.keras')
  stored = checkpoints.read(str(folder / f'{name}.keras'), keras_split.read_other)
  config = keras_split.KerasNetwork.of_split(split, num_classes=stored.graph.classes.size, **more)
  graph = config.of_stored(stored.graph)
  groups = networks.random_groups(graph)
  return all_networks.create(graph, groups, values=hardening.split_values(graph, groups, stored.values))


@pytest.fixture(scope='module')
def trees(tmp_path_factory):
  """Dict from name to (network, its data set's prepare)."""
  folder = tmp_path_factory.mktemp('models')
  made = {name: (networks.make(**networks.TREES[name]), cifar100.prepare) for name in ('2-2-2', '2-4-4 all', '1-1-4')}
  made['dense'] = networks.make(**networks.TREES['dense']), cifar100.prepare
  for network, _ in made.values():
    for name, variable in network.weights.items():
      if name.endswith('/gamma') and not variable.trainable:
        variable.assign(tf.ones_like(variable))
  made['alexnet'] = make_tree(alexnet_split.AlexNet, '2-4-8'), image_files.normalize
  for name in ('residual', 'flattened', 'mobile'):
    made[name] = split_model(name, folder), image_files.normalize
  made['direct'] = split_model('direct', folder, preprocess='caffe'), image_files.normalize
  return made


def pixels(network, count=3):
  size = network.graph.image_size
  return np.random.default_rng(3).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def cut_of(network):
  return export.cut_of(network) if network.groups is not None else None


def together(answer, network, given):
  """The logits that the trunk and the branches give, by a function from a model's name and what it reads."""
  cut = export.cut_of(network)
  features, logits = answer('trunk', given), np.full([len(given), network.graph.classes.size], np.nan, np.float32)
  for i, nodes in enumerate(cut.branches):
    ids = network.part(nodes).leaf_classes()
    logits[:, ids] = answer(f'branch_{i}', features[cut.names[i]])
  return logits


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['2-2-2', '2-4-4 all', '1-1-4', 'dense', 'alexnet', 'residual', 'flattened', 'mobile', 'direct']
)
def test_keras_models_compute_the_networks_logits(trees, name):
  network, prepare = trees[name]
  models, given = keras_models.build(network, prepare, cut_of(network)), pixels(network)
  expected = network(layers.preparation(network.graph, prepare)(given)).numpy()
  networks.assert_close(models['whole'].predict_on_batch(given), expected)
  learned = sum(int(np.prod(v.shape)) for v in models['whole'].trainable_weights)
  assert learned == sum(int(np.prod(v.shape)) for v in network.trained.values())
  if network.groups is not None:
    answers = together(lambda model, x: models[model].predict_on_batch(np.asarray(x)), network, given)
    networks.assert_close(answers, expected)
    sizes = [model.count_params() for model in models.values()]
    assert len(models) == 2 + len(export.cut_of(network).branches) and all(size < sizes[0] for size in sizes[1:])


@pytest.mark.slow
def test_a_process_with_keras_alone_loads_them(trees, tmp_path):
  expected = {}
  for name in ('2-2-2', 'alexnet'):
    network, prepare = trees[name]
    models, given = keras_models.build(network, prepare, cut_of(network)), pixels(network)
    (tmp_path / name).mkdir()
    features = models['trunk'].predict_on_batch(given)
    cut = export.cut_of(network)
    for key, model in models.items():
      x = given if key in ('whole', 'trunk') else features[cut.names[int(key.split('_')[1])]]
      model.save(tmp_path / name / f'{key}.keras')
      np.save(tmp_path / name / f'{key}.npy', x)
      y = model.predict_on_batch(np.asarray(x))
      for output, value in (y if isinstance(y, dict) else {'logits': y}).items():
        expected[f'{name}/{key}.keras|{output}'] = value
  environment = dict(os.environ, CUDA_VISIBLE_DEVICES='-1', TF_CPP_MIN_LOG_LEVEL='2')
  command = [sys.executable, '-I', '-c', LOAD]
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  with np.load(tmp_path / 'answers.npz') as answers:
    assert set(answers) == set(expected)
    for name in expected:
      networks.assert_close(answers[name], expected[name])


def test_a_data_set_without_layers_is_an_error(trees):
  with pytest.raises(ValueError, match='has no layers'):
    keras_models.build(trees['dense'][0], lambda images: images)


@pytest.mark.slow
def test_litert_answers_like_the_network(trees, tmp_path):
  for name in ('2-2-2', 'mobile'):
    network, prepare = trees[name]
    prepare, given = layers.preparation(network.graph, prepare), pixels(network, 20)
    models = export.build(network, NAMES[: network.graph.classes.size], True, prepare)
    for key, save in conversions.to_litert(models, given).items():
      save(tmp_path / f'{key}.tflite')

    def answer(model, x):
      y = accuracy.load_litert(str(tmp_path / f'{model}.tflite'))(x)
      return y.get('logits', y)

    expected = network(prepare(given)).numpy()
    scale = np.std(expected)
    for logits in (answer('whole', given), together(answer, network, given)):
      assert np.sqrt(np.mean(np.square(logits - expected))) < 0.1 * scale  # of 8-bit integers
    with open(tmp_path / 'whole.tflite', 'rb') as f:
      kinds = {str(d['dtype']) for d in tf.lite.Interpreter(model_content=f.read()).get_tensor_details()}
    assert "<class 'numpy.int8'>" in kinds


@pytest.mark.slow
def test_every_format_of_an_export_has_the_accuracy_of_the_checkpoint(runs, data, tmp_path, capsys, monkeypatch):
  out = str(tmp_path / 'export')
  given = ['--checkpoint', runs['split'], '--data_dir', data, '--branches', '--format', 'keras,litert', '--out', out]
  with monkeypatch.context() as patch:
    patch.setattr(conversions, 'SAMPLE', 20)
    assert helpers.call(export, given, capsys)[0] == 0
  assert sorted(os.listdir(out)) == ['branch_0', 'branch_1', 'keras', 'litert', 'manifest.json', 'trunk', 'whole']
  names = ['branch_0', 'branch_1', 'trunk', 'whole']
  assert sorted(os.listdir(os.path.join(out, 'keras'))) == [f'{name}.keras' for name in names]
  code, stdout, stderr = helpers.call(accuracy, ['--export', out, '--data_dir', data], capsys)
  assert code == 0, stderr
  rows = [[cell.strip() for cell in line.strip('| \n').split('|')] for line in stdout.splitlines()[2:]]
  stored = helpers.read_checkpoint(runs['split'])
  test = cifar100.load(data, 'test')
  logits = checkpoints.load_network(stored)(cifar100.prepare(test.images)).numpy()
  right = f'{100 * np.mean(logits.argmax(1) == test.labels):.2f} %'
  assert [row[:3] for row in rows[:4]] == [
    ['SavedModel', 'whole', right], ['SavedModel', 'branches', right], ['keras', 'whole', right],
    ['keras', 'branches', right],
  ]  # fmt: skip
  assert [row[:2] for row in rows[4:]] == [['litert', 'whole'], ['litert', 'branches']]
  assert all(abs(float(row[2].split()[0]) - float(right.split()[0])) < 10 for row in rows[4:])
  size = os.path.getsize(os.path.join(out, 'litert', 'whole.tflite'))
  assert rows[4][3] == f'{size:,}' and size < os.path.getsize(os.path.join(out, 'keras', 'whole.keras'))
  # Replaced whole, as an export of SavedModels alone is.
  given = ['--checkpoint', runs['split'], '--data_dir', data, '--out', out, '--force']
  assert helpers.call(export, given, capsys)[0] == 0
  assert sorted(os.listdir(out)) == ['manifest.json', 'whole']


def test_mistakes_are_told_in_one_sentence(data, tmp_path, capsys):
  (tmp_path / 'export').mkdir()
  for given, word in ((['--export', tmp_path / 'none'], 'no export'), (['--export', tmp_path / 'export'], 'no export')):
    code, _, stderr = helpers.call(accuracy, [*given, '--data_dir', data], capsys)
    assert code == 1 and word in stderr and stderr.count('\n') == 1
  content = {'models': [{'name': 'whole', 'path': 'whole/1', 'reads': {}}], 'class_names': ['a']}
  (tmp_path / 'export' / 'manifest.json').write_text(json.dumps(content))
  code, _, stderr = helpers.call(accuracy, ['--export', tmp_path / 'export', '--data_dir', data], capsys)
  assert code == 1 and 'other classes than the data' in stderr


def test_onnx_answers_like_the_network_where_its_converter_is(trees, tmp_path):
  runtime = pytest.importorskip('onnxruntime')
  pytest.importorskip('tf2onnx')
  network, prepare = trees['mobile']
  prepare, given = layers.preparation(network.graph, prepare), pixels(network)
  models = export.build(network, NAMES[: network.graph.classes.size], True, prepare)
  for key, save in conversions.to_onnx(models).items():
    save(tmp_path / f'{key}.onnx')
  assert runtime.__version__

  def answer(model, x):
    y = accuracy.load_onnx(str(tmp_path / f'{model}.onnx'))(x)
    return y.get('logits', y)

  expected = network(prepare(given)).numpy()
  networks.assert_close(answer('whole', given), expected)
  networks.assert_close(together(answer, network, given), expected)


def test_onnx_without_its_converter_is_told_in_a_sentence(runs, data, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tf2onnx', None)
  given = ['--checkpoint', runs['split'], '--data_dir', data, '--format', 'onnx', '--out', tmp_path / 'out']
  code, _, stderr = helpers.call(export, given, capsys)
  assert code == 1 and 'pip install tf2onnx' in stderr and stderr.count('\n') == 1 and not (tmp_path / 'out').exists()
