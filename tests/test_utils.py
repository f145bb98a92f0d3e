"""Tests each formula of utils.py against loops over its symbols, in float64."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import utils

SHAPES = [(2, 5), (3, 7), (5, 6)]  # groups, units


def soft(groups, units, seed=0):
  """A random soft assignment whose columns sum to 1."""
  logits = np.random.RandomState(seed).normal(size=(groups, units)) * 2
  return np.exp(logits) / np.exp(logits).sum(0)


def one_hot(groups_of_units, groups):
  return (np.arange(groups)[:, None] == np.asarray(groups_of_units)[None, :]).astype(np.float64)


def undecided(groups, units):
  return np.full((groups, units), 1.0 / groups)


def overlap(q):
  return utils.overlaps([q])[0]


def uniform(q):
  return utils.uniforms([q])[0]


def weight_split(kernel, p, q):
  return utils.weight_splits([kernel], [p], [q])[0]


# --- merging -------------------------------------------------------------------------------------------------------


def test_merge_sizes_follow_the_released_rule():
  for groups in range(1, 10):
    for merged in range(1, groups + 1):
      sizes = utils.merge_sizes(groups, merged)
      # "The first merged group takes ceil(N / M) consecutive groups, and so on" with the rest.
      expected, left = [], groups
      for remaining in range(merged, 0, -1):
        expected.append(-(-left // remaining))
        left -= expected[-1]
      assert list(sizes) == expected
      assert list(utils.parents(groups, merged)) == [g for g, size in enumerate(expected) for _ in range(size)]
  assert list(utils.merge_sizes(5, 3)) == [2, 2, 1]
  assert list(utils.parents(5, 3)) == [0, 0, 1, 1, 2]
  assert list(utils.parents(3, 2)) == [0, 0, 1]


@pytest.mark.parametrize('groups, merged', [(2, 3), (2, 0), (1, -1)])
def test_merging_into_more_groups_or_none_is_an_error(groups, merged):
  with pytest.raises(ValueError, match=f'cannot merge {groups} groups into {merged}'):
    utils.merge_sizes(groups, merged)


@pytest.mark.parametrize('groups, merged', [(2, 1), (3, 2), (4, 2), (5, 3), (5, 2), (7, 3), (4, 4)])
def test_merge_assignment_sums_consecutive_groups(groups, merged):
  q = soft(groups, 6)
  expected = np.zeros((merged, 6))
  for g in range(groups):
    expected[utils.parents(groups, merged)[g]] += q[g]
  ours = utils.merge_assignment(tf.constant(q), merged).numpy()
  np.testing.assert_allclose(ours, expected, rtol=1e-12)
  np.testing.assert_allclose(ours.sum(0), 1, rtol=1e-12)


# --- overlap and uniform -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('groups, units', SHAPES)
def test_overlap_and_uniform_match_their_formulas(groups, units):
  q = soft(groups, units)
  pairs = sum(q[g] @ q[h] for g, h in itertools.combinations(range(groups), 2))
  np.testing.assert_allclose(overlap(tf.constant(q)), pairs / (units * (groups - 1) / (2 * groups)), rtol=1e-12)
  squares = sum(q[g].sum() ** 2 for g in range(groups))
  np.testing.assert_allclose(uniform(tf.constant(q)), squares / (units**2 / groups), rtol=1e-12)


@pytest.mark.parametrize('groups', [2, 3, 5])
def test_overlap_and_uniform_at_their_ends(groups):
  units = 4 * groups
  flat = tf.constant(undecided(groups, units))
  np.testing.assert_allclose(overlap(flat), 1, rtol=1e-12)
  np.testing.assert_allclose(uniform(flat), 1, rtol=1e-12)
  even = tf.constant(one_hot(np.arange(units) % groups, groups))
  np.testing.assert_allclose(overlap(even), 0, atol=1e-12)
  np.testing.assert_allclose(uniform(even), 1, rtol=1e-12)
  alone = tf.constant(one_hot(np.zeros(units, int), groups))
  np.testing.assert_allclose(overlap(alone), 0, atol=1e-12)
  np.testing.assert_allclose(uniform(alone), groups, rtol=1e-12)


def test_an_uneven_assignment_has_the_larger_uniform():
  uneven, even = one_hot([0] * 5 + [1], 2), one_hot([0] * 3 + [1] * 3, 2)
  assert float(uniform(tf.constant(uneven))) > float(uniform(tf.constant(even)))


# --- weight split --------------------------------------------------------------------------------------------------


def naive_weight_split(w, p, q):
  """The formula of S, term by term."""
  groups, inputs, outputs = p.shape[0], w.shape[-2], w.shape[-1]
  if w.ndim == 4:
    m, std = (w**2).mean((0, 1)), (1 / (w.shape[0] ** 2 * inputs)) ** 0.5
  else:
    m, std = w**2, (1 / inputs) ** 0.5
  total = 0.0
  for g in range(groups):
    for i in range(inputs):
      row = sum(m[i, j] * (1 - p[g, i]) ** 2 * q[g, j] ** 2 for j in range(outputs))
      total += row**0.5 / (inputs * outputs**0.5)
    for j in range(outputs):
      column = sum(m[i, j] * p[g, i] ** 2 * (1 - q[g, j]) ** 2 for i in range(inputs))
      total += column**0.5 / (inputs**0.5 * outputs)
  return total / (2 * (groups - 1) * std / groups)


@pytest.mark.parametrize('shape', [(3, 3, 5, 7), (1, 1, 6, 4), (5, 8)])
@pytest.mark.parametrize('groups', [2, 3])
def test_weight_split_matches_its_formula(shape, groups):
  w = np.random.RandomState(1).normal(size=shape)
  p, q = soft(groups, shape[-2], 2), soft(groups, shape[-1], 3)
  ours = weight_split(tf.constant(w), tf.constant(p), tf.constant(q))
  np.testing.assert_allclose(ours, naive_weight_split(w, p, q), rtol=1e-7)


@pytest.mark.parametrize('groups', [2, 3, 4])
def test_weight_split_is_about_one_at_the_start(groups):
  # Exactly 1 for weights that all have the deviation they were drawn with: w = std makes each norm its expectation.
  p, q = undecided(groups, 12), undecided(groups, 20)
  for shape, std in (((3, 3, 12, 20), (1 / (9 * 12)) ** 0.5), ((12, 20), (1 / 12) ** 0.5)):
    ours = weight_split(tf.constant(np.full(shape, std)), tf.constant(p), tf.constant(q))
    # (1 - 1/G) * (1/G) summed over G groups is (G - 1) / G, twice, over 2 (G - 1) / G.
    np.testing.assert_allclose(ours, 1, rtol=1e-9)


@pytest.mark.parametrize('shape', [(3, 3, 6, 8), (6, 8)])
@pytest.mark.parametrize('groups', [2, 3])
def test_weight_split_is_zero_exactly_without_weights_between_groups(shape, groups):
  rng = np.random.RandomState(4)
  of_inputs, of_outputs = rng.permutation(np.arange(6) % groups), rng.permutation(np.arange(8) % groups)
  p, q = tf.constant(one_hot(of_inputs, groups)), tf.constant(one_hot(of_outputs, groups))
  inside = of_inputs[:, None] == of_outputs[None, :]
  w = rng.normal(size=shape) * inside
  assert float(weight_split(tf.constant(w), p, q)) < 1e-8
  # ... and each single weight between two groups, at any place of the window, is seen.
  for i, j in np.argwhere(~inside):
    one = w.copy()
    one[(-1, -1, i, j) if one.ndim == 4 else (i, j)] = 1e-3
    assert float(weight_split(tf.constant(one), p, q)) > 1e-6


def test_weight_split_of_one_hot_assignments_pulls_on_dropped_weights_alone():
  rng = np.random.RandomState(5)
  of_inputs, of_outputs = rng.permutation(np.arange(6) % 3), rng.permutation(np.arange(9) % 3)
  w = tf.constant(rng.normal(size=(3, 3, 6, 9)))
  with tf.GradientTape() as tape:
    tape.watch(w)
    loss = weight_split(w, tf.constant(one_hot(of_inputs, 3)), tf.constant(one_hot(of_outputs, 3)))
  gradient = tape.gradient(loss, w).numpy()
  between = of_inputs[:, None] != of_outputs[None, :]
  assert (np.abs(gradient[..., between]) > 1e-6).all()
  assert (gradient[..., ~between] == 0).all()


@pytest.mark.parametrize('saturation', [0.0, 5.0, 200.0])
@pytest.mark.parametrize('empty', [False, True])
@pytest.mark.parametrize('zero', ['none', 'block', 'all'])
def test_gradients_stay_finite(saturation, empty, zero):
  # As in training: float32, softmaxes that may be exactly one-hot, blocks that may be exactly zero, groups without
  # a unit. A NaN here would end a run after days.
  rng = np.random.RandomState(6)
  groups, inputs, outputs = 3, 6, 8
  used = groups - 1 if empty else groups
  of_inputs, of_outputs = np.arange(inputs) % used, np.arange(outputs) % used
  w = rng.normal(size=(3, 3, inputs, outputs))
  if zero == 'block':
    w *= of_inputs[:, None] == of_outputs[None, :]
  elif zero == 'all':
    w *= 0
  variables = [
    tf.Variable(w, dtype=tf.float32),
    tf.Variable(saturation * (2 * one_hot(of_inputs, groups) - 1), dtype=tf.float32),
    tf.Variable(saturation * (2 * one_hot(of_outputs, groups) - 1), dtype=tf.float32),
  ]
  with tf.GradientTape() as tape:
    p, q = (tf.nn.softmax(alpha, 0) for alpha in variables[1:])
    terms = utils.regularisers([utils.SplitLayer('layer', variables[0], p, q, [p, q])])
    loss = terms['overlap'] + terms['weight_split'] + terms['uniform']
  assert np.isfinite(float(loss))
  for gradient in tape.gradient(loss, variables):
    assert np.isfinite(gradient.numpy()).all()
    assert np.abs(gradient.numpy()).max() < 1e3


# --- their sum over the layers -------------------------------------------------------------------------------------


def three_layers():
  """Layers as a network gives them: one counts two assignments, one counts none, one has no weight split."""
  rng = np.random.RandomState(7)
  p, q, r = (tf.constant(soft(2, units, seed)) for seed, units in enumerate((4, 6, 5)))
  weights = [tf.Variable(rng.normal(size=shape) * s) for shape, s in (((3, 3, 4, 6), 1), ((6, 5), 3), ((4, 6), 1))]
  return [
    utils.SplitLayer('a', weights[0], p, q, [p, q]),
    utils.SplitLayer('b', weights[1], q, r, []),
    utils.SplitLayer('c', weights[2], None, None, [r]),
  ]


@pytest.mark.parametrize('weighted', [True, False])
def test_regularisers_gather_the_layers(weighted):
  layers = three_layers()
  p, q, r = layers[0].p, layers[0].q, layers[2].counted[0]
  with tf.GradientTape() as tape:
    terms = utils.regularisers(layers, weighted)
  for name, term in (('overlap', overlap), ('uniform', uniform)):
    expected = {'a': (float(term(p)) + float(term(q))) / 2, 'c': float(term(r))}
    assert {n: float(v) for n, v in terms[name + '_terms'].items()} == pytest.approx(expected, rel=1e-12)
    assert float(terms[name]) == pytest.approx((expected['a'] + expected['c']) / 2, rel=1e-12)
  s = {layer.name: naive_weight_split(layer.kernel.numpy(), layer.p.numpy(), layer.q.numpy()) for layer in layers[:2]}
  assert {n: float(v) for n, v in terms['weight_split_terms'].items()} == pytest.approx(s, rel=1e-7)
  total = (s['a'] ** 2 + s['b'] ** 2) / (s['a'] + s['b']) if weighted else (s['a'] + s['b']) / 2
  assert float(terms['weight_split']) == pytest.approx(total, rel=1e-7)

  # The weights are constants to the gradient: each layer's own gradient, times its share.
  gradients = tape.gradient(terms['weight_split'], [layers[0].kernel, layers[1].kernel])
  for layer, gradient in zip(layers, gradients):
    with tf.GradientTape() as tape:
      own = weight_split(layer.kernel, layer.p, layer.q)
    share = s[layer.name] / (s['a'] + s['b']) if weighted else 0.5
    np.testing.assert_allclose(gradient, share * tape.gradient(own, layer.kernel), rtol=1e-6)


def test_regularisers_of_a_split_that_is_done_are_finite():
  q = tf.constant(one_hot([0, 0, 1, 1], 2))
  kernel = tf.Variable(np.kron(np.eye(2), np.ones((2, 2))))
  with tf.GradientTape() as tape:
    terms = utils.regularisers([utils.SplitLayer('layer', kernel, q, q, [q])])
  assert float(terms['weight_split']) == pytest.approx(0, abs=1e-8)
  assert np.isfinite(tape.gradient(terms['weight_split'], kernel).numpy()).all()


# --- hard groups ---------------------------------------------------------------------------------------------------


def test_hard_groups_sizes_and_order():
  alpha = np.array([[2.0, 0.0, 0.0, 5.0, -1.0], [1.0, 3.0, 0.1, 0.0, -2.0], [0.0, 1.0, 0.2, 9.0, -3.0]])
  groups = utils.hard_groups(tf.Variable(alpha))
  assert groups.tolist() == [0, 1, 2, 2, 0]
  assert utils.group_sizes(groups, 4).tolist() == [2, 1, 2, 0]
  assert utils.group_order(groups).tolist() == [0, 4, 1, 2, 3]
  # Stable: inside a group the units keep their order, however many there are.
  groups = np.random.RandomState(0).randint(0, 3, 200)
  expected = [unit for g in range(3) for unit in range(200) if groups[unit] == g]
  assert utils.group_order(groups).tolist() == expected


def test_confidence_is_the_mean_probability_of_the_chosen_group():
  q = soft(3, 7)
  assert float(utils.confidence(tf.constant(q))) == pytest.approx(np.mean([max(q[:, d]) for d in range(7)]), rel=1e-12)
  assert float(utils.confidence(tf.constant(undecided(4, 8)))) == pytest.approx(0.25)
  assert float(utils.confidence(tf.constant(one_hot([0, 1, 1], 2)))) == 1.0


def test_superclass_table_and_agreement():
  rng = np.random.RandomState(8)
  superclass = rng.permutation(np.repeat(np.arange(20), 5))
  groups = rng.permutation(np.repeat(np.arange(4), 25))
  table = [[sum((groups == g) & (superclass == s)) for s in range(20)] for g in range(4)]
  assert utils.superclass_table(groups, superclass).tolist() == table
  most = sum(max(row[s] for row in table) for s in range(20))
  assert utils.superclass_agreement(groups, superclass) == pytest.approx(most / 100)
  # Whole superclasses in one group agree entirely; superclasses of five dealt out to four groups have two at most.
  assert utils.superclass_agreement(superclass // 5, superclass) == 1.0
  dealt = np.zeros(100, int)
  dealt[np.argsort(superclass, kind='stable')] = np.arange(100) % 5 % 4
  assert utils.superclass_agreement(dealt, superclass) == pytest.approx(0.4)


def test_random_even_groups_agree_about_as_the_paper_says():
  rng = np.random.RandomState(9)
  superclass = np.repeat(np.arange(20), 5)
  agreements = [utils.superclass_agreement(rng.permutation(np.arange(100) % 4), superclass) for _ in range(200)]
  assert np.mean(agreements) == pytest.approx(0.49, abs=0.01)
