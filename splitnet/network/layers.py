"""Computes each kind of layer.

Tensors are [batch, height, width, channels], after a mean [batch, channels].
"""

import dataclasses

import numpy as np
import tensorflow as tf

from splitnet.common.errors import UserError
from splitnet.network.dropout import Dropout

# What an activation computes, by graph_checks.FUNCTIONS.
ACTIVATIONS = {
  'relu6': tf.nn.relu6, 'elu': tf.nn.elu, 'selu': tf.nn.selu, 'silu': tf.nn.silu,
  'gelu': lambda x: tf.nn.gelu(x, approximate=False), 'tanh': tf.nn.tanh, 'sigmoid': tf.nn.sigmoid,
  'hard_sigmoid': lambda x: tf.nn.relu6(x + 3.0) / 6.0, 'hard_silu': lambda x: x * tf.nn.relu6(x + 3.0) / 6.0,
  'softplus': tf.nn.softplus, 'softsign': tf.nn.softsign,
}  # fmt: skip
# As Caffe's bvlc_alexnet has it: x / (1 + 1e-4 / 5 * sum of 5 channels' squares)^0.75. Krizhevsky et al. (2012) print
# (2 + 1e-4 * sum)^0.75; TensorFlow's slim has an AlexNet without.
LRN = dict(depth_radius=2, bias=1.0, alpha=1e-4 / 5, beta=0.75)
# Learned groups have odd sizes, for which processors' batch normalisations and convolutions are up to four times
# slower. So what branches compute has channels of zeros at the end, up to a multiple of this.
CHANNEL_MULTIPLE = 16


@dataclasses.dataclass
class Call:
  """Holds what is the same for all layers of one call of a network."""

  images: tf.Tensor | None  # what the image layer gives; None in a part without it
  dtype: tf.DType  # in which the convolutions compute
  training: bool  # by the batch's statistics, which update the moving averages
  dropout: Dropout
  share: object = None  # None, or what a replica computes: `batch`, the images of all; `sum(values)` over all
  channel_multiple: int = dataclasses.field(default_factory=lambda: CHANNEL_MULTIPLE)


def compute(layer, inputs, own, outputs, call, factor=1.0):
  """Computes a layer.

  Args:
    layer: a graph.Layer; inputs: list of the tensors that it reads.
    own: its variables or arrays by the last parts of their names.
    outputs: how many units it writes, without the zeros beside them.
    call: the Call.
    factor: what a batch normalisation's result is multiplied by, or a relu's that drops values.

  Returns:
    A tensor; of a convolution and whatever follows it with channels of zeros up to the call's multiple.
  """
  if layer.op == 'image':
    return tf.cast(call.images, call.dtype)
  x = inputs[0]
  if layer.op in ('conv', 'depthwise'):
    return _conv(layer, x, own, call)
  if layer.op == 'batch_norm':
    return _batch_norm(layer, x, own, call, factor)
  if layer.op == 'relu':
    x = call.dropout.relu(x) if layer.dropout else tf.nn.relu(x)
    return x * tf.cast(factor, x.dtype) if factor != 1.0 else x
  if layer.op == 'max_pool':
    return tf.nn.max_pool2d(x, layer.kernel, layer.stride, layer.padding)
  if layer.op == 'avg_pool':  # beyond the border there is nothing, not zeros
    return tf.nn.avg_pool2d(x, layer.kernel, layer.stride, layer.padding)
  if layer.op == 'activation':
    if layer.function == 'leaky_relu':
      return tf.nn.leaky_relu(x, layer.slope)
    return ACTIVATIONS[layer.function](x)
  if layer.op == 'pad':
    return tf.pad(x, [[0, 0], layer.pads, layer.pads, [0, 0]])
  if layer.op == 'affine':
    x = tf.cast(x, tf.float32) * tf.constant(layer.factors) + tf.constant(layer.offsets)
    return tf.cast(tf.reverse(x, [-1]) if layer.reverse else x, call.dtype)
  if layer.op == 'lrn':
    return tf.cast(tf.nn.lrn(tf.cast(x, tf.float32), **LRN), x.dtype)
  if layer.op == 'add':
    return x + inputs[1]
  if layer.op == 'mean':
    return shortened(tf.reduce_mean(tf.cast(x, tf.float32), (1, 2)), outputs)
  weights = own['weights']
  if layer.kernel > 1:  # all pixels of a map side by side
    x = tf.reshape(shortened(tf.cast(x, tf.float32), weights.shape[-2]), [-1, np.prod(weights.shape[:-1])])
    weights = tf.reshape(weights, [-1, outputs])
  y = tf.matmul(call.dropout(x) if layer.dropout else x, weights)
  return y + own['biases'] if layer.bias else y


def preparation(graph, prepare):
  """Returns what makes raw images what a network reads, a function.

  That is `prepare`, the data set's own, unless the graph begins with pixels and prepares them itself. Raises UserError
  if it is a model's whose images were prepared nobody knows how.
  """
  reads = graph.layers[0].reads
  if reads == 'unknown':
    raise UserError(
      f'no layer of {graph.name} prepares its images: train.py --preprocess says how, and its checkpoints keep it'
    )
  return prepare if reads == 'prepared' else lambda images: tf.cast(images, tf.float32)


def _conv(layer, x, own, call):
  if layer.op == 'depthwise':  # of explicit padding, as in `_convolve`, TensorFlow makes what ends the process
    kernel, outputs = own['depthwise'], own['depthwise'].shape[-1]
    kernel = tf.cast(lengthened(kernel, {-1: x.shape[-1] - outputs})[..., None], call.dtype)
    y = tf.nn.depthwise_conv2d(x, kernel, [1, layer.stride, layer.stride, 1], layer.padding)
  else:
    inputs, outputs = own['kernel'].shape[-2:]
    kernel = lengthened(own['kernel'], {-2: x.shape[-1] - inputs, -1: -outputs % call.channel_multiple})
    y = _convolve(x, tf.cast(kernel, call.dtype), layer, zeros=x.shape[-1] > inputs)
  if 'biases' not in own:
    return y
  return tf.nn.bias_add(y, tf.cast(lengthened(own['biases'], {0: y.shape[-1] - outputs}), call.dtype))


def _convolve(x, kernel, layer, zeros):
  """Convolves [batch, height, width, channels]; `zeros`: whether the last channels are only zeros."""
  whole = layer.padding == 'VALID' and kernel.shape[:2] == x.shape[1:3]
  if whole:  # one window: a product of matrices, whose gradient is several times as fast on a processor
    outputs = kernel.shape[-1]
    y = tf.matmul(tf.reshape(x, [-1, np.prod(x.shape[1:])]), tf.reshape(kernel, [-1, outputs]))
    return tf.reshape(y, [-1, 1, 1, outputs])
  # TensorFlow's optimiser takes channels of zeros beside what a VALID convolution reads for a border, and then fails;
  # so such padding is explicit, though on a processor its gradient is slower.
  padding = [[0, 0]] * 4 if layer.padding == 'VALID' and zeros else layer.padding
  return tf.nn.conv2d(x, kernel, layer.stride, padding)


def _batch_norm(layer, x, own, call, factor):
  """Normalises by the batch's own variance, without Bessel's correction.

  The moving averages decay by the layer's `decay`. The result is multiplied by `factor`, which costs nothing here.
  Without variables it is folded away in this branch.
  """
  if not own:
    return x
  moving_mean, moving_variance = own['mu'], own['sigma']
  channels = moving_mean.shape[0]
  offset, scale, mean, variance = (
    lengthened(own[name], {0: x.shape[-1] - channels}) for name in ('beta', 'gamma', 'mu', 'sigma')
  )
  if factor != 1.0:
    offset, scale = offset * factor, scale * factor
  if not call.training:
    return tf.raw_ops.FusedBatchNormV3(
      x=x, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=layer.epsilon, is_training=False
    ).y
  if call.share:
    y, mean, variance = _shared_batch_norm(x, scale, offset, mean, layer.epsilon, call.share)
  else:
    none = tf.constant([])
    batch = tf.raw_ops.FusedBatchNormV3(
      x=x, scale=scale, offset=offset, mean=none, variance=none, epsilon=layer.epsilon, is_training=True
    )
    values = tf.cast(tf.size(x) // x.shape[-1], tf.float32)  # per channel
    # The kernel reports the unbiased variance; the released code averages the biased one.
    y, mean, variance = batch.y, batch.batch_mean, batch.batch_variance * ((values - 1.0) / values)
  moving_mean.assign_sub((1.0 - layer.decay) * (moving_mean - shortened(mean, channels)))
  moving_variance.assign_sub((1.0 - layer.decay) * (moving_variance - shortened(variance, channels)))
  return y


def _shared_batch_norm(x, scale, offset, shift, epsilon, share):
  """Normalises a replica's share by the mean and the variance of the whole batch.

  `shift`, [channels], is about the mean and the same on every replica: sums of differences from it lose no digits.
  Returns (normalised x, mean, biased variance).
  """
  difference = tf.cast(x, tf.float32) - shift
  sums = share.sum(tf.stack([tf.reduce_sum(difference, (0, 1, 2)), tf.reduce_sum(tf.square(difference), (0, 1, 2))]))
  mean, square = tf.unstack(sums / (share.batch * x.shape[1] * x.shape[2]))
  variance = square - tf.square(mean)
  y = tf.nn.batch_normalization(difference, mean, variance, offset, scale, epsilon)
  return tf.cast(y, x.dtype), shift + mean, variance


# --- channels -----------------------------------------------------------------------------------------------------


def lengthened(value, by):
  """Puts zeros at the end of some axes; by: dict from axis to how many."""
  if not any(by.values()):
    return value
  rank = len(value.shape)
  amounts = [[0, 0] for _ in range(rank)]
  for axis, amount in by.items():
    amounts[axis][1] = amount
  return (np if isinstance(value, np.ndarray) else tf).pad(value, amounts)


def padded(x):
  """Puts zeros beside images' channels up to CHANNEL_MULTIPLE; not to features."""
  return lengthened(x, {-1: -x.shape[-1] % CHANNEL_MULTIPLE}) if len(x.shape) == 4 else x


def shortened(x, channels):
  """Returns the first channels (last axis) of a tensor."""
  return x if x.shape[-1] == channels else tf.slice(x, [0] * len(x.shape), [-1] * (len(x.shape) - 1) + [channels])


def divided(x, runs):
  """Divides x into runs of its channels: dict; runs: dict from a key to a slice."""
  if all(run == slice(None) for run in runs.values()):
    return dict.fromkeys(runs, x)
  ends = [0, *(run.stop for run in runs.values())]
  left = x.shape[-1] - (ends[-1] or 0)
  if [run.start for run in runs.values()] == ends[:-1] and left < CHANNEL_MULTIPLE:
    # One operation, whose gradient writes all channels once; that of a slice writes zeros beside it, to be summed.
    sizes = np.diff(ends).tolist()
    return dict(zip(runs, tf.split(x, [*sizes, left] if left else sizes, -1)))
  # tf.slice, as the gradient of an index is an operation many times slower on CPUs.
  others = len(x.shape) - 1
  return {
    key: x if run == slice(None) else tf.slice(x, [0] * others + [run.start], [-1] * others + [run.stop - run.start])
    for key, run in runs.items()
  }
