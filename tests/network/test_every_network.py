"""The same proofs for every network: what hardening, folding, parts and placing keep of what it computes."""

import collections
import itertools

import forking
import numpy as np
import pytest
import tensorflow as tf
from graphs import TINY, images, make_grouping, make_tree, tiny, values_of
from networks import assert_close, random_groups, scramble

import utils
from alexnet_split import AlexNet
from paper import partition
from resnet_split import ResNet18, WideResNet
from splitnet.network import counting, folding, grouping, hardening
from splitnet.network import network as networks
from splitnet.network.graph import Graph, Tree

# Even, merged unevenly (5 to 3 to 2), three ways, from the lowest depth.
CASES = [
  (AlexNet, '1-1-4', 'group'), (AlexNet, '2-4-8', 'group'), (AlexNet, '2-4-8', 'all'), (AlexNet, '2-2-2-2-2', 'group'),
  (AlexNet, '3-3-3', 'group'), (AlexNet, '1-2-3-3-5', 'all'), (AlexNet, '2-2-3-4-5', 'group'),
  (ResNet18, '1-1-3', 'group'), (ResNet18, '1-2-2', 'all'), (ResNet18, '2-2-2', 'group'), (ResNet18, '2-3-5', 'all'),
  (ResNet18, '3-3-3', 'group'), (ResNet18, '2-2-2-2-2', 'group'), (ResNet18, '2-2-3-3-5', 'all'),
  (WideResNet, '2-3-5', 'group'),
]  # fmt: skip
BY_CASE = pytest.mark.parametrize('kind, split, branch_input', CASES)


@BY_CASE
@pytest.mark.parametrize('training', [False, True])
def test_hardened_equals_grouping_without_the_weights_between_groups(kind, split, branch_input, training):
  grouping = make_grouping(kind, split, branch_input)
  graph, x = grouping.graph, images(grouping.graph)
  groups = hardening.present_groups(grouping)
  assert any(len(set(utils.group_sizes(groups[u.name], u.groups))) > 1 for u in graph.units.values() if u.groups > 1)
  before = grouping(x).numpy()
  assert np.abs(before - before[0]).max() > 0.1 * np.abs(before).max()  # the images matter
  for layer in graph.weighted:
    weights = grouping.weights[layer.weights]
    weights.assign(weights * hardening.kept_weights(graph, layer, groups))
  assert np.abs(before - grouping(x)).max() > 0.01 * np.abs(before).max()
  tree = hardening.harden(grouping)
  assert_close(tree(x, training=training), grouping(x, training=training), 1e-4)
  after = hardening.split_values(graph, groups, values_of(grouping))  # the moving averages have moved alike
  for name, value in values_of(tree).items():
    np.testing.assert_allclose(value, after[name], rtol=0, atol=1e-4 * max(1, np.abs(value).max()), err_msg=name)


@BY_CASE
def test_the_weights_that_are_dropped_are_those_that_no_branch_has(kind, split, branch_input):
  graph = tiny(kind, split, branch_input).graph()
  groups = random_groups(graph)
  tree = Tree(graph, groups)
  for layer in graph.weighted:
    in_branches = np.zeros((graph.read(layer).size, layer.units.size), bool)
    for branch in range(tree.branches(layer)):
      members = [tree.members(units, layer.depth, branch) for units in (graph.read(layer), layer.units)]
      in_branches[np.ix_(*members)] = True
    assert np.array_equal(hardening.kept_weights(graph, layer, groups), in_branches), layer.name
  total = counting.total(counting.counts(tree), everything=True)[0]
  assert total == sum(v.numpy().size for v in networks.create(graph, groups).trained.values())


@BY_CASE
def test_folding_changes_nothing_but_rounding(kind, split, branch_input):
  tree = make_tree(kind, split, branch_input)
  folded = folding.folded(tree)
  x = images(tree.graph)
  assert_close(folded(x), tree(x))
  if kind is not WideResNet:  # no batch norm of theirs reads a residual stream
    assert not [layer.name for layer in folded.graph.layers if layer.op == 'batch_norm']
    assert {name.split('/')[-1] for name in folded.weights} == {'kernel', 'biases', 'weights'}
    bare = [layer.name for layer in folded.graph.weighted if not layer.bias]
    assert all(name.endswith('/shortcut') for name in bare)


@BY_CASE
@pytest.mark.parametrize('folds', [False, True])
def test_branches_one_after_the_other_give_the_whole_networks_logits(kind, split, branch_input, folds):
  tree = make_tree(kind, split, branch_input)
  tree = folding.folded(tree) if folds else tree
  x, depths = images(tree.graph), list(tree.depths)
  outputs, logits, classes = {(depths[0], 0): tree.part({depths[0]: [0]})(x)}, [], []
  for below, depth in itertools.pairwise(depths):
    for branch in range(tree.depths[depth]):
      part = tree.part({depth: [branch]})
      assert set(part.weights) < set(tree.weights)
      outputs[depth, branch] = part(outputs[below, tree.reads(depth, branch)[0]])
      if depth == depths[-1]:
        logits.append(outputs[depth, branch])
        classes.append(part.leaf_classes())
      else:
        assert outputs[depth, branch].shape[1:] == tree.output_spec(depth, branch).shape[1:]
  assert_close(np.concatenate(logits, 1)[:, np.argsort(np.concatenate(classes))], tree(x))


@pytest.mark.slow
@pytest.mark.parametrize('kind, split, branch_input', [(AlexNet, '2-2-3', 'group'), (ResNet18, '1-2-2', 'all')])
def test_compiled_it_computes_the_same_and_learns_everything(kind, split, branch_input):
  tree = make_tree(kind, split, branch_input)
  x = images(tree.graph)
  assert_close(tf.function(tree.__call__)(x), tree(x))
  folded = folding.folded(tree)
  assert_close(tf.function(folded.__call__)(x), tree(x))

  @tf.function
  def gradients():
    with tf.GradientTape() as tape:
      logits = tree(x, training=True, dropout_seed=tf.constant([3, 4]), keep_prob=0.5)
      loss = tf.reduce_sum(logits * tf.random.stateless_normal(logits.shape, [5, 6]))
    return tape.gradient(loss, tree.trained)

  silent = [name for name, gradient in gradients().items() if gradient is None or not np.abs(gradient).max() > 0]
  assert not silent


@pytest.mark.parametrize('kind, split, branch_input', [CASES[1], CASES[5], CASES[9], CASES[13]])
def test_in_bfloat16_it_computes_the_same_roughly(kind, split, branch_input):
  exact = make_tree(kind, split, branch_input)
  rounded = networks.create(exact.graph, exact.groups, dtype=tf.bfloat16, values=values_of(exact))
  x = images(exact.graph)
  assert rounded(x).dtype == tf.float32
  assert_close(rounded(x), exact(x), 0.1)
  assert_close(folding.folded(rounded)(x), exact(x), 0.1)


ON_DEVICES = """
import helpers
import numpy as np
import tensorflow as tf
from graphs import AlexNet, ResNet18, images, make_tree, values_of
from splitnet.network import counting, folding
from splitnet.network import network as networks
from splitnet.parallel import devices, executor, placement

devices.configure(num_logical_devices=3)
names = devices.names()
assert len(names) == 3
for case in (AlexNet, '2-3-3'), (ResNet18, '1-3-3', 'all'):
  tree = make_tree(*case)
  place = lambda tree: placement.place(tree.depths, counting.node_flops(tree), names)
  placed = networks.create(tree.graph, tree.groups, values=values_of(tree), place=place)
  x = images(tree.graph)
  assert len({v.device for v in placed.weights.values()}) == 3
  for one, other in ((placed, tree), (folding.folded(placed), folding.folded(tree))):
    np.testing.assert_array_equal(one(x), other(x))
  folded = folding.folded(tree)
  for trunk in placement.TRUNKS:
    branches = executor.BranchExecutor(folded, names, tf.TensorSpec(x.shape), lambda images: images, trunk)
    assert len(branches.devices) == 3
    ((_, logits),) = branches.run([(0, x)])
    branches.close()
    expected = tree(x).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
  np.testing.assert_array_equal(placed(x, training=True), tree(x, training=True))
"""


@pytest.mark.slow
def test_placed_on_three_devices_it_computes_the_same():
  done = forking.run(['-c', ON_DEVICES])
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('kind, split', [(AlexNet, '2-3-5'), (AlexNet, '2-2-2-2-2'), (ResNet18, '2-2-2-2-2')])
def test_every_assignment_is_regularised_once_and_gets_a_gradient(kind, split):
  network = networks.create(tiny(kind, split).graph(), with_assignments=True)
  with tf.GradientTape() as tape:
    layers = network.split_layers()
    terms = utils.regularisers(layers)
    loss = terms['overlap'] + terms['weight_split'] + terms['uniform']
  alphas = [v for name, v in network.weights.items() if name.startswith('group/')]
  assert sum(len(layer.counted) for layer in layers) == len(alphas)
  assert all(np.abs(gradient).max() > 0 for gradient in tape.gradient(loss, alphas))
  assert all(abs(float(terms[name]) - 1) < 0.05 for name in ('overlap', 'weight_split', 'uniform'))


@BY_CASE
def test_groups_are_carried_down_from_the_last_layer(kind, split, branch_input):
  """Of a dense network that is a tree already, the classes' groups give those of all units."""
  graph, rng = tiny(kind, split, branch_input, num_classes=16).graph(), np.random.default_rng(0)
  even = grouping.even_features(graph, np.zeros(16, np.int64)) | {
    graph.classes.name: np.arange(16) * graph.classes.groups // 16
  }
  groups = {name: rng.permutation(members) for name, members in even.items()}
  values = values_of(networks.create(graph))
  for layer in graph.weighted:
    values[layer.weights] *= hardening.kept_weights(graph, layer, groups)
  found = grouping.carried_down(graph, values, groups[graph.classes.name])
  assert found.keys() == groups.keys()
  for name, expected in groups.items():
    np.testing.assert_array_equal(found[name], expected, err_msg=name)


@BY_CASE
def test_a_spectral_start_has_every_assignment(kind, split, branch_input):
  graph = tiny(kind, split, branch_input).graph()
  grouping_network = networks.create(graph, with_assignments=True)
  alphas = grouping.spectral_start(graph, values_of(networks.create(graph, seed=3)))
  assert {f'group/{name}/alpha' for name in alphas} == {n for n in grouping_network.weights if n.startswith('group/')}
  for name, alpha in alphas.items():
    grouping_network.weights[f'group/{name}/alpha'].assign(alpha)
    sizes = utils.group_sizes(utils.hard_groups(alpha), len(alpha))
    assert alpha.shape == (graph.units[name].groups, graph.units[name].size) and np.ptp(sizes) <= 1
  hardening.harden(grouping_network)


@pytest.mark.parametrize('kind, split, dropping', [
  (AlexNet, '1-1-1', ['fc6/relu', 'fc7/relu']),
  (AlexNet, '2-4-8', ['fc6/relu', 'fc7/relu']),
  (AlexNet, '2-2-2-2-2', ['fc6/relu', 'fc7/relu']),
  (ResNet18, '1-1-1', []),
  (ResNet18, '1-2-2', ['conv5_1/bn_1/relu', 'conv5_2/bn_1/relu', 'fc']),
])  # fmt: skip
def test_where_values_are_dropped(kind, split, dropping):
  assert [layer.name for layer in tiny(kind, split).graph().layers if layer.dropout] == dropping


def test_dropout_in_training_drops_half_of_what_fc6_and_fc7_write_and_doubles_the_rest():
  tree = make_tree(AlexNet, '2-4-8')
  x = tree.part({'trunk': [0], 'conv4': [0], 'conv5': [0]})(images(tree.graph, 16))
  for depth in ('fc6', 'fc7'):
    part = tree.part({depth: [0]})
    kept = part(x).numpy()
    dropped = part(x, training=True, dropout_seed=tf.constant([3, 4]), keep_prob=0.5).numpy()
    factors = dropped[kept > 0] / kept[kept > 0]
    assert collections.Counter(np.round(factors, 4)).keys() == {0.0, 2.0}
    assert 0.9 < factors.mean() < 1.1 and not dropped[kept == 0].any()
    np.testing.assert_array_equal(part(x, dropout_seed=tf.constant([3, 4]), keep_prob=0.5), kept)
    x = part(x)


@pytest.mark.parametrize('kind', [AlexNet, ResNet18])
@pytest.mark.parametrize('cut', [partition.horizontal, partition.vertical])
def test_partitions_compute_the_dense_logits(kind, cut):
  dense = scramble(networks.create(tiny(kind, '1-1-1').graph()))
  x = images(dense.graph)
  assert_close(cut(dense, ['/CPU:0'] * 3)(x), dense(x))


@pytest.mark.parametrize('kind', TINY)
def test_a_graph_is_plain_data(kind):
  graph = tiny(kind, '2-3-5', 'all').graph()
  assert Graph.from_dict(graph.to_dict()) == graph
