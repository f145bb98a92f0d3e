"""Counts parameters and FLOPs from a graph and groups alone: no variable is made."""

import collections
import dataclasses

import numpy as np

from splitnet.network.graph import Tree


@dataclasses.dataclass(frozen=True)
class LayerCount:
  """The size of one layer in one branch; FLOPs per image, 2 per multiply-add.

  Attributes:
    name: prefix of its variables.
    op: of the Layer.
    node: (depth, branch).
    parameters, flops: all that it learns and computes.
    counted: (parameters, FLOPs) as the paper's tables count them, without stem, batch normalisations and the biases of
      convolutions.
  """

  name: str
  op: str
  node: tuple[str, int]
  parameters: int
  flops: int
  counted: tuple[int, int]


def counts(tree: Tree) -> list[LayerCount]:
  """Returns the sizes of all layers that learn something, bottom up.

  Args:
    tree: a Tree, such as a Network.
  """
  return [_count(tree, layer, branch) for layer, branch in tree.built if layer.variables]


def _count(tree, layer, branch):
  outputs, pixels = len(tree.members(layer.units, layer.depth, branch)), layer.size**2
  if layer.op == 'batch_norm':
    weights, biases = 0, outputs * (2 if layer.scaled else 1)
    flops = bias_flops = 2 * outputs * pixels
  else:
    inputs = len(tree.members(tree.graph.read(layer), layer.depth, branch))
    weights, biases = layer.kernel**2 * inputs * outputs, outputs if layer.bias else 0
    bias_flops = biases * pixels * (2 if layer.op == 'linear' else 1)  # a linear bias counts as a weight
    flops = 2 * weights * pixels + bias_flops
  counted = {
    'all': (weights + biases, flops), 'weights': (weights, flops - bias_flops), 'none': (0, 0),
  }[layer.counted]  # fmt: skip
  return LayerCount(tree.prefix(layer, branch), layer.op, (layer.depth, branch), weights + biases, flops, counted)


def total(counts: list[LayerCount], everything=False) -> tuple[int, int]:
  """Sums counts to (parameters, FLOPs); `everything` adds what the paper leaves out."""
  rows = [(c.parameters, c.flops) if everything else c.counted for c in counts]
  return tuple(int(x) for x in np.sum(rows, 0)) if rows else (0, 0)


def node_flops(tree: Tree, everything=True) -> dict:
  """Returns the FLOPs of each node of the tree: dict from (depth, branch).

  Without `everything` they are counted as the paper does.
  """
  flops = collections.Counter()
  for count in counts(tree):
    flops[count.node] += count.flops if everything else count.counted[1]
  return flops
