"""Hardens: the most probable groups make a tree of branches (Algorithm 1)."""

import collections

import numpy as np

import utils
from splitnet.network import network as networks
from splitnet.network.graph import Tree, hard_groups_of


def present_groups(network):
  """Returns the hard groups that a grouping network's assignments are at now."""
  return hard_groups_of(network.graph, network.weights)


def harden(network, **keywords):
  """Splits a grouping network by the most probable group of each unit.

  The result computes what the grouping network computes with its between-group weights set to zero: weights are sliced,
  nothing is drawn anew. The keywords are network.create's. Raises UserError if a group is empty.
  """
  groups = present_groups(network)
  values = {name: variable.numpy() for name, variable in network.weights.items()}
  return networks.create(network.graph, groups, values=split_values(network.graph, groups, values), **keywords)


def split_values(graph, groups, values):
  """Slices a dense network's arrays by name into those of the tree of hard groups."""
  tree, parts = Tree(graph, groups), {}
  for layer, branch in tree.built:
    for variable, name in tree.names(layer, branch).items():
      value = values[f'{layer.name}/{variable}'][..., tree.members(layer.units, layer.depth, branch)]
      if variable in ('kernel', 'weights'):
        value = value[..., tree.members(graph.read(layer), layer.depth, branch), :]
      parts[name] = value
  return parts


def kept_weights(graph, layer, groups):
  """Returns which weights of a weighted layer hardening keeps: bool array [in, out]."""
  rows, columns = (
    utils.parents_along(graph.merges(layer, units))[groups[units.name]] for units in (graph.read(layer), layer.units)
  )
  return rows[:, None] == columns[None, :]


# What hardening drops: the share of the squared weights of all layers that it cuts, the largest such share of the
# weights of one output unit, the name of that unit's layer, and its number there.
Dropped = collections.namedtuple('Dropped', 'share largest layer unit')


def dropped_weights(graph, groups, values):
  """Returns how much of a grouping network's weights hardening drops: a Dropped.

  That is near nothing once grouping has converged. One unit can matter: the batch normalisation behind it scales it up
  if its own group's weights are small. `values` are the dense network's arrays by variable name.
  """
  dropped, total, largest = 0.0, 0.0, (0.0, '', 0)
  for layer in graph.weighted:
    if graph.cut(layer) == 1:
      continue
    weights = np.asarray(values[layer.weights], np.float64)
    squares = np.square(weights).reshape(-1, *weights.shape[-2:]).sum(0)  # [in, out]
    outside = np.where(kept_weights(graph, layer, groups), 0.0, squares).sum(0)
    shares = outside / np.maximum(squares.sum(0), np.finfo(np.float64).tiny)
    dropped, total = dropped + outside.sum(), total + squares.sum()
    largest = max(largest, (float(shares.max()), layer.name, int(shares.argmax())))
  return Dropped(float(dropped / max(total, np.finfo(np.float64).tiny)), *largest)


def describe_dropped(dropped):
  """Returns a Dropped in words."""
  share, largest = (
    np.format_float_positional(100 * value, precision=2, unique=False, fractional=False, trim='-')
    for value in (dropped.share, dropped.largest)
  )
  return (
    f"{share} % of the squared weights of split layers; of one unit's at most {largest} % ({dropped.layer}, output "
    f'{dropped.unit})'
  )
