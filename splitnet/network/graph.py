"""A network as one list of layers, each with the units that it reads and writes.

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

WEIGHTED = ('conv', 'linear')
KEEPS_UNITS = ('batch_norm', 'relu', 'max_pool', 'lrn', 'add', 'mean')
OPS = ('image', *WEIGHTED, *KEEPS_UNITS)

# Beyond these a network is a slip of the keyboard or a damaged file; they are told before anything is made.
MAX_LAYERS = 5000  # ResNet-1202 has 4,200
MAX_UNITS = 1 << 17  # of a layer
MAX_PIXELS = 1 << 13  # a side
MAX_WEIGHTS = 1 << 31
MAX_NODES = 20_000  # layers times the branches that they stand in


@dataclasses.dataclass(frozen=True)
class Units:
  """One set of units that layers write and read."""

  name: str  # of its assignment, such as 'split_p2'
  size: int
  groups: int  # of its assignment; 1: nothing divides it
  depth: str  # whose layers its assignment serves unmerged; layers below see it merged

  @property
  def alpha(self):
    """The name of the variable [groups, units] whose softmax assigns units to groups."""
    return f'group/{self.name}/alpha'


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer; those whose names begin alike, up to the first '/', are a block."""

  name: str  # as in the released checkpoints, such as 'unit_2_0/conv_1'
  op: str  # one of OPS
  inputs: tuple[str, ...]  # the layers that it reads: two of `add`, none of `image`, else one
  units: Units  # that it writes
  depth: str
  size: int = 1  # height (= width) of the output, pixels
  kernel: int = 1  # height (= width) of a convolution's or pool's window
  stride: int = 1
  padding: str = 'SAME'
  bias: bool = False  # whether a convolution or a linear layer adds biases
  counted: str = 'none'  # what the paper's tables count of it: 'all', 'weights' (no biases) or 'none'
  scaled: bool = True  # whether a batch normalisation learns its scale
  dropout: bool = False  # whether training drops what a relu writes, or a linear layer reads

  @property
  def block(self):
    """What its name shares with those of the layers that belong together."""
    return self.name.split('/')[0]

  @property
  def weights(self):
    """The name of its weights in the dense network; None if it has none."""
    return f'{self.name}/{self.variables[0]}' if self.op in WEIGHTED else None

  @property
  def variables(self):
    """The last parts of its variables' names, in the order in which they are made."""
    if self.op == 'batch_norm':
      return ('beta', 'gamma', 'mu', 'sigma')
    own = {'conv': ('kernel',), 'linear': ('weights',)}.get(self.op, ())
    return (*own, 'biases') if self.bias else own


@dataclasses.dataclass(frozen=True)
class Graph:
  """All layers, in an order in which they can be computed, and their branches.

  Raises:
    ValueError: if inputs do not come before; an edge leaves its depth for another than the next; more than one layer is
      read across a border; `add` joins different units; a local response norm stands on units that are divided.
    UserError: if the groups fall going up the tree, there are more of them than units, or it is beyond the limits.
  """

  name: str  # of the network, such as 'WRN-16-8'
  depths: dict[str, int]  # how many branches each has, from the root (one) upwards
  layers: tuple[Layer, ...]  # the first is the image, the last one writes the classes

  def __post_init__(self):
    _check(self)

  # What follows from the list.

  @functools.cached_property
  def by_name(self):
    """Dict from name to layer."""
    return {layer.name: layer for layer in self.layers}

  @functools.cached_property
  def readers(self):
    """Dict from a layer's name to the list of the layers that read it."""
    readers = {layer.name: [] for layer in self.layers}
    for layer in self.layers:
      for name in layer.inputs:
        readers[name].append(layer)
    return readers

  @functools.cached_property
  def units(self):
    """Dict from name to Units, in the order in which they are written."""
    return {layer.units.name: layer.units for layer in self.layers}

  @functools.cached_property
  def weighted(self):
    """The convolutions and linear layers, bottom up (the released losses' order)."""
    return [layer for layer in self.layers if layer.op in WEIGHTED]

  @functools.cached_property
  def split_layers(self):
    """The weighted layers that stand where the tree has branches."""
    return [layer for layer in self.weighted if self.branches(layer) > 1]

  @functools.cached_property
  def blocks(self):
    """The layers in runs of one block at one depth: list of lists."""
    return [list(run) for _, run in itertools.groupby(self.layers, lambda layer: (layer.depth, layer.block))]

  @functools.cached_property
  def borders(self):
    """Dict from depth to the layer below that its branches read; None for the first."""
    borders = dict.fromkeys(self.depths)
    for layer in self.layers:
      for name in layer.inputs:
        if self.by_name[name].depth != layer.depth:
          borders[layer.depth] = self.by_name[name]
    return borders

  @property
  def classes(self):
    """The Units that the last layer writes."""
    return self.layers[-1].units

  @property
  def image_size(self):
    """Height and width of the images, pixels."""
    return self.layers[0].size

  @property
  def split(self):
    """The paper's name of the split, the groups of the last depths, such as '2-2-2'."""
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
    layers = (
      Layer(**{**each, 'inputs': tuple(each['inputs']), 'units': units[each['units']]}) for each in content['layers']
    )
    return cls(content['name'], dict(content['depths']), tuple(layers))


def split_name(counts):
  """Returns the paper's name of a split: the groups of the last three depths or more."""
  while len(counts) > 3 and counts[0] == 1:
    counts = counts[1:]
  return '-'.join(map(str, counts))


@schema.exact
class _PlainUnits(schema.TypedDict):
  name: schema.Text
  size: schema.Positive
  groups: schema.Positive
  depth: schema.Text


@schema.exact
class _PlainLayer(schema.TypedDict):
  name: schema.Text
  op: schema.Text
  inputs: list[schema.Text]
  units: schema.Text
  depth: schema.Text
  size: schema.NotRequired[schema.Positive]
  kernel: schema.NotRequired[schema.Positive]
  stride: schema.NotRequired[schema.Positive]
  padding: schema.NotRequired[Literal['SAME', 'VALID']]
  bias: schema.NotRequired[bool]
  counted: schema.NotRequired[Literal['all', 'weights', 'none']]
  scaled: schema.NotRequired[bool]
  dropout: schema.NotRequired[bool]


@schema.exact
class _Plain(schema.TypedDict):
  """What `Graph.to_dict` writes."""

  name: schema.Text
  depths: Annotated[dict[schema.Text, schema.Positive], Field(min_length=1)]
  units: list[_PlainUnits]
  layers: Annotated[list[_PlainLayer], Field(min_length=1, max_length=MAX_LAYERS)]


def windowed_size(size, kernel, stride, padding):
  """Returns how many pixels a side a convolution or a pool writes, below 1 if its window is too large."""
  return -(-size // stride) if padding == 'SAME' else (size - kernel) // stride + 1


def _check_size(graph):
  """Checks that a graph is not beyond the limits; UserError if it is."""
  of = f'{graph.name} has'
  for layer in graph.layers:
    if layer.units.size > MAX_UNITS:
      raise UserError(f'{of} {layer.units.size:,} units in {layer.name}; more than {MAX_UNITS:,} are not made')
    if max(layer.size, layer.kernel, layer.stride) > MAX_PIXELS:
      raise UserError(f'{of} more than {MAX_PIXELS:,} pixels a side in {layer.name}, which is not made')
  kernels = {layer.name: layer.kernel**2 * graph.read(layer).size * layer.units.size for layer in graph.weighted}
  if sum(kernels.values()) > MAX_WEIGHTS:
    raise UserError(f'{of} {sum(kernels.values()):,} weights; more than {MAX_WEIGHTS:,} are not made')
  nodes = sum(graph.branches(layer) for layer in graph.layers)
  if nodes > MAX_NODES:
    raise UserError(f'{of} {nodes:,} layers in all branches together; more than {MAX_NODES:,} are not made')


def _check(graph):
  """Raises what Graph's docstring says."""
  order, seen, crossing = list(graph.depths), {}, {}
  for below, above in itertools.pairwise(order):
    if graph.depths[above] < graph.depths[below]:
      raise UserError(
        f'the tree has {graph.depths[below]} branches at {below} but only {graph.depths[above]} above it, at {above}: '
        'groups must not fall from one depth to the next'
      )

  def require(holds, reason):
    if not holds:
      raise ValueError(f"layer '{layer.name}' ({layer.op} at {layer.depth}) {reason}")

  for layer in graph.layers:
    require(layer.name not in seen, 'has a name that was there before')
    require(layer.op in OPS and layer.depth in order, 'has an unknown op or depth')
    require(seen.keys() >= set(layer.inputs), f'reads what does not come before it, of {layer.inputs}')
    require(len(layer.inputs) == {'image': 0, 'add': 2}.get(layer.op, 1), f'reads {len(layer.inputs)} layers')
    require((layer.op == 'image') == (not seen), 'stands first or is an image, and not both')
    require(graph.units[layer.units.name] == layer.units, f"writes one of two sets of units '{layer.units.name}'")
    require(layer.units.depth in order, 'writes units at an unknown depth')
    if layer.units.groups > layer.units.size:
      raise UserError(
        f'{layer.units.groups} groups were asked for at {layer.units.depth}, but {layer.name} has only '
        f'{layer.units.size} units to divide'
      )
    sources = [seen[name] for name in layer.inputs]
    for source in sources:
      if source.depth != layer.depth:
        require(order.index(layer.depth) == order.index(source.depth) + 1, f"reads '{source.name}' at {source.depth}")
        other = crossing.setdefault(layer.depth, source)
        require(other is source, f"reads '{source.name}', but '{other.name}' and '{source.name}' cross the border")
      require(layer.op not in KEEPS_UNITS or source.units == layer.units, 'reads other units than it writes')
      size = 1 if layer.op in ('mean', 'linear') else source.size
      if layer.op in ('conv', 'max_pool'):
        size = windowed_size(size, layer.kernel, layer.stride, layer.padding)
      require(layer.size == size, f'writes {layer.size} pixels a side; of what it reads it makes {size}')
    if layer.op == 'lrn' and layer.units.groups > 1:
      raise UserError(
        f"'{layer.name}' normalises over neighbouring channels, which {layer.units.groups} groups would part: it can "
        'stand only below the layers that are split'
      )
    require(layer.op != 'linear' or sources[0].op == 'mean', 'does not read a mean')
    require(not layer.dropout or layer.op in ('relu', 'linear'), 'cannot drop values')
    seen[layer.name] = layer
  layer = graph.layers[-1]
  classes = layer.op == 'linear' and layer.depth == order[-1] and layer.units.groups == graph.branches(layer)
  require(classes and graph.depths[order[0]] == 1, 'is the last, but not the classes of a tree with one root')
  for layer in graph.layers[:-1]:
    require(graph.readers[layer.name], 'is read by no other')
  _check_size(graph)


class Builder:
  """Writes a graph as one writes a Keras functional model.

  Each method adds a layer and returns it. Layers stand at the builder's `depth`, which is the first one until `at`
  changes it.
  """

  def __init__(self, name, depths, image_size, branch_input='group'):
    """Adds the image.

    With branch_input 'group', the released code's, a child of a tree reads its own group of its parent's units; with
    'all', as the paper counts for CIFAR-100, all of them.
    """
    self.name, self.depths, self.layers = name, dict(depths), []
    self.depth = next(iter(self.depths))
    self.branch_input = branch_input
    self.image = self._add('image', 'image', (), self.shared('image', 3), image_size)

  def at(self, depth):
    """Sets the depth of the layers that follow."""
    self.depth = depth

  # Units.

  def shared(self, name, size):
    """Returns units that nothing divides."""
    return Units(name, size, 1, next(iter(self.depths)))

  def inner(self, name, size):
    """Returns units that only layers at the present depth write and read."""
    return Units(name, size, self.depths[self.depth], self.depth)

  def border(self, name, size, above):
    """Returns units that one depth writes and the next, `above`, reads."""
    order = list(self.depths)
    groups = self.depths[above]
    if self.branch_input == 'all' and above != order[-1]:  # the last layer is split on both sides in any case
      groups = min(groups, self.depths[order[order.index(above) - 1]])
    return Units(name, size, groups, above)

  # Layers.

  def _add(self, name, op, inputs, units, size, **keywords):
    if len(self.layers) == MAX_LAYERS:
      raise UserError(f'{self.name} has more than {MAX_LAYERS:,} layers, which is not made: give a smaller network')
    self.layers.append(Layer(name, op, tuple(x.name for x in inputs), units, self.depth, size, **keywords))
    return self.layers[-1]

  def _windowed(self, name, op, x, units, kernel, stride, padding, **keywords):
    size = windowed_size(x.size, kernel, stride, padding)
    if size < 1:
      raise UserError(
        f'images of {self.image.size} x {self.image.size} pixels are too small for {self.name}: {name} reads '
        f'{x.size} x {x.size} with a window of {kernel}'
      )
    return self._add(name, op, [x], units, size, kernel=kernel, stride=stride, padding=padding, **keywords)

  def conv(self, name, x, units, kernel, stride=1, padding='SAME', bias=False, counted='all'):
    """Adds a convolution that writes `units`."""
    return self._windowed(name, 'conv', x, units, kernel, stride, padding, bias=bias, counted=counted)

  def linear(self, name, x, units, counted='all', dropout=False):
    """Adds a fully connected layer with biases, of a mean."""
    return self._add(name, 'linear', [x], units, 1, bias=True, counted=counted, dropout=dropout)

  def batch_norm(self, name, x, scaled=True):
    """Adds a batch normalisation."""
    return self._add(name, 'batch_norm', [x], x.units, x.size, scaled=scaled)

  def relu(self, x, dropout=False):
    """Adds a rectifier."""
    return self._add(x.name + '/relu', 'relu', [x], x.units, x.size, dropout=dropout)

  def max_pool(self, x, kernel, stride, padding='SAME'):
    """Adds the largest value of each window."""
    return self._windowed(x.name + '/pool', 'max_pool', x, x.units, kernel, stride, padding)

  def lrn(self, x):
    """Adds a local response normalisation over neighbouring channels."""
    return self._add(x.name + '/lrn', 'lrn', [x], x.units, x.size)

  def add(self, name, residual, x):
    """Adds the sum of a residual stream and what a block adds to it."""
    return self._add(name, 'add', [residual, x], x.units, x.size)

  def mean(self, x):
    """Adds the mean over all pixels: [batch, channels], float32."""
    return self._add(x.name + '/mean', 'mean', [x], x.units, 1)

  def graph(self):
    """Returns the Graph of the layers so far."""
    return Graph(self.name, self.depths, tuple(self.layers))


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
  """A graph with one branch at every depth (dense), or divided by hard groups.

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
    """Every layer in every branch: list of (layer, branch)."""
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
