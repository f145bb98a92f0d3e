"""A network as one list of layers, with the units that each reads and writes.

All else walks this list. A set of units (channels, features or classes) has an assignment of its units to groups, and
a layer stands at a depth of the tree, which has a number of branches. Every layer knows its input and its output
assignment; everything else follows: the regularisers are a sum over layers, hardening slices each kernel by the two
assignments, and computing, counting, folding, drawing and placing walk the same list. No function names a layer or a
depth.

Source of trees and groups: Kim et al., SplitNet (ICML 2017), and the released code.
"""

import dataclasses
import functools
import itertools

import numpy as np

import utils
from splitnet.common.errors import UserError

WEIGHTED = ('conv', 'linear')
KEEPS_UNITS = ('batch_norm', 'relu', 'max_pool', 'lrn', 'add', 'mean')
OPS = ('image', *WEIGHTED, *KEEPS_UNITS)


@dataclasses.dataclass(frozen=True)
class Units:
  """One set of units that layers write and read.

  Attributes:
    name: of its assignment, such as 'split_p2'.
    size: how many units.
    groups: how many groups its assignment has; 1: nothing divides it.
    depth: the depth whose layers its assignment serves unmerged; layers below see it merged.
  """

  name: str
  size: int
  groups: int
  depth: str


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer.

  Attributes:
    name: as in the released checkpoints, such as 'unit_2_0/conv_1'; layers whose names begin alike, up to the first
      '/', are a block.
    op: one of OPS.
    inputs: names of the layers that it reads; `add` reads two, `image` none, all others one.
    units: those that it writes.
    depth: where in the tree it stands.
    size: height (= width) of the output, pixels.
    kernel, stride, padding: of a convolution's or pool's window.
    bias: whether a convolution or a linear layer adds biases.
    counted: what the paper's tables count of it: 'all', 'weights' (no biases) or 'none'.
    scaled: whether a batch normalisation learns its scale.
    dropout: whether training drops values: of a relu what it writes, of a linear layer what it reads.
  """

  name: str
  op: str
  inputs: tuple[str, ...]
  units: Units
  depth: str
  size: int = 1
  kernel: int = 1
  stride: int = 1
  padding: str = 'SAME'
  bias: bool = False
  counted: str = 'none'
  scaled: bool = True
  dropout: bool = False

  @property
  def block(self):
    """The first part of its name, which it shares with layers that belong together."""
    return self.name.split('/')[0]

  @property
  def weights(self):
    """The name of its weights in the dense network; None if it has none."""
    suffix = {'conv': '/kernel', 'linear': '/weights'}.get(self.op)
    return suffix and self.name + suffix

  @property
  def variables(self):
    """The last parts of its variables' names, in the order in which they are made."""
    biases = ('biases',) if self.bias else ()
    return {'conv': ('kernel', *biases), 'linear': ('weights', *biases)}.get(
      self.op, ('beta', 'gamma', 'mu', 'sigma') if self.op == 'batch_norm' else ()
    )


@dataclasses.dataclass(frozen=True)
class Graph:
  """All layers of a network, bottom up, and the branches of each depth.

  It checks itself when it is made.

  Attributes:
    name: of the network, such as 'WRN-16-8'.
    depths: dict from depth to how many branches the tree has there, from the root (one branch) upwards.
    layers: tuple of Layer. The first is the image, the last one writes the classes.

  Raises:
    ValueError: if inputs do not come before; an edge leaves its depth for another than the next; more than one layer is
      read across a border; `add` joins different units; a local response norm stands on units that are divided.
    UserError: if the groups fall going up the tree, or there are more of them than units.
  """

  name: str
  depths: dict[str, int]
  layers: tuple[Layer, ...]

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
    """Convolutions and linear layers, bottom up (the order of the released losses)."""
    return [layer for layer in self.layers if layer.op in WEIGHTED]

  @functools.cached_property
  def split_layers(self):
    """Those of the weighted layers that stand where the tree has branches."""
    return [layer for layer in self.weighted if self.branches(layer) > 1]

  @functools.cached_property
  def blocks(self):
    """The layers in runs of one block at one depth: list of lists."""
    return [list(run) for _, run in itertools.groupby(self.layers, lambda layer: (layer.depth, layer.block))]

  @functools.cached_property
  def borders(self):
    """Dict from depth to the layer below that it reads; None for the first depth."""
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
    """The paper's name of the split: groups of the last three depths or more, '2-2-2'."""
    counts = list(self.depths.values())[1:]
    while len(counts) > 3 and counts[0] == 1:
      counts.pop(0)
    return '-'.join(map(str, counts))

  def source(self, layer):
    """Returns the layer that a layer reads (the first of them)."""
    return self.by_name[layer.inputs[0]]

  def read(self, layer):
    """Returns the Units that a layer reads."""
    return self.source(layer).units

  def output(self, depth):
    """Returns the layer that the depth above reads; at the last depth the last one."""
    return next((layer for layer in self.borders.values() if layer and layer.depth == depth), self.layers[-1])

  def branches(self, layer):
    """Returns how many branches the tree has where a layer stands."""
    return self.depths[layer.depth]

  def cut(self, layer):
    """Returns between how many groups hardening drops a layer's weights; 1: none."""
    return min(self.branches(layer), self.read(layer).groups, layer.units.groups)

  def merges(self, layer, units):
    """Returns the numbers of groups through which a layer sees units of its own.

    They are those of the units, merged to its branches, merged to its `cut`.
    """
    return [units.groups, min(units.groups, self.branches(layer)), self.cut(layer)]

  # As plain data.

  def to_dict(self):
    """Returns the graph as a dict that JSON can hold; `from_dict` reads it."""
    fields = [f for f in dataclasses.fields(Layer) if f.name not in ('units', 'inputs')]
    layers = []
    for layer in self.layers:
      plain = {f.name: getattr(layer, f.name) for f in fields if getattr(layer, f.name) != f.default}
      layers.append({**plain, 'inputs': list(layer.inputs), 'units': layer.units.name})
    units = [dataclasses.asdict(units) for units in self.units.values()]
    return {'name': self.name, 'depths': dict(self.depths), 'units': units, 'layers': layers}

  @classmethod
  def from_dict(cls, content):
    """Reads what `to_dict` wrote.

    Raises:
      KeyError, TypeError, ValueError: if it is no such dict.
    """
    units = {each['name']: Units(**each) for each in content['units']}
    layers = (
      Layer(**{**each, 'inputs': tuple(each['inputs']), 'units': units[each['units']]}) for each in content['layers']
    )
    return cls(content['name'], dict(content['depths']), tuple(layers))


def _check(graph):
  """Checks a graph; raises what Graph's docstring says."""
  order, seen, crossing = list(graph.depths), {}, {}
  for below, above in itertools.pairwise(order):
    if graph.depths[above] < graph.depths[below]:
      raise UserError(
        f'the tree has {graph.depths[below]} branches at {below} but only {graph.depths[above]} above it, at '
        f'{above}: groups must not fall from one depth to the next'
      )
  for layer in graph.layers:
    if layer.name in seen or layer.op not in OPS or layer.depth not in graph.depths:
      raise ValueError(f"layer '{layer.name}' has a name that was there before, or an unknown op or depth")
    if len(layer.inputs) != {'image': 0, 'add': 2}.get(layer.op, 1) or (layer.op == 'image') != (not seen):
      raise ValueError(f"layer '{layer.name}' ({layer.op}) reads {len(layer.inputs)} layers")
    if graph.units[layer.units.name] != layer.units:
      raise ValueError(f"there are two sets of units of the name '{layer.units.name}'")
    if layer.units.groups > layer.units.size:
      raise UserError(
        f'{layer.units.groups} groups were asked for at {layer.units.depth}, but {layer.name} has only '
        f'{layer.units.size} units to divide'
      )
    for name in layer.inputs:
      if name not in seen:
        raise ValueError(f"layer '{layer.name}' reads '{name}', which does not come before it")
      source = seen[name]
      if source.depth != layer.depth:
        if order.index(layer.depth) != order.index(source.depth) + 1:
          raise ValueError(f"layer '{layer.name}' at {layer.depth} reads '{name}' at {source.depth}")
        if crossing.setdefault(layer.depth, source) is not source:
          raise ValueError(f"'{crossing[layer.depth].name}' and '{name}' cross the border to {layer.depth}")
      if layer.op in KEEPS_UNITS and source.units != layer.units:
        raise ValueError(f"layer '{layer.name}' ({layer.op}) reads other units than it writes")
    if layer.op == 'lrn' and layer.units.groups > 1:
      raise UserError(
        f"'{layer.name}' normalises over neighbouring channels, which {layer.units.groups} groups would part: it can "
        'stand only below the layers that are split'
      )
    if layer.op == 'linear' and seen[layer.inputs[0]].op != 'mean':
      raise ValueError(f"linear layer '{layer.name}' does not read a mean")
    if layer.dropout and layer.op not in ('relu', 'linear'):
      raise ValueError(f"layer '{layer.name}' ({layer.op}) cannot drop values")
    seen[layer.name] = layer
  last = graph.layers[-1]
  classes = last.op == 'linear' and last.depth == order[-1] and last.units.groups == graph.branches(last)
  if not classes or graph.depths[order[0]] != 1:
    raise ValueError(f"the last layer, '{last.name}', does not write the classes of a tree with one root")
  for layer in graph.layers[:-1]:
    if not graph.readers[layer.name]:
      raise ValueError(f"no layer reads '{layer.name}'")


class Builder:
  """Writes a graph as one writes a Keras functional model.

  Each method adds a layer and returns it.
  Layers stand at the builder's `depth`, which is the first one until `at` changes it.
  """

  def __init__(self, name, depths, image_size, branch_input='group'):
    """Adds the image.

    Args:
      name, depths: of the Graph.
      image_size: height and width, pixels.
      branch_input: if the tree branches, a child reads its own group of its parent's units ('group', the released
        code) or all of them ('all', the paper's counts for CIFAR-100).
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
    """Returns Units that nothing divides."""
    return Units(name, size, 1, next(iter(self.depths)))

  def inner(self, name, size):
    """Returns Units that only layers at the present depth write and read."""
    return Units(name, size, self.depths[self.depth], self.depth)

  def border(self, name, size, above):
    """Returns Units that one depth writes and the next, `above`, reads."""
    order = list(self.depths)
    groups = self.depths[above]
    if self.branch_input == 'all' and above != order[-1]:  # the last layer is split on both sides in any case
      groups = min(groups, self.depths[order[order.index(above) - 1]])
    return Units(name, size, groups, above)

  # Layers.

  def _add(self, name, op, inputs, units, size, **keywords):
    self.layers.append(Layer(name, op, tuple(x.name for x in inputs), units, self.depth, size, **keywords))
    return self.layers[-1]

  def _windowed(self, name, op, x, units, kernel, stride, padding, **keywords):
    size = -(-x.size // stride) if padding == 'SAME' else (x.size - kernel) // stride + 1
    if size < 1:
      raise UserError(
        f'images of {self.image.size} x {self.image.size} pixels are too small for {self.name}: '
        f'{name} reads {x.size} x {x.size} with a window of {kernel}'
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
  """Returns the units that one branch holds, ordered by their finest group.

  Args:
    units: a Units.
    groups_of_units: int array [units.size], each unit's hard group in [0, units.groups).
    branch, branches: which branch, of how many at the depth of the layer that asks.
  """
  if units.groups >= branches:
    chosen = utils.parents(units.groups, branches)[groups_of_units] == branch
  else:  # the child reads all of its parent's units
    chosen = groups_of_units == utils.parents(branches, units.groups)[branch]
  order = utils.group_order(groups_of_units)
  return order[chosen[order]]


def hard_groups_of(graph, alphas):
  """Returns the hard groups of all units of a graph (Algorithm 1 of the paper).

  Args:
    graph: a Graph.
    alphas: dict from the names of the units that are divided to arrays [groups, units].

  Returns:
    A dict from the name of each Units to an int array [size].

  Raises:
    UserError: if a group is empty.
  """
  groups = {
    name: np.zeros(units.size, np.int64) if units.groups == 1 else utils.hard_groups(alphas[name])
    for name, units in graph.units.items()
  }
  check_groups(graph, groups)
  return groups


def check_groups(graph, groups):
  """Checks that no group is empty: a branch without channels cannot be built.

  Raises:
    UserError: if one is.
  """
  for name, units in graph.units.items():
    sizes = utils.group_sizes(groups[name], units.groups)
    if sizes.min() == 0:
      writer = next(layer.name for layer in graph.layers if layer.units == units)
      raise UserError(
        f'assignment {name} ({units.size} units, first at {writer}) leaves group {int(np.argmin(sizes))} of '
        f'{units.groups} empty (sizes {sizes.tolist()}): raise --gamma3, which balances the groups, or ask for fewer '
        'groups, and group again'
      )


class Tree:
  """A graph with its branches: one at every depth (dense), or by hard groups.

  Attributes:
    graph: the Graph.
    groups: None, or the hard groups that it is divided by: dict from units name to int array.
    depths: dict from depth to how many branches there are.
  """

  def __init__(self, graph: Graph, groups=None):
    """Checks the groups; raises UserError if one is empty."""
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

  def members(self, units, depth, branch):
    """Returns the units that a branch holds, by their numbers in the dense network."""
    if self.groups is None:
      return np.arange(units.size)
    return members(units, self.groups[units.name], branch, self.depths[depth])

  def reads(self, depth, branch):
    """Returns what a branch reads of the depth below: (its parent, slice of channels)."""
    if self.groups is None:
      return 0, slice(None)
    source = self.graph.borders[depth]
    parent = int(utils.parents(self.depths[depth], self.depths[source.depth])[branch])
    written, wanted = self.members(source.units, source.depth, parent), self.members(source.units, depth, branch)
    start = int(np.flatnonzero(written == wanted[0])[0])
    if not np.array_equal(written[start : start + len(wanted)], wanted):
      raise AssertionError(f'the units of {source.units.name} are not in group order')
    return parent, slice(None) if len(written) == len(wanted) else slice(start, start + len(wanted))
