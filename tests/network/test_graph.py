"""Tests of architecture.py: configurations, the layers and their units, which units and weights a branch has."""

import dataclasses

import numpy as np
import pytest
from networks import SPLITS, config_of, random_groups, weighted

import utils
from splitnet.common.errors import UserError
from splitnet.network import architecture
from splitnet.network.architecture import Config


@pytest.mark.parametrize(
  'given, words',
  [
    (dict(k=0), ['--k is 0']),
    (dict(num_residual_units=0), ['--num_residual_units is 0']),
    (dict(num_classes=0), ['--num_classes is 0']),
    (dict(ngroups3=0), ['--ngroups3 is 0']),
    (dict(ngroups1=2, ngroups2=3, ngroups3=2), ['--ngroups2 is 3', '--ngroups1', 'only 2', 'unit_3']),
    (dict(ngroups1=4, ngroups2=2, ngroups3=3), ['--ngroups3 is 3', '--ngroups2', 'only 2', 'unit_2']),
    (dict(ngroups1=11, num_classes=10), ['--ngroups1 is 11', '10 classes']),
    (dict(ngroups1=20, ngroups2=20, ngroups3=17, k=1), ['--ngroups3 is 17', '16 channels']),
    (dict(branch_input='some'), ['--branch_input', "'some'", 'group or all']),
  ],
)
def test_a_configuration_that_cannot_be_is_one_sentence(given, words):
  with pytest.raises(UserError) as error:
    Config(**given)
  assert all(word in str(error.value) for word in words), error.value
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('given, name', [
  (dict(ngroups1=40, ngroups2=40, ngroups3=1), 'ngroups2'),  # unit_2 has 32 channels for unit_3's 40 groups
  (dict(ngroups1=80, ngroups2=1, ngroups3=1), 'ngroups1'),  # unit_3 has 64 channels for the logits' 80 groups
])  # fmt: skip
def test_more_groups_than_channels_is_one_sentence(given, name):
  # Some group would stay empty for ever: better said at the start than when hardening.
  with pytest.raises(UserError, match='--%s is %d' % (name, given[name])):
    Config(k=1, num_classes=100, **given)


def test_names_of_splits():
  assert config_of('2-3-5').split == '2-3-5'
  assert config_of('2-4-4').dense().split == '1-1-1'
  assert config_of('2-4-4', k=3).dense() == dataclasses.replace(config_of('1-1-1'), k=3)


@pytest.mark.parametrize('branch_input', ['group', 'all'])
@pytest.mark.parametrize('split', SPLITS)
def test_members_divide_the_units_along_the_tree(split, branch_input):
  plan = architecture.wide_resnet(config_of(split, branch_input=branch_input))
  groups_of = random_groups(plan)
  depths = list(plan.depths)

  def ancestor(branch, depth, below):
    """The branch at a lower depth that a branch grows from, one depth at a time."""
    for upper, lower in reversed(list(zip(depths[1:], depths))[depths.index(below) : depths.index(depth)]):
      branch = utils.parents(plan.depths[upper], plan.depths[lower])[branch]
    return branch

  for layer in plan.layers:
    for units in (layer.input, layer.output):
      groups = groups_of[units.name]
      # The depth whose branches the assignment's groups are: below its own where children read all of their parent's.
      downwards = reversed(depths[: depths.index(units.depth) + 1])
      owner = next(depth for depth in downwards if plan.depths[depth] == units.groups)
      for branch in range(layer.branches):
        if depths.index(owner) >= depths.index(layer.depth):
          expected = [u for g in range(units.groups) for u in range(units.size)
                      if groups[u] == g and ancestor(g, owner, layer.depth) == branch]  # fmt: skip
        else:
          wanted = ancestor(branch, layer.depth, owner)
          expected = [u for u in range(units.size) if groups[u] == wanted]
        ours = architecture.members(units, groups, branch, layer.branches)
        assert ours.tolist() == expected, (layer.name, units.name, branch)


@pytest.mark.parametrize('branch_input', ['group', 'all'])
@pytest.mark.parametrize('split', SPLITS)
def test_kept_weights_are_those_of_the_branches(split, branch_input):
  plan = architecture.wide_resnet(config_of(split, branch_input=branch_input))
  groups = random_groups(plan)
  for layer in weighted(plan):
    in_branches = np.zeros((layer.input.size, layer.output.size), bool)
    for branch in range(layer.branches):
      held = [architecture.members(u, groups[u.name], branch, layer.branches) for u in (layer.input, layer.output)]
      in_branches[np.ix_(*held)] = True
    kept = architecture.kept_weights(plan, layer, groups)
    assert np.array_equal(kept, in_branches), layer.name
    assert kept.all() == (layer.cut == 1), layer.name


@pytest.mark.parametrize('branch_input', ['group', 'all'])
@pytest.mark.parametrize('split', SPLITS)
def test_what_hardening_drops_is_what_the_branches_lack(split, branch_input):
  plan = architecture.wide_resnet(config_of(split, branch_input=branch_input))
  groups, rng = random_groups(plan), np.random.RandomState(0)
  values, whole, kept, shares = {}, 0, 0, {}
  for layer in weighted(plan):
    window = [layer.kernel_size] * 2 if layer.kind == 'conv' else []
    kernel = rng.normal(size=[*window, layer.input.size, layer.output.size])
    values[architecture.layer_weights(layer)] = kernel
    if layer.cut == 1:
      continue
    whole += (kernel**2).sum()
    for branch in range(layer.branches):
      inputs, outputs = (
        architecture.members(u, groups[u.name], branch, layer.branches) for u in (layer.input, layer.output)
      )
      kept += (kernel[..., inputs, :][..., outputs] ** 2).sum()
      for unit in outputs:
        # Several branches of a child that reads all have the same inputs; each output is in one branch.
        shares[layer.name, unit] = 1 - (kernel[..., inputs, unit] ** 2).sum() / (kernel[..., unit] ** 2).sum()
  dropped = architecture.dropped_weights(plan, groups, values)
  assert dropped.share == pytest.approx(1 - kept / whole)
  assert dropped.largest == pytest.approx(max(shares.values()))
  assert shares[dropped.layer, dropped.unit] == max(shares.values())

  for layer in weighted(plan):
    values[architecture.layer_weights(layer)] *= architecture.kept_weights(plan, layer, groups)
  assert architecture.dropped_weights(plan, groups, values)[:2] == (0, 0)


def test_what_hardening_drops_in_words():
  said = architecture.describe_dropped(architecture.Dropped(2.9e-6, 0.00532, 'unit_3_0/conv_1', 51))
  assert said.startswith('0.00029 % of the squared weights') and '0.53 % (unit_3_0/conv_1, output 51)' in said
  said = architecture.describe_dropped(architecture.Dropped(0.5, 0.9996, 'logits/fc', 3))
  assert said.startswith('50 % of') and 'at most 100 % (logits/fc' in said
  assert architecture.describe_dropped(architecture.Dropped(0.0, 0.0, 'logits/fc', 3)).startswith('0 % of')
