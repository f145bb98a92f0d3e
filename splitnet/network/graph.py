"""Describes a network as a list of layers that know what they read and write.

A set of units (channels, features or classes) has an assignment of its units to groups, and a layer stands at a depth
of the tree, which has a number of branches. Every layer knows its input and its output assignment; everything else
follows: the regularisers are a sum over layers, hardening slices each kernel by the two assignments, and computing,
counting, folding, drawing and placing walk the same list. No function names a layer or a depth.

Source of trees and groups: Kim et al., SplitNet (ICML 2017), and the released code.
"""

import dataclasses
import functools
import itertools
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

import utils
from splitnet.common import schema
from splitnet.common.errors import UserError
from splitnet.network.graph_checks import FUNCTIONS, MAX_LAYERS, MAX_PIXELS, WEIGHTED, check


@dataclasses.dataclass(frozen=True)
class Units:
  """Names one set of units that layers write and read."""

  name: schema.Text  # of its assignment, such as 'split_p2'
  size: schema.Positive
  groups: schema.Positive  # of its assignment; 1: nothing divides it
  depth: schema.Text  # whose layers its assignment serves unmerged; layers below see it merged

  @property
  def alpha(self):
    """Names the variable [groups, units] whose softmax assigns units to groups."""
    return f'group/{self.name}/alpha'


@dataclasses.dataclass(frozen=True)
class Layer:
  """Describes a layer; those whose names begin alike, up to '/', are a block."""

  name: schema.Text  # as in the released checkpoints, such as 'unit_2_0/conv_1'
  op: schema.Text  # one of OPS
  inputs: tuple[str, ...]  # the layers that it reads: two of `add`, none of `image`, else one
  units: Units  # that it writes
  depth: schema.Text
  size: schema.Positive = 1  # height (= width) of the output, pixels
  kernel: schema.Positive = 1  # height (= width) of a convolution's or pool's window, or of the map a linear one reads
  stride: schema.Positive = 1
  padding: Literal['SAME', 'VALID'] = 'SAME'
  bias: bool = False  # whether a convolution or a linear layer adds biases
  counted: Literal['all', 'weights', 'none'] = 'none'  # what the paper's tables count of it; weights: no biases
  scaled: bool = True  # whether a batch normalisation learns its scale
  centred: bool = True  # whether it learns its offset
  epsilon: schema.Share = 1e-5  # that it adds to the variance
  decay: schema.Share = 0.9  # of its moving averages
  function: Literal[('', *FUNCTIONS)] = ''  # of an activation
  slope: schema.Finite = 0.2  # of leaky_relu below zero
  pads: tuple[int, int] = (0, 0)  # rows of zeros above and below, and columns left and right
  factors: tuple[float, ...] = ()  # of an affine layer, one a channel
  offsets: tuple[float, ...] = ()  # that it adds then
  reverse: bool = False  # whether it then turns the channels' order round, RGB to BGR
  reads: Literal['prepared', 'pixels', 'unknown'] = 'prepared'  # an image: as the data set makes it, or from 0 to 255
  dropout: bool = False  # whether training drops what a relu writes, or a linear layer reads

  @property
  def block(self):
    """Names what the layer belongs to with others."""
    return self.name.split('/')[0]

  @property
  def weights(self):
    """Names its weights in the dense network; None if it has none."""
    return f'{self.name}/{self.variables[0]}' if self.op in WEIGHTED else None

  @property
  def variables(self):
    """Lists the last parts of its variables' names, in their order."""
    if self.op == 'batch_norm':
      return ('beta', 'gamma', 'mu', 'sigma')
    own = {'conv': ('kernel',), 'depthwise': ('depthwise',), 'linear': ('weights',)}.get(self.op, ())
    return (*own, 'biases') if self.bias else own


@dataclasses.dataclass(frozen=True)
class Graph:
  """Lists all layers, in an order in which they can be computed, and their branches.

  Raises:
    ValueError: if inputs do not come before; an edge leaves its depth for another than the next; more than one layer is
      read across a border; `add` joins different units; a local response norm stands on units that are divided.
    UserError: if the groups fall going up the tree, there are more of them than units, or it is beyond the limits.
  """

  name: str  # of the network, such as 'WRN-16-8'
  depths: dict[str, int]  # how many branches each has, from the root (one) upwards
  layers: tuple[Layer, ...]  # the first is the image, the last one writes the classes

  def __post_init__(self):
    check(self)

  # What follows from the list.

  @functools.cached_property
  def by_name(self):
    """Maps names to layers."""
    return {layer.name: layer for layer in self.layers}

  @functools.cached_property
  def readers(self):
    """Maps a layer's name to the list of the layers that read it."""
    readers = {layer.name: [] for layer in self.layers}
    for layer in self.layers:
      for name in layer.inputs:
        readers[name].append(layer)
    return readers

  @functools.cached_property
  def units(self):
    """Maps names to Units, in the order in which they are written."""
    return {layer.units.name: layer.units for layer in self.layers}

  @functools.cached_property
  def weighted(self):
    """Lists convolutions and linear layers, bottom up (the released losses' order)."""
    return [layer for layer in self.layers if layer.op in WEIGHTED]

  @functools.cached_property
  def split_layers(self):
    """Lists the weighted layers that stand where the tree has branches."""
    return [layer for layer in self.weighted if self.branches(layer) > 1]

  @functools.cached_property
  def blocks(self):
    """Lists the layers in runs of one block at one depth: list of lists."""
    return [list(run) for _, run in itertools.groupby(self.layers, lambda layer: (layer.depth, layer.block))]

  @functools.cached_property
  def borders(self):
    """Maps each depth to the layer below that its branches read; the first to None."""
    borders = dict.fromkeys(self.depths)
    for layer in self.layers:
      for name in layer.inputs:
        if self.by_name[name].depth != layer.depth:
          borders[layer.depth] = self.by_name[name]
    return borders

  @property
  def classes(self):
    """Returns the Units that the last layer writes."""
    return self.layers[-1].units

  @property
  def image_size(self):
    """Returns height and width of the images, pixels."""
    return self.layers[0].size

  @property
  def split(self):
    """Returns the paper's name of the split, such as '2-2-2'."""
    return split_name(list(self.depths.values())[1:])

  def source(self, layer):
    """Returns the layer that a layer reads (the first of them)."""
    return self.by_name[layer.inputs[0]]

  def read(self, layer):
    """Returns the Units that a layer reads."""
    return self.source(layer).units

  def output(self, depth):
    """Returns the layer at a depth that the depth above reads; at the last the last."""
    return next((layer for layer in self.borders.values() if layer and layer.depth == depth), self.layers[-1])

  def branches(self, layer):
    """Returns how many branches the tree has where a layer stands."""
    return self.depths[layer.depth]

  def cut(self, layer):
    """Returns between how many groups a layer's weights are dropped; 1: none."""
    return min(self.branches(layer), self.read(layer).groups, layer.units.groups)

  def merges(self, layer, units):
    """Returns through which numbers of groups a layer sees units beside it.

    They are the units' own, its branches, and its cut.
    """
    return [units.groups, min(units.groups, self.branches(layer)), self.cut(layer)]

  # As plain data.

  def to_dict(self):
    """Returns the graph as a dict that JSON can hold."""
    fields = [f for f in dataclasses.fields(Layer) if f.name not in ('units', 'inputs')]
    layers = []
    for layer in self.layers:
      plain = {f.name: getattr(layer, f.name) for f in fields if getattr(layer, f.name) != f.default}
      plain = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
      layers.append({**plain, 'inputs': list(layer.inputs), 'units': layer.units.name})
    units = [dataclasses.asdict(units) for units in self.units.values()]
    return {'name': self.name, 'depths': dict(self.depths), 'units': units, 'layers': layers}

  @classmethod
  def from_dict(cls, content):
    """Reads what `to_dict` wrote; ValueError or UserError if it did not."""
    content = schema.check(content, _Plain)
    units = {each['name']: Units(**each) for each in content['units']}
    for each in content['layers']:
      if each['units'] not in units:
        raise ValueError(f"layer {schema.show(each['name'])} writes units that there are not")
    plain = ({n: tuple(v) if isinstance(v, list) else v for n, v in each.items()} for each in content['layers'])
    layers = tuple(Layer(**{**each, 'units': units[each['units']]}) for each in plain)
    return cls(content['name'], dict(content['depths']), layers)


def split_name(counts):
  """Returns the paper's name of a split: groups of the last three depths or more."""
  while len(counts) > 3 and counts[0] == 1:
    counts = counts[1:]
  return '-'.join(map(str, counts))


# Tuples of a Layer, as JSON has them.
_PADS = Annotated[list[Annotated[int, Field(ge=0, le=MAX_PIXELS)]], Field(min_length=2, max_length=2)]
_LISTS = {'pads': _PADS, 'factors': list[schema.Finite], 'offsets': list[schema.Finite]}


@schema.exact
class _Plain(schema.TypedDict):
  """Describes what `Graph.to_dict` writes."""

  name: schema.Text
  depths: Annotated[dict[schema.Text, schema.Positive], Field(min_length=1)]
  units: list[schema.fields_of(Units)]
  layers: Annotated[
    list[schema.fields_of(Layer, inputs=list[schema.Text], units=schema.Text, **_LISTS)],
    Field(min_length=1, max_length=MAX_LAYERS),
  ]


# --- hard groups and branches -------------------------------------------------------------------------------------


def members(units, groups_of_units, branch, branches):
  """Returns the units that one branch holds, by their finest group: int array.

  `groups_of_units` is an int array [units.size] of hard groups in [0, units.groups).
  """
  if units.groups >= branches:
    chosen = utils.parents(units.groups, branches)[groups_of_units] == branch
  else:  # the child reads all of its parent's units
    chosen = groups_of_units == utils.parents(branches, units.groups)[branch]
  order = utils.group_order(groups_of_units)
  return order[chosen[order]]


def hard_groups_of(graph, values):
  """Returns the hard groups of all units (Algorithm 1 of the paper).

  They are a dict from units name to int array; a group may be empty. `values` hold the assignments that are learned, by
  variable name.
  """
  return {
    name: np.zeros(units.size, np.int64) if units.groups == 1 else utils.hard_groups(values[units.alpha])
    for name, units in graph.units.items()
  }


def check_groups(graph, groups):
  """Checks that no group is empty: no branch can be without channels.

  Raises:
    UserError: if one is.
    ValueError: if they are not the groups of the graph's units.
  """
  if groups.keys() != graph.units.keys():
    raise ValueError('it has groups of other units than the graph')
  for name, units in graph.units.items():
    if groups[name].shape != (units.size,) or not 0 <= groups[name].min() <= groups[name].max() < units.groups:
      raise ValueError(f"the groups of '{name}' are not {units.size} numbers from 0 to {units.groups - 1}")
    sizes = utils.group_sizes(groups[name], units.groups)
    if sizes.min() == 0:
      writer = next(layer.name for layer in graph.layers if layer.units == units)
      raise UserError(
        f'assignment {name} ({units.size} units, first at {writer}) leaves group {np.argmin(sizes)} of {units.groups} '
        f'empty (sizes {sizes.tolist()}): raise --gamma3, which balances the groups, or ask for fewer groups, and '
        'group again'
      )


class Tree:
  """Gives a graph one branch at every depth (dense), or divides it by hard groups.

  Attributes:
    groups: None, or the hard groups that it is divided by: dict from units name to int array.
    depths: dict from depth to how many branches there are.
  """

  def __init__(self, graph: Graph, groups=None):
    """Raises UserError if a group is empty."""
    if groups is not None:
      check_groups(graph, groups)
    self.graph, self.groups = graph, groups
    self.depths = dict(graph.depths) if groups is not None else dict.fromkeys(graph.depths, 1)

  def branches(self, layer):
    """Returns how many branches of a layer there are."""
    return self.depths[layer.depth]

  @property
  def built(self):
    """Lists every layer in every branch: (layer, branch)."""
    return [(layer, branch) for layer in self.graph.layers for branch in range(self.branches(layer))]

  def prefix(self, layer, branch):
    """Returns what the names of a layer's variables in a branch begin with."""
    return layer.name if self.branches(layer) == 1 else f'branch_{branch}/{layer.name}'

  def names(self, layer, branch):
    """Returns the full names of a layer's variables in a branch, by their last parts."""
    return {variable: f'{self.prefix(layer, branch)}/{variable}' for variable in layer.variables}

  def members(self, units, depth, branch):
    """Returns the units, as numbered in the dense network, that a branch holds."""
    if self.groups is None:
      return np.arange(units.size)
    return members(units, self.groups[units.name], branch, self.depths[depth])

  def reads(self, depth, branch):
    """Returns what a branch reads of the depth below: (parent, slice of channels)."""
    if self.groups is None:
      return 0, slice(None)
    source = self.graph.borders[depth]
    parent = int(utils.parents(self.depths[depth], self.depths[source.depth])[branch])
    written, wanted = self.members(source.units, source.depth, parent), self.members(source.units, depth, branch)
    start = int(np.flatnonzero(written == wanted[0])[0])
    if not np.array_equal(written[start : start + len(wanted)], wanted):
      raise AssertionError(f'the units of {source.units.name} are not in group order')
    return parent, slice(None) if len(written) == len(wanted) else slice(start, start + len(wanted))
