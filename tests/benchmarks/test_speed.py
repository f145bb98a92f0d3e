"""Tests speed.py: its tables say what it measured; the Keras network is ours."""

import collections
import json
import types

import forking
import networks
import numpy as np
import pytest
import tensorflow as tf
from helpers import PROJECT as ROOT

import resnet_split
from benchmarks import keras_wrn, speed, workloads
from splitnet.network import counting

CONFIG = resnet_split.WideResNet(k=1, num_residual_units=1)
TINY = ['--k', '1', '--num_residual_units', '1', '--precision', 'float32', '--train_batch', '6', '--seconds', '0.01']


def program(*arguments):
  """Runs speed.py as a user would: (exit code, stdout, stderr)."""
  done = forking.run(['-m', 'benchmarks.speed', *arguments])
  return done.returncode, done.stdout, done.stderr


def tables_of(text):
  """Returns the tables in a text by title: lists of dicts from column to text."""
  found, title = {}, None
  for before, line in zip(['', *text.splitlines()], text.splitlines()):
    if line.startswith('|') and not before.startswith('|'):
      header = [cell.strip() for cell in line.strip('|').split('|')]
      found[title] = []
    elif line.startswith('|') and not set(line) <= set('|- '):
      found[title].append(dict(zip(header, (cell.strip() for cell in line.strip('|').split('|')))))
    elif line and not line.startswith('|'):
      title = line
  return found


# --- the program --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_program_measures_and_its_tables_say_so(tmp_path):
  path = str(tmp_path / 'new' / 'results.json')
  rows = 'keras,pipeline,baseline,ceiling'  # in whatever order they are asked for
  code, out, err = program(*TINY, '--only', rows, '--repeats', '2', '--output', path)
  assert code == 0, err
  assert 'WRN-10-k, split 2-2-2' in out and 'medians of 2 turns of 0.01 s' in out
  found = tables_of(out)
  assert list(found) == ['Training', 'Input pipeline alone, against training', 'Ceiling']
  assert [row['network'] for row in found['Training']] == ['dense', 'dense, plain Keras']
  with open(path, encoding='utf-8') as f:
    stored = json.load(f)
  assert stored['machine']['cores'] >= 1 and stored['machine']['tensorflow'] == tf.__version__
  by_row = {line['row']: line for line in stored['results']}
  assert list(by_row) == ['baseline', 'keras', 'pipeline', 'ceiling']
  for row, line in zip(found['Training'], (by_row['baseline'], by_row['keras'])):
    assert (row['k'], row['precision'], row['batch'], row['FLOPs allow']) == ('1', 'float32', '6', '1.00')
    assert float(row['images/s']) == pytest.approx(np.median(line['rates']), rel=1e-2) and len(line['rates']) == 2
    assert 0.2 < float(row['memory (GB)']) < 20 and float(row['first step (s)']) > 0.5
    ceiling = 2 * [by_row['ceiling']['rate'] / (3 * line['flops'])]
    assert line['of_ceiling'] == pytest.approx(np.mean(np.divide(line['rates'], ceiling)), rel=0.9)
  for name in ('against_dense', 'against_keras'):
    other = by_row['baseline' if name == 'against_dense' else 'keras']['rates']
    for line in (by_row['baseline'], by_row['keras']):
      assert line[name] == pytest.approx(np.median(np.divide(line['rates'], other)))
  pipeline = found['Input pipeline alone, against training']
  assert len(pipeline) == 1 and float(pipeline[0]['against dense']) > 0
  assert 'convolution' in found['Ceiling'][0]['shape'] or 'product' in found['Ceiling'][0]['shape']
  assert float(found['Ceiling'][0]['GFLOP/s']) > 0


@pytest.mark.slow
def test_a_row_that_fails_says_why_and_the_others_are_measured(monkeypatch, capsys):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
  broken = speed.Row('baseline', 'dense', 'training', dict(mode='baseline', precision='float99'))
  monkeypatch.setattr(speed, 'TRAINING', [broken])
  assert speed.main([*TINY, '--only', 'baseline,pipeline', '--repeats', '1']) == 0
  found = tables_of(capsys.readouterr().out)
  remark = found['Training'][0]['remark']
  assert remark.startswith('failed: TypeError: ') and 'float99' in remark
  assert float(found['Input pipeline alone, against training'][0]['images/s']) > 0
  # Where every row fails, so does the program.
  assert speed.main([*TINY, '--only', 'baseline', '--repeats', '1']) == 1
  assert 'nothing could be measured: failed: ' in capsys.readouterr().err


@pytest.mark.slow
def test_help_names_the_rows():
  code, out, _ = program('--help')
  assert code == 0
  for name in speed.NAMES:
    assert name in out


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--k', '0'], "--k is '0'; it must be whole numbers"),
    (['--k', '1,x'], "--k is '1,x'; it must be whole numbers"),
    (['--only', 'baseline,fast'], "--only is 'baseline,fast'; it must be some of baseline, "),
    (['--only', ''], "--only is ''; it must be some of baseline, "),
    (['--precision', 'float16'], "--precision is 'float16'; it must be some of float32, bfloat16"),
    (['--seconds', '0'], "--seconds is '0'; it must be a number in (0, 3600]"),
    (['--repeats', '0'], "--repeats is '0'; it must be a whole number, from 1"),
    (['--split', '2-2'], "'2-2' is no split: it must be three numbers of groups"),
    (['--split', '2-1-1'], 'a tree cannot have more branches'),
    (['--branch_input', 'some'], "--branch_input is 'some'"),
    (['--output', '/dev/null/x.json'], "--output: the folder '/dev/null' cannot be made"),
    (['--output', ROOT], 'is a folder'),
  ],
)
def test_a_users_mistake_is_one_sentence(arguments, words, capsys):
  capsys.readouterr()
  try:
    code = speed.main(arguments)
  except SystemExit as e:  # argparse
    code = e.code
  err = capsys.readouterr().err
  assert code in (1, 2) and len(err.splitlines()) == 1 and words in err


# --- what the tables say ------------------------------------------------------------------------------------------


def process(rates, flops=None, failed=None, **turn):
  """Makes what speed.py keeps of a row's process."""
  start = {} if failed else {'flops': flops, 'dense_flops': 100, 'first_step': 2.0}
  turns = [dict(rate=rate, **turn) for rate in rates]
  return types.SimpleNamespace(start=start, turns=turns, failed=failed, memory={'host': 2e9, 'GPU': 3e9})


def test_ratios_are_medians_of_the_turns():
  # The machine was half as fast in the second turn: the ratios do not see it.
  found = {
    'baseline': process([10.0, 5.0, 12.0], 100),
    'split': process([15.0, 7.5, 24.0], 50),
    'keras': process([5.0, 2.5, 6.0], 100),
    'ceiling': process([6000.0, 3000.0, 7200.0], 100),
  }
  rows = [row for row in speed.TRAINING if row.name in found]
  settings = {'k': 8, 'precision': 'float32', 'batch_size': 90}
  dense, split, keras = speed.summarise('training', rows, found, settings)
  assert (dense['rate'], split['rate'], keras['rate']) == (10.0, 15.0, 5.0)
  assert (dense['against_dense'], split['against_dense'], keras['against_dense']) == (1.0, 1.5, 0.5)
  assert (dense['flops_allow'], split['flops_allow']) == (1.0, 2.0)
  assert (dense['against_keras'], split['against_keras']) == (2.0, 3.0)
  # Training takes three times the FLOPs of evaluation.
  assert (dense['of_ceiling'], split['of_ceiling']) == (0.5, 0.375)
  text = speed.markdown([dense, split, keras], '1-2-2')
  row = tables_of(text)['Training'][1]
  assert row == {
    'network': 'split 1-2-2', 'k': '8', 'precision': 'float32', 'batch': '90', 'images/s': '15.0',
    'of the ceiling': '0.38', 'against dense': '1.50', 'FLOPs allow': '2.00', 'against Keras': '3.00',
    'memory (GB)': '2.00 + 3.00 GPU', 'first step (s)': '2.0',
  }  # fmt: skip


def test_what_was_not_measured_is_left_out():
  found = {'eval_dense': process([], failed='out of memory'), 'eval_split': process([8.0], 50, latency=1.25)}
  settings = {'k': 1, 'precision': 'bfloat16', 'batch_size': 100}
  rows = [row for row in speed.EVALUATION if row.name in found]
  lines = speed.summarise('evaluation', rows, found, settings)
  dense, split = tables_of(speed.markdown(lines, '2-2-2'))['Evaluation']
  assert 'against dense' not in split and 'of the ceiling' not in split and 'first step (s)' not in split
  assert dense['images/s'] == '' and dense['remark'] == 'failed: out of memory'
  assert split['images/s'] == '8.0' and split['one image (ms)'] == '1.25' and split['FLOPs allow'] == '2.00'


# --- the workloads, in this process ---------------------------------------------------------------------------------


@pytest.fixture
def few_images(monkeypatch):
  monkeypatch.setattr(workloads, 'TRAINING_IMAGES', 60)
  monkeypatch.setattr(workloads, 'EVALUATION_IMAGES', 20)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['group', 'split'])
def test_training_trains(few_images, mode):
  workload = workloads.training(CONFIG, mode, 6, 'bfloat16')
  before = {name: value.numpy() for name, value in workload.trained.network.trained.items()}
  workload.step()
  assert workload.measure(0.01)['rate'] > 0
  for name, value in workload.trained.network.trained.items():
    assert not np.array_equal(before[name], value), name
  assert int(workload.trained.step) >= 2
  assert any(name.startswith('group/') for name in before) == (mode == 'group')
  assert (workload.flops < workloads.dense_flops(CONFIG)) == (mode == 'split')


@pytest.mark.parametrize('split', ['1-1-4', '2-2-2', '2-4-4'])
def test_uneven_groups_are_odd_and_none_is_empty(split):
  config = resnet_split.WideResNet(k=8, **dict(zip(('ngroups3', 'ngroups2', 'ngroups1'), map(int, split.split('-')))))
  graph = config.graph()
  even, uneven = workloads.groups_of(graph), workloads.groups_of(graph, uneven=True)
  for name, units in graph.units.items():
    sizes = [np.bincount(groups[name], minlength=units.groups) for groups in (even, uneven)]
    assert sizes[1].min() > 0 and sizes[1].sum() == units.size
    if units.groups > 1 and name != 'split_q1':
      assert not any(sizes[0] % 2) and sizes[1][0] % 2 and sizes[1][-1] % 2
      assert abs(sizes[1] - sizes[0]).max() <= sizes[0].max() / 10
    else:
      assert np.array_equal(*sizes)


def test_evaluation_goes_eval_pys_way(few_images, monkeypatch):
  calls, predict = [], workloads.executor.predict

  def spy(network, images, prepare, batch_size, batches):
    calls.append((batch_size, batches))
    return predict(network, images, prepare, batch_size, batches)

  monkeypatch.setattr(workloads.executor, 'predict', spy)
  workload = workloads.Evaluation(CONFIG, 'split', 4, 'float32')
  workload.step()
  result = workload.measure(1e-6)
  assert result['rate'] > 0 and result['latency'] > 0
  assert collections.Counter(calls) == {(4, 2): 1, (1, 2): 1, (4, 1): 1, (1, 1): 1}


@pytest.mark.slow
def test_the_ceiling_measures_the_networks_shapes():
  workload = workloads.Ceiling(CONFIG, 2, 'bfloat16')
  found = workload.measure(0.001)
  assert found['rate'] > 0 and found['shape'] in workload.programs
  shapes = '\n'.join(workload.programs)
  for name in ('3x3 convolution, 3 to 16 channels at 32 pixels', '3x3 convolution, 32 to 64 channels at 8 pixels'):
    assert name in shapes
  assert 'matrix product, 128 x 576 x 64' in shapes and 'matrix product, 2048 x 2048 x 2048' in shapes
  for program, x, w, flops in workload.programs.values():
    times = sum(op.type in ('Conv2D', 'MatMul') for op in program.graph.get_operations())
    assert flops % times == 0 and times >= 1
    y = program(x, w)
    assert np.isfinite(float(y))


def test_flops_are_the_built_networks():
  for k in (1, 2):
    config = resnet_split.WideResNet(k=k)
    network = networks.build(config.dense())
    assert workloads.dense_flops(config) == workloads.flops(network)
    counted = counting.total(counting.counts(network))[1]
    assert workloads.dense_flops(config) == counted + 2 * 27 * 16 * 32 * 32  # and init_conv


# --- the Keras network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('k, units, bn_no_scale', [(1, 2, True), (2, 1, False)])
def test_the_keras_network_computes_what_the_dense_network_computes(k, units, bn_no_scale):
  config = resnet_split.WideResNet(k=k, num_residual_units=units, bn_no_scale=bn_no_scale)
  ours = networks.build(config.dense(), seed=1)
  rng = np.random.default_rng(0)
  for variable in ours.weights.values():
    variable.assign(variable + rng.uniform(0.0, 0.2, variable.shape).astype(np.float32) * variable.trainable)
  model = keras_wrn.build(config)
  assert sum(np.prod(v.shape) for v in model.trainable_variables) == sum(
    np.prod(v.shape) for v in ours.trained.values()
  )
  kinds = collections.defaultdict(list)  # a convolution's window tells a shortcut from the others
  for layer in model.layers:
    if layer.weights:
      kinds[type(layer).__name__, getattr(layer, 'kernel_size', None)].append(layer)
  for layer in [layer for layer in ours.graph.layers if layer.variables]:
    if layer.op == 'conv':
      values = [ours.weights[layer.name + '/kernel']]
      theirs = kinds['Conv2D', (layer.kernel, layer.kernel)].pop(0)
    elif layer.op == 'linear':
      values = [ours.weights[layer.name + part] for part in ('/weights', '/biases')]
      theirs = kinds['Dense', None].pop(0)
    else:
      theirs = kinds['BatchNormalization', None].pop(0)
      parts = (['/gamma'] if theirs.scale else []) + ['/beta', '/mu', '/sigma']
      values = [ours.weights[layer.name + part] for part in parts]
    theirs.set_weights([value.numpy() for value in values])
  assert not any(kinds.values())
  images = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
  for training in (False, True):
    logits = ours(tf.constant(images), training=training)
    np.testing.assert_allclose(model(images, training=training), logits, rtol=1e-3, atol=1e-3 * np.abs(logits).max())
  # Weight decay is the same: half the sum of squares, times its weight.
  decay = 0.0005 * sum(float(tf.nn.l2_loss(v)) for v in ours.decayed)
  assert float(tf.add_n(model.losses)) == pytest.approx(decay, rel=1e-4)


@pytest.mark.slow
def test_the_keras_network_computes_in_bfloat16_and_trains(few_images):
  model = keras_wrn.build(CONFIG, 'bfloat16')
  assert {layer.compute_dtype for layer in model.layers if 'conv' in layer.name} == {'bfloat16'}
  assert model.output.dtype == 'float32' and all(v.dtype == 'float32' for v in model.variables)
  workload = workloads.keras_training(CONFIG, 6, 'bfloat16')
  before = [v.numpy() for v in workload.trained.trainable_variables]
  workload.step()
  assert workload.measure(0.01)['rate'] > 0
  assert not any(np.array_equal(a, b) for a, b in zip(before, workload.trained.trainable_variables))
