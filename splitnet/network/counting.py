"""Counts parameters and FLOPs from a graph and groups alone: no variable is made."""

import collections
import dataclasses

import numpy as np

from splitnet.network.graph import Tree


@dataclasses.dataclass(frozen=True)
class LayerCount:
  """Holds the size of one layer in one branch."""

  name: str  # prefix of its variables
  op: str
  node: tuple[str, int]  # (depth, branch)
  parameters: int  # all that it learns
  flops: int  # all that it computes for an image, at 2 per multiply-add
  counted: tuple[int, int]  # both as the paper's tables count: no stem, batch normalisation or bias of a convolution


def counts(tree: Tree) -> list[LayerCount]:
  """Returns the sizes of all layers that learn something, bottom up."""
  return [_count(tree, layer, branch) for layer, branch in tree.built if layer.variables]


def _count(tree, layer, branch):
  outputs, pixels = len(tree.members(layer.units, layer.depth, branch)), layer.size**2
  if layer.op == 'batch_norm':
    weights, biases = 0, outputs * (layer.scaled + layer.centred)
    flops = bias_flops = 2 * outputs * pixels
  else:
    # A depthwise convolution reads one channel for each that it writes.
    inputs = 1 if layer.op == 'depthwise' else len(tree.members(tree.graph.read(layer), layer.depth, branch))
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
  """Returns FLOPs by node, (depth, branch): all, or as the paper counts."""
  flops = collections.Counter()
  for count in counts(tree):
    flops[count.node] += count.flops if everything else count.counted[1]
  return flops
