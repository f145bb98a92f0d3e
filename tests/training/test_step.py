"""A training step: how far it goes, what it minimises, several in a call, compiled with XLA; and a validation."""

import helpers
import networks
import numpy as np
import pytest
import tensorflow as tf

import cifar100
import resnet_split
from splitnet.data.batches import Images
from splitnet.training import checkpoints, objective
from splitnet.training.step import learning_rate_scales, make_step

CONFIG = resnet_split.WideResNet(k=1, num_residual_units=1, ngroups1=3, ngroups2=2, ngroups3=1)


def new_step(mode='group', steps_per_epoch=4.0, config=CONFIG, **settings):
  """A TrainStep of a small network."""
  groups = networks.even_groups(config.graph()) if mode == 'split' else None
  network = networks.build(config, groups=groups, with_assignments=mode == 'group')
  return make_step(network, cifar100, dict(settings, batch_size=20), steps_per_epoch)


def values(step):
  """Its weights and its optimiser's slots: dict from name to array."""
  slots = {f'{name}/Momentum': slot for name, slot in step.optimizer.slots.items()}
  return {name: v.numpy() for name, v in {**step.network.weights, **slots}.items()}


# --- how far a step goes ------------------------------------------------------------------------------------------


def step_changes(**settings):
  """How far one step of training moves each variable: dict from name to array."""
  step = new_step(**settings)
  rng = np.random.default_rng(0)
  images = Images(rng.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8), np.arange(20, dtype=np.int32))
  before = {n: v.numpy() for n, v in step.network.trained.items()}
  step.train(iter(images.training_batches(20, 0)), tf.constant(1))
  return {n: v.numpy() - before[n] for n, v in step.network.trained.items()}


@pytest.fixture(scope='module')
def plain_changes():
  return step_changes()


def assert_scaled(changes, plain, factor_of):
  assert changes.keys() == plain.keys()
  for name in plain:
    assert np.abs(plain[name]).max() > 0, name
    scale = np.abs(plain[name]).max() * factor_of(name)
    np.testing.assert_allclose(changes[name] / scale, plain[name] * factor_of(name) / scale, atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_the_learning_rate_decides_how_far_a_step_goes(plain_changes):
  assert_scaled(step_changes(initial_lr=0.2), plain_changes, lambda name: 2)


def test_assignment_lr_scale_multiplies_the_assignments_rate_and_no_other(plain_changes):
  changes = step_changes(assignment_lr_scale=7.0)
  assert_scaled(changes, plain_changes, lambda name: 7 if name.startswith('group/') else 1)


def test_finetune_multiplies_the_rate_of_the_split_layers(plain_changes):
  changes = step_changes(finetune=True)
  split = ('unit_3_0/', 'logits/', 'unit_last/')
  assert_scaled(changes, plain_changes, lambda name: 10 if name.startswith(split) else 1)
  network = networks.build(CONFIG, with_assignments=True)
  assert set(learning_rate_scales(network, 1.0, False).values()) == {1.0}


def test_finetune_finds_the_branches_of_a_split_network():
  network = new_step('split').network
  scales = learning_rate_scales(network, 1.0, True)
  assert set(scales.values()) == {10.0}
  assert scales.keys() == {n for n in network.trained if n.startswith('branch_')}
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


# --- several steps per call, XLA ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_steps_per_call_are_the_same_steps(data):
  images = cifar100.load(data, 'train', 50)
  ends, means = [], []
  for calls in ([4], [1, 1, 1, 1], [3, 1]):
    step = new_step(dropout_keep_prob=0.5, lr_step_epoch='0.5')
    batches = iter(images.training_batches(20, 0))
    terms = [step.train(batches, tf.constant(count)) for count in calls]
    assert int(step.step) == 4
    ends.append(values(step))
    means.append({n: sum(c * float(t[n]) for c, t in zip(calls, terms)) / 4 for n in terms[0]})
  helpers.assert_same(ends[0], ends[1])
  helpers.assert_same(ends[0], ends[2])
  for name, value in means[0].items():
    assert value == pytest.approx(means[1][name], rel=1e-5) and value == pytest.approx(means[2][name], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['group', 'split'])  # a baseline's step is part of grouping's
def test_compiled_with_xla_a_step_is_the_same(data, mode):
  images, ends = cifar100.load(data, 'train', 20), []
  config = resnet_split.WideResNet(k=1, num_residual_units=1, ngroups1=2, ngroups2=2, ngroups3=1)  # compiles faster
  for compiled in (False, True):
    step = new_step(mode, config=config, jit_compile=compiled, initial_lr=0.01)
    step.train(iter(images.training_batches(20, 0)), tf.constant(1))
    ends.append(values(step))
  for name, value in ends[0].items():
    np.testing.assert_allclose(ends[1][name], value, rtol=1e-3, atol=1e-5, err_msg=name)


# --- what is minimised --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_minimises_what_the_settings_say(data):
  """Every weight of the objective is another number, and none its default."""
  images = cifar100.load(data, 'train', 60)
  given = dict(l2_weight=0.003, gamma1=2.0, gamma2=7.0, gamma3=5.0, weighted_group_loss=False, label_smoothing=0.2)
  step = new_step(**given, gamma2_ramp_epoch=2.0, initial_lr=0.0)
  assert {name: getattr(step.objective, name) for name in given} == given
  # The sixth of the eight steps over which gamma2 rises.
  terms = step.train(iter(images.training_batches(20, 0, first_step=5)), tf.constant(1))
  expected = terms['cross_entropy'] + 0.003 * terms['l2'] + 2 * terms['overlap'] + 5 * terms['uniform']
  expected += 7 * 5 / 8 * terms['weight_split']
  assert float(terms['total']) == pytest.approx(float(expected), rel=1e-6)

  config = resnet_split.WideResNet(k=1, num_residual_units=1)
  settings = dict(batch_size=20, l2_weight=0.0, initial_lr=0.0, distill_weight=0.3, distill_temperature=3.0)
  teacher = networks.build(config, seed=9)
  step = make_step(networks.build(config), cifar100, settings, 4, teacher=teacher)
  assert (step.objective.distill_weight, step.objective.distill_temperature) == (0.3, 3.0)
  terms = step.train(iter(images.training_batches(20, 0)), tf.constant(1))
  expected = 0.7 * terms['cross_entropy'] + 0.3 * terms['distillation']
  assert float(terms['distillation']) > 0 and float(terms['total']) == pytest.approx(float(expected), rel=1e-6)


def test_the_teacher_sees_the_steps_own_images_with_its_moving_averages_and_does_not_change(runs, data):
  stored = helpers.read_checkpoint(runs['baseline'])
  teacher = checkpoints.load_network(stored)
  images = cifar100.load(data, 'train', 20)
  first, _, _ = next(iter(images.training_batches(20, 3)))
  seen = cifar100.whiten(cifar100.augment(first, tf.constant([3, 0])))
  student = networks.build(CONFIG, seed=1)(seen, training=True)
  expected = objective.distillation(student, teacher(seen), 4.0)
  settings = dict(batch_size=20, seed=3, distill_weight=0.9)
  step = make_step(networks.build(CONFIG, seed=1), cifar100, settings, 4.0, teacher=teacher)
  terms = step.train(iter(images.training_batches(20, 3)), tf.constant(1))
  assert float(terms['distillation']) == pytest.approx(float(expected), rel=1e-4)
  helpers.assert_same({n: v.numpy() for n, v in teacher.weights.items()}, stored.values)


def test_a_limit_validates_on_the_first_batches(data):
  images, step = cifar100.load(data, 'val', 60), new_step()
  whole, some = step.validate(images), step.validate(images, 2)
  assert some == step.validate(cifar100.load(data, 'val', 40)) and some != whole
