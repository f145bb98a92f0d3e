"""How an unsplit dense network is spread over devices: what the paper's Table 5 compares its trees with.

Each layer has a list of devices that its output channels are divided over, as evenly as they go. `horizontal` gives
every layer all devices: each computes its part of every layer and reads all parts of the layer below, so the parts are
gathered before every convolution. `vertical` gives every layer one device: consecutive residual blocks stand on
different devices, and one tensor goes from one to the next. Either computes the dense network's logits.
"""

import functools

import numpy as np
import tensorflow as tf

import resnet_split


def horizontal(network, devices):
  """Divides each layer's output channels over the devices.

  Args:
    network: a dense resnet_split.Network; its weights are copied.
    devices: list of device names; the logits are on the first.

  Returns:
    A Partition: a function from whitened images to logits.
  """
  return Partition(network, {layer.name: list(devices) for layer in network.plan.layers})


def vertical(network, devices):
  """Places consecutive residual blocks on the devices, so that the busiest has as few of the FLOPs as possible.

  Args:
    network: a dense resnet_split.Network; its weights are copied.
    devices: list of device names, no more than there are blocks.

  Returns:
    A Partition: a function from whitened images to logits.
  """
  pieces = cut_points(network.plan)
  flops = {count.name: count.flops for count in network.counts}
  sizes = balanced_cut([sum(flops[name] for name in piece) for piece in pieces], len(devices))
  device_of_piece = np.repeat(np.arange(len(devices)), sizes)
  return Partition(network, {name: [devices[d]] for piece, d in zip(pieces, device_of_piece) for name in piece})


def cut_points(plan):
  """The pieces that a vertical partition does not cut: a list of lists of layer names.

  Each residual block is one; what comes before the first goes with it, and what comes after the last with that.
  """
  piece_of = {name: i for i, block in enumerate(plan.blocks) for name in block_layers(block)}
  pieces, current = [[] for _ in plan.blocks], 0
  for layer in plan.layers:
    current = piece_of.get(layer.name, current)
    pieces[current].append(layer.name)
  return pieces


def block_layers(block):
  """The names of a residual block's layers."""
  names = (block.bn_1, block.shortcut, block.conv_1, block.bn_2, block.conv_2)
  return [name for name in names if name]


def balanced_cut(costs, parts):
  """Divides a row of costs into consecutive parts, none empty, of which the costliest costs as little as possible.

  Args:
    costs: list of numbers.
    parts: how many.

  Returns:
    How many of the costs each part takes, a tuple; of several best ones the first has the earliest borders.

  Raises:
    ValueError: unless 1 <= parts <= len(costs).
  """
  if not 1 <= parts <= len(costs):
    raise ValueError('cannot cut %d pieces into %d parts' % (len(costs), parts))

  @functools.cache
  def best(first, parts):
    """(the highest cost, the sizes) of costs[first:] in so many parts."""
    if parts == 1:
      return sum(costs[first:]), (len(costs) - first,)
    found = []
    for size in range(1, len(costs) - first - parts + 2):
      highest, sizes = best(first + size, parts - 1)
      found.append((max(sum(costs[first : first + size]), highest), (size, *sizes)))
    return min(found)

  return best(0, parts)[1]


class Partition(tf.Module):
  """A dense network whose layers each have their output channels divided over devices; for inference.

  Attributes:
    devices: dict from layer name to the list of its devices, as many for each layer.
    weights: dict from the dense network's variable names, with '/part_<i>' added, to tf.Variable.
  """

  def __init__(self, network, devices):
    """Copies each part of the weights to the device that uses it, once.

    Args:
      network: a dense resnet_split.Network.
      devices: dict from layer name to a list of device names, equally long for each layer.
    """
    super().__init__(name='partition')
    if network.groups is not None:
      raise ValueError('only a dense network is partitioned; a split one has its branches')
    self.plan, self.dtype, self.devices = network.plan, network.dtype, devices
    self.weights = {}
    for layer in self.plan.layers:
      prefix = layer.name + '/'
      for name in [name for name in network.weights if name.startswith(prefix)]:
        # The outputs are the last axis of every variable: kernel, weights, biases and those of a batch norm.
        parts = np.array_split(network.weights[name].numpy(), len(devices[layer.name]), axis=-1)
        for i, (device, part) in enumerate(zip(devices[layer.name], parts)):
          with tf.device(device):
            self.weights['%s/part_%d' % (name, i)] = tf.Variable(part, trainable=False)

  def __call__(self, images):
    """Logits of a batch of whitened images [batch, 32, 32, 3], as the dense network's: float32 [batch, classes].

    They are on the first device of the first layer.
    """
    by_name = {layer.name: layer for layer in self.plan.layers}
    in_blocks = {name for block in self.plan.blocks for name in block_layers(block)}
    stem, last_norm, classifier = (layer for layer in self.plan.layers if layer.name not in in_blocks)
    with tf.device(self.devices[stem.name][0]):
      images = tf.cast(images, self.dtype)
    x = self._each(stem, self._conv, self._gather([images], stem))
    for block in self.plan.blocks:
      x = self._block(block, by_name, x)
    features = self._each(last_norm, self._features, x)
    logits = self._each(classifier, self._linear, self._gather(features, classifier))
    with tf.device(self.devices[stem.name][0]):
      return tf.concat(logits, 1)

  def _block(self, block, by_name, x):
    """resnet_split.Network's residual block on parts: only the convolutions read what other devices computed."""
    conv_1, conv_2 = by_name[block.conv_1], by_name[block.conv_2]
    a = self._each(by_name[block.bn_1], self._norm_relu, x)
    gathered = self._gather(a, conv_1)
    if block.shortcut:
      residual = self._each(by_name[block.shortcut], self._conv, gathered)
    else:
      residual = a if block.name.endswith('_0') else x
    a = self._each(conv_1, self._conv, gathered)
    a = self._each(by_name[block.bn_2], self._norm_relu, a)
    a = self._each(conv_2, self._conv, self._gather(a, conv_2))
    return self._each(conv_2, lambda layer, i, pair: pair[0] + pair[1], list(zip(residual, a)))

  def _each(self, layer, compute, inputs):
    """compute(layer, i, inputs[i]) on each of a layer's devices: the list of its parts."""
    parts = []
    for i, (device, x) in enumerate(zip(self.devices[layer.name], inputs)):
      with tf.device(device):
        parts.append(compute(layer, i, x))
    return parts

  def _gather(self, parts, layer):
    """All channels for each of a layer's devices: every device puts the parts together itself."""
    if len(parts) == 1:
      return parts * len(self.devices[layer.name])
    return self._each(layer, lambda *_: tf.concat(parts, -1), parts)

  def _part(self, layer, i, suffix):
    return self.weights['%s/%s/part_%d' % (layer.name, suffix, i)]

  def _conv(self, layer, i, x):
    return tf.nn.conv2d(x, tf.cast(self._part(layer, i, 'kernel'), self.dtype), layer.stride, 'SAME')

  def _linear(self, layer, i, x):
    return tf.matmul(x, self._part(layer, i, 'weights')) + self._part(layer, i, 'biases')

  def _norm_relu(self, layer, i, x):
    normalised = tf.raw_ops.FusedBatchNormV3(
      x=x,
      scale=self._part(layer, i, 'gamma'),
      offset=self._part(layer, i, 'beta'),
      mean=self._part(layer, i, 'mu'),
      variance=self._part(layer, i, 'sigma'),
      epsilon=resnet_split.BATCH_NORM_EPSILON,
      is_training=False,
    ).y
    return tf.nn.relu(normalised)

  def _features(self, layer, i, x):
    return tf.reduce_mean(tf.cast(self._norm_relu(layer, i, x), tf.float32), (1, 2))
