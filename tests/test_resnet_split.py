"""resnet_split.py: settings, counts of the paper's tables, the released terms, older checkpoints."""

import dataclasses
import functools
import unittest.mock

import pytest
import tensorflow as tf
from networks import (
  build,
  config_of,
  even_groups,
)

import utils
from resnet_split import WideResNet
from splitnet.common.errors import UserError
from splitnet.network import counting

# --- settings ---------------------------------------------------------------------------------------------------


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
    (dict(ngroups1=20, ngroups2=20, ngroups3=17, k=1), ['17 groups', 'unit_2', 'only 16 units']),
    (dict(branch_input='some'), ['--branch_input', "'some'", 'group or all']),
  ],
)
def test_a_configuration_that_cannot_be_is_one_sentence(given, words):
  with pytest.raises(UserError) as error:
    WideResNet(**given).graph()
  assert all(word in str(error.value) for word in words), error.value
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('given, sentence', [
  (dict(ngroups1=40, ngroups2=40, ngroups3=1), '40 groups were asked for at unit_3, but .* has only 32 units'),
  (dict(ngroups1=80, ngroups2=1, ngroups3=1), '80 groups were asked for at logits, but .* has only 64 units'),
])  # fmt: skip
def test_more_groups_than_channels_is_one_sentence(given, sentence):
  # Some group would stay empty for ever: better said at the start than when hardening.
  with pytest.raises(UserError, match=sentence):
    WideResNet(k=1, num_classes=100, **given).graph()


def test_names_of_splits():
  assert config_of('2-3-5').split == '2-3-5'
  assert config_of('2-4-4').dense().split == '1-1-1'
  assert config_of('2-4-4', k=3).dense() == dataclasses.replace(config_of('1-1-1'), k=3)


# --- counting ------------------------------------------------------------------------------------------------------

# Convolutions and the last layer with its bias, 2 FLOPs per multiply-add, no first convolution and no batch norms.
# Computed for k = 8 and even groups; where branches read all of their parent's channels, the FLOPs are rounded.
EXACT = {
  '1-1-1': (10999908, 3095498952),
  '1-1-4': (10961508, 3095422152),
  '1-2-2': (6780004, 2558576840),
  '2-2-2': (5731428, 2021705928),
  '2-4-4': (3621476, 1753244872),
}
ALL_INPUTS = {
  '1-1-1': (10999908, 3.095),
  '1-1-4': (10961508, 3.095),
  '1-2-2': (7435364, 2.642),
  '2-2-2': (5895268, 2.106),
  '2-4-4': (4112996, 1.879),
}
# Percent of parameters and FLOPs that the paper's Table 2 says are saved.
PAPER = {'1-1-1': (0, 0), '1-1-4': (0.35, 0), '1-2-2': (32.54, 14.63), '2-2-2': (46.39, 31.97), '2-4-4': (62.58, 39.29)}


@functools.lru_cache(None)  # two tests read the same ten networks
def counted_at_k_8(split, branch_input):
  """(the network's own count of (parameters, FLOPs), the parameters in its variables) of an evenly split k = 8."""
  config = config_of(split, k=8, num_classes=100, branch_input=branch_input)
  with unittest.mock.patch.object(tf.random, 'stateless_normal', lambda shape, seed: tf.zeros(shape)):  # only for speed
    network = build(config, groups=None if split == '1-1-1' else even_groups(config.graph()))
  variables = sum(int(tf.size(v)) for name, v in network.weights.items()
                  if name.endswith(('/kernel', '/weights', '/biases')) and name != 'init_conv/kernel')  # fmt: skip
  return counting.total(counting.counts(network)), variables


@pytest.mark.parametrize('split', sorted(EXACT))
def test_counts_are_the_tables(split):
  counted, variables = counted_at_k_8(split, 'group')
  assert counted == EXACT[split]
  assert variables == counted[0]
  counted, variables = counted_at_k_8(split, 'all')
  assert (counted[0], round(counted[1] / 1e9, 3)) == ALL_INPUTS[split]
  assert variables == counted[0]


@pytest.mark.parametrize('split', sorted(EXACT))
def test_percentages_are_the_papers(split):
  (parameters, flops), _ = counted_at_k_8(split, 'all')
  saved = 100 - 100 * parameters / EXACT['1-1-1'][0], 100 - 100 * flops / EXACT['1-1-1'][1]
  assert saved == pytest.approx(PAPER[split], abs=0.15)


# --- what the regularisers see -------------------------------------------------------------------------------------

# Of the released code's own outputs (branch_input group, two residual units): how many terms each loss has.
TERMS = {
  ('1-1-4', 'group'): (1, 1),
  ('1-2-2', 'group'): (4, 6),
  ('2-2-2', 'group'): (7, 11),
  ('2-4-4', 'group'): (7, 11),
  # Reading all of the parent: the first block's shortcut and conv_1 have no term where one trunk branches ...
  ('1-1-4', 'all'): (1, 1),
  ('1-2-2', 'all'): (3, 4),  # r21, r22, logits; conv_2, conv_1, conv_2 of unit_3, logits
  ('2-2-2', 'all'): (6, 9),  # r31, r32, p2, r21, r22, logits; 3 of unit_2, 5 of unit_3, logits
  ('2-4-4', 'all'): (6, 9),  # ... and in unit_3 they still are divided between unit_2's two branches.
}


@pytest.mark.parametrize('split, branch_input', sorted(TERMS))
def test_number_and_order_of_the_terms(split, branch_input):
  network = build(config_of(split, branch_input=branch_input), with_assignments=True)
  terms = utils.regularisers(network.split_layers())
  overlaps, splits = list(terms['overlap_terms']), list(terms['weight_split_terms'])
  assert (len(overlaps), len(splits)) == TERMS[split, branch_input]
  assert overlaps == list(terms['uniform_terms'])
  bottom_up = [layer.name for layer in network.graph.layers]
  assert splits == sorted(splits, key=bottom_up.index) and splits[-1] == 'logits/fc'
  # Every assignment is counted, and none twice.
  counted = [q for layer in network.split_layers() for q in layer.counted]
  assert len(counted) == len(network.soft_assignments())


def test_terms_of_reading_all_by_name():
  network = build(config_of('2-2-2', branch_input='all'), with_assignments=True)
  terms = utils.regularisers(network.split_layers())
  assert list(terms['weight_split_terms']) == [
    'unit_2_0/conv_2', 'unit_2_1/conv_1', 'unit_2_1/conv_2', 'unit_3_0/shortcut', 'unit_3_0/conv_1',
    'unit_3_0/conv_2', 'unit_3_1/conv_1', 'unit_3_1/conv_2', 'logits/fc',
  ]  # fmt: skip


