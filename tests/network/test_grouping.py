"""Groupings that are not learned, and the spectral start."""

import itertools
import json

import networks
import numpy as np
import pytest

import resnet_split
import utils
from splitnet.common.errors import UserError
from splitnet.data.batches import ClassNames
from splitnet.network import graph as graphs
from splitnet.network import grouping, hardening
from splitnet.training import checkpoints, initialize

SPLITS = {'1-1-4': (4, 1, 1), '2-2-2': (2, 2, 2), '2-4-4': (4, 4, 2), '2-3-5': (5, 3, 2)}


def graph_of(split, k=1, branch_input='group'):
  groups = dict(zip(('ngroups1', 'ngroups2', 'ngroups3'), SPLITS[split]))
  config = resnet_split.WideResNet(k=k, **groups, branch_input=branch_input)
  return config, config.graph()


@pytest.fixture(scope='module')
def names():
  """100 classes, five to each of CIFAR-100's superclasses, numbered so that they do not stand together."""
  coarse = sorted(grouping.SUPERCLASS_ORDER)
  return ClassNames([f'class{i}' for i in range(100)], coarse, np.arange(100) % 20, {})


def test_semantic_groups_are_even_and_of_whole_superclasses(names):
  for groups in (2, 4, 5, 10, 20):
    found = grouping.semantic(names, groups)
    assert np.bincount(found).tolist() == [100 // groups] * groups
    assert utils.superclass_agreement(found, names.fine_to_coarse) == 1.0
  assert np.bincount(grouping.semantic(names, 3)).tolist() == [35, 35, 30]


@pytest.mark.parametrize('sizes, groups, expected', [
  ([1, 1, 1, 9], 2, [3, 9]), ([9, 1, 1, 1], 3, [9, 1, 2]), ([3, 1, 4, 1, 5, 9, 2], 3, [8, 6, 11]), ([2, 3], 2, [2, 3]),
  ([6, 1, 1, 1, 1, 2], 4, [6, 2, 2, 2]),
])  # fmt: skip
def test_semantic_groups_balance_classes_over_uneven_superclasses(sizes, groups, expected):
  fine_to_coarse = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
  names = ClassNames(list(fine_to_coarse), [f's{i}' for i in range(len(sizes))], fine_to_coarse, {})
  found = grouping.semantic(names, groups)
  assert np.bincount(found).tolist() == expected
  assert utils.superclass_agreement(found, fine_to_coarse) == 1.0
  cuts = itertools.combinations(range(1, len(sizes)), groups - 1)  # every division into runs
  best = min(sum(sum(run) ** 2 for run in np.split(np.array(sizes), cut)) for cut in cuts)
  assert np.square(np.bincount(found)).sum() == best


def test_semantic_groups_of_two_part_animals_from_things(names):
  found = grouping.semantic(names, 2)
  of = {name: set(found[names.fine_to_coarse == i]) for i, name in enumerate(names.coarse)}
  assert of['fish'] == of['people'] == of['insects'] != of['vehicles_1'] == of['household_furniture'] == of['trees']


def test_more_groups_than_superclasses_is_one_sentence(names):
  with pytest.raises(UserError, match=r'21 groups .* only 20 superclasses'):
    grouping.semantic(names, 21)


def test_random_groups_are_even_and_depend_on_the_seed_only():
  found = grouping.random(100, 3, 5)
  assert sorted(np.bincount(found)) == [33, 33, 34]
  assert np.array_equal(found, grouping.random(100, 3, 5))
  assert not np.array_equal(found, grouping.random(100, 3, 6))


def test_balanced_clusters_have_the_sizes_asked_for_and_are_clusters():
  generator = np.random.default_rng(0)
  truth = generator.permutation(np.repeat([0, 1, 2], [10, 30, 20]))
  centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
  points = centres[truth] + generator.normal(size=(60, 2))
  # The sizes say how many a cluster has, not which one it is: an even division has to cut through the largest.
  found = grouping.balanced_clusters(points, [20, 20, 20])
  assert np.bincount(found).tolist() == [20, 20, 20]
  assert len(set(found[truth == 0])) == 1 and len(set(found[truth == 2])) == 1


def planted_weights(split):
  """Last weights [64, 100] whose classes lie along the tree of a split; the leaf of each class."""
  config, graph = graph_of(split)
  generator = np.random.default_rng(1)
  leaves = generator.permutation(utils.parents(100, config.ngroups1))
  depths = list(graph.depths.values())
  weights = 0.3 * generator.normal(size=(64, 100))
  for depth in range(1, len(depths)):
    if depths[depth] > depths[depth - 1]:
      branch = utils.parents_along(depths[depth:][::-1])[leaves]
      weights += (3.0 / depth) * generator.normal(size=(64, depths[depth]))[:, branch]
  return weights, leaves


@pytest.mark.parametrize('split', ['1-1-4', '2-2-2', '2-4-4'])
def test_clustering_finds_planted_groups_and_their_tree(split):
  weights, leaves = planted_weights(split)
  _, graph = graph_of(split)
  found = grouping.clustering(graph, {graph.layers[-1].weights: weights})
  # The groups have other numbers, but each is one planted group, and siblings are siblings.
  number = {int(f): int(leaf) for f, leaf in zip(found, leaves)}
  assert all(number[int(f)] == leaf for f, leaf in zip(found, leaves)) and len(set(number.values())) == len(number)
  parent = utils.parents(graph.depths['logits'], graph.depths['unit_2'])
  together = {(parent[f], parent[leaf]) for f, leaf in number.items()}
  assert len(together) == graph.depths['unit_2']


@pytest.mark.parametrize('branch_input', ['group', 'all'])
@pytest.mark.parametrize('split', SPLITS)
def test_spectral_start_is_even_at_every_level_and_undecided_enough(split, branch_input):
  _, graph = graph_of(split, branch_input=branch_input)
  network = networks.build(graph_of(split, branch_input=branch_input)[0])
  values = {name: v.numpy() for name, v in network.weights.items()}
  alphas = grouping.spectral_start(graph, values)
  assert set(alphas) == {name for name, units in graph.units.items() if units.groups > 1}
  for name, alpha in alphas.items():
    units = graph.units[name]
    assert alpha.shape == (units.groups, units.size)
    sizes = utils.group_sizes(utils.hard_groups(alpha), units.groups)
    assert sizes.max() - sizes.min() <= 1 + (split == '2-3-5')
    q = np.exp(alpha) / np.exp(alpha).sum(0)
    np.testing.assert_allclose(q.max(0), grouping.START_CONFIDENCE, rtol=1e-6)


@pytest.mark.parametrize('split', ['1-1-4', '2-2-2'])
def test_spectral_start_finds_the_groups_of_a_network_that_is_split_already(split):
  """A dense network whose between-group weights are zero: every unit has to go to its own group, at every level."""
  config, graph = graph_of(split)
  generator = np.random.default_rng(3)
  truth = {
    name: generator.permutation(utils.parents(u.size, u.groups))
    for name, u in graph.units.items()
  }
  values = {name: v.numpy() for name, v in networks.build(config).weights.items()}
  _, leaves = planted_weights(split)
  truth['split_q1'] = leaves
  for layer in graph.weighted:
    values[layer.weights] *= hardening.kept_weights(graph, layer, truth)
  # Classes of a trained network that are alike have a direction in common; random ones would not.
  values['logits/fc/weights'] = np.abs(values['logits/fc/weights'])
  found = {name: utils.hard_groups(alpha) for name, alpha in grouping.spectral_start(graph, values).items()}
  numbers = {int(f): int(t) for f, t in zip(found['split_q1'], truth['split_q1'])}
  for name, groups in found.items():
    units = graph.units[name]
    merged = utils.parents(graph.depths['logits'], units.groups)
    renamed = {int(merged[f]): int(merged[t]) for f, t in numbers.items()}
    assert [renamed[int(g)] for g in groups] == truth[name].tolist(), name


def test_even_features_keeps_the_classes_and_divides_the_rest(names):
  _, graph = graph_of('2-4-4')
  classes = grouping.semantic(names, 4)
  groups = grouping.even_features(graph, classes)
  assert np.array_equal(groups['split_q1'], classes)
  for name, units in graph.units.items():
    if name != 'split_q1':
      assert len(set(utils.group_sizes(groups[name], units.groups))) == 1
  graphs.check_groups(graph, groups)


def test_a_users_grouping_is_read_as_its_tree(names, tmp_path):
  _, graph = graph_of('2-4-4')
  leaves = [names.fine[i::4] for i in range(4)]
  path = tmp_path / 'mine.json'
  path.write_text(json.dumps([[leaves[0], leaves[1]], [leaves[2], leaves[3]]]))
  assert grouping.read_file(str(path), names, graph).tolist() == [i % 4 for i in range(100)]
  _, graph = graph_of('2-3-5')
  leaves = [names.fine[i::5] for i in range(5)]
  path.write_text(json.dumps([[[leaves[0], leaves[1]], [leaves[2], leaves[3]]], [[leaves[4]]]]))
  assert grouping.read_file(str(path), names, graph).tolist() == [i % 5 for i in range(100)]


@pytest.mark.parametrize(
  'content, sentence',
  [
    ('nonsense', 'no JSON'),
    ('[' * 100_000, 'no JSON: recursion limit'),
    ('[[[["class0"]], 3], [{}]]', 'names a class '),
    ('[["class0"], ["class0"]]', "names the class 'class0' twice"),
    ('[["class0"], ["cat"]]', "names a class 'cat' that the data does not have"),
    ('[["class0"], ["class1"]]', 'leaves out class2'),
    ('[["class0"], ["class1"], ["class2"]]', 'does not have the tree of 2-2-2: a list of 2 groups'),
    ('{"a": ["class0"]}', 'it must be a valid array'),
  ],
)
def test_a_wrong_grouping_file_is_one_sentence(names, tmp_path, content, sentence):
  path = tmp_path / 'mine.json'
  path.write_text(content)
  with pytest.raises(UserError, match=sentence) as e:
    grouping.read_file(str(path), names, graph_of('2-2-2')[1])
  assert str(path) in str(e.value)


def test_a_missing_grouping_file_names_what_else_there_is(names):
  with pytest.raises(UserError, match='semantic, clustering, random or a file'):
    grouping.read_file('not-there', names, graph_of('2-2-2')[1])


@pytest.mark.parametrize('kind', ['semantic', 'random', 'file'])
def test_split_from_scratch_builds_the_groups_that_were_asked_for(kind, names, tmp_path):
  path = tmp_path / 'mine.json'
  path.write_text(json.dumps([names.fine[:50], names.fine[50:]]))
  start = initialize.Start('split', grouping=str(path) if kind == 'file' else kind)
  network = initialize.build_network(start, resnet_split.WideResNet(k=1).graph(), None, names)
  expected = {
    'semantic': grouping.semantic(names, 2), 'random': grouping.random(100, 2, 0), 'file': np.repeat([0, 1], 50),
  }[kind]  # fmt: skip
  assert np.array_equal(network.groups['split_q1'], expected)
  assert network(np.zeros([2, 32, 32, 3], np.float32)).shape == (2, 100)


@pytest.mark.parametrize('kind', ['semantic', 'clustering', 'random'])
def test_given_groups_split_a_baseline_and_keep_its_weights(kind, names, tmp_path):
  config, graph = graph_of('2-2-2')
  dense = networks.build(config.dense(), seed=5)
  values = {name: v.numpy() for name, v in dense.weights.items()}
  base = checkpoints.Stored('baseline', {}, dense.graph, None, values, None, 'a baseline')
  start = initialize.Start('split', basemodel='b', grouping=kind, grouping_start='basemodel')
  network = initialize.build_network(start, graph, base, names)
  # It computes what the baseline computes without the weights between the groups.
  for layer in network.graph.weighted:
    kernel = dense.weights[layer.weights]
    kernel.assign(kernel * hardening.kept_weights(network.graph, layer, network.groups))
  images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
  np.testing.assert_allclose(network(images), dense(images), atol=1e-4)
  for name, units in network.graph.units.items():
    assert np.ptp(utils.group_sizes(network.groups[name], units.groups)) <= 1
