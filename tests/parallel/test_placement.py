"""placement.py: which device computes what, against cases worked out by hand and against all deals there are."""

import collections
import itertools

import networks
import numpy as np
import pytest

import resnet_split
from splitnet.network import counting
from splitnet.parallel import placement


def tree(split, trunk=0, **costs):
  """Depths and costs of a split such as '2-4-4'; costs: of a depth's branches, each the same or a list."""
  counts = dict(zip(('trunk', 'unit_2', 'unit_3', 'logits'), [1, *map(int, split.split('-'))]))
  depths = collections.OrderedDict(counts)
  nodes = {}
  for depth, count in depths.items():
    given = {'trunk': trunk, **costs}.get(depth, 0)
    for branch in range(count):
      nodes[depth, branch] = given[branch] if isinstance(given, list) else given
  return depths, nodes


def dealt(text):
  return ['abcdefgh'.index(letter) for letter in text]


def loads_of(depths, costs, deal):
  """What each device computes of a deal of the leaves."""
  nodes = [set() for _ in range(max(deal) + 1)]
  for path, device in zip(placement.paths(depths), deal):
    nodes[device].update(path)
  return [sum(costs[node] for node in on_device) for on_device in nodes]


def test_paths_go_down_the_tree():
  depths, _ = tree('2-3-5')
  # Merging 5 to 3 gives 0 0 1 1 2, and 3 to 2 gives 0 0 1.
  branches = [[branch for _, branch in path] for path in placement.paths(depths)]
  assert branches == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 0, 1, 3], [0, 1, 2, 4]]
  assert [depth for depth, _ in placement.paths(depths)[0]] == list(depths)


# Split and costs, number of devices, the deal, the loads.
BY_HAND = [
  (('2-2-2', 10, dict(unit_2=4, unit_3=3)), 1, 'aa', [24]),
  (('2-2-2', 10, dict(unit_2=4, unit_3=3)), 2, 'ab', [17, 17]),
  (('2-2-2', 10, dict(unit_2=4, unit_3=3)), 4, 'ab', [17, 17]),  # more devices than branches
  (('1-2-2', 10, dict(unit_2=6, unit_3=5)), 2, 'ab', [21, 21]),  # unit_2 is shared, too
  (('2-4-4', 10, dict(unit_2=4, unit_3=3)), 2, 'aabb', [20, 20]),
  (('2-4-4', 10, dict(unit_2=4, unit_3=3)), 3, 'abcc', [17, 17, 20]),
  (('2-4-4', 10, dict(unit_2=4, unit_3=3)), 4, 'abcd', [17, 17, 17, 17]),
  (('1-1-4', 10, dict(logits=1)), 2, 'aabb', [12, 12]),
  (('3-3-3', 10, dict(unit_2=4)), 2, 'abb', [14, 18]),
  # Of unequal leaves the large ones go apart, although they are neighbours: 7 + 1 and 7 + 1, not 7 and 7 + 1 + 1.
  (('1-1-4', 0, dict(logits=[7, 7, 1, 1])), 2, 'abab', [8, 8]),
  (('1-1-4', 0, dict(logits=[1, 6, 2, 3])), 2, 'abaa', [6, 6]),
  # A subtree (the first two leaves) is cut where its leaves are dear,
  (('2-2-3', 0, dict(unit_2=1, logits=[5, 5, 1])), 2, 'abb', [6, 8]),
  # and stays whole where what they share is.
  (('2-2-4', 0, dict(unit_2=[9, 1], logits=[1, 1, 1, 5])), 2, 'aabb', [11, 7]),
  # All loads alike, the subtrees decide.
  (('2-2-4', 5, {}), 2, 'aabb', [5, 5]),
]


@pytest.mark.parametrize('case', BY_HAND)
def test_deals_worked_out_by_hand(case):
  (split, trunk, costs), devices, expected, loads = case
  depths, nodes = tree(split, trunk, **costs)
  found = placement.deal(depths, nodes, devices)
  assert found == dealt(expected)
  assert loads_of(depths, nodes, found) == loads


@pytest.mark.parametrize('seed', range(30))
def test_the_busiest_device_has_the_least_of_all_deals(seed):
  rng = np.random.default_rng(seed)
  depths = collections.OrderedDict(zip(('trunk', 'unit_2', 'logits'), [1, *sorted(rng.integers(1, 7, 2).tolist())]))
  nodes = {(depth, b): int(rng.integers(0, 20)) for depth, count in depths.items() for b in range(count)}
  leaves = depths['logits']
  for devices in range(1, 5):
    used = min(devices, leaves)
    everything = [d for d in itertools.product(range(used), repeat=leaves) if len(set(d)) == used]
    copies = {d: len({(node, on) for path, on in zip(placement.paths(depths), d) for node in path}) for d in everything}
    measured = {d: (max(loads_of(depths, nodes, list(d))), copies[d]) for d in everything}
    assert measured[tuple(placement.deal(depths, nodes, devices))] == min(measured.values())


def test_a_large_tree_is_dealt_soon_and_well():
  depths, nodes = tree('4-12-48', 100, unit_2=30, unit_3=20, logits=[1 + i % 5 for i in range(48)])
  found = placement.deal(depths, nodes, 8)  # all deals would take years
  assert set(found) == set(range(8))
  assert max(loads_of(depths, nodes, found)) <= 100 + 30 + 2 * 20 + 6 * 3 + 5


def described(parts):
  return [
    (part.device, part.source, ' '.join(f"{d}:{''.join(map(str, b))}" for d, b in part.nodes.items()))
    for part in parts
  ]


def test_replicated_parts_are_the_ways_to_their_leaves():
  depths, nodes = tree('2-4-4', 10, unit_2=4, unit_3=3)
  assert described(placement.parts(depths, nodes, ['x', 'y'], 'replicate')) == [
    ('x', None, 'trunk:0 unit_2:0 unit_3:01 logits:01'),
    ('y', None, 'trunk:0 unit_2:1 unit_3:23 logits:23'),
  ]
  assert [placement.part_load(part, nodes) for part in placement.parts(depths, nodes, ['x', 'y'], 'replicate')] == [
    20,
    20,
  ]


# Split, devices, parts with trunk 'first': a part ends where several devices go on.
FIRST = {
  '2-2-2': ('xy', [('x', None, 'trunk:0'), ('x', ('trunk', 0), 'unit_2:0 unit_3:0 logits:0'),
                   ('y', ('trunk', 0), 'unit_2:1 unit_3:1 logits:1')]),
  # unit_2 is the trunk's only child, so it is shared whole.
  '1-2-2': ('xy', [('x', None, 'trunk:0 unit_2:0'), ('x', ('unit_2', 0), 'unit_3:0 logits:0'),
                   ('y', ('unit_2', 0), 'unit_3:1 logits:1')]),
  # Leaves of a device that read the same are one part.
  '1-1-4': ('xy', [('x', None, 'trunk:0 unit_2:0 unit_3:0'), ('x', ('unit_3', 0), 'logits:01'),
                   ('y', ('unit_3', 0), 'logits:23')]),
  '2-4-4': ('xyz', [('x', None, 'trunk:0'), ('x', ('trunk', 0), 'unit_2:0'), ('x', ('unit_2', 0), 'unit_3:0 logits:0'),
                    ('y', ('unit_2', 0), 'unit_3:1 logits:1'), ('z', ('trunk', 0), 'unit_2:1 unit_3:23 logits:23')]),
  '3-3-3': ('x', [('x', None, 'trunk:0 unit_2:012 unit_3:012 logits:012')]),
}  # fmt: skip


@pytest.mark.parametrize('split', FIRST)
def test_shared_parts_are_computed_once(split):
  devices, expected = FIRST[split]
  depths, nodes = tree(split, 10, unit_2=4, unit_3=3, logits=1)
  assert described(placement.parts(depths, nodes, list(devices), 'first')) == expected


@pytest.mark.parametrize('split', ['1-1-1', '1-2-3', '2-3-5', '3-5-8', '1-1-8', '8-8-8', '2-4-4'])
@pytest.mark.parametrize('devices', [1, 2, 3, 5])
def test_parts_make_up_the_tree(split, devices):
  depths, nodes = tree(split, 10, unit_2=4, unit_3=3, logits=1)
  names = [f'device {i}' for i in range(devices)]
  for trunk in placement.TRUNKS:
    parts = placement.parts(depths, nodes, names, trunk)
    held = [(depth, branch) for part in parts for depth, branches in part.nodes.items() for branch in branches]
    assert set(held) == set(nodes)
    if trunk == 'first':
      assert len(held) == len(nodes)  # nothing twice
    leaves = [node for node in held if node[0] == 'logits']
    assert len(leaves) == len(set(leaves)) == depths['logits']
    ends = [None]  # a part's output is there before it is read
    for part in parts:
      assert part.source in ends
      highest = list(part.nodes)[-1]
      if highest != 'logits':
        (branch,) = part.nodes[highest]
        ends.append((highest, branch))
    assert len({part.device for part in parts}) == min(devices, depths['logits'])


def test_place_puts_each_node_on_the_device_of_its_first_leaf():
  depths, nodes = tree('2-4-4', 10, unit_2=4, unit_3=3)
  assert placement.place(depths, nodes, ['x', 'y', 'z']) == {
    'trunk': ['x'], 'unit_2': ['x', 'z'], 'unit_3': ['x', 'y', 'z', 'z'], 'logits': ['x', 'y', 'z', 'z']
  }  # fmt: skip
  assert placement.placer([]) is None


def test_costs_are_the_networks_flops():
  config = resnet_split.WideResNet(k=1, num_residual_units=1, num_classes=8, ngroups1=4, ngroups2=4, ngroups3=2)
  plan = config.graph()
  groups = {name: np.arange(u.size) * u.groups // u.size for name, u in plan.units.items()}
  network = networks.build(config, groups=groups)
  costs = counting.node_flops(network)
  assert list(costs) == [node for node in tree('2-4-4')[1]]
  assert sum(costs.values()) == sum(count.flops for count in counting.counts(network))
  # init_conv, unit_1: 3x3 convolutions of 32x32 pixels, 3 to 16 and twice 16 to 16 channels, 3 batch norms of 16 ...
  convolutions = 2 * 9 * 32 * 32 * (3 * 16 + 2 * 16 * 16)
  assert costs['trunk', 0] == convolutions + 2 * 2 * 16 * 32 * 32
  assert counting.node_flops(network, everything=False)['trunk', 0] == 2 * 9 * 32 * 32 * 2 * 16 * 16
  assert costs['logits', 3] == 2 * (16 * 2 + 2)  # 64 / 4 features and a bias to 8 / 4 classes
