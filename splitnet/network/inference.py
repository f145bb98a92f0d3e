"""The network in the form in which it is evaluated and exported: batch normalisations folded away, weights constant.

With fixed averages a batch normalisation is s * x + t for each channel, and in this network a rectifier follows every
one. What reads what decides where it goes:

* Where it alone reads a convolution's output (unit_1_0/bn_1, every bn_2), s goes into the kernel and t becomes the
  convolution's bias.
* Where it alone reads the end of a residual stream (bn_1 of a stage's first block, unit_last/bn),
  relu(s * x + t) = s * relu(x + t / s) for s > 0: s goes into the kernels that read the result, and t / s becomes the
  bias of the last convolution that was added to the stream.
* Elsewhere it is kept: where the next block adds the stream to its own output, where several branches read all of
  their parent's channels (branch_input 'all'), and where s is not positive or the shift is large. It costs no more
  than the rectifier alone there, since TensorFlow computes both in one operation. Its mean is taken off by the bias
  of the last convolution nevertheless.

What remains is convolutions with a bias, sums and rectifiers. On a CPU TensorFlow's graph optimiser makes one operation
of each such group; it takes a sum in only if the convolution has a bias, and it fails on a rectifier (one without a
batch normalisation) that reads a sum which something else reads too, hence the rules.
"""

import numpy as np
import tensorflow as tf

import resnet_split
from splitnet.network import architecture

# A stream is shifted by at most so many of a channel's deviations, or it would lose digits in bfloat16, which has 8.
MAX_DEVIATIONS = 8.0


class Folded(resnet_split.Network):
  """A network for inference only: computes what the network that it was made from computes, to rounding.

  Attributes:
    weights: dict from name to NumPy array, as the original's but for the batch normalisations that are folded and the
      convolutions' '.../bias'. In the graph of a tf.function they are constants, on the devices of their branches.

    The others are the original network's.
  """

  def __init__(self, network):
    """Folds a network as its variables are now.

    Args:
      network: a resnet_split.Network.
    """
    tf.Module.__init__(self, name='inference')
    own = set(vars(self))
    for name, value in vars(network).items():
      if name not in own and not name.startswith('_self_'):  # those are TensorFlow's, each module its own
        setattr(self, name, value)
    self.weights = _folded_weights(network)

  def __call__(self, images, training=False, **keywords):
    """Logits of a batch of images, as resnet_split.Network's.

    Raises:
      ValueError: with `training`: nothing is left to train.
    """
    if training:
      raise ValueError('a folded network cannot be trained')
    return super().__call__(images, **keywords)

  def _conv(self, layer, branch, x):
    x = super()._conv(layer, branch, x)
    bias = self.weights.get(self.prefix(layer, branch) + '/bias')
    return x if bias is None else tf.nn.bias_add(x, resnet_split.lengthened(bias, {0: x.shape[-1] - len(bias)}))

  def _batch_norm(self, layer, branch, x, training, share=None, factor=1.0):
    if self.prefix(layer, branch) + '/gamma' not in self.weights:
      return x
    return super()._batch_norm(layer, branch, x, training)


def _folded_weights(network):
  """The weights of a Folded: dict from name to array, what convolutions use in the type that they compute in."""
  layers = {layer.name: layer for layer in network.plan.layers}
  blocks = network.plan.blocks
  # Everything is multiplied in float64 and rounded once.
  values = {n: v.numpy().astype(np.float64) for n, v in network.weights.items() if not n.startswith('group/')}
  _fold_into_convolution(network, values, layers['init_conv'], layers[blocks[0].bn_1])
  carried = None
  for block, above in zip(blocks, [*blocks[1:], None]):
    conv_2 = layers[block.conv_2]
    _fold_into_convolution(network, values, layers[block.conv_1], layers[block.bn_2])
    if above is None:
      norm, readers = 'unit_last/bn', ['logits/fc']
    else:  # without a shortcut the block above adds what it reads, so it is no lone reader
      norm, readers = above.bn_1, [above.conv_1, above.shortcut] if above.shortcut else []
    shifts = _fold_into_stream(network, values, conv_2, layers[norm], [layers[name] for name in readers])
    for branch, shift in enumerate(shifts):
      begins = block.name.endswith('_0')  # a stage's first block adds nothing of the stream below
      values[network.prefix(conv_2, branch) + '/bias'] = shift if begins else shift - carried[branch]
    carried = shifts
  dtype = network.dtype.as_numpy_dtype
  return {n: v.astype(dtype if n.endswith(('/kernel', '/bias')) else np.float32) for n, v in values.items()}


def _norm_of(network, values, norm, branch):
  """The variables of a batch normalisation in a branch, by their last names, and its s and t."""
  name = network.prefix(norm, branch)
  own = {part: values[name + part] for part in ('/beta', '/gamma', '/mu', '/sigma')}
  scale = own['/gamma'] / np.sqrt(own['/sigma'] + resnet_split.BATCH_NORM_EPSILON)
  return own, scale, own['/beta'] - scale * own['/mu']


def _remove(network, values, norm, branch):
  for part in ('/beta', '/gamma', '/mu', '/sigma'):
    del values[network.prefix(norm, branch) + part]


def _fold_into_convolution(network, values, conv, norm):
  """Folds a batch normalisation into the convolution whose output it alone reads."""
  for branch in range(network.branches(conv)):
    name = network.prefix(conv, branch)
    _, scale, offset = _norm_of(network, values, norm, branch)
    values[name + '/kernel'] *= scale
    values[name + '/bias'] = offset
    _remove(network, values, norm, branch)


def _fold_into_stream(network, values, writer, norm, readers):
  """Folds a batch normalisation into the residual stream that it reads and the layers that read it, where it can be.

  Args:
    network: a resnet_split.Network; values: its weights, changed in place.
    writer: the convolution that was added to the stream last; norm: the batch normalisation.
    readers: the layers that read the rectified result; empty where something else reads the stream too.

  Returns:
    How far the stream is shifted there: list of arrays [channels], one for each branch of `writer`.
  """
  shifts = [np.zeros(values[network.prefix(writer, b) + '/kernel'].shape[-1]) for b in range(network.branches(writer))]
  read = [network.taken(norm.input, writer.depth, norm.depth, branch) for branch in range(network.branches(norm))]
  for branch, (parent, channels) in enumerate(read):
    own, scale, offset = _norm_of(network, values, norm, branch)
    alone = readers and read.count((parent, channels)) == 1
    if alone and np.all((own['/gamma'] > 0) & (np.abs(own['/beta']) <= MAX_DEVIATIONS * own['/gamma'])):
      shifts[parent][channels] = offset / scale
      _remove(network, values, norm, branch)
      for reader in readers:
        for above in range(network.branches(reader)):
          below, rows = network.taken(norm.output, norm.depth, reader.depth, above)
          if below == branch:
            values[architecture.layer_weights(reader, network.prefix(reader, above))] *= scale[rows][:, None]
    else:
      if read.index((parent, channels)) == branch:  # the first of those that read the same
        shifts[parent][channels] = -own['/mu']
      own['/mu'] += shifts[parent][channels]
  return shifts
