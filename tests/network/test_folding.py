"""folding.py: a folded network computes what the network computes, and TensorFlow makes few operations of it."""

import collections

import networks
import numpy as np
import pytest
import tensorflow as tf
from networks import DENSE, TREES, assert_close, make
from tensorflow.python.eager import context

import resnet_split
from splitnet.network import counting, folding
from splitnet.parallel import placement


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(1).normal(0, 1, (5, 32, 32, 3)).astype(np.float32)


def kept(folded):
  """The batch normalisations that were not folded away."""
  return [name.removesuffix('/gamma') for name in folded.weights if name.endswith('/gamma')]


def operations(network, images):
  """What a network's graph consists of when TensorFlow has optimised it: a Counter, fused ones with what is fused."""
  step = tf.function(network.__call__, input_signature=[tf.TensorSpec([None, 32, 32, 3])])
  with context.collect_graphs(optimized=True) as graphs:
    step(images)
  nodes = [node for graph in graphs for node in graph.node]
  nodes += [node for graph in graphs for function in graph.library.function for node in function.node_def]
  return collections.Counter('+'.join([n.op, *(x.decode() for x in n.attr['fused_ops'].list.s)]) for n in nodes)


@pytest.mark.parametrize('negative', [False, True])
@pytest.mark.parametrize('tree', TREES)
def test_folding_changes_nothing_but_rounding(images, tree, negative):
  network = make(negative=negative, **TREES[tree])
  expected = network(images).numpy()
  assert np.ptp(expected) > 0.1
  assert_close(folding.folded(network)(images).numpy(), expected)


def test_normalisations_are_kept_only_where_something_else_reads_the_stream():
  assert kept(folding.folded(make(num_residual_units=1))) == []
  assert kept(folding.folded(make(**DENSE))) == ['unit_1_1/bn_1', 'unit_2_1/bn_1', 'unit_3_1/bn_1']
  both = ['branch_0/unit_2_0/bn_1', 'branch_1/unit_2_0/bn_1']  # of one parent; above them each has its own
  assert kept(folding.folded(make(num_residual_units=1, branch_input='all'))) == both


@pytest.mark.parametrize('gamma, beta', [(0.0, 0.3), (-0.5, 0.3), (1e-4, 0.3), (1.0, 20.0)])
def test_a_scale_that_is_not_positive_or_a_large_shift_keeps_the_normalisation(images, gamma, beta):
  network = make(num_residual_units=1, **DENSE)
  for name in ('unit_2_0/bn_1', 'unit_last/bn'):
    for part, value in (('/gamma', gamma), ('/beta', beta)):
      values = network.weights[name + part].numpy()
      values[3] = value
      network.weights[name + part].assign(values)
  folded = folding.folded(network)
  assert kept(folded) == ['unit_2_0/bn_1', 'unit_last/bn']
  assert_close(folded(images).numpy(), network(images).numpy())


@pytest.mark.parametrize('tree', ['dense', '2-2-2', '2-3-5 all'])
def test_tensorflow_fuses_convolutions_with_biases_sums_and_rectifiers(images, tree):
  network = make(**TREES[tree])
  before, after = operations(network, images), operations(folding.folded(network), images)
  # Left alone are the shortcuts, and rectifiers of a slice of what the trunk wrote. (Where the optimiser fails at a
  # graph, it leaves everything as it was.)
  convolutions = sum(layer.op == 'conv' and 'shortcut' not in layer.name for layer in network.graph.layers)
  fused = sum(count for name, count in after.items() if name.startswith('_FusedConv2D+BiasAdd'))
  assert after['BiasAdd'] == 0 and fused >= convolutions
  assert after['_FusedConv2D+BiasAdd+Relu'] >= sum(layer.op == 'add' for layer in network.graph.layers) + 1
  assert sum(after.values()) < sum(before.values()) and after['ReadVariableOp'] == 0 < before['ReadVariableOp']


def test_the_original_is_left_as_it_was_and_can_go_on(images):
  network = make()
  before = {name: v.numpy() for name, v in network.weights.items()}
  expected = network(images).numpy()
  folded = folding.folded(network)
  for name, value in before.items():
    np.testing.assert_array_equal(network.weights[name].numpy(), value)
  network(images, training=True)
  network.weights['init_conv/kernel'].assign(before['init_conv/kernel'] * 2)
  assert_close(folded(images).numpy(), expected)
  assert all(isinstance(w, np.ndarray) for w in folded.weights.values())
  assert folded.groups == network.groups and folded.trained == {}
  with pytest.raises(ValueError, match='trained'):
    folded(images, training=True)


def test_a_grouping_network_folds_without_its_assignments(images):
  network = networks.build(resnet_split.WideResNet(k=1, num_residual_units=1), with_assignments=True)
  folded = folding.folded(network)
  assert not any(name.startswith('group/') for name in folded.weights)
  assert_close(folded(images).numpy(), network(images).numpy())


def test_in_bfloat16_only_what_convolutions_use_is_rounded(images):
  exact = folding.folded(make())
  rounded = folding.folded(make(dtype=tf.bfloat16))
  for name, value in rounded.weights.items():
    rounded_too = name.endswith(('/kernel', '/biases')) and 'logits/' not in name
    assert value.dtype == (tf.bfloat16.as_numpy_dtype if rounded_too else np.float32), name
    np.testing.assert_array_equal(value, exact.weights[name].astype(value.dtype))
  logits = rounded(images).numpy()
  assert logits.dtype == np.float32
  assert_close(logits, exact(images).numpy(), 0.05)
  assert np.abs(logits - exact(images).numpy()).max() > 0


def test_the_constants_stand_on_the_devices_of_their_branches():
  folded = folding.folded(make())
  folded.devices = placement.place(folded.depths, counting.node_flops(folded), ['/CPU:0', '/CPU:1'])
  step = tf.function(folded.__call__, input_signature=[tf.TensorSpec([None, 32, 32, 3])])
  nodes = step.get_concrete_function().graph.as_graph_def().node
  placed = collections.Counter(n.device[-1] for n in nodes if n.op == 'Const' and n.attr['dtype'].type == 1)  # floats
  expected = collections.Counter('1' if name.startswith('branch_1/') else '0' for name in folded.weights)
  assert placed == expected and min(expected.values()) > 20
