"""Label smoothing and distillation: their losses by hand, a teacher in training, and runs that are moved elsewhere."""

import json
import os
import shutil

import helpers
import networks
import numpy as np
import pytest
import tensorflow as tf

import cifar100
import resnet_split
import train
from resnet_split import read_older
from splitnet.network.network import create
from splitnet.training import checkpoints, initialize, objective
from splitnet.training.saver import Saver

CONFIG = resnet_split.WideResNet(k=1, num_residual_units=1, ngroups1=3, ngroups2=2, ngroups3=1)


def log_softmax(x):
  x = np.asarray(x, np.float64)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


# --- the losses ---------------------------------------------------------------------------------------------------


def test_label_smoothing_by_hand():
  logits, labels = [[2.0, 0.0, -1.0, 0.5], [0.0, 1.0, 0.0, 3.0]], [0, 2]
  log_p = log_softmax(logits)
  targets = np.array([[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]])  # s = 0.2 over 4 classes
  found = objective.cross_entropy(tf.constant(logits), tf.constant(labels), 0.2)
  np.testing.assert_allclose(found, -(targets * log_p).sum(1), rtol=1e-6)
  plain = objective.cross_entropy(tf.constant(logits), tf.constant(labels))
  np.testing.assert_allclose(plain, [-log_p[0, 0], -log_p[1, 2]], rtol=1e-6)


def test_distillation_by_hand():
  student, teacher, temperature = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [[1.0, 1.0, -2.0], [3.0, 0.0, 0.5]], 4.0
  log_t, log_s = (log_softmax(np.array(x) / temperature) for x in (teacher, student))
  expected = temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum(1).mean()
  found = objective.distillation(tf.constant(student), tf.constant(teacher), temperature)
  assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_teacher_that_is_the_student_pulls_nowhere():
  logits = tf.Variable(3 * tf.random.stateless_normal([5, 100], [1, 2]))
  with tf.GradientTape() as tape:
    loss = objective.distillation(logits, tf.constant(logits), 4.0)
  assert float(loss) == 0
  np.testing.assert_allclose(tape.gradient(loss, logits), np.zeros([5, 100]), atol=1e-7)


def test_the_objective_weighs_cross_entropy_against_distillation():
  network = networks.build(CONFIG)
  logits, teacher = (tf.random.stateless_normal([5, 100], [0, i]) for i in (0, 1))
  weights = objective.Objective(0.01, 1.0, 1.0, 1.0, True, 0.1, 0.3, 2.0)
  terms = objective.objective(network, logits, tf.range(5), weights, teacher)
  smoothed = float(tf.reduce_mean(objective.cross_entropy(logits, tf.range(5), 0.1)))
  taught = float(objective.distillation(logits, teacher, 2.0))
  assert float(terms['cross_entropy']) == pytest.approx(smoothed) and float(terms['distillation']) == taught
  assert float(terms['total']) == pytest.approx(0.7 * smoothed + 0.3 * taught + 0.01 * float(terms['l2']), rel=1e-6)
  alone = objective.objective(network, logits, tf.range(5), weights)
  assert 'distillation' not in alone
  assert float(alone['total']) == pytest.approx(smoothed + 0.01 * float(terms['l2']), rel=1e-6)


def test_without_either_the_objective_is_the_released_one_bit_by_bit():
  network = networks.build(CONFIG)
  logits, labels = tf.random.stateless_normal([5, 100], [0, 0]), tf.range(5)
  total = objective.objective(network, logits, labels, objective.Objective(0.0005))['total']
  released = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
  released += 0.0005 * tf.add_n([tf.nn.l2_loss(v) for v in network.decayed])
  assert float(total) == float(released)


def test_the_objective_follows_its_weights():
  config = resnet_split.WideResNet(k=1, num_residual_units=1, ngroups1=3, ngroups2=2, ngroups3=1)
  network = networks.build(config, with_assignments=True)
  logits, labels = tf.random.stateless_normal([5, 100], [0, 0]), tf.range(5)
  terms = objective.objective(network, logits, labels, objective.Objective(0.01, 2.0, 3.0, 5.0, False))
  expected = terms['cross_entropy'] + 0.01 * terms['l2'] + 2 * terms['overlap'] + 3 * terms['weight_split']
  assert float(terms['total']) == pytest.approx(float(expected + 5 * terms['uniform']), rel=1e-6)
  kernels = [v.numpy() for n, v in network.weights.items() if n.endswith(('/kernel', '/weights'))]
  assert float(terms['l2']) == pytest.approx(sum((k.astype(np.float64) ** 2).sum() for k in kernels) / 2, rel=1e-5)


# --- a teacher in training ------------------------------------------------------------------------------------------


def distilled(data, folder, runs, teacher, *more):
  more = ['--basemodel', runs['group'], '--teacher', teacher, '--distill_weight', 0.5, '--label_smoothing', 0.1, *more]
  return helpers.flags('split', data, str(folder), *more)


@pytest.mark.slow
def test_a_distilled_run_goes_on_after_it_and_its_teacher_were_moved(runs, data, tmp_path, capsys):
  home, away = tmp_path / 'home', tmp_path / 'away'
  shutil.copytree(runs['baseline'], home / 'teacher')
  teacher = str(home / 'teacher')
  assert helpers.call(train, distilled(data, home / 'whole', runs, teacher, '--max_steps', 4), capsys)[0] == 0
  assert helpers.call(train, distilled(data, home / 'run', runs, teacher, '--max_steps', 2), capsys)[0] == 0
  stored = json.loads((home / 'run' / 'config.json').read_text())['settings']
  assert stored['teacher'] == teacher and stored['teacher_digest'] == checkpoints.digest(runs['baseline'])
  assert not any('teacher' in name for name in helpers.weights(str(home / 'run')))  # as many as the network has
  shutil.copytree(home, away)
  shutil.rmtree(home / 'teacher')
  more = ['--max_steps', 4]
  code, out, err = helpers.call(train, distilled(data, away / 'run', runs, str(away / 'teacher'), *more), capsys)
  assert code == 0 and 'going on from step 2' in out, err
  helpers.assert_same(*(helpers.weights(str(path)) for path in (home / 'whole', away / 'run')))
  # Another teacher, or the same folder with another checkpoint, is another run.
  other = distilled(data, away / 'run', runs, runs['group'], *more)
  code, _, err = helpers.call(train, other, capsys)
  assert code == 1 and f"--teacher {away / 'teacher'}, now it is {runs['group']}" in err and err.count('\n') == 1
  shutil.rmtree(away / 'teacher')
  shutil.copytree(runs['group'], away / 'teacher')
  code, _, err = helpers.call(train, distilled(data, away / 'run', runs, str(away / 'teacher'), *more), capsys)
  assert code == 1 and f"another --teacher than '{away / 'teacher'}' holds now" in err and err.count('\n') == 1
  shutil.rmtree(away / 'teacher')
  code, _, err = helpers.call(train, distilled(data, away / 'run', runs, str(away / 'teacher'), *more), capsys)
  assert code == 1 and f"no checkpoint '{away / 'teacher'}'" in err and err.count('\n') == 1


@pytest.mark.slow
def test_a_run_goes_on_where_its_basemodel_was_moved_or_is_gone_but_not_from_another(runs, data, tmp_path, capsys):
  base, run = tmp_path / 'base', tmp_path / 'run'
  shutil.copytree(runs['group'], base)
  arguments = helpers.flags('split', data, str(run), '--basemodel')
  assert helpers.call(train, [*arguments, str(base), '--max_steps', '2'], capsys)[0] == 0
  os.rename(base, tmp_path / 'moved')
  os.rename(run, tmp_path / 'elsewhere')
  arguments[arguments.index(str(run))] = str(tmp_path / 'elsewhere')
  last = None
  for steps, path in ((4, tmp_path / 'moved'), (6, tmp_path / 'gone')):
    code, out, err = helpers.call(train, [*arguments, str(path), '--max_steps', steps], capsys)
    assert code == 0 and (last is None or f'going on from step {last}' in out), err
    last = steps
  stored = json.loads((tmp_path / 'elsewhere' / 'config.json').read_text())
  assert stored['settings']['basemodel'] == str(tmp_path / 'moved')
  helpers.assert_same(helpers.weights(str(tmp_path / 'elsewhere')), helpers.weights(runs['split']))
  code, _, err = helpers.call(train, [*arguments, helpers.RELEASED, '--max_steps', 7], capsys)
  assert code == 1 and f'now it is {helpers.RELEASED}' in err and err.count('\n') == 1


@pytest.mark.parametrize('stage', ['baseline', 'group', 'split'])
def test_every_checkpoint_of_the_same_classes_teaches(runs, data, stage):
  """A grouping checkpoint is the dense network that it is."""
  path = os.path.join(runs[stage], 'best')
  teacher = initialize.load_teacher(initialize.Start('split', teacher=path), CONFIG.graph(), read_older)
  images = cifar100.whiten(cifar100.load(data, 'val', 10).images)
  stored = helpers.read_checkpoint(path)
  network = create(stored.graph, stored.groups, with_assignments=stage == 'group')
  checkpoints.assign(network.weights, stored.values, 'the test')
  np.testing.assert_array_equal(teacher(images), network(images))


MISTAKES = {
  'no teacher there': (['--teacher', 'NEW/none'], ['no checkpoint', 'NEW/none']),
  'not a checkpoint': (['--teacher', 'DATA'], ['no checkpoint', 'DATA']),
  'other classes': (['--teacher', 'OTHER'], ['--teacher', 'OTHER', '7 classes', 'has 100']),
  'weight alone': (['--distill_weight', '0.5'], ['--distill_weight needs --teacher']),
  'temperature alone': (['--distill_temperature', '2'], ['--distill_temperature needs --teacher']),
  'weight': (['--teacher', 'BASE', '--distill_weight', '1.5'], ['--distill_weight is', '1.5', 'in [0, 1]']),
  'temperature': (['--teacher', 'BASE', '--distill_temperature', '0'], ['--distill_temperature is', 'above 0']),
  'smoothing': (['--label_smoothing', '1'], ['--label_smoothing is', "'1'", 'in [0, 1)']),
  'in another mode': (['--mode', 'baseline', '--basemodel', '', '--teacher', 'BASE'], ['--teacher', '--mode split']),
}


@pytest.mark.parametrize('case', MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_no_trace(runs, data, tmp_path, tmp_path_factory, capsys, case):
  more, words = MISTAKES[case]
  other = tmp_path_factory.mktemp('other')
  if case == 'other classes':
    network = networks.build(resnet_split.WideResNet(k=1, num_residual_units=1, num_classes=7))
    configuration = checkpoints.describe('baseline', {}, network, {}, {})
    Saver(str(other), configuration, 1, weights=network.weights, step=tf.Variable(0)).save(0)

  def filled(text):
    for short, path in (('NEW', tmp_path), ('DATA', data), ('OTHER', other), ('BASE', runs['baseline'])):
      text = text.replace(short, str(path))
    return text

  arguments = helpers.flags('split', data, str(tmp_path / 'run'), '--basemodel', runs['group'])
  code, _, err = helpers.call(train, arguments + [filled(m) for m in more], capsys)
  assert code == 1 and err.startswith('train.py: ') and err.count('\n') == 1, err
  assert all(filled(word) in err for word in words), err
  assert not os.listdir(tmp_path)
