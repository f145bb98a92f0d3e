"""network.py, hardening.py, counting.py: what is computed, what hardening drops and keeps, counts, placing, parts."""

import functools

import helpers
import numpy as np
import pytest
import tensorflow as tf
from networks import (
  SPLITS,
  build,
  config_of,
  drop_between_groups,
  even_groups,
  grouping,
  images,
  random_groups,
  scramble,
)

import utils
from splitnet.common.errors import UserError
from splitnet.network import counting, dropout, folding, hardening, layers
from splitnet.network import graph as graphs
from splitnet.network.network import create

# --- counting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('split, branch_input', [('1-1-1', 'group'), ('1-2-2', 'all'), ('2-3-5', 'group')])
def test_counts_are_what_the_graph_computes(split, branch_input, monkeypatch):
  """Multiply-adds read off the traced convolutions and products, whatever the code believes its layers to be."""
  monkeypatch.setattr(layers, 'CHANNEL_MULTIPLE', 1)  # those with the zeros beside odd groups are not counted
  config = config_of(split, branch_input=branch_input)
  network = build(config, groups=None if split == '1-1-1' else random_groups(config.graph()))
  traced = tf.function(network).get_concrete_function(tf.TensorSpec([1, 32, 32, 3]))
  flops = 0
  for op in traced.graph.get_operations():
    if op.type == 'Conv2D':
      height, width, inputs, _ = op.inputs[1].shape
      flops += 2 * int(np.prod(op.outputs[0].shape)) * height * width * inputs
    elif op.type == 'MatMul':
      flops += 2 * int(np.prod(op.outputs[0].shape)) * op.inputs[1].shape[0]
  convolutions = [c for c in counting.counts(network) if c.op != 'batch_norm']
  biases = 2 * network.graph.classes.size
  assert sum(c.flops for c in convolutions) == flops + biases


# --- hardening preserves the function ------------------------------------------------------------------------------


# Split, k, num_residual_units. With k = 1 unit_1_0 has no shortcut: its input, in group order, is added as it is.
HARDENED = [
  ('1-1-4', 1, 1), ('1-1-4', 2, 1), ('1-2-2', 1, 2), ('1-2-2', 2, 1), ('2-2-2', 1, 1), ('2-2-2', 1, 3), ('2-2-2', 2, 2),
  ('2-4-4', 1, 2), ('2-4-4', 2, 1), ('2-3-5', 1, 2), ('2-3-5', 2, 1), ('3-3-3', 1, 1), ('1-3-5', 1, 1),
]  # fmt: skip


@pytest.mark.parametrize('branch_input', ['group', 'all'])
@pytest.mark.parametrize('split, k, num_residual_units', HARDENED)
def test_hardening_preserves_the_function(split, k, num_residual_units, branch_input):
  dense = grouping(config_of(split, k=k, num_residual_units=num_residual_units, branch_input=branch_input), seed=3)
  hard = hardening.harden(dense)
  sizes = [utils.group_sizes(hard.groups[n], u.groups) for n, u in dense.graph.units.items() if u.groups > 1]
  assert sizes and any(s.max() != s.min() for s in sizes)  # the test is of uneven groups
  x = images()
  assert np.abs(dense(x) - hard(x)).max() > 1e-3  # the weights between the groups did something
  drop_between_groups(dense, hard.groups)

  expected, ours = dense(x).numpy(), hard(x).numpy()
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(ours, expected, atol=1e-4)
  # With the batch's own statistics, and the moving averages that the step leaves behind.
  expected, ours = dense(x, training=True).numpy(), hard(x, training=True).numpy()
  np.testing.assert_allclose(ours, expected, atol=1e-4)
  for layer in dense.graph.layers:
    if layer.op != 'batch_norm':
      continue
    for branch in range(hard.branches(layer)):
      chosen = hard.members(dense.graph.read(layer), layer.depth, branch)
      for part in ('/mu', '/sigma', '/beta', '/gamma'):
        np.testing.assert_allclose(
          hard.weights[hard.prefix(layer, branch) + part], dense.weights[layer.name + part].numpy()[chosen],
          atol=1e-4, err_msg=layer.name + part,
        )  # fmt: skip
  # ... so that inference after it agrees as well.
  np.testing.assert_allclose(hard(x), dense(x), atol=1e-4)


@pytest.mark.parametrize('branch_input', ['group', 'all'])
def test_hardening_preserves_the_gradients(branch_input):
  """The kept weights of both networks get the same gradient, so fine-tuning goes on where grouping was."""
  dense = grouping(config_of('2-4-4', num_residual_units=1, branch_input=branch_input), seed=4)
  hard = hardening.harden(dense)
  drop_between_groups(dense, hard.groups)
  x, labels = images(), tf.constant([0, 5, 7, 19])

  def gradients(network):
    names = [n for n in network.trained if not n.startswith('group/')]
    with tf.GradientTape() as tape:
      logits = network(x, training=True)
      loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    return dict(zip(names, tape.gradient(loss, [network.weights[n] for n in names])))

  theirs, ours = gradients(dense), gradients(hard)
  for layer in dense.graph.weighted:
    name = layer.weights
    for branch in range(hard.branches(layer)):
      inputs = hard.members(dense.graph.read(layer), layer.depth, branch)
      outputs = hard.members(layer.units, layer.depth, branch)
      expected = theirs[name].numpy()[..., inputs, :][..., outputs]
      got = ours[hard.prefix(layer, branch) + name[len(layer.name) :]].numpy()
      np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max() + 1e-6, err_msg=name)


def test_hardening_leaves_the_grouping_network_alone():
  dense = grouping(config_of('2-2-2'))
  before = {name: v.numpy() for name, v in dense.weights.items()}
  hard = hardening.harden(dense)
  for v in hard.weights.values():
    v.assign_add(tf.ones_like(v))
  assert all(np.array_equal(before[name], v) for name, v in dense.weights.items())


def test_what_grouping_would_harden_into_now_is_counted_without_hardening():
  dense = grouping(config_of('2-4-4'), seed=3)
  counts = counting.counts(graphs.Tree(dense.graph, hardening.present_groups(dense)))
  assert counts == counting.counts(hardening.harden(dense))


@pytest.mark.parametrize('empty', ['split_q1', 'split_p2', 'split_r31'])
def test_an_empty_group_names_the_assignment_and_the_cure(empty):
  dense = grouping(config_of('2-2-2'))
  alpha = dense.weights[f'group/{empty}/alpha']
  alpha.assign(np.stack([np.ones(alpha.shape[1]), np.zeros(alpha.shape[1])]))
  with pytest.raises(UserError) as error:
    hardening.harden(dense)
  assert empty in str(error.value) and '--gamma3' in str(error.value) and 'group 1 of 2' in str(error.value)
  assert '\n' not in str(error.value)


# --- the evaluation graph of a split network -----------------------------------------------------------------------


def shuffling_ops(network):
  """The ops of the traced evaluation, nested functions included, that gather, scatter or transpose anything."""
  graph = tf.function(network).get_concrete_function(tf.TensorSpec([4, 32, 32, 3])).graph
  definition = graph.as_graph_def(add_shapes=True)
  nodes = list(definition.node) + [node for f in definition.library.function for node in f.node_def]
  assert any(node.op == 'Conv2D' for node in nodes)
  words = ('gather', 'transpose', 'scatter', 'permut', 'shuffle', 'reverse', 'onehot', 'einsum')
  return [node for node in nodes if any(word in node.op.lower() for word in words)]


@pytest.mark.parametrize('split, branch_input', [('1-1-4', 'group'), ('1-2-2', 'all'), ('2-3-5', 'group')])
def test_a_split_network_only_reorders_its_logits(split, branch_input):
  config = config_of(split, branch_input=branch_input)
  found = shuffling_ops(build(config, groups=random_groups(config.graph())))
  assert len(found) == 1 and found[0].op.startswith('Gather'), [node.op for node in found]
  shape = found[0].attr['_output_shapes'].list.shape[0]
  assert [d.size for d in shape.dim] == [4, config.num_classes]
  assert shuffling_ops(build(config, groups=even_groups(config.graph()))) == []


def test_logits_are_in_the_order_of_the_labels():
  # Each class's bias says which class it is; without weights nothing else reaches the logits.
  dense = grouping(config_of('2-3-5'))
  dense.weights['logits/fc/weights'].assign(tf.zeros_like(dense.weights['logits/fc/weights']))
  dense.weights['logits/fc/biases'].assign(np.arange(20.0))
  hard = hardening.harden(dense)
  assert not np.all(np.diff(hard.groups['split_q1']) >= 0)
  np.testing.assert_array_equal(hard(images(2)), [np.arange(20.0)] * 2)


# --- what the regularisers see -------------------------------------------------------------------------------------


def saturate(network):
  """Makes every assignment exactly one-hot, with the same hard groups."""
  for name, variable in network.weights.items():
    if name.endswith('/alpha'):
      chosen = utils.hard_groups(variable)
      variable.assign(np.where(np.arange(variable.shape[0])[:, None] == chosen, 200.0, -200.0))
  return network


@pytest.mark.parametrize('branch_input', ['group', 'all'])
@pytest.mark.parametrize('split', SPLITS)
def test_the_weight_split_sees_exactly_what_hardening_drops(split, branch_input):
  network = saturate(grouping(config_of(split, branch_input=branch_input)))
  groups = graphs.hard_groups_of(network.graph, network.weights)
  with tf.GradientTape() as tape:
    terms = utils.regularisers(network.split_layers())['weight_split_terms']
    total = tf.add_n(list(terms.values()))
  layers = [layer for layer in network.graph.weighted if network.graph.branches(layer) > 1]
  kernels = [network.weights[layer.weights] for layer in layers]
  gradients = tape.gradient(total, kernels)
  for layer, gradient in zip(layers, gradients):
    dropped = ~hardening.kept_weights(network.graph, layer, groups)
    # Nothing dropped, no term: such as a branching whose children read all channels.
    assert (layer.name in terms) == dropped.any(), layer.name
    if not dropped.any():
      assert gradient is None
      continue
    assert float(terms[layer.name]) > 0.01
    # A weight is pulled to zero if and only if hardening drops it.
    gradient = gradient.numpy()
    window = gradient.reshape(-1, *dropped.shape)
    assert (np.abs(window).max(0)[dropped] > 0).all(), layer.name
    assert (window[:, ~dropped] == 0).all(), layer.name
  drop_between_groups(network, groups)
  after = utils.regularisers(network.split_layers())['weight_split_terms']
  assert max(float(term) for term in after.values()) < 1e-8


def test_terms_are_about_one_at_the_start():
  # Large layers, so that fresh weights are near their expectation.
  terms = utils.regularisers(build(config_of('2-4-4', k=2), with_assignments=True).split_layers())
  for name in ('overlap', 'weight_split', 'uniform'):
    assert float(terms[name]) == pytest.approx(1, abs=0.03), name
    assert all(float(t) == pytest.approx(1, abs=0.1) for t in terms[name + '_terms'].values()), name


# --- placement -----------------------------------------------------------------------------------------------------

PLACED = """
from splitnet.parallel import placement
from splitnet.network import counting, hardening
import networks as t
found = []
for split, branch_input, counts in (('2-2-2', 'group', (1, 3)), ('2-4-4', 'all', (2, 3, 4)), ('1-2-2', 'group', (2,))):
  dense = t.grouping(t.config_of(split, num_residual_units=1, branch_input=branch_input))
  logits = hardening.harden(dense)(t.images())
  for count in counts:
    placed = hardening.harden(dense, place=placement.placer(devices[:count]))
    program = tf.function(placed)
    difference = float(tf.reduce_max(tf.abs(program(t.images()) - logits)))
    ops = program.get_concrete_function(t.images()).graph.get_operations()
    expected = placement.place(placed.depths, counting.node_flops(placed), devices[:count])
    layers = {n: v.device[-1] for n, v in placed.weights.items() if n.endswith('unit_3_0/conv_1/kernel')}
    found.append([split, count, difference, sorted({op.device[-1] for op in ops if op.type == 'Conv2D'}),
                  [device for _, device in sorted(layers.items())],
                  {depth: [name[-1] for name in names] for depth, names in expected.items()}])
"""


@pytest.mark.slow
def test_logits_do_not_depend_on_the_placement():
  found = helpers.on_logical_devices(4, PLACED)
  assert len(found) == 6
  for split, count, difference, on, unit_3, expected in found:
    assert difference <= 1e-5, (split, count, difference)
    assert unit_3 == expected['unit_3'], (split, count)
    assert on == sorted({name for names in expected.values() for name in names}), (split, count)
    assert len(on) == min(count, int(split[-1]))


# --- channels of zeros beside odd groups ---------------------------------------------------------------------------


def trained_once(network):
  """What a network of odd groups computes: logits in evaluation and training, gradients, moving averages."""
  found = {'evaluation': network(images())}
  with tf.GradientTape() as tape:
    found['training'] = network(images(), training=True)
    loss = tf.reduce_sum(found['training'] * tf.random.stateless_normal([1, network.graph.classes.size], [5, 6]))
  found.update(zip(network.trained, tape.gradient(loss, list(network.trained.values()))))
  found.update({name: v for name, v in network.weights.items() if name.endswith(('/mu', '/sigma'))})
  return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.parametrize('split, branch_input', [('2-2-2', 'group'), ('1-2-2', 'all'), ('2-3-5', 'group')])
def test_channels_of_zeros_change_nothing_but_rounding(split, branch_input, monkeypatch):
  config = config_of(split, branch_input=branch_input)
  groups = random_groups(config.graph())
  widths = {}

  def computed(multiple):
    monkeypatch.setattr(layers, 'CHANNEL_MULTIPLE', multiple)
    network = build(config, groups=groups)
    graph = tf.function(network).get_concrete_function(tf.TensorSpec([1, 32, 32, 3])).graph
    widths[multiple] = {op.outputs[0].shape[-1] for op in graph.get_operations() if op.type == 'Conv2D'}
    return trained_once(network)

  plain, longer = computed(1), computed(16)
  assert any(width % 16 for width in widths[1]) and not any(width % 16 for width in widths[16])
  assert plain.keys() == longer.keys()
  for name, value in plain.items():
    assert longer[name].shape == value.shape
    assert np.abs(longer[name] - value).max() <= 1e-4 * np.abs(value).max() + 1e-6, name


# --- precision, dropout, batch norm, variables ---------------------------------------------------------------------


def test_bfloat16_is_near_float32_and_keeps_float32_variables():
  dense = grouping(config_of('2-2-2'))
  full, half = hardening.harden(dense), hardening.harden(dense, dtype=tf.bfloat16)
  assert {v.dtype for v in half.weights.values()} == {tf.float32}
  for training in (False, True):
    expected, ours = full(images(8), training=training), half(images(8), training=training)
    assert ours.dtype == tf.float32
    difference, spread = np.abs(ours - expected), np.std(expected - np.mean(expected, 0))
    assert 1e-6 < difference.max() < 0.1  # it did compute in fewer bits
    assert difference.mean() < 0.1 * spread  # an image's logits still tell it from the others


@functools.lru_cache(None)
def dropout_network(split):
  return grouping(config_of(split, num_residual_units=1))


def dropped_out(split, seed, training=True, keep_prob=0.5):
  network = dropout_network(split)
  logits = network(images(), training=training, dropout_seed=tf.constant([seed, 1]), keep_prob=keep_prob)
  return logits.numpy()


def test_dropout_is_off_in_evaluation():
  network = dropout_network('1-2-2')
  np.testing.assert_array_equal(dropped_out('1-2-2', 1, training=False), network(images()))
  np.testing.assert_array_equal(dropped_out('1-2-2', 1, keep_prob=1.0), network(images(), training=True))


def test_dropout_follows_its_seed():
  one, again, other = dropped_out('1-2-2', 1), dropped_out('1-2-2', 1), dropped_out('1-2-2', 2)
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 0.01
  assert np.abs(one - dropped_out('1-2-2', 1, keep_prob=1.0)).max() > 0.01


@pytest.mark.parametrize('split, masks', [('1-1-4', 1), ('1-2-2', 5), ('2-2-2', 9)])
def test_dropout_is_before_every_split_layer_and_no_other(monkeypatch, split, masks):
  # Two a block (before conv_1, which the shortcut shares, and before conv_2), one before the logits; each with a seed
  # of its own.
  seeds, draw = [], tf.random.stateless_uniform

  def uniform(shape, seed, *more):
    seeds.append(tuple(seed.numpy()))
    return draw(shape, seed, *more)

  network = grouping(config_of(split))
  monkeypatch.setattr(tf.random, 'stateless_uniform', uniform)
  network(images(), training=True, dropout_seed=tf.constant([3, 4]), keep_prob=0.75)
  assert len(seeds) == masks == len(set(seeds))


@pytest.mark.parametrize('keep_prob', [0.5, 0.75, 0.9, 0.001])
@pytest.mark.parametrize('channels', [64, 7])
def test_dropout_keeps_the_share_that_it_says_and_the_mean(keep_prob, channels):
  x = tf.ones([100, 10, 10, channels])
  drop = dropout.Dropout(tf.constant([1, 2]), keep_prob)
  one, other = drop(x).numpy(), drop(x).numpy()
  deviation = (keep_prob * (1 - keep_prob) / x.numpy().size) ** 0.5
  for y in (one, other):
    assert set(np.unique(y)) == {0, np.float32(drop.factor)}
    assert abs((y > 0).mean() - keep_prob) < 5 * deviation
  assert drop.factor * keep_prob == pytest.approx(1, abs=0.02)
  # Neighbours and the two masks are independent: the share kept in both is the product.
  for pair in ((one, other), (one[..., 1:], one[..., :-1]), (one[:, 1:], one[:, :-1])):
    both = np.logical_and(*pair).mean()
    assert abs(both - keep_prob**2) < 6 * (keep_prob**2 * (1 - keep_prob**2) / pair[0].size) ** 0.5 + 1e-12


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
def test_dropout_of_relu_is_relu_times_a_mask_and_so_is_its_gradient(dtype):
  x = tf.cast(tf.random.stateless_normal([8, 4, 4, 6], [1, 2]), dtype)
  upstream = tf.cast(tf.random.stateless_normal(x.shape, [3, 4]), dtype)
  mask = tf.cast(dropout.Dropout(tf.constant([5, 6]), 0.5)(tf.ones_like(x)) > 0, dtype)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = dropout.Dropout(tf.constant([5, 6]), 0.5).relu(x)
  np.testing.assert_array_equal(y, tf.nn.relu(x) * mask)
  expected = upstream * mask * tf.cast(x > 0, dtype)
  np.testing.assert_array_equal(tape.gradient(y, x, upstream), expected)
  assert 0 < np.count_nonzero(expected) < x.numpy().size / 2


def test_dropout_leaves_the_trunk_alone():
  # What a batch norm saw is in its moving average: up to the branching it is the same with and without dropout.
  means = []
  for keep_prob in (1.0, 0.5):
    network = grouping(config_of('1-2-2', num_residual_units=1))
    network(images(), training=True, dropout_seed=tf.constant([1, 1]), keep_prob=keep_prob)
    means.append({n: v.numpy() for n, v in network.weights.items() if n.endswith('/mu')})
  differing = [name for name in means[0] if not np.array_equal(means[0][name], means[1][name])]
  assert differing == ['unit_3_0/bn_2/mu', 'unit_last/bn/mu']


@pytest.mark.slow
def test_dropout_preserves_the_expectation():
  # 1-1-4 drops only the features, in which the logits are linear, so their mean over masks is what they are without.
  network = grouping(config_of('1-1-4', num_residual_units=1))
  program = tf.function(lambda seed: network(images(2, 8), training=True, dropout_seed=seed, keep_prob=0.5))
  drawn = np.stack([program(tf.constant([seed, 0])) for seed in range(400)])
  error = np.abs(drawn.mean(0) - network(images(2, 8), training=True))
  assert (error < 5 * drawn.std(0) / 20 + 1e-6).all()
  # Inverted dropout at 1/2 adds each feature's own contribution as a deviation: it is not merely off.
  assert drawn.std(0).min() > 1e-3


def test_batch_norm_averages_the_biased_variance_with_decay_0_9():
  network = grouping(config_of('1-1-1'))
  old_mean, old_variance = (network.weights['unit_1_0/bn_1/' + part].numpy() for part in ('mu', 'sigma'))
  x = images(2, 4)  # few values, so that Bessel's correction is a visible 1/31
  kernel = network.weights['init_conv/kernel'].numpy().astype(np.float64)
  padded = np.pad(x.numpy().astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  seen = sum(padded[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3))
  network(x, training=True)
  mean, variance = seen.mean((0, 1, 2)), ((seen - seen.mean((0, 1, 2))) ** 2).mean((0, 1, 2))
  np.testing.assert_allclose(network.weights['unit_1_0/bn_1/mu'], 0.9 * old_mean + 0.1 * mean, atol=1e-5)
  np.testing.assert_allclose(network.weights['unit_1_0/bn_1/sigma'], 0.9 * old_variance + 0.1 * variance, atol=1e-5)
  kept = [network.weights['unit_1_0/bn_1/' + part].numpy() for part in ('mu', 'sigma')]
  network(x)  # evaluation leaves them alone
  np.testing.assert_array_equal(kept, [network.weights['unit_1_0/bn_1/' + part] for part in ('mu', 'sigma')])


@pytest.mark.parametrize('bn_no_scale', [True, False])
def test_which_variables_are_trained_and_decayed(bn_no_scale):
  network = build(config_of('2-2-2', bn_no_scale=bn_no_scale), with_assignments=True)
  scales = [name for name in network.trained if name.endswith('/gamma')]
  assert (scales == ['unit_last/bn/gamma']) == bn_no_scale
  assert len(scales) == (1 if bn_no_scale else 13)
  assert not any(name.endswith(('/mu', '/sigma')) for name in network.trained)
  alphas = ['p1', 'p2', 'p3', 'q1', 'r21', 'r22', 'r31', 'r32']
  assert sorted(n for n in network.trained if n.startswith('group/')) == [f'group/split_{a}/alpha' for a in alphas]
  decayed = {name for name, v in network.weights.items() if any(v is d for d in network.decayed)}
  assert decayed == {layer.weights for layer in network.graph.weighted}


def test_initial_values():
  network, same = (build(config_of('2-2-2', k=2), with_assignments=True, seed=5) for _ in range(2))
  other = build(config_of('2-2-2', k=2), with_assignments=True, seed=6)
  for name, v in network.weights.items():
    np.testing.assert_array_equal(v, same.weights[name])
    if name.endswith(('/kernel', '/weights', '/alpha')):
      assert not np.array_equal(v, other.weights[name])
      fan_in = np.prod(v.shape[:-1])
      std = 0.01 if name.endswith('/alpha') else (1 / fan_in) ** 0.5
      deviations = 5 / (2 * int(tf.size(v))) ** 0.5
      assert np.std(v) == pytest.approx(std, rel=deviations), name
      assert abs(np.mean(v)) < 5 * std / int(tf.size(v)) ** 0.5, name
    else:
      assert set(v.numpy()) == {1.0 if name.endswith(('/gamma', '/sigma')) else 0.0}, name


def test_a_split_network_has_no_assignments_to_learn():
  config = config_of('2-2-2')
  with pytest.raises(ValueError, match='nothing to assign'):
    build(config, groups=even_groups(config.graph()), with_assignments=True)


# --- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('folds', [False, True])
@pytest.mark.parametrize('split, branch_input', [('2-4-4', 'group'), ('2-3-5', 'all'), ('1-1-4', 'group')])
def test_parts_one_after_the_other_give_the_whole_networks_logits(split, branch_input, folds):
  graph = config_of(split, branch_input=branch_input).graph()
  tree = hardening.harden(scramble(create(graph, with_assignments=True)))
  tree = folding.folded(tree) if folds else tree
  images = np.random.RandomState(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  whole = tree(images).numpy()

  def children(depth, parents):
    return [b for b in range(tree.depths[depth]) if tree.reads(depth, b)[0] in parents]

  trunk = tree.part({'trunk': [0]})(images)
  assert trunk.shape[1:] == tree.output_spec('trunk', 0).shape[1:]
  logits, classes = [], []
  for branch in range(tree.depths['unit_2']):
    features = tree.part({'unit_2': [branch]}, copied=True)(trunk)
    assert features.shape[1:] == tree.output_spec('unit_2', branch).shape[1:]
    above = children('unit_3', [branch])
    part = tree.part({'unit_3': above, 'logits': children('logits', above)})
    logits.append(part(features))
    classes.append(part.leaf_classes())
  logits = np.concatenate(logits, 1)[:, np.argsort(np.concatenate(classes))]
  np.testing.assert_allclose(logits, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_a_part_reads_what_its_branch_reads_or_all_that_the_branch_below_wrote():
  graph = config_of('2-2-2').graph()
  tree = hardening.harden(scramble(create(graph, with_assignments=True)))
  images = np.random.RandomState(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  trunk = tree.part({'trunk': [0]})(images)
  part = tree.part({'unit_2': [1], 'unit_3': [1], 'logits': [1]})
  own = trunk[..., tree.reads('unit_2', 1)[1]]
  assert own.shape[1:] == part.input_spec.shape[1:] != trunk.shape[1:]
  np.testing.assert_array_equal(part(own), part(trunk))
