"""graph.py and hardening.py: which units and weights a branch has, and what a graph refuses."""


import numpy as np
import pytest
from networks import SPLITS, graph_of, random_groups

import utils
from splitnet.network import graph as graphs
from splitnet.network import hardening


@pytest.mark.parametrize('branch_input', ['group', 'all'])
@pytest.mark.parametrize('split', SPLITS)
def test_members_divide_the_units_along_the_tree(split, branch_input):
  graph = graph_of(split, branch_input=branch_input)
  groups_of = random_groups(graph)
  depths = list(graph.depths)

  def ancestor(branch, depth, below):
    """The branch at a lower depth that a branch grows from, one depth at a time."""
    for upper, lower in reversed(list(zip(depths[1:], depths))[depths.index(below) : depths.index(depth)]):
      branch = utils.parents(graph.depths[upper], graph.depths[lower])[branch]
    return branch

  for layer in graph.layers:
    if not layer.inputs:
      continue
    for units in (graph.read(layer), layer.units):
      groups = groups_of[units.name]
      # The depth whose branches the assignment's groups are: below its own where children read all of their parent's.
      downwards = reversed(depths[: depths.index(units.depth) + 1])
      owner = next(depth for depth in downwards if graph.depths[depth] == units.groups)
      for branch in range(graph.branches(layer)):
        if depths.index(owner) >= depths.index(layer.depth):
          expected = [u for g in range(units.groups) for u in range(units.size)
                      if groups[u] == g and ancestor(g, owner, layer.depth) == branch]  # fmt: skip
        else:
          wanted = ancestor(branch, layer.depth, owner)
          expected = [u for u in range(units.size) if groups[u] == wanted]
        ours = graphs.members(units, groups, branch, graph.branches(layer))
        assert ours.tolist() == expected, (layer.name, units.name, branch)


@pytest.mark.parametrize('branch_input', ['group', 'all'])
@pytest.mark.parametrize('split', SPLITS)
def test_kept_weights_are_those_of_the_branches(split, branch_input):
  graph = graph_of(split, branch_input=branch_input)
  groups = random_groups(graph)
  for layer in graph.weighted:
    in_branches = np.zeros((graph.read(layer).size, layer.units.size), bool)
    for branch in range(graph.branches(layer)):
      both = (graph.read(layer), layer.units)
      held = [graphs.members(u, groups[u.name], branch, graph.branches(layer)) for u in both]
      in_branches[np.ix_(*held)] = True
    kept = hardening.kept_weights(graph, layer, groups)
    assert np.array_equal(kept, in_branches), layer.name
    assert kept.all() == (graph.cut(layer) == 1), layer.name


@pytest.mark.parametrize('branch_input', ['group', 'all'])
@pytest.mark.parametrize('split', SPLITS)
def test_what_hardening_drops_is_what_the_branches_lack(split, branch_input):
  graph = graph_of(split, branch_input=branch_input)
  groups, rng = random_groups(graph), np.random.RandomState(0)
  values, whole, kept, shares = {}, 0, 0, {}
  for layer in graph.weighted:
    window = [layer.kernel] * 2 if layer.op == 'conv' else []
    kernel = rng.normal(size=[*window, graph.read(layer).size, layer.units.size])
    values[layer.weights] = kernel
    if graph.cut(layer) == 1:
      continue
    whole += (kernel**2).sum()
    for branch in range(graph.branches(layer)):
      inputs, outputs = (
        graphs.members(u, groups[u.name], branch, graph.branches(layer)) for u in (graph.read(layer), layer.units)
      )
      kept += (kernel[..., inputs, :][..., outputs] ** 2).sum()
      for unit in outputs:
        # Several branches of a child that reads all have the same inputs; each output is in one branch.
        shares[layer.name, unit] = 1 - (kernel[..., inputs, unit] ** 2).sum() / (kernel[..., unit] ** 2).sum()
  dropped = hardening.dropped_weights(graph, groups, values)
  assert dropped.share == pytest.approx(1 - kept / whole)
  assert dropped.largest == pytest.approx(max(shares.values()))
  assert shares[dropped.layer, dropped.unit] == max(shares.values())

  for layer in graph.weighted:
    values[layer.weights] *= hardening.kept_weights(graph, layer, groups)
  assert hardening.dropped_weights(graph, groups, values)[:2] == (0, 0)


def test_what_hardening_drops_in_words():
  said = hardening.describe_dropped(hardening.Dropped(2.9e-6, 0.00532, 'unit_3_0/conv_1', 51))
  assert said.startswith('0.00029 % of the squared weights') and '0.53 % (unit_3_0/conv_1, output 51)' in said
  said = hardening.describe_dropped(hardening.Dropped(0.5, 0.9996, 'logits/fc', 3))
  assert said.startswith('50 % of') and 'at most 100 % (logits/fc' in said
  assert hardening.describe_dropped(hardening.Dropped(0.0, 0.0, 'logits/fc', 3)).startswith('0 % of')
