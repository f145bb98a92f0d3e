"""Writes graphs."""

from splitnet.common.errors import UserError
from splitnet.network.graph import Graph, Layer, Units
from splitnet.network.graph_checks import MAX_LAYERS, windowed_size


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

  def windowed(self, name, op, x, units, kernel, stride, padding, **keywords):
    """Adds a layer of one of the ops of graph_checks.WINDOWED."""
    size = windowed_size(x.size, kernel, stride, padding)
    if size < 1:
      raise UserError(
        f'images of {self.image.size} x {self.image.size} pixels are too small for {self.name}: {name} reads '
        f'{x.size} x {x.size} with a window of {kernel}'
      )
    return self._add(name, op, [x], units, size, kernel=kernel, stride=stride, padding=padding, **keywords)

  def conv(self, name, x, units, kernel, stride=1, padding='SAME', bias=False, counted='all'):
    """Adds a convolution that writes `units`."""
    return self.windowed(name, 'conv', x, units, kernel, stride, padding, bias=bias, counted=counted)

  def linear(self, name, x, units, counted='all', dropout=False, bias=True):
    """Adds a fully connected layer, of a mean or of all pixels of a map."""
    return self._add(name, 'linear', [x], units, 1, kernel=x.size, bias=bias, counted=counted, dropout=dropout)

  def batch_norm(self, name, x, scaled=True):
    """Adds a batch normalisation."""
    return self._add(name, 'batch_norm', [x], x.units, x.size, scaled=scaled)

  def relu(self, x, dropout=False):
    """Adds a rectifier."""
    return self._add(x.name + '/relu', 'relu', [x], x.units, x.size, dropout=dropout)

  def max_pool(self, x, kernel, stride, padding='SAME'):
    """Adds the largest value of each window."""
    return self.windowed(x.name + '/pool', 'max_pool', x, x.units, kernel, stride, padding)

  def keep(self, name, op, x, size=None, **keywords):
    """Adds a layer of an op that keeps its units and has no method of its own."""
    return self._add(name, op, [x], x.units, x.size if size is None else size, **keywords)

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
