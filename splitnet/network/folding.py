"""Folds batch normalisations into the layers beside them, for inference.

With fixed averages a batch normalisation is s * x + t for each channel. What reads what decides where it goes:

* If it alone reads a convolution's output, s goes into the kernel and t into the convolution's biases.
* If it alone reads the end of a residual stream and a rectifier follows, relu(s * x + t) = s * relu(x + t / s) for
  s > 0: s goes into the kernels that read the result, and t / s into the biases of the last convolution that was added
  to the stream.
* Elsewhere it is kept: if a block adds the stream to its own output, if several branches read all of their parent's
  channels (branch_input 'all'), and if s is not positive or the shift is large. It costs no more than the rectifier
  alone there, since TensorFlow computes both in one operation. Its mean is taken off by the biases of the last
  convolution nevertheless.

What remains is convolutions with biases, sums and rectifiers. On a CPU TensorFlow's graph optimiser makes one operation
of each such group; it takes a sum in only if the convolution has biases, and it fails on a rectifier (one without a
batch normalisation) that reads a sum which something else reads too, hence the rules.
"""

import dataclasses

import numpy as np

from splitnet.network.graph import Graph
from splitnet.network.graph_checks import WEIGHTED
from splitnet.network.network import Network

# A stream is shifted by at most so many of a channel's deviations, or it would lose digits in bfloat16, which has 8.
MAX_DEVIATIONS = 8.0


def folded(network):
  """Returns a network for inference that computes the same, to rounding.

  Its weights are arrays, those of convolutions in the type in which these compute; in the graph of a tf.function they
  are constants, on the devices of their branches. A batch normalisation that some branches keep has no weights in the
  others.
  """
  fold = _Fold(network)
  fold.into_convolutions()
  fold.into_streams()
  graph = fold.smaller_graph()
  dtype, weights = network.dtype.as_numpy_dtype, {}
  for layer, branch in network.built:
    for name in network.names(graph.by_name.get(layer.name, layer), branch).values():
      if name in fold.values:
        weights[name] = fold.values[name].astype(dtype if layer.op in ('conv', 'depthwise') else np.float32)
  return Network(graph, weights, network.groups, network.dtype, network.devices)


class _Fold:
  """Holds a network's values, by variable name, while they are folded."""

  def __init__(self, network):
    self.network, self.graph = network, network.graph
    values = {n: v for n, v in network.weights.items() if not n.startswith('group/')}
    # Everything is multiplied in float64 and rounded once.
    self.values = {n: np.asarray(v).astype(np.float64) for n, v in values.items()}
    self._biased = set()

  def branches(self, layer):
    """Returns which branches of a layer there are."""
    return range(self.network.branches(layer))

  def reads(self, layer, source, branch):
    """Returns what a branch reads of a layer at its depth or below: (branch, slice)."""
    return (branch, slice(None)) if source.depth == layer.depth else self.network.reads(layer.depth, branch)

  def norm(self, layer, branch):
    """Returns a batch normalisation's variables by their names' last parts, s and t."""
    own = {variable: self.values[name] for variable, name in self.network.names(layer, branch).items()}
    scale = own['gamma'] / np.sqrt(own['sigma'] + layer.epsilon)
    return own, scale, own['beta'] - scale * own['mu']

  def remove(self, layer, branch):
    """Takes a batch normalisation away."""
    for name in self.network.names(layer, branch).values():
      del self.values[name]

  def add_bias(self, layer, branch, offset):
    """Adds to the biases of a convolution."""
    name = f'{self.network.prefix(layer, branch)}/biases'
    self.values[name] = self.values.get(name, 0.0) + offset
    self._biased.add(layer.name)

  def into_convolutions(self):
    """Folds each batch normalisation that alone reads a convolution."""
    for norm in self.graph.layers:
      if norm.op != 'batch_norm':
        continue
      conv = self.graph.source(norm)
      if conv.op not in ('conv', 'depthwise') or conv.depth != norm.depth or self.graph.readers[conv.name] != [norm]:
        continue
      for branch in self.branches(norm):
        _, scale, offset = self.norm(norm, branch)
        for name in self.network.names(conv, branch).values():
          self.values[name] *= scale
        self.add_bias(conv, branch, offset)
        self.remove(norm, branch)

  def into_streams(self):
    """Shifts each residual stream by what the norms that read it take off."""
    shifts = {}  # by sum: list of arrays, one for each branch
    for total in self.graph.layers:
      if total.op != 'add':
        continue
      residual, writer = total.inputs[0], self._writer(total)
      norms = [layer for layer in self.graph.readers[total.name] if layer.op == 'batch_norm']
      if writer and norms and all(self._absorbs(layer, total) for layer in self.graph.readers[total.name]):
        shifts[total.name] = self._shift(total, norms)
      for branch in self.branches(total) if total.name in shifts or residual in shifts else ():
        shift, carried = (shifts[name][branch] if name in shifts else 0.0 for name in (total.name, residual))
        self.add_bias(writer, branch, shift - carried)

  def _writer(self, total):
    """Returns the convolution that adds to the stream and nothing else, or None."""
    writer = self.graph.by_name[total.inputs[1]]
    alone = writer.op == 'conv' and writer.depth == total.depth and self.graph.readers[writer.name] == [total]
    return writer if alone else None

  def _absorbs(self, layer, total):
    """Returns whether a layer that reads a stream can take its shift off again."""
    if layer.op == 'add':
      return layer.inputs[0] == total.name and layer.depth == total.depth and self._writer(layer) is not None
    return layer.op == 'batch_norm'

  def _shift(self, total, norms):
    """Folds the batch normalisations that read a stream where they can be.

    Returns how far the stream is shifted: list of arrays [channels], one for each branch of `total`.
    """
    members = (self.network.members(total.units, total.depth, branch) for branch in self.branches(total))
    shifts = [np.zeros(len(units)) for units in members]
    readers = self._scaled_readers(norms[0]) if self.graph.readers[total.name] == norms[:1] else None
    reads = [(norm, branch, *self.reads(norm, total, branch)) for norm in norms for branch in self.branches(norm)]
    for i, (norm, branch, parent, channels) in enumerate(reads):
      same = [j for j, other in enumerate(reads) if other[2:] == (parent, channels)]
      own, scale, offset = self.norm(norm, branch)
      small = np.all((own['gamma'] > 0) & (np.abs(own['beta']) <= MAX_DEVIATIONS * own['gamma']))
      if readers and len(same) == 1 and small:
        shifts[parent][channels] = offset / scale
        self.remove(norm, branch)
        self._scale(readers, norm, branch, scale)
      else:
        if same[0] == i:
          shifts[parent][channels] = -own['mu']
        self.values[self.network.prefix(norm, branch) + '/mu'] = own['mu'] + shifts[parent][channels]
    return shifts

  def _scaled_readers(self, norm):
    """Returns the weighted layers that read a rectified norm; None if others do too."""
    (rectifier, *others), found = self.graph.readers[norm.name], []
    if others or rectifier.op != 'relu' or rectifier.depth != norm.depth:
      return None
    passed = [rectifier]
    while passed:
      for layer in self.graph.readers[passed.pop().name]:
        if layer.op in WEIGHTED:
          found.append(layer)
        elif layer.op in ('mean', 'max_pool', 'avg_pool', 'pad') and layer.depth == norm.depth:
          passed.append(layer)
        else:
          return None
    return found

  def _scale(self, readers, norm, branch, scale):
    """Multiplies what the readers of a branch of a batch normalisation do with it."""
    for reader in readers:
      for above in self.branches(reader):
        below, rows = self.reads(reader, norm, above)
        if below == branch:
          weights = next(iter(self.network.names(reader, above).values()))
          self.values[weights] *= scale[rows][:, None]

  def smaller_graph(self):
    """Returns the graph without what no branch keeps, and with the biases."""
    kept = {layer.name for layer, b in self.network.built if f'{self.network.prefix(layer, b)}/mu' in self.values}
    gone = {n.name: n.inputs[0] for n in self.graph.layers if n.op == 'batch_norm' and n.name not in kept}
    layers = [
      dataclasses.replace(
        layer,
        inputs=tuple(gone.get(name, name) for name in layer.inputs),
        bias=layer.bias or layer.name in self._biased,
      )
      for layer in self.graph.layers
      if layer.name not in gone
    ]
    return Graph(self.graph.name, self.graph.depths, tuple(layers))
