"""Tests of checkpoints.py: the released code's own checkpoint, ours, and what is said of damaged ones."""

import dataclasses
import json
import os
import shutil

import helpers
import networks
import numpy as np
import pytest
import tensorflow as tf

import resnet_split
from splitnet.common.errors import UserError
from splitnet.common.files import write_json
from splitnet.network import hardening
from splitnet.network.network import create
from splitnet.training import checkpoints
from splitnet.training.saver import Saver

DATA = os.path.join(helpers.PROJECT, 'tests', 'reference')
RELEASED = os.path.join(DATA, 'original_checkpoint', 'model.ckpt-0')
SMALL = resnet_split.WideResNet(k=1, num_residual_units=1, num_classes=10, ngroups1=4, ngroups2=2, ngroups3=2)


def one_sentence(error):
  text = str(error.value)
  assert text and '\n' not in text, text
  return text


def images():
  return tf.constant(np.random.RandomState(0).normal(size=(2, 16, 16, 3)), tf.float32)


def split_network():
  """A small split network whose every variable is random, and which no seed would build again."""
  rng = np.random.RandomState(1)
  graph = SMALL.graph()
  groups = {name: rng.permutation(np.arange(units.size) % units.groups) for name, units in graph.units.items()}
  network = networks.build(SMALL, groups=groups)
  for v in network.weights.values():
    v.assign(rng.uniform(0.1, 1.0, size=v.shape))
  return network


def saver_of(folder, network, max_to_keep=2, mode='split'):
  """(a Saver of a network and a step, the step)."""
  step = tf.Variable(0, dtype=tf.int64, trainable=False)
  configuration = checkpoints.describe(mode, SMALL.to_dict(), network, {'name': 'made up'}, {'seed': 1})
  return Saver(folder, configuration, max_to_keep, weights=network.weights, step=step), step


# --- the released code's checkpoint --------------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['', '.index', '.data-00000-of-00001'])
def test_released_checkpoint(suffix):
  stored = helpers.read_checkpoint(RELEASED + suffix)
  assert stored.mode == 'released' and stored.path == RELEASED
  assert stored.groups is None and stored.configuration is None
  # Read off the shapes alone.
  assert stored.network == dict(
    network='wrn', image_size=32, k=1, num_residual_units=2, num_classes=100, ngroups1=2, ngroups2=2, ngroups3=2,
    branch_input='group', bn_no_scale=True,
  )  # fmt: skip
  # Every variable of its network and nothing of its optimiser, the values as TensorFlow reads them.
  reader = tf.train.load_checkpoint(RELEASED)
  names = {n for n in reader.get_variable_to_shape_map() if 'Momentum' not in n} - {'global_step'}
  assert set(stored.values) == names
  assert all(np.array_equal(stored.values[name], reader.get_tensor(name)) for name in names)


def test_released_checkpoint_is_this_network():
  stored = helpers.read_checkpoint(RELEASED)
  grouping = create(stored.graph, with_assignments=True)
  assert {n: tuple(v.shape) for n, v in grouping.weights.items()} == {n: v.shape for n, v in stored.values.items()}
  checkpoints.assign(grouping.weights, stored.values, 'the released checkpoint')
  # Whether with its assignments or for evaluation alone, it computes the same; and it can be hardened.
  np.testing.assert_array_equal(checkpoints.load_network(stored)(images()), grouping(images()))
  assert hardening.harden(grouping)(images()).shape == (2, 100)


def test_released_checkpoint_is_trained():
  # The recorded one step has been taken: the moving averages are past their start, so it is no fresh network.
  values = helpers.read_checkpoint(RELEASED).values
  assert np.abs(values['unit_3_1/bn_2/mu']).max() > 0 and np.abs(values['unit_3_1/bn_2/sigma'] - 1).max() > 0
  assert (values['unit_3_1/bn_2/sigma'] > 0).all()


@pytest.mark.parametrize('split, k, num_residual_units, num_classes', [
  ('1-1-4', 1, 2, 100), ('1-2-2', 2, 1, 10), ('2-4-4', 1, 3, 10), ('2-3-5', 2, 2, 20),
])  # fmt: skip
def test_configuration_is_read_off_shapes(split, k, num_residual_units, num_classes):
  config = networks.config_of(split, k=k, num_residual_units=num_residual_units, num_classes=num_classes)
  values = {name: v.numpy() for name, v in networks.build(config, with_assignments=True).weights.items()}
  assert resnet_split.config_from_shapes(values, 'here') == config
  # Without assignments it is dense.
  dense = {name: value for name, value in values.items() if not name.startswith('group/')}
  assert resnet_split.config_from_shapes(dense, 'here') == config.dense()


@pytest.mark.parametrize('missing', ['unit_1_0/conv_1/kernel', 'logits/fc/biases'])
def test_a_checkpoint_of_something_else_is_named(missing):
  values = {'unit_1_0/conv_1/kernel': np.zeros((3, 3, 16, 16)), 'logits/fc/biases': np.zeros(10)}
  del values[missing]
  with pytest.raises(UserError) as error:
    resnet_split.config_from_shapes(values, 'over/there')
  assert 'over/there' in one_sentence(error) and missing in str(error.value)


def test_another_programs_checkpoint_is_no_splitnet(tmp_path):
  path = tf.train.Checkpoint(x=tf.Variable(1.0)).save(str(tmp_path / 'model'))
  with pytest.raises(UserError, match='no SplitNet checkpoint') as error:
    helpers.read_checkpoint(path)
  one_sentence(error)


# --- assigning -----------------------------------------------------------------------------------------------------


def test_assign_takes_what_it_is_asked_for():
  variables = {'a': tf.Variable([0.0, 0.0]), 'b': tf.Variable([[0.0]])}
  checkpoints.assign(variables, {'a': np.array([1, 2]), 'b': np.array([[3]]), 'c': np.zeros(9)}, 'the file')
  assert variables['a'].numpy().tolist() == [1, 2] and variables['b'].numpy().tolist() == [[3]]


@pytest.mark.parametrize('values, words', [
  ({'a': np.array([1, 2])}, ['the file', "no variable 'b'"]),
  ({'a': np.array([1, 2]), 'b': np.array([3])}, ['the file', "'b'", '(1,)', '(1, 1)']),
  # A shape that would broadcast is no less wrong.
  ({'a': np.array([1, 2]), 'b': np.array(3)}, ["'b'", '()', '(1, 1)']),
])  # fmt: skip
def test_assign_is_all_or_nothing(values, words):
  variables = {'a': tf.Variable([0.0, 0.0]), 'b': tf.Variable([[0.0]])}
  with pytest.raises(UserError) as error:
    checkpoints.assign(variables, values, 'the file')
  assert all(word in one_sentence(error) for word in words), error.value
  assert variables['a'].numpy().tolist() == [0, 0] and variables['b'].numpy().tolist() == [[0]]


# --- our own checkpoints -------------------------------------------------------------------------------------------


def test_a_split_network_comes_back_from_its_folder(tmp_path):
  network = split_network()
  saver, _ = saver_of(str(tmp_path), network)
  expected = network(images()).numpy()
  path = saver.save(7)
  assert path == str(tmp_path / 'ckpt-7') == saver.last
  for name in (str(tmp_path), path, path + '.index'):
    stored = helpers.read_checkpoint(name)
    assert (stored.mode, stored.graph, stored.path) == ('split', network.graph, path)
    assert stored.network == SMALL.to_dict()
    assert stored.configuration['settings'] == {'seed': 1} and stored.configuration['data'] == {'name': 'made up'}
    assert {n: g.tolist() for n, g in stored.groups.items()} == {n: g.tolist() for n, g in network.groups.items()}
    assert set(stored.values) == set(network.weights)
    np.testing.assert_array_equal(checkpoints.load_network(stored)(images()), expected)


def test_a_grouping_network_comes_back_without_groups(tmp_path):
  network = networks.build(SMALL, with_assignments=True, seed=9)
  saver_of(str(tmp_path), network, mode='group')[0].save(0)
  stored = helpers.read_checkpoint(str(tmp_path))
  assert stored.mode == 'group' and stored.groups is None
  assert all(np.array_equal(stored.values[name], v) for name, v in network.weights.items())


def test_a_grouping_checkpoint_is_hardened_by_its_most_probable_groups(tmp_path):
  stored = helpers.read_checkpoint(RELEASED)
  hardened = checkpoints.load_network(stored, harden=True)
  grouping = create(stored.graph, with_assignments=True)
  checkpoints.assign(grouping.weights, stored.values, 'the test')
  np.testing.assert_array_equal(hardened(images()), hardening.harden(grouping)(images()))
  np.testing.assert_array_equal(checkpoints.class_groups(stored), stored.values['group/split_q1/alpha'].argmax(0))
  assert checkpoints.unit_groups(stored).keys() == grouping.graph.units.keys()
  network = split_network()
  saver_of(str(tmp_path), network)[0].save(0)
  split = helpers.read_checkpoint(str(tmp_path))
  assert checkpoints.class_groups(split).tolist() == network.groups['split_q1'].tolist()
  dense = split._replace(mode='baseline', groups=None)
  assert checkpoints.class_groups(dense) is None
  for stored in (split, dense):
    with pytest.raises(UserError, match=f'is a {stored.mode} checkpoint; only a grouping one') as error:
      checkpoints.load_network(stored, harden=True)
    one_sentence(error)
  grouping.weights['group/split_q1/alpha'].assign([[1.0] * 100, [0.0] * 100])
  values = {name: v.numpy() for name, v in grouping.weights.items()}
  with pytest.raises(UserError, match='leaves group 1 of 2 empty'):
    checkpoints.load_network(helpers.read_checkpoint(RELEASED)._replace(values=values), harden=True)


def test_saver_keeps_the_last_ones_and_the_best(tmp_path):
  network = split_network()
  saver, step = saver_of(str(tmp_path), network, max_to_keep=2)
  assert saver.last is None and saver.restore() is None
  bias = network.weights['branch_0/logits/fc/biases']
  for i in (1, 2, 3):
    bias.assign(tf.fill(bias.shape, float(i)))
    step.assign(i)
    saver.save(i)
    if i != 3:
      saver.save_best(i)
  assert sorted(p.name for p in tmp_path.glob('*.index')) == ['ckpt-2.index', 'ckpt-3.index']
  assert [p.name for p in (tmp_path / 'best').glob('*.index')] == ['ckpt-2.index']
  biases = 'branch_0/logits/fc/biases'
  assert set(helpers.read_checkpoint(str(tmp_path)).values[biases]) == {3.0}
  assert set(helpers.read_checkpoint(str(tmp_path / 'best')).values[biases]) == {2.0}
  assert set(helpers.read_checkpoint(str(tmp_path / 'ckpt-2')).values[biases]) == {2.0}
  # A second run in the folder goes on from the last one.
  other = split_network()
  again, step = saver_of(str(tmp_path), other)
  assert again.restore() == str(tmp_path / 'ckpt-3') and int(step) == 3
  assert all(np.array_equal(v, network.weights[name]) for name, v in other.weights.items())
  # Without the last one's files, from the one before.
  for path in tmp_path.glob('ckpt-3.*'):
    path.unlink()
  again, step = saver_of(str(tmp_path), other)
  assert again.restore() == str(tmp_path / 'ckpt-2') and int(step) == 2


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='--train_dir') as error:
    saver_of(str(tmp_path / 'file'), split_network())
  assert str(tmp_path / 'file') in one_sentence(error)


# --- what is not there, and what is damaged ------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['', 'empty', 'nowhere', 'empty/ckpt-5', 'config.json'])
def test_find_names_what_is_missing(tmp_path, name):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'config.json').write_text('{}')
  path = str(tmp_path / name)
  with pytest.raises(UserError, match='there is no checkpoint') as error:
    checkpoints.find(path)
  assert path in one_sentence(error)


@pytest.fixture
def folder(tmp_path):
  saver_of(str(tmp_path), split_network())[0].save(1)
  return tmp_path


def test_a_checkpoint_without_its_configuration(folder):
  os.remove(folder / 'config.json')
  with pytest.raises(UserError, match=r'config\.json') as error:
    helpers.read_checkpoint(str(folder))
  assert str(folder) in one_sentence(error)


@pytest.mark.parametrize('damage', [
  'nothing', 'half', 'binary', 'list', 'keys', 'unknown', 'type', 'range', 'depths', 'order', 'groups',
])  # fmt: skip
def test_a_damaged_configuration_is_named(folder, damage):
  path = folder / 'config.json'
  good = json.loads(path.read_text())
  network, graph = good['network'], good['graph']
  older = {name: value for name, value in good.items() if name != 'graph'}
  path.write_bytes({
    'nothing': b'',
    'half': path.read_bytes()[:100],
    'binary': bytes(range(256)),
    'list': b'[]',
    'keys': json.dumps({'network': network}).encode(),
    'unknown': json.dumps(dict(older, network=dict(network, colour=3))).encode(),
    'type': json.dumps(dict(older, network=dict(network, k='wide'))).encode(),
    'range': json.dumps(dict(older, network=dict(network, k=0))).encode(),
    'depths': json.dumps(dict(good, graph=dict(graph, depths={'trunk': 'one'}))).encode(),
    'order': json.dumps(dict(good, graph=dict(graph, layers=graph['layers'][::-1]))).encode(),
    'groups': json.dumps(dict(good, groups=[1, 2])).encode(),
  }[damage])  # fmt: skip
  with pytest.raises(UserError) as error:
    helpers.read_checkpoint(str(folder))
  assert str(path) in one_sentence(error), error.value


@pytest.mark.parametrize('part', ['.index', '.data-00000-of-00001'])
@pytest.mark.parametrize('size', [0, 100])
def test_a_damaged_checkpoint_is_named(folder, part, size):
  path = str(folder / 'ckpt-1')
  os.truncate(path + part, size)
  with pytest.raises(UserError, match='cannot be read') as error:
    helpers.read_checkpoint(str(folder))
  assert path in one_sentence(error)


def test_going_on_from_a_damaged_checkpoint_is_one_sentence(folder):
  os.truncate(str(folder / 'ckpt-1.data-00000-of-00001'), 100)
  with pytest.raises(UserError, match='cannot be restored') as error:
    saver_of(str(folder), split_network())[0].restore()
  assert str(folder / 'ckpt-1') in one_sentence(error)


def test_a_configuration_of_another_network_is_one_sentence(folder):
  config = dataclasses.replace(SMALL, num_residual_units=2)
  graph = config.graph()
  other = create(graph, {n: np.arange(u.size) % u.groups for n, u in graph.units.items()})
  write_json(str(folder / 'config.json'), checkpoints.describe('split', config.to_dict(), other, {}, {}))
  with pytest.raises(UserError, match='has no variable') as error:
    checkpoints.load_network(helpers.read_checkpoint(str(folder)))
  assert str(folder) in one_sentence(error)


def test_released_checkpoint_that_is_cut_short(tmp_path):
  for name in os.listdir(os.path.dirname(RELEASED)):
    shutil.copy(os.path.join(os.path.dirname(RELEASED), name), tmp_path)
  os.truncate(tmp_path / 'model.ckpt-0.data-00000-of-00001', 1000)
  with pytest.raises(UserError, match='cannot be read') as error:
    helpers.read_checkpoint(str(tmp_path / 'model.ckpt-0'))
  one_sentence(error)
