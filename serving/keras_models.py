"""Writes networks as functional Keras models without custom objects, whole or branch by branch.

Batch normalisations are not folded, so the models can be trained further. Images are those of the data, with values
from 0 to 255; models answer logits.
"""

import re

import numpy as np

import cifar100
from splitnet.data import images as image_files
from splitnet.network.layers import LRN


def build(network, prepare, cut=None):
  """Builds a network's models: dict from name to keras.Model, with the names of serving.export.

  Args:
    network: a Network, not folded.
    prepare: the data set's function from raw images to what the network reads.
    cut: the export.Cut of a tree; None: only the whole.
  """
  import keras  # takes a second, and only these models need it

  def images():
    x = keras.Input([network.graph.image_size] * 2 + [3], name='images')
    return x, x if network.graph.layers[0].reads == 'pixels' else _prepared(prepare, x)

  given, x = images()
  models = {'whole': _Writer(network).model('whole', given, x)}
  if cut:
    given, x = images()
    models['trunk'] = _Writer(network.part(cut.below)).model('trunk', given, x, dict(zip(cut.names, cut.slices)))
    for i, nodes in enumerate(cut.branches):
      part = network.part(nodes)
      given = keras.Input(part.input_spec.shape.as_list()[1:], name='features')
      models[f'branch_{i}'] = _Writer(part).model(f'branch_{i}', given, given)
  return models


def _prepared(prepare, x):
  """Adds what a data set's `prepare` computes."""
  from keras import layers, ops

  if prepare is image_files.normalize:
    mean, deviation = (255 * np.array(values) for values in (image_files.MEAN, image_files.DEVIATION))
    return layers.Rescaling((1 / deviation).tolist(), (-mean / deviation).tolist(), name='normalize')(x)
  if prepare is not cifar100.prepare:
    raise ValueError(f'{prepare} has no layers')
  mean, variance = (function(x, axis=(1, 2), keepdims=True) for function in (ops.mean, ops.var))
  return (x - mean) * ops.rsqrt(ops.maximum(variance, 1.0 / cifar100.IMAGE_SIZE**2))


class _Writer:
  """Writes a network, or a part of one, as Network.__call__ computes it."""

  def __init__(self, network):
    self._network, self._names = network, set()
    self._weights = []  # (Keras layer, its arrays), set when the model has been made

  def model(self, name, given, x, features=None):
    """Returns the keras.Model of what a part computes of x.

    Args:
      name: of the model.
      given: what the model reads, of which x has been made.
      features: of a trunk: dict from name to the slice of its channels that it is.
    """
    import keras

    y = self._walk(x)
    y = {key: self._sliced(y, channels) for key, channels in features.items()} if features else y
    model = keras.Model(given, y, name=name)
    for layer, arrays in self._weights:
      layer.set_weights(arrays)
    return model

  def _walk(self, x):
    """Returns what the highest depth that is computed writes."""
    from keras import layers, ops

    network, graph, tensors, depth, entered = self._network, self._network.graph, {}, None, False
    for layer in graph.layers:
      nodes = network.nodes[layer.depth]
      if nodes and layer.depth != depth:
        depth = layer.depth
        self._enter(depth, tensors, None if entered else x)
        entered = True
      for branch in nodes:
        name = self._unique(re.sub(r'[^\w.-]', '_', network.prefix(layer, branch)))
        if layer.op == 'image':
          tensors[layer.name, branch] = x
        else:
          inputs = [tensors[source, branch] for source in layer.inputs]
          tensors[layer.name, branch] = self._layer(layer, branch, name, inputs)
    output = graph.output(depth)
    if output is not graph.layers[-1]:
      return tensors[output.name, network.nodes[depth][0]]
    logits = [tensors[output.name, branch] for branch in network.nodes[depth]]
    logits = logits[0] if len(logits) == 1 else layers.Concatenate(name='side_by_side')(logits)
    order = np.argsort(network.leaf_classes())
    if len(order) == graph.classes.size and not np.array_equal(order, np.arange(len(order))):
      logits = ops.take(logits, order.tolist(), axis=1)
    return logits

  def _unique(self, name):
    while name in self._names:
      name += '_'
    self._names.add(name)
    return name

  def _enter(self, depth, tensors, given):
    """Adds what the branches of a depth read of the one below."""
    network, source = self._network, self._network.graph.borders[depth]
    reads = {branch: network.reads(depth, branch) for branch in network.nodes[depth]} if source else {}
    written = {parent: tensors.get((source.name, parent)) for parent, _ in reads.values()}
    for branch, (parent, channels) in reads.items():
      x = given if given is not None else self._sliced(written[parent], channels)
      tensors[source.name, branch] = x

  def _sliced(self, x, channels):
    return x if channels == slice(None) else x[..., channels.start : channels.stop]

  def _layer(self, layer, branch, name, inputs):
    """Adds a layer of a branch."""
    from keras import layers, ops

    x, network, padding = inputs[0], self._network, layer.padding.lower()
    own = {key: np.asarray(network.weights[full]) for key, full in network.names(layer, branch).items()}
    if layer.op == 'add':
      return layers.Add(name=name)(inputs)
    if layer.op == 'lrn':
      radius, size = LRN['depth_radius'], x.shape[-1]
      squares = ops.pad(ops.square(x), [[0, 0]] * 3 + [[radius, radius]])
      near = layers.Add(name=name)([squares[..., i : i + size] for i in range(2 * radius + 1)])
      return x * ops.power(LRN['bias'] + LRN['alpha'] * near, -LRN['beta'])
    if layer.op == 'affine':
      x = layers.Rescaling(list(layer.factors), list(layer.offsets), name=name)(x)
      return ops.flip(x, axis=-1) if layer.reverse else x
    window = dict(strides=layer.stride, padding=padding, name=name)
    made = {
      'conv': lambda: layers.Conv2D(own['kernel'].shape[-1], layer.kernel, use_bias=layer.bias, **window),
      'depthwise': lambda: layers.DepthwiseConv2D(layer.kernel, use_bias=layer.bias, **window),
      'linear': lambda: layers.Dense(own['weights'].shape[-1], use_bias=layer.bias, name=name),
      'batch_norm': lambda: layers.BatchNormalization(
        momentum=layer.decay, epsilon=layer.epsilon, center=layer.centred, scale=layer.scaled, name=name
      ),
      'relu': lambda: layers.ReLU(name=name),
      'activation': lambda: _activation(layer, name),
      'max_pool': lambda: layers.MaxPooling2D(layer.kernel, **window),
      'avg_pool': lambda: layers.AveragePooling2D(layer.kernel, **window),
      'pad': lambda: layers.ZeroPadding2D([layer.pads] * 2, name=name),
      'mean': lambda: layers.GlobalAveragePooling2D(name=name),
    }[layer.op]()
    y = made(layers.Flatten(name=f'{name}_flat')(x) if layer.op == 'linear' and layer.kernel > 1 else x)
    if layer.op == 'batch_norm':
      kept = [key for key, learned in (('gamma', layer.scaled), ('beta', layer.centred)) if learned]
      self._weights.append((made, [own[key] for key in (*kept, 'mu', 'sigma')]))
    elif own:
      shapes = {'depthwise': (*own['depthwise'].shape, 1) if 'depthwise' in own else (), 'weights': (-1, y.shape[-1])}
      self._weights.append((made, [value.reshape(shapes.get(key, value.shape)) for key, value in own.items()]))
    return y


def _activation(layer, name):
  """Returns the Keras layer of an activation."""
  from keras import layers

  if layer.function == 'leaky_relu':
    return layers.LeakyReLU(negative_slope=layer.slope, name=name)
  if layer.function == 'relu6':
    return layers.ReLU(6.0, name=name)
  return layers.Activation(layer.function, name=name)
