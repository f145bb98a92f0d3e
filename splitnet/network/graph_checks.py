"""Checks that a list of layers is a network that can be built."""

import itertools

from splitnet.common.errors import UserError

WEIGHTED = ('conv', 'linear')
WINDOWED = ('conv', 'depthwise', 'max_pool', 'avg_pool')
KEEPS_UNITS = (
  'depthwise', 'batch_norm', 'relu', 'activation', 'max_pool', 'avg_pool', 'pad', 'affine', 'lrn', 'add', 'mean',
)  # fmt: skip
OPS = ('image', *WEIGHTED, *KEEPS_UNITS)
# What an activation may compute, by its name in Keras.
FUNCTIONS = (
  'relu6', 'leaky_relu', 'elu', 'selu', 'silu', 'gelu', 'tanh', 'sigmoid', 'hard_sigmoid', 'hard_silu', 'softplus',
  'softsign',
)  # fmt: skip

# Beyond these a network is a slip of the keyboard or a damaged file; they are told before anything is made.
MAX_LAYERS = 5000  # ResNet-1202 has 4,200
MAX_UNITS = 1 << 17  # of a layer
MAX_PIXELS = 1 << 13  # a side
MAX_WEIGHTS = 1 << 31
MAX_NODES = 20_000  # layers times the branches that they stand in


def windowed_size(size, kernel, stride, padding):
  """Returns what a convolution or a pool writes, pixels a side; 0 if too large."""
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


def check(graph):
  """Checks a graph.Graph; raises what its docstring says."""
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
      if layer.op in WINDOWED:
        size = windowed_size(size, layer.kernel, layer.stride, layer.padding)
      size += sum(layer.pads)
      require(layer.size == size, f'writes {layer.size} pixels a side; of what it reads it makes {size}')
    if layer.op == 'lrn' and layer.units.groups > 1:
      raise UserError(
        f"'{layer.name}' normalises over neighbouring channels, which {layer.units.groups} groups would part: it can "
        'stand only below the layers that are split'
      )
    whole = layer.op != 'linear' or sources[0].op == 'mean' or layer.kernel == sources[0].size > 1
    require(whole, 'does not read a mean, nor all pixels')
    if layer.op == 'affine':
      require(layer.units.size == len(layer.factors) == len(layer.offsets), 'has other channels')
      require(layer.units.groups == 1, 'stands on units that are divided')
    require((layer.op == 'activation') == bool(layer.function), 'has another function')
    require(layer.op == 'pad' or not any(layer.pads), 'cannot pad')
    require(not layer.dropout or layer.op in ('relu', 'linear'), 'cannot drop values')
    seen[layer.name] = layer
  layer = graph.layers[-1]
  classes = layer.op == 'linear' and layer.depth == order[-1] and layer.units.groups == graph.branches(layer)
  require(classes and graph.depths[order[0]] == 1, 'is the last, but not the classes of a tree with one root')
  for layer in graph.layers[:-1]:
    require(graph.readers[layer.name], 'is read by no other')
  _check_size(graph)
