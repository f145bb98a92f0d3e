"""The proofs of a split network hold for graphs of every operation, not only for wide residual networks."""

import json

import networks
import numpy as np
import pytest
import tensorflow as tf

from paper import partition
from splitnet.common.errors import UserError
from splitnet.network import counting, folding, grouping, hardening
from splitnet.network.builder import Builder
from splitnet.network.graph import Graph, Tree
from splitnet.network.network import create

GRAPHS = {'chain': networks.chain, 'post': networks.post_activation}
GROUPS = [(2, 2, 4), (1, 2, 3), (2, 3, 5), (1, 1, 3)]
CASES = [(name, groups, branch_input) for name in GRAPHS for groups in GROUPS for branch_input in ('group', 'all')]


def images(graph, batch=4):
  shape = (batch, graph.image_size, graph.image_size, 3)
  return tf.constant(np.random.RandomState(0).normal(size=shape), tf.float32)


def grouping_network(name, groups, branch_input='group'):
  graph = GRAPHS[name](groups, branch_input=branch_input)
  return networks.scramble(create(graph, with_assignments=True), 3)


@pytest.mark.parametrize('name, groups, branch_input', CASES)
def test_hardening_preserves_the_function(name, groups, branch_input):
  dense = grouping_network(name, groups, branch_input)
  x, tree = images(dense.graph), hardening.harden(dense)
  assert np.abs(dense(x) - tree(x)).max() > 1e-3
  networks.drop_between_groups(dense, tree.groups)
  for training in (False, True):
    expected = dense(x, training=training).numpy()
    np.testing.assert_allclose(tree(x, training=training), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
  assert counting.counts(tree) == counting.counts(Tree(dense.graph, tree.groups))


@pytest.mark.parametrize('name, groups, branch_input', CASES)
def test_folding_changes_nothing_and_leaves_no_batch_norm_behind_a_convolution(name, groups, branch_input):
  network = hardening.harden(grouping_network(name, groups, branch_input))
  folded, x = folding.folded(network), images(network.graph)
  expected = network(x).numpy()
  np.testing.assert_allclose(folded(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
  assert not any(layer.op == 'batch_norm' for layer in folded.graph.layers)


@pytest.mark.parametrize('name, groups', [('chain', (2, 2, 4)), ('post', (2, 3, 5)), ('post', (1, 2, 3))])
def test_parts_give_the_whole_networks_logits(name, groups):
  network = hardening.harden(grouping_network(name, groups))
  x, names = images(network.graph), list(network.depths)
  whole = network(x).numpy()
  found, order = [], []

  def go(depth, branch, features):
    """Follows the tree upwards, one branch after the other."""
    part = network.part({names[depth]: [branch]}, copied=True)
    y = part(features)
    if depth == len(names) - 1:
      found.append(y)
      order.extend(part.leaf_classes())
      return
    for child in range(network.depths[names[depth + 1]]):
      if network.reads(names[depth + 1], child)[0] == branch:
        go(depth + 1, child, y)

  go(0, 0, x)
  np.testing.assert_allclose(
    np.concatenate(found, 1)[:, np.argsort(order)], whole, rtol=0, atol=1e-5 * np.abs(whole).max()
  )


@pytest.mark.parametrize('name', GRAPHS)
@pytest.mark.parametrize('kind', [partition.horizontal, partition.vertical])
def test_partitions_compute_the_dense_logits(name, kind):
  dense = networks.scramble(create(GRAPHS[name]((1, 1, 1))))
  x, expected = images(dense.graph), dense(images(dense.graph)).numpy()
  computed = kind(dense, ['/CPU:0'] * 3)(x)
  np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('name', GRAPHS)
def test_a_spectral_start_gives_every_unit_a_group(name):
  dense = networks.scramble(create(GRAPHS[name]((2, 2, 4))))
  values = {n: v.numpy() for n, v in dense.weights.items()}
  alphas = grouping.spectral_start(dense.graph, values)
  assert set(alphas) == {n for n, units in dense.graph.units.items() if units.groups > 1}
  for alpha in alphas.values():
    assert np.ptp(np.bincount(alpha.argmax(0), minlength=len(alpha))) <= 1


@pytest.mark.parametrize('name', GRAPHS)
def test_dropout_drops_where_the_graph_says(name):
  network = grouping_network(name, (2, 2, 4))
  x, seed = images(network.graph), tf.constant([1, 2])
  plain, dropped = network(x, training=True), network(x, training=True, dropout_seed=seed, keep_prob=0.5)
  assert np.array_equal(plain, dropped) == (name == 'post')
  # What is kept is doubled, so that the mean over masks is what it is without: the last layer is linear in it.
  if name == 'chain':
    drawn = [network(x, True, tf.constant([i, 0]), 0.5).numpy() for i in range(200)]
    assert (np.abs(np.mean(drawn, 0) - plain) < 5 * np.std(drawn, 0) / 200**0.5 + 1e-6).all()


@pytest.mark.parametrize('name', GRAPHS)
def test_a_graph_comes_back_from_json(name):
  graph = GRAPHS[name]((2, 3, 5))
  assert Graph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph
  assert graph.split == '2-3-5' and graph.classes.size == 12 and graph.image_size == 16


def test_the_papers_name_of_a_split_leaves_out_depths_that_nothing_divides():
  def split(*groups):
    b = Builder('deep', {'trunk': 1, **{f'd{i}': count for i, count in enumerate(groups)}}, 8)
    x = b.image
    for i in range(len(groups)):
      x = b.conv(f'conv{i}', x, b.border(f'p{i}', 16, f'd{i}'), 3)
      x = b.mean(x) if i == len(groups) - 1 else x
      b.at(f'd{i}')
    b.linear('fc', x, b.inner('classes', 16))
    return b.graph().split

  assert split(2, 4, 8) == split(1, 1, 2, 4, 8) == '2-4-8'
  assert split(2, 2, 2, 2, 2) == '2-2-2-2-2' and split(1, 1, 1, 1, 2) == '1-1-2'


@pytest.mark.parametrize('make, error, words', [
  (lambda: networks.chain((4, 2, 4)), UserError, ['4 branches at conv2', 'only 2', 'fc1']),
  (lambda: networks.chain((1, 1, 13)), UserError, ['13 groups', 'fc2', '12 units']),
  (lambda: networks.chain(image_size=2), UserError, ['2 x 2 pixels', 'chain', 'window of']),
  (lambda: _normalising_split_units(), UserError, ['neighbouring channels', '2 groups']),
  (lambda: _reading_two(), ValueError, ['cross the border']),
  (lambda: _adding_others(), ValueError, ['other units']),
  (lambda: _skipping(), ValueError, ['reads']),
])  # fmt: skip
def test_what_a_graph_refuses(make, error, words):
  with pytest.raises(error) as e:
    make()
  assert all(word in str(e.value) for word in words) and '\n' not in str(e.value), e.value


def _builder(**depths):
  return Builder('wrong', {'trunk': 1, **depths}, 8)


def _end(b, x, depth='fc'):
  x = b.mean(x)
  b.at(depth)
  b.linear('fc', x, b.inner('classes', 4))
  return b.graph()


def _normalising_split_units():
  b = _builder(fc=2)
  return _end(b, b.lrn(b.conv('conv', b.image, b.border('p', 8, 'fc'), 3)))


def _reading_two():
  b = _builder(top=2, fc=2)
  units = b.border('p', 8, 'top')
  x = b.conv('one', b.image, units, 3)
  y = b.relu(x)
  b.at('top')
  return _end(b, b.add('sum', x, y))


def _adding_others():
  b = _builder(fc=2)
  x = b.conv('one', b.image, b.shared('a', 8), 3)
  return _end(b, b.add('sum', x, b.conv('two', x, b.shared('b', 8), 3)))


def _skipping():
  b = _builder(top=2, fc=2)
  x = b.conv('one', b.image, b.shared('a', 8), 3)
  return _end(b, x)
