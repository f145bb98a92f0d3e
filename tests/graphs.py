"""Small networks of every kind, as graphs, for the tests."""

import numpy as np
from networks import scramble

from alexnet_split import AlexNet
from resnet_split import ResNet18, WideResNet
from splitnet.network import hardening
from splitnet.network import network as networks

# AlexNet's last map has 2 x 2 pixels, so fc6 has a window.
TINY = {
  AlexNet: dict(width=1 / 16, image_size=96, num_classes=12),
  ResNet18: dict(width=1 / 8, image_size=32, num_classes=12),
  WideResNet: dict(k=1, num_residual_units=1, image_size=16, num_classes=12),
}


def tiny(kind, split, branch_input='group', **more):
  """Small settings of a network."""
  return kind.of_split(split, **{**TINY[kind], 'branch_input': branch_input, **more})


def images(graph, batch=4):
  return np.random.default_rng(1).normal(0, 1, (batch, graph.image_size, graph.image_size, 3)).astype(np.float32)


def values_of(network):
  return {name: np.asarray(v) for name, v in network.weights.items()}


def even_groups(graph):
  """Hard groups of equal size, as nearly as it goes."""
  return {name: np.arange(units.size) * units.groups // units.size for name, units in graph.units.items()}


def make_grouping(kind, split, branch_input='group'):
  """A grouping network with decided, uneven assignments."""
  return scramble(networks.create(tiny(kind, split, branch_input).graph(), with_assignments=True))


def make_tree(kind, split, branch_input='group'):
  """The tree that it hardens to."""
  return hardening.harden(make_grouping(kind, split, branch_input))
