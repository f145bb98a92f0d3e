"""train.py: the three stages one after another, its learning rates and settings, and what is refused and how."""

import glob
import json
import os
import re
import shutil

import helpers
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cifar100
import resnet_split
import train
import utils
from splitnet.common.errors import UserError
from splitnet.data.batches import Images, training_batches
from splitnet.network import architecture
from splitnet.parallel import devices
from splitnet.training import checkpoints, objective
from splitnet.training import replicas as strategy
from splitnet.training.step import lr_scales


def read(*path):
  with open(os.path.join(*path)) as f:
    return f.read()


def make_stage(more, mode='group', config=None, groups=None, steps_per_epoch=4.0, seed=0):
  """A Stage as train.py makes it, from a few flags."""
  flags = train.parse_flags(['--mode', mode, '--seed', str(seed), '--batch_size', '20'] + [str(m) for m in more])
  config = config or architecture.Config(k=1, num_residual_units=1, ngroups1=3, ngroups2=2, ngroups3=1)
  network = resnet_split.Network(config, groups=groups, with_assignments=mode == 'group', seed=seed)
  return train.Stage(flags, network, steps_per_epoch)


def values(stage):
  return {name: v.numpy() for name, v in {**stage.network.weights, **momentum(stage)}.items()}


def momentum(stage):
  return {name + '/Momentum': slot for name, slot in stage.optimizer.slots.items()}


# --- the three stages -------------------------------------------------------------------------------------------


def test_each_folder_describes_its_run(runs):
  stored = {mode: json.loads(read(folder, 'config.json')) for mode, folder in runs.items()}
  for mode, folder in runs.items():
    assert stored[mode]['mode'] == mode
    assert json.loads(read(folder, 'best', 'config.json')) == stored[mode]
    assert stored[mode]['network']['k'] == 1 and stored[mode]['network']['num_residual_units'] == 1
    assert stored[mode]['data']['train_images'] == 90 and stored[mode]['data']['source'] == 'synthetic'
    assert stored[mode]['settings']['max_steps'] == helpers.LAST[mode]
  for mode in ('group', 'split'):
    assert [stored[mode]['network']['ngroups%d' % i] for i in (1, 2, 3)] == [3, 2, 1]
  assert stored['baseline']['groups'] is None and stored['group']['groups'] is None
  assert stored['split']['settings']['basemodel'] == runs['group']
  assert [stored[m]['settings']['l2_weight'] for m in ('baseline', 'group', 'split')] == [0.0005, 0.0001, 0.0005]


def test_each_folder_keeps_its_last_and_its_best_checkpoints(runs):
  kept = {m: sorted(os.path.basename(p) for p in glob.glob(os.path.join(runs[m], 'ckpt-*.index'))) for m in runs}
  assert kept['baseline'] == ['ckpt-4.index', 'ckpt-6.index']  # --max_to_keep 2 of 0, 2, 4, 6
  assert kept['group'] == ['ckpt-0.index', 'ckpt-12.index']
  assert kept['split'] == ['ckpt-0.index', 'ckpt-6.index']
  for folder in runs.values():
    best = checkpoints.read(os.path.join(folder, 'best'))
    steps, accuracies, _ = zip(*helpers.validations(read(folder, 'train.log')))
    assert best.path.endswith('-%d' % steps[accuracies.index(max(accuracies))])
    assert len(glob.glob(os.path.join(folder, 'best', '*.index'))) == 1


def test_each_stage_starts_from_the_weights_of_the_one_before(runs):
  baseline, group = checkpoints.read(runs['baseline']), checkpoints.read(os.path.join(runs['group'], 'ckpt-0'))
  helpers.assert_same({n: group.values[n] for n in baseline.values}, baseline.values)
  assert sum(n.startswith('group/') for n in group.values) == 4
  last = checkpoints.read(runs['group'])
  network = resnet_split.Network(last.config, with_assignments=True)
  checkpoints.assign(network.weights, last.values, 'the test')
  hardened = resnet_split.harden(network)
  split = checkpoints.read(os.path.join(runs['split'], 'ckpt-0'))
  helpers.assert_same({n: v.numpy() for n, v in hardened.weights.items()}, split.values)


def test_the_log_tells_each_stages_start_and_end(runs, data):
  val = cifar100.load(data, 'val')
  for mode, folder in runs.items():
    log = read(folder, 'train.log')
    assert log.startswith('step 0: validation accuracy ') == (mode != 'baseline')  # which starts from random weights
    assert 'done at step %d: ' % helpers.LAST[mode] in log
    assert 'step %d: validation accuracy' % helpers.LAST[mode] in log
  split = checkpoints.load_network(checkpoints.read(os.path.join(runs['split'], 'ckpt-0')))
  accuracy = (split(cifar100.whiten(val.images)).numpy().argmax(1) == val.labels).mean()
  assert read(runs['split'], 'train.log').startswith('step 0: validation accuracy %.2f %%' % (100 * accuracy))


def test_every_layer_is_listed_with_its_size_and_they_add_up():
  network = resnet_split.Network(architecture.Config(k=1, num_residual_units=1))
  _, *layers, total = train.summaries.size_lines(network)
  numbers = [[int(word.replace(',', '')) for word in line.split()[1:3]] for line in layers]
  counted = [not line.endswith('(not counted)') for line in layers]
  assert next(line.split()[0] for line, c in zip(layers, counted) if not c) == 'init_conv'
  paper = tuple(sum(n[i] for n, c in zip(numbers, counted) if c) for i in (0, 1))
  everything = tuple(sum(n[i] for n in numbers) for i in (0, 1))
  assert tuple(int(n.replace(',', '')) for n in re.findall(r'[\d,]*\d', total)) == paper + everything
  assert paper == utils.total_count(network.counts)


def test_grouping_tells_what_it_would_harden_into_beside_the_dense_network(runs):
  last = checkpoints.read(runs['group'])
  network = resnet_split.Network(last.config, with_assignments=True)
  checkpoints.assign(network.weights, last.values, 'the test')
  hardened, dense = utils.total_count(resnet_split.harden(network).counts), utils.total_count(network.counts)
  said = re.findall(r'hardened now: ([\d,]+) of ([\d,]+) \(([\d.]+) %\) parameters, ([\d,]+) of ([\d,]+) \(', read(
    runs['group'], 'train.log'))[-1]  # fmt: skip
  assert [int(said[i].replace(',', '')) for i in (0, 1, 3, 4)] == [hardened[0], dense[0], hardened[1], dense[1]]
  assert float(said[2]) == pytest.approx(100 * hardened[0] / dense[0], abs=0.06)
  dropped = architecture.dropped_weights(network.plan, resnet_split.present_groups(network), last.values)
  assert read(runs['group'], 'train.log').count('; drops ' + architecture.describe_dropped(dropped)) >= 1
  alpha = network.weights['group/split_q1/alpha']
  alpha.assign(np.arange(alpha.shape[0])[:, None] * np.ones(alpha.shape))  # all in the last group
  assert train.summaries.hardened_line(network).startswith('cannot be hardened now: assignment split_q1')


def test_a_dozen_steps_learn_something(runs):
  reported = helpers.validations(read(runs['group'], 'train.log'))
  assert reported[-1][2] < reported[0][2] - 0.2  # cross-entropy


# --- summaries --------------------------------------------------------------------------------------------------


def test_summaries_hold_every_scalar_histogram_and_image(runs):
  events = EventAccumulator(os.path.join(runs['group'], 'summaries'), size_guidance={'tensors': 0})
  events.Reload()
  found = {}
  for tag in events.Tags()['tensors']:
    plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
    found.setdefault(plugin, {})[tag] = {e.step: tf.make_ndarray(e.tensor_proto) for e in events.Tensors(tag)}
  scalars = found['scalars']
  terms = 'total cross_entropy l2 overlap weight_split uniform accuracy learning_rate images_per_second'
  for name in terms.split():
    assert sorted(scalars['train/' + name]) == [5, 10], name
    assert all(np.isfinite(v) for v in scalars['train/' + name].values())
  assert scalars['train/learning_rate'][5] == np.float32(0.1)
  for step in (5, 10):
    of = {name: float(scalars['train/' + name][step]) for name in terms.split()}
    total = of['cross_entropy'] + 0.0001 * of['l2'] + of['overlap'] + of['weight_split'] + 10 * of['uniform']
    assert of['total'] == pytest.approx(total, rel=1e-5)
  assert sorted(scalars['val/accuracy']) == sorted(scalars['val/cross_entropy']) == [0, 12]
  assignments = {'split_q1': (3, 100), 'split_p1': (3, 64), 'split_p2': (2, 32), 'split_r21': (2, 64)}
  for name, (groups, units) in assignments.items():
    assert 1 / groups <= scalars['confidence/' + name][10] <= 1
    assert sum(scalars['group_size/%s_%d' % (name, g)][10] for g in range(groups)) == units
  assert len(scalars) == 9 + 2 + 4 + (3 + 3 + 2 + 2)
  layers = {'unit_3_0/shortcut', 'unit_3_0/conv_1', 'unit_3_0/conv_2', 'logits/fc'}
  wanted = {'weights/' + name for name in layers} | {'assignment/' + name for name in assignments}
  assert found['histograms'].keys() == wanted
  assert found['images'].keys() == {'ordered_by_group/' + name for name in layers}
  assert all(sorted(steps) == [0, 6, 12] for steps in [*found['histograms'].values(), *found['images'].values()])


def test_pictures_are_drawn_and_open(runs):
  paths = sorted(glob.glob(os.path.join(runs['group'], 'pictures', '*')))
  assert [os.path.basename(p) for p in paths] == ['weights-%06d.png' % step for step in (0, 6, 12)]
  for path in paths:
    with Image.open(path) as picture:
      assert picture.format == 'PNG' and min(picture.size) > 300
      assert len(picture.convert('L').getcolors()) > 10
  assert not os.path.exists(os.path.join(runs['split'], 'pictures'))


# --- released checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', ['group', 'split'])
def test_a_released_checkpoint_is_gone_on_from(data, tmp_path, mode):
  folder = str(tmp_path / mode)
  assert train.main(helpers.flags(mode, data, folder, '--basemodel', helpers.RELEASED, '--max_steps', 1)) == 0
  first, released = checkpoints.read(os.path.join(folder, 'ckpt-0')), checkpoints.read(helpers.RELEASED)
  assert first.config == architecture.Config(k=1, num_residual_units=2)  # 2-2-2
  if mode == 'group':
    helpers.assert_same({n: first.values[n] for n in released.values}, released.values)
  else:
    assert first.groups.keys() >= {'split_q1', 'split_p1', 'split_p2', 'split_p3', 'split_r21', 'split_r32'}
    for name in ('split_q1', 'split_r31'):
      expected = released.values['group/%s/alpha' % name].argmax(0)
      np.testing.assert_array_equal(first.groups[name], expected)
    classes = np.flatnonzero(first.groups['split_q1'] == 1)
    np.testing.assert_array_equal(
      first.values['branch_1/logits/fc/biases'], released.values['logits/fc/biases'][classes]
    )


# --- the learning rate ------------------------------------------------------------------------------------------


def test_the_learning_rate_falls_at_its_epochs():
  stage = make_stage(['--initial_lr', 0.4, '--lr_decay', 0.5, '--lr_step_epoch', '1.5,3'], steps_per_epoch=4.0)
  rates = [float(stage.learning_rate(tf.constant(step))) for step in range(15)]
  assert rates == pytest.approx([0.4] * 6 + [0.2] * 6 + [0.1] * 3)


@pytest.mark.parametrize('epochs', ['', '1e9', '100,1e30'])
def test_the_learning_rate_stays_where_no_epoch_comes(epochs):
  stage = make_stage(['--initial_lr', 0.4, '--lr_step_epoch', epochs], steps_per_epoch=500.0)
  assert float(stage.learning_rate(tf.constant(40000))) == pytest.approx(0.4)


def test_one_cycle_rises_linearly_and_falls_along_half_a_cosine():
  more = ['--initial_lr', 0.4, '--lr_schedule', 'cosine', '--lr_warmup_epoch', 1, '--max_steps', 12]
  stage = make_stage(more, steps_per_epoch=4.0)
  rates = [float(stage.learning_rate(tf.constant(step))) for step in range(13)]
  fallen = [0.2 * (1 + np.cos(np.pi * i / 8)) for i in range(9)]
  assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
  assert rates[4:] == pytest.approx(fallen, abs=1e-6)


def test_a_cosine_cannot_be_gone_on_with_to_another_end(runs, data, tmp_path, capsys):
  arguments = helpers.flags('split', data, str(tmp_path), '--basemodel', runs['group'], '--lr_schedule', 'cosine')
  assert helpers.call(train, [*arguments, '--max_steps', 2], capsys)[0] == 0
  code, _, err = helpers.call(train, [*arguments, '--max_steps', 6], capsys)
  assert code == 1 and '--max_steps 2, now it is 6' in err and err.count('\n') == 1


def test_the_default_rates_fall_at_the_released_steps():
  stage = make_stage([], steps_per_epoch=45000 / 90)
  around = [49999, 119999, 120000, 149999, 150000, 199999]
  rates = [float(stage.learning_rate(tf.constant(step))) for step in around]
  assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def step_changes(more, mode='group', groups=None):
  """How far one step of training moves each variable: dict from name to array."""
  stage = make_stage(['--lr_step_epoch', '', '--dropout_keep_prob', 1] + more, mode, groups=groups)
  rng = np.random.default_rng(0)
  split = Images(rng.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8), np.arange(20, dtype=np.int32))
  before = {n: v.numpy() for n, v in stage.network.trained.items()}
  stage.train(iter(training_batches(split, 20, 0)), tf.constant(1))
  return {n: v.numpy() - before[n] for n, v in stage.network.trained.items()}


@pytest.fixture(scope='module')
def plain_changes():
  return step_changes([])


def assert_scaled(changes, plain, factor_of):
  assert changes.keys() == plain.keys()
  for name in plain:
    assert np.abs(plain[name]).max() > 0, name
    scale = np.abs(plain[name]).max() * factor_of(name)
    np.testing.assert_allclose(changes[name] / scale, plain[name] * factor_of(name) / scale, atol=2e-3, err_msg=name)


def test_the_learning_rate_decides_how_far_a_step_goes(plain_changes):
  changes = step_changes(['--lr_step_epoch', '', '--initial_lr', 0.2])
  assert_scaled(changes, plain_changes, lambda name: 2)


def test_assignment_lr_scale_multiplies_the_assignments_rate_and_no_other(plain_changes):
  changes = step_changes(['--assignment_lr_scale', 7])
  assert_scaled(changes, plain_changes, lambda name: 7 if name.startswith('group/') else 1)


def test_finetune_multiplies_the_rate_of_the_split_layers(plain_changes):
  changes = step_changes(['--finetune', True])
  split = ('unit_3_0/', 'logits/', 'unit_last/')
  assert_scaled(changes, plain_changes, lambda name: 10 if name.startswith(split) else 1)
  scaled = lr_scales(make_stage(['--finetune', True]).network, train.parse_flags(['--mode', 'group']))
  assert {name for name, s in scaled.items() if s != 1} == set()


def test_finetune_finds_the_branches_of_a_split_network(runs):
  groups = checkpoints.read(runs['split']).groups
  stage = make_stage(['--finetune', 'True', '--basemodel', 'any'], 'split', groups=groups)
  flags = train.parse_flags(['--mode', 'split', '--basemodel', 'any', '--finetune', 'True'])
  scales = lr_scales(stage.network, flags)
  assert set(scales.values()) == {10.0}
  assert scales.keys() == {n for n in stage.network.trained if n.startswith('branch_')}
  assert {'branch_1/unit_3_0/conv_1/kernel', 'branch_2/logits/fc/weights'} <= scales.keys()


def test_momentum_is_that_of_tensorflow_1():
  variable = tf.Variable([1.0, -2.0])
  optimizer = objective.Momentum({'v': variable}, 0.9, {'v': 3.0})
  value, slot = np.array([1.0, -2.0]), np.zeros(2)
  for rate, gradient in ((0.1, [1.0, 2.0]), (0.1, [-0.5, 1.0]), (0.01, [2.0, 0.0]), (0.01, [0.0, 0.0])):
    optimizer.apply([tf.constant(gradient)], tf.constant(rate))
    slot = 0.9 * slot + np.array(gradient)
    value = value - 3.0 * rate * slot
    np.testing.assert_allclose(variable.numpy(), value, rtol=1e-6)


# --- several steps a call ---------------------------------------------------------------------------------------


def test_several_steps_a_call_are_the_same_steps(data):
  split = cifar100.load(data, 'train', 50)
  ends, means = [], []
  for calls in ([4], [1, 1, 1, 1], [3, 1]):
    stage = make_stage(['--dropout_keep_prob', 0.5, '--lr_step_epoch', '0.5'])
    batches = iter(training_batches(split, 20, 0))
    terms = [stage.train(batches, tf.constant(count)) for count in calls]
    assert int(stage.step) == 4
    ends.append(values(stage))
    means.append({n: sum(c * float(t[n]) for c, t in zip(calls, terms)) / 4 for n in terms[0]})
  helpers.assert_same(ends[0], ends[1])
  helpers.assert_same(ends[0], ends[2])
  for name, value in means[0].items():
    assert value == pytest.approx(means[1][name], rel=1e-5) and value == pytest.approx(means[2][name], rel=1e-5)


# --- XLA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', ['baseline', 'group', 'split'])
def test_compiled_with_xla_a_step_is_the_same(data, mode):
  split, ends = cifar100.load(data, 'train', 20), []
  for compiled in (False, True):
    groups = None
    if mode == 'split':
      plan = architecture.wide_resnet(
        architecture.Config(k=1, num_residual_units=1, ngroups1=3, ngroups2=2, ngroups3=1)
      )
      groups = {name: np.arange(units.size) % units.groups for name, units in plan.units.items()}
    more = ['--jit_compile', compiled, '--initial_lr', 0.01] + (['--grouping', 'random'] if mode == 'split' else [])
    stage = make_stage(more, mode, groups=groups)
    stage.train(iter(training_batches(split, 20, 0)), tf.constant(1))
    ends.append(values(stage))
  for name, value in ends[0].items():
    np.testing.assert_allclose(ends[1][name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_xla_is_for_a_gpu_unless_asked_for(monkeypatch):
  def chosen(count, *more):
    flags = train.parse_flags(['--mode', 'baseline', *more])
    replicas = strategy.Replicas()
    replicas.count = count
    monkeypatch.setattr(strategy, 'on_devices', lambda names, count: replicas)
    train.choose_devices(flags)
    return flags.jit_compile

  monkeypatch.setattr(devices, 'configure', lambda *arguments: [])
  # One GPU cut into logical devices, or one on each of several hosts, is several devices.
  for gpus, count, auto in (([], 1, False), (['GPU:0'], 1, True), (['GPU:0'], 2, False), (['GPU:0'] * 2, 1, True)):
    monkeypatch.setattr(tf.config, 'get_visible_devices', lambda kind, gpus=gpus: gpus)
    assert chosen(count) is auto and chosen(count, '--jit_compile', 'auto') is auto
    assert chosen(count, '--jit_compile', 'False') is False
    if count == 1:
      assert chosen(count, '--jit_compile', 'True') is True
      assert bool(devices.use_xla('auto')) is auto


def test_a_gpu_without_what_xla_needs_trains_without_it_and_says_so(monkeypatch, capsys):
  def broken(function, jit_compile):
    def call(*arguments):
      raise tf.errors.InternalError(None, None, 'libdevice not found at ./libdevice.10.bc [Op:call]\nmore')

    return call

  devices.check_xla()  # here it works
  devices.check_xla.cache_clear()
  monkeypatch.setattr(devices, 'configure', lambda *arguments: ['/CPU:0'])
  monkeypatch.setattr(tf.config, 'get_visible_devices', lambda kind: ['GPU:0'])
  monkeypatch.setattr(tf, 'function', broken)
  flags = train.parse_flags(['--mode', 'baseline'])
  train.choose_devices(flags)
  assert flags.jit_compile is False
  told = capsys.readouterr().err
  assert told.startswith('without XLA, so slower: XLA cannot compile here (libdevice not found at ')
  assert told.count('\n') == 1 and 'more' not in told and '--xla_gpu_cuda_data_dir' in told
  with pytest.raises(UserError, match=r'tensorflow\[and-cuda\].*with --jit_compile False it goes without'):
    train.choose_devices(train.parse_flags(['--mode', 'baseline', '--jit_compile', 'True']))


# --- other settings ---------------------------------------------------------------------------------------------


def test_bfloat16_trains_with_float32_weights(runs, data, tmp_path, monkeypatch):
  monkeypatch.setattr(devices, 'precision_note', lambda precision, training: 'note: %s, %s' % (precision, training))
  more = ['--basemodel', runs['group'], '--max_steps', 3, '--precision', 'bfloat16', '--train_split', 'train_val']
  more += ['--initial_lr', 0.01]
  assert train.main(helpers.flags('split', data, str(tmp_path), *more)) == 0
  stored = checkpoints.read(str(tmp_path))
  assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in stored.values.values())
  first = checkpoints.read(str(tmp_path / 'ckpt-0'))
  moved = [n for n in stored.values if n.endswith('/kernel') and not np.array_equal(stored.values[n], first.values[n])]
  assert len(moved) == sum(n.endswith('/kernel') for n in stored.values)
  assert json.loads(read(tmp_path, 'config.json'))['data']['train_images'] == 150
  # Near what float32 gives, and no kernel the same: every convolution was computed in bfloat16.
  exact = str(tmp_path / 'float32')
  assert train.main(helpers.flags('split', data, exact, *more, '--precision', 'float32')) == 0
  for name, value in checkpoints.read(exact).values.items():
    if name.endswith('/kernel'):
      change, exact_change = (v - first.values[name] for v in (stored.values[name], value))
      apart = np.linalg.norm(change - exact_change) / np.linalg.norm(exact_change)
      assert 1e-4 < apart < 0.3, (name, apart)
  # A run that is gone on with computes as it began.
  broken = str(tmp_path / 'broken')
  for steps in (1, 3):
    assert train.main(helpers.flags('split', data, broken, *more, '--max_steps', steps)) == 0
  helpers.assert_same(helpers.weights(broken), helpers.weights(str(tmp_path)))
  assert read(broken, 'train.log').count('note: bfloat16, True\n') == 1, 'told when it can still be changed'


def test_the_objective_follows_its_weights():
  config = architecture.Config(k=1, num_residual_units=1, ngroups1=3, ngroups2=2, ngroups3=1)
  network = resnet_split.Network(config, with_assignments=True)
  logits, labels = tf.random.stateless_normal([5, 100], [0, 0]), tf.range(5)
  terms = objective.objective(network, logits, labels, objective.Objective(0.01, 2.0, 3.0, 5.0, False))
  expected = terms['cross_entropy'] + 0.01 * terms['l2'] + 2 * terms['overlap'] + 3 * terms['weight_split']
  assert float(terms['total']) == pytest.approx(float(expected + 5 * terms['uniform']), rel=1e-6)
  kernels = [v.numpy() for n, v in network.weights.items() if n.endswith(('/kernel', '/weights'))]
  assert float(terms['l2']) == pytest.approx(sum((k.astype(np.float64) ** 2).sum() for k in kernels) / 2, rel=1e-5)


def test_a_step_minimises_what_the_flags_say(data):
  """Every weight of the objective is another number, and none its default."""
  split = cifar100.load(data, 'train', 60)
  given = dict(l2_weight=0.003, gamma1=2.0, gamma2=7.0, gamma3=5.0, weighted_group_loss=False, label_smoothing=0.2)
  more = [text for name, value in given.items() for text in ('--' + name, value)]
  stage = make_stage([*more, '--gamma2_ramp_epoch', 2, '--initial_lr', 0], steps_per_epoch=4)
  assert {name: getattr(stage._weights, name) for name in given} == given
  # The sixth of the eight steps over which gamma2 rises.
  terms = stage.train(iter(training_batches(split, 20, 0, first_step=5)), tf.constant(1))
  expected = terms['cross_entropy'] + 0.003 * terms['l2'] + 2 * terms['overlap'] + 5 * terms['uniform']
  expected += 7 * 5 / 8 * terms['weight_split']
  assert float(terms['total']) == pytest.approx(float(expected), rel=1e-6)

  config = architecture.Config(k=1, num_residual_units=1)
  teacher = resnet_split.Network(config, seed=9)
  more = ['--basemodel', 'any', '--teacher', 'any', '--distill_weight', '0.3', '--distill_temperature', '3']
  flags = train.parse_flags(['--mode', 'split', '--l2_weight', '0', '--initial_lr', '0', *more])
  stage = train.Stage(flags, resnet_split.Network(config), 4, teacher=teacher)
  assert (stage._weights.distill_weight, stage._weights.distill_temperature) == (0.3, 3.0)
  terms = stage.train(iter(training_batches(split, 20, 0)), tf.constant(1))
  expected = 0.7 * terms['cross_entropy'] + 0.3 * terms['distillation']
  assert float(terms['distillation']) > 0 and float(terms['total']) == pytest.approx(float(expected), rel=1e-6)


def test_val_iter_takes_the_first_batches(data):
  split, stage = cifar100.load(data, 'val', 60), make_stage([])
  whole, some = stage.validate(split, 0), stage.validate(split, 2)
  assert some == stage.validate(cifar100.load(data, 'val', 40), 0) and some != whole


# --- what is refused --------------------------------------------------------------------------------------------

NEW = 'NEW/run'  # a folder that does not exist
NUMBERS = {
  'batch_size': 0, 'max_steps': -1, 'num_train_instance': 0, 'num_val_instance': -3, 'display': 0, 'val_interval': 0,
  'val_iter': -1, 'checkpoint_interval': 0, 'group_summary_interval': -5, 'max_to_keep': 0, 'patience': -1,
  'seed': -1, 'l2_weight': -0.1, 'gamma1': -1.0, 'gamma2': 'nan', 'gamma3': -2.5, 'initial_lr': -0.1, 'lr_decay': 0.0,
  'momentum': 1.0, 'dropout_keep_prob': 0.0, 'gpu_fraction': 0.0, 'stop_when_converged': 1.0, 'k': 0,
  'num_residual_units': 0, 'ngroups1': 0, 'assignment_lr_scale': 'inf', 'num_classes': -1,
}  # fmt: skip
REFUSED = {
  # name: (mode, train_dir, flags, exit code, words that the sentence has)
  'no mode': (None, NEW, [], 2, ['--mode']),
  'mode': ('grouping', NEW, [], 2, ["'grouping'"]),
  'unknown flag': ('group', NEW, ['--test_interval', '5'], 2, ['--test_interval']),
  'abbreviation': ('group', NEW, ['--max_step', '5'], 2, ['--max_step']),
  'no number': ('group', NEW, ['--k', 'wide'], 2, ["'wide'", '--k']),
  'no boolean': ('group', NEW, ['--finetune', 'maybe'], 2, ["'maybe'"]),
  'large seed': ('group', NEW, ['--seed', '2147483647'], 1, ["--seed is '2147483647'", '2147483646']),
  'ngroups order 2 1': ('group', NEW, ['--ngroups1', '2', '--ngroups2', '3'], 1, ['--ngroups2 is 3', '--ngroups1']),
  'ngroups order 3 2': ('group', NEW, ['--ngroups2', '2', '--ngroups3', '4'], 1, ['--ngroups3 is 4', '--ngroups2']),
  'ngroups1 above classes': ('group', NEW, ['--ngroups1', '101'], 1, ['101', '100 classes']),
  'ngroups3 above channels': (
    'group', NEW, ['--k', '1', '--ngroups1', '20', '--ngroups2', '20', '--ngroups3', '20'], 1, ['20', '16 channels']
  ),
  'patience without images': (
    'group', NEW, ['--patience', '3', '--train_split', 'train_val'], 1, ['--patience 3', '--train_split train_val']
  ),
  'nothing to group': ('group', NEW, ['--ngroups1', '1', '--ngroups2', '1', '--ngroups3', '1'], 1, ['--ngroups1 is 1']),
  'branch_input': ('group', NEW, ['--branch_input', 'both'], 1, ["'both'"]),
  'classes': ('group', NEW, ['--num_classes', '10'], 1, ['--num_classes is 10', '100 classes']),
  'lr_step_epoch words': ('group', NEW, ['--lr_step_epoch', '100;140'], 1, ["'100;140'"]),
  'lr_step_epoch falls': ('group', NEW, ['--lr_step_epoch', '140,100'], 1, ["'140,100'"]),
  'lr_step_epoch negative': ('group', NEW, ['--lr_step_epoch=-3'], 1, ["'-3'"]),
  'lr_step_epoch nan': ('group', NEW, ['--lr_step_epoch', 'nan'], 1, ["'nan'"]),
  'lr_step_epoch inf': ('group', NEW, ['--lr_step_epoch', '3,inf'], 1, ["'3,inf'"]),
  'lr_schedule': ('group', NEW, ['--lr_schedule', 'linear'], 1, ["'linear'", 'step or cosine']),
  'precision': ('group', NEW, ['--precision', 'float16'], 1, ["'float16'", 'bfloat16']),
  'train_split': ('group', NEW, ['--train_split', 'test'], 1, ["'test'", 'train_val']),
  'batch above data': ('group', NEW, ['--num_train_instance', '19'], 1, ['--batch_size is 20', '19']),
  'more than the data': ('group', NEW, ['--num_train_instance', '91'], 1, ['91', 'only 90']),
  'more validation': ('group', NEW, ['--num_val_instance', '61'], 1, ['61', 'only 60']),
  'converged baseline': ('baseline', NEW, ['--stop_when_converged', '0.9'], 1, ['--stop_when_converged', 'group']),
  'learned start': ('split', NEW, ['--grouping_start', 'basemodel'], 1, ['--grouping_start', '--grouping']),
  'start from nothing': (
    'split', NEW, ['--grouping', 'random', '--grouping_start', 'basemodel'], 1, ['--grouping_start', '--basemodel'],
  ),
  'start': ('split', NEW, ['--grouping', 'random', '--grouping_start', 'x'], 1, ["'x'", 'scratch or basemodel']),
  'no data': ('group', NEW, ['--data_dir', 'NEW/data'], 1, ['NEW/data', 'download_cifar100.py']),
  'split from nothing': ('split', NEW, [], 1, ['--basemodel']),
  'split from an empty folder': ('split', 'NEW', [], 1, ['--basemodel']),
  'missing basemodel': ('split', NEW, ['--basemodel', 'NEW/base'], 1, ['NEW/base']),
  'basemodel without checkpoint': ('split', NEW, ['--basemodel', 'DATA'], 1, ['DATA', 'no checkpoint']),
  'split from a baseline': (
    'split', NEW, ['--basemodel', 'RUNS/baseline'], 1, ['RUNS/baseline', 'is a baseline checkpoint']
  ),
  'group from a split': ('group', NEW, ['--basemodel', 'RUNS/split'], 1, ['RUNS/split', 'split checkpoint']),
  'baseline from a group': ('baseline', NEW, ['--basemodel', 'RUNS/group'], 1, ['RUNS/group', 'group checkpoint']),
  'basemodel of another k': ('split', NEW, ['--basemodel', 'RUNS/group', '--k', '2'], 1, ['--k is 2', '--k 1']),
  'basemodel of other groups': (
    'split', NEW, ['--basemodel', 'RUNS/group', '--ngroups1', '4'], 1, ['--ngroups1 is 4', '--ngroups1 3']
  ),
  'released of another k': ('group', NEW, ['--basemodel', 'RELEASED', '--k', '8'], 1, ['--k is 8', '--k 1']),
  'train_dir is a file': ('group', 'RUNS/group/config.json', [], 1, ['RUNS/group/config.json', '--train_dir']),
  'train_dir in a file': ('group', 'RUNS/group/train.log/x', [], 1, ['RUNS/group/train.log/x', '--train_dir']),
  'grouping of a group': ('group', NEW, ['--grouping', 'random'], 1, ["'random'", '--mode split']),
  'grouping and basemodel': (
    'split', NEW, ['--grouping', 'semantic', '--basemodel', 'RUNS/group'], 1, ["'semantic'", 'RUNS/group']
  ),
  'clustering of a group': (
    'split', NEW, ['--grouping', 'clustering', '--basemodel', 'RUNS/group'], 1, ['RUNS/group', 'group checkpoint']
  ),
  'spectral start of nothing': ('group', NEW, ['--assignment_start', 'spectral'], 1, ['spectral', '--basemodel']),
  'spectral split': (
    'split', NEW, ['--assignment_start', 'spectral', '--basemodel', 'RUNS/group'], 1, ['spectral', '--mode group']
  ),
  'assignment_start': ('group', NEW, ['--assignment_start', 'even'], 1, ["'even'", 'noise or spectral']),
  # Going on with other settings.
  'other mode': ('baseline', 'RUNS/group', [], 1, ['RUNS/group', '--mode group', 'baseline']),
  'group in a split': ('group', 'RUNS/split', [], 1, ['RUNS/split', '--mode split', 'group']),
  'other batch_size': ('group', 'RUNS/group', ['--batch_size', '30'], 1, ['--batch_size 20', 'now it is 30']),
  'other seed': ('group', 'RUNS/group', ['--seed', '9'], 1, ['--seed 0', 'now it is 9']),
  'other k': ('group', 'RUNS/group', ['--k', '2'], 1, ['--k is 2', '--k 1']),
  'other groups': ('group', 'RUNS/group', ['--ngroups1', '4'], 1, ['--ngroups1 is 4', '--ngroups1 3']),
  'other precision': ('group', 'RUNS/group', ['--precision', 'bfloat16'], 1, ['--precision float32', 'bfloat16']),
  'other amount': ('group', 'RUNS/group', ['--num_train_instance', '80'], 1, ['--num_train_instance None', '80']),
  'other dropout': ('group', 'RUNS/group', ['--dropout_keep_prob', '0.5'], 1, ['--dropout_keep_prob 0.9', '0.5']),
  'other basemodel': ('group', 'RUNS/group', ['--basemodel', 'RELEASED'], 1, ['--basemodel', 'RELEASED']),
}  # fmt: skip
for name, value in NUMBERS.items():
  REFUSED[name] = ('group', NEW, ['--%s=%s' % (name, value)], 1, ['--%s is' % name, str(value)])


@pytest.mark.parametrize('case', REFUSED)
def test_a_mistake_is_told_in_one_sentence_and_leaves_no_trace(runs, data, tmp_path, capsys, case):
  mode, train_dir, more, expected_code, words = REFUSED[case]
  folder = os.path.dirname(runs['group'])

  def filled(text):
    for short, long in (('NEW', str(tmp_path)), ('RUNS', folder), ('DATA', data), ('RELEASED', helpers.RELEASED)):
      text = text.replace(short, long)
    return text

  before = helpers.files(folder)
  arguments = helpers.flags(mode, data, filled(train_dir), '--max_steps', 20)
  if mode is None:
    arguments = arguments[2:]
  if train_dir == 'RUNS/group':  # the rest as it was begun
    arguments += ['--dropout_keep_prob', '0.9', '--group_summary_interval', '6']
  code, _, stderr = helpers.call(train, arguments + [filled(m) for m in more], capsys)
  assert code == expected_code, stderr
  assert stderr.count('\n') == 1 and stderr.startswith('train.py: ' if code == 1 else ''), stderr
  for word in words:
    assert filled(word) in stderr
  assert helpers.files(folder) == before
  assert not os.listdir(tmp_path)


def test_a_folder_with_a_released_checkpoint_is_not_trained_in(data, tmp_path, capsys):
  folder = str(tmp_path / 'released')
  shutil.copytree(os.path.dirname(helpers.RELEASED), folder)
  with open(os.path.join(folder, 'checkpoint'), 'w') as f:
    f.write('model_checkpoint_path: "model.ckpt-0"\nall_model_checkpoint_paths: "model.ckpt-0"\n')
  before = helpers.files(folder)
  arguments = helpers.flags('group', data, folder, '--basemodel', folder, '--max_steps', 2)
  code, _, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and stderr.count('\n') == 1 and folder in stderr and '--train_dir' in stderr
  assert helpers.files(folder) == before


def test_a_mistake_on_the_command_line_shows_the_sentence_and_nothing_else(data, tmp_path):
  arguments = helpers.flags('group', data, str(tmp_path / 'run'), '--num_train_instance', 7)
  process = helpers.start('train.py', arguments)
  stdout, stderr = process.communicate()
  assert process.returncode == 1 and stdout == ''
  assert stderr == 'train.py: --batch_size is 20, but there are only 7 training images\n'
