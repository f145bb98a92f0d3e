"""Partitions a dense network over devices, as the paper's Table 5 does.

`horizontal` divides every layer's output channels over all devices, as evenly as they go; the parts are gathered before
every convolution. `vertical` gives every layer one device: consecutive blocks stand on different devices, and one
tensor goes from one to the next. Either computes the dense network's logits.
"""

import numpy as np
import tensorflow as tf

from splitnet.network import counting, layers
from splitnet.network.dropout import Dropout
from splitnet.network.graph_checks import WEIGHTED
from splitnet.parallel import placement


def horizontal(network, devices):
  """Divides each layer's output channels over the devices: a Partition."""
  return Partition(network, {layer.name: list(devices) for layer in network.graph.layers[1:]})


def vertical(network, devices):
  """Places blocks in a row, the busiest device with as few FLOPs as possible."""
  flops = {count.name: count.flops for count in counting.counts(network)}
  uncut = pieces(network.graph)
  sizes = placement.cut([sum(flops.get(name, 0) for name in piece) for piece in uncut], len(devices), sum)
  device_of_piece = np.repeat(np.arange(len(devices)), sizes)
  return Partition(network, {name: [devices[d]] for piece, d in zip(uncut, device_of_piece) for name in piece})


def pieces(graph):
  """Lists the pieces that a vertical partition does not cut: lists of layer names.

  Each residual block is one; what comes before the first goes with it, and what comes after the last with that. In a
  network without residual blocks each block with weights is one.
  """
  blocks = [block for block in graph.blocks if block[0].op != 'image']
  kinds = ('add',) if any(layer.op == 'add' for layer in graph.layers) else WEIGHTED
  ends = [any(layer.op in kinds for layer in block) for block in blocks]
  result = [[]]
  for i, block in enumerate(blocks):
    result[-1] += [layer.name for layer in block]
    if ends[i] and any(ends[i + 1 :]):
      result.append([])
  return result


class Partition:
  """Divides each layer's output channels over devices; for inference.

  Attributes:
    devices: dict from layer name to the list of its devices.
    weights: dict from the dense network's variable names, with '/part_<i>' added, to tf.Variable.
  """

  def __init__(self, network, devices):
    """Copies each part of a dense network's weights to the device that uses it, once."""
    if network.groups is not None:
      raise ValueError('only a dense network is partitioned; a split one has its branches')
    self.graph, self.dtype, self.devices, self.weights = network.graph, network.dtype, devices, {}
    for layer in self.graph.layers:
      for name in [f'{layer.name}/{variable}' for variable in layer.variables]:
        # The outputs are the last axis of every variable: kernel, weights, biases and those of a batch norm.
        parts = np.array_split(network.weights[name].numpy(), len(devices[layer.name]), axis=-1)
        for i, (device, part) in enumerate(zip(devices[layer.name], parts)):
          with tf.device(device):
            self.weights[f'{name}/part_{i}'] = tf.Variable(part, trainable=False)

  def __call__(self, images):
    """Computes logits float32 [batch, classes] on the first layer's first device."""
    image, *computed = self.graph.layers
    first = self.devices[computed[0].name][0]
    call = layers.Call(images, self.dtype, False, Dropout(None, 1.0), channel_multiple=1)
    with tf.device(first):
      parts, gathered = {image.name: [tf.cast(images, self.dtype)]}, {}
    for layer in computed:
      parts[layer.name] = []
      for i, device in enumerate(self.devices[layer.name]):
        with tf.device(device):
          parts[layer.name].append(self._compute(layer, i, parts, gathered, call))
    with tf.device(first):
      return tf.concat(parts[computed[-1].name], 1)

  def _compute(self, layer, i, parts, gathered, call):
    """Computes a layer on its i-th device, of all channels only what needs them."""
    count, whole = len(self.devices[layer.name]), layer.op in (*WEIGHTED, 'lrn')
    inputs = []
    for name in layer.inputs:
      if whole and len(parts[name]) > 1 and (name, i) not in gathered:
        gathered[name, i] = tf.concat(parts[name], -1)  # every device puts the parts together itself
      inputs.append(gathered.get((name, i), parts[name][0]) if whole else parts[name][i])
    own = {variable: self.weights[f'{layer.name}/{variable}/part_{i}'] for variable in layer.variables}
    y = layers.compute(layer, inputs, own, inputs[0].shape[-1], call)
    if layer.op == 'lrn' and count > 1:
      return tf.split(y, [len(part) for part in np.array_split(np.arange(y.shape[-1]), count)], -1)[i]
    return y
