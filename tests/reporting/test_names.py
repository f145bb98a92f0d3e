"""names.py: what a person calls the units of any network."""

import pytest

import alexnet_split
import resnet_split
from splitnet.reporting import names

NETWORKS = {
  'wrn': (resnet_split.WideResNet(k=2), {
    'split_q1': 'classes', 'split_p1': 'output of unit_3', 'split_p2': 'output of unit_2',
    'split_p3': 'output of trunk', 'split_r21': 'inside unit_3_0', 'split_r32': 'inside unit_2_1',
    'stem': 'output of init_conv',
  }),
  'resnet18': (resnet_split.ResNet18(), {
    'split_q1': 'classes', 'split_p1': 'output of conv5', 'split_p4': 'output of conv2', 'split_r21': 'inside conv5_1',
  }),
  'alexnet': (alexnet_split.AlexNet(), {
    'split_q1': 'classes', 'split_p1': 'output of fc7', 'split_p3': 'output of conv5', 'split_p5': 'output of trunk',
    'conv1': 'output of conv1',
  }),
}  # fmt: skip


@pytest.mark.parametrize('network', NETWORKS)
def test_every_set_of_units_has_a_name_of_its_own(network):
  settings, expected = NETWORKS[network]
  graph = settings.graph()
  read = names.unit_names(graph)
  assert {name: read[name] for name in expected} == expected
  assert read.keys() == graph.units.keys() - {'image'} and len(set(read.values())) == len(read)


def test_the_codes_name_stands_behind_where_it_helps():
  assert names.with_code_name('split_q1', 'classes') == 'classes'
  assert names.with_code_name('split_p1', 'output of unit_3') == 'output of unit_3 (split_p1)'
