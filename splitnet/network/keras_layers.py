"""Reads the layers of a Keras model as layers of a graph."""

import collections
import dataclasses
import re

import numpy as np

from splitnet.common.errors import UserError
from splitnet.network.graph_checks import FUNCTIONS

# What a layer of the model wrote: the graph's Layer; whether it is flattened; whether Dropout comes next, whose rate
# --dropout_keep_prob says; whether a softmax made it probabilities.
Tensor = collections.namedtuple('Tensor', 'layer flat dropped ended', defaults=(False, False, False))

_DIVIDED = 'normalises over channels, which groups would part'
_COMBINED = 'combines tensors otherwise than by a sum'
REFUSED = {
  'Lambda': 'is Python code, which a model file should not hold',
  'Concatenate': 'joins the channels of several layers, while the branches of a tree divide one set of channels each',
  'Multiply': _COMBINED, 'Subtract': _COMBINED, 'Average': _COMBINED, 'Maximum': _COMBINED, 'Minimum': _COMBINED,
  'Dot': _COMBINED, 'LayerNormalization': _DIVIDED, 'GroupNormalization': _DIVIDED, 'UnitNormalization': _DIVIDED,
  'RMSNormalization': _DIVIDED, 'MultiHeadAttention': 'lets every position read all channels of every other',
  'Attention': 'lets every position read all channels of every other',
}  # fmt: skip
# What does nothing when a model evaluates. (Dropout is told apart: it stays where it was.)
IDENTITIES = (
  'Identity', 'GaussianNoise', 'GaussianDropout', 'AlphaDropout', 'SpatialDropout2D', 'ActivityRegularization',
  'RandomFlip', 'RandomRotation', 'RandomZoom', 'RandomTranslation', 'RandomContrast', 'RandomBrightness',
  'RandomShear', 'RandomHue', 'RandomSaturation', 'RandomGrayscale', 'RandomSharpness', 'RandomColorJitter',
  'RandomColorDegeneration', 'RandomPosterization', 'RandomErasing', 'RandomGaussianBlur', 'RandomInvert',
  'RandomPerspective', 'RandomElasticTransform',
)  # fmt: skip
ACTIVATIONS = {name.replace('_', ''): name for name in FUNCTIONS} | {'swish': 'silu', 'hardswish': 'hard_silu'}

class LayerReader:
  """Adds layers of a Keras model to a graph that is being built.

  Each `_read_<class in lower case>` takes the layer's configuration and what it reads, Tensors, and returns what it
  writes. What they share is set for each layer before.

  Attributes:
    values: the weights, dict from the graph's variable names to arrays.
  """

  def __init__(self, path, builder):
    """Takes the file's path, for errors, and the Builder of the graph."""
    self._path, self._b, self.values = path, builder, {}
    self._tied = {}  # units that sums join: from a name to other units
    # Of the present layer: its name in the graph, numbers that it is given beside tensors, a function to the loaded one
    # (None: weights are not read), and whether nothing else reads what it reads.
    self._name, self._constants, self._made, self._alone = '', [], None, True

  def refuse(self, name, reason):
    """Raises the UserError that a layer cannot be read."""
    layer = f"layer '{name}' " if name else ''
    raise UserError(f"'{self._path}' cannot be split: {layer}{reason}")

  def _unique(self, name):
    """Returns a name for the graph's layer like that of the model's."""
    name = re.sub(r'[^\w.-]', '_', name)
    taken = {'group', 'image', 'preprocess', 'trunk', *(layer.block for layer in self._b.layers)}
    while name in taken:
      name += '_'
    return name

  def _square(self, values, what):
    values = _pair(values)
    if len(set(map(str, values))) != 1:
      self.refuse(self._name, f'has {what} {tuple(values)}, while square ones can be read')
    return values[0]

  def _window(self, config):
    """Returns the window and the stride of a convolution, both square."""
    kernel, stride = self._square(config['kernel_size'], 'a window'), self._square(config['strides'], 'strides')
    if self._square(config.get('dilation_rate', 1), 'a dilation') != 1:
      self.refuse(self._name, 'is dilated')
    return kernel, stride

  def _keep(self, variable, attribute, shape=None):
    """Keeps a weight of the model's layer as a variable of the graph's."""
    if self._made is not None:
      value = getattr(self._made(), attribute).numpy()
      self.values[variable] = value if shape is None else value.reshape(shape)

  def _units(self, size):
    if not isinstance(size, int) or size < 1:
      self.refuse(self._name, f'writes {size} channels')
    return self._b.shared(self._name, size)

  def _windowed(self, op, x, units, kernel, stride, padding, name=None, **more):
    if padding not in ('same', 'valid'):
      self.refuse(self._name, f"has the padding '{padding}'")
    if x.flat:
      self.refuse(self._name, 'reads what is flattened')
    more = more if 'pool' in op else {'counted': 'all', **more}
    return self._b.windowed(name or self._name, op, x.layer, units, kernel, stride, padding.upper(), **more)

  def _read_conv2d(self, config, x):
    kernel, stride = self._window(config)
    if config.get('groups', 1) != 1:
      self.refuse(self._name, f'is divided into {config["groups"]} groups of its own')
    y = self._windowed('conv', x, self._units(config['filters']), kernel, stride, config['padding'],
                       bias=config['use_bias'], dropout=x.dropped)  # fmt: skip
    self._keep(f'{y.name}/kernel', 'kernel')
    return self._biased(config, y)

  def _biased(self, config, y, **state):
    """Keeps the biases of a layer and adds its activation."""
    if config['use_bias']:
      self._keep(f'{y.name}/biases', 'bias')
    return self._activate(f'{self._name}/{_function(config)}', Tensor(y, **state), config['activation'])

  def _read_depthwiseconv2d(self, config, x):
    y = self._depthwise(config, x, self._name, config['use_bias'], 'kernel')
    return self._biased(config, y)

  def _depthwise(self, config, x, name, bias, attribute):
    kernel, stride = self._window(config)
    if config['depth_multiplier'] != 1:
      self.refuse(self._name, f'writes {config["depth_multiplier"]} channels for each that it reads')
    y = self._windowed('depthwise', x, x.layer.units, kernel, stride, config['padding'], name, bias=bias)
    self._keep(f'{name}/depthwise', attribute, [kernel, kernel, x.layer.units.size])
    return y

  def _read_separableconv2d(self, config, x):
    y = self._depthwise(config, x, f'{self._name}/depthwise', False, 'depthwise_kernel')
    units, name, bias = self._units(config['filters']), f'{self._name}/pointwise', config['use_bias']
    y = self._windowed('conv', Tensor(y), units, 1, 1, 'valid', name, bias=bias)
    self._keep(f'{name}/kernel', 'pointwise_kernel')
    return self._biased(config, y)

  def _read_dense(self, config, x):
    # Of a flattened map it is a convolution over the whole, so a channel's positions stay in one group.
    kernel, units = x.layer.size if x.flat else 1, self._units(config['units'])
    y = self._windowed('conv', x._replace(flat=False), units, kernel, 1, 'valid', bias=config['use_bias'],
                       dropout=x.dropped)  # fmt: skip
    self._keep(f'{self._name}/kernel', 'kernel', [kernel, kernel, x.layer.units.size, units.size])
    return self._biased(config, y, flat=x.flat)

  def _read_batchnormalization(self, config, x):
    axis = config['axis'][0] if isinstance(config['axis'], list) else config['axis']
    if axis not in (-1, 1 if x.flat else 3):
      self.refuse(self._name, f'normalises axis {axis}, while the last one, of the channels, can be read')
    if x.flat and x.layer.size > 1:
      self.refuse(self._name, 'normalises what is flattened, each position on its own')
    scaled, centred = config['scale'], config['center']
    y = self._b.keep(self._name, 'batch_norm', x.layer, scaled=scaled, centred=centred, epsilon=config['epsilon'],
                     decay=config['momentum'])  # fmt: skip
    for attribute, variable in {'moving_mean': 'mu', 'moving_variance': 'sigma'}.items():
      self._keep(f'{y.name}/{variable}', attribute)
    for variable, there, fixed in (('beta', centred, 0.0), ('gamma', scaled, 1.0)):
      if there:
        self._keep(f'{y.name}/{variable}', variable)
      elif self._made is not None:
        self.values[f'{y.name}/{variable}'] = np.full(x.layer.units.size, fixed, np.float32)
    return x._replace(layer=y, dropped=False)

  # Activations.

  def _activate(self, name, x, function, slope=0.2):
    """Adds a function of one value, named as Keras does; returns what it writes."""
    if not isinstance(function, str | None):
      self.refuse(name.split('/')[0], 'has an activation of your own, whose code a model file does not hold')
    function = (function or 'linear').replace('_', '')
    if function == 'linear':
      return x
    if function == 'softmax':
      if not x.flat and x.layer.size > 1:
        self.refuse(name.split('/')[0], 'is a softmax for every pixel')
      return x._replace(ended=True)
    if function != 'relu' and function not in ACTIVATIONS:
      self.refuse(name.split('/')[0], f"has the activation '{function}', which cannot be read")
    name = name if '/' in name else self._unique(name)
    if function == 'relu':
      y = self._b.keep(name, 'relu', x.layer)
    else:
      y = self._b.keep(name, 'activation', x.layer, function=ACTIVATIONS[function], slope=slope)
    return x._replace(layer=y, dropped=False)

  def _read_activation(self, config, x):
    return self._activate(self._name, x, config['activation'])

  def _read_softmax(self, config, x):
    if config.get('axis', -1) != -1:
      self.refuse(self._name, f'is a softmax over axis {config["axis"]}')
    return self._activate(self._name, x, 'softmax')

  def _read_relu(self, config, x):
    most, slope, least = (config.get(key) for key in ('max_value', 'negative_slope', 'threshold'))
    if least or most not in (None, 6) or (most and slope):
      self.refuse(self._name, f'(ReLU) has max_value {most}, negative_slope {slope} and threshold {least}')
    return self._activate(self._name, x, 'relu6' if most else 'leaky_relu' if slope else 'relu', slope or 0.2)

  def _read_leakyrelu(self, config, x):
    return self._activate(self._name, x, 'leaky_relu', config.get('negative_slope', 0.2))

  def _read_elu(self, config, x):
    if config.get('alpha', 1.0) != 1.0:
      self.refuse(self._name, f'(ELU) has alpha {config["alpha"]}, while 1 can be read')
    return self._activate(self._name, x, 'elu')

  # Pixels.

  def _read_pool(self, op, config, x):
    kernel = self._square(config['pool_size'], 'a window')
    stride = self._square(config['strides'] or config['pool_size'], 'strides')
    return Tensor(self._windowed(op, x, x.layer.units, kernel, stride, config['padding']))

  def _read_maxpooling2d(self, config, x):
    return self._read_pool('max_pool', config, x)

  def _read_averagepooling2d(self, config, x):
    return self._read_pool('avg_pool', config, x)

  def _read_globalaveragepooling2d(self, config, x):
    layer = self._windowed('avg_pool', x, x.layer.units, x.layer.size, 1, 'valid', self._name + MEAN)
    return Tensor(layer, flat=not config.get('keepdims'))

  def _read_globalmaxpooling2d(self, config, x):
    layer = self._windowed('max_pool', x, x.layer.units, x.layer.size, 1, 'valid')
    return Tensor(layer, flat=not config.get('keepdims'))

  def _read_zeropadding2d(self, config, x):
    rows, columns = (tuple(_pair(pad)) for pad in _pair(config['padding']))
    if rows != columns or x.flat:
      self.refuse(self._name, f'pads rows by {rows} and columns by {columns}, while equal ones can be read')
    return Tensor(self._b.keep(self._name, 'pad', x.layer, x.layer.size + sum(rows), pads=rows))

  def _read_flatten(self, _, x):
    return x._replace(flat=True)

  def _read_reshape(self, config, x):
    shape, size = list(config['target_shape']), x.layer.units.size
    whole = x.layer.size**2 * size
    if shape in ([whole], [-1]):
      return x._replace(flat=True)
    if x.layer.size == 1 and shape == [1, 1, size]:
      return x._replace(flat=False)
    self.refuse(self._name, f'reshapes to {tuple(shape)}, while flattening can be read')

  def _read_dropout(self, _, x):
    if x.layer.op == 'relu' and x.layer is self._b.layers[-1] and self._alone:
      self._b.layers[-1] = dataclasses.replace(x.layer, dropout=True)
      return x._replace(layer=self._b.layers[-1])
    return x._replace(dropped=True)

  # Several tensors, and numbers.

  def _read_add(self, config, *xs):
    if self._constants:
      return self._affine(xs[0], 1.0, self._number())
    layers = [x.layer for x in xs]
    if len({(x.units.size, x.size) for x in layers}) != 1 or len({x.flat for x in xs}) != 1:
      self.refuse(self._name, 'adds tensors of several shapes')
    y, *others = layers
    for i, other in enumerate(others):
      roots = [self._root(y.units), self._root(other.units)]
      if 'image' in (root.name for root in roots):
        self.refuse(self._name, 'adds the image itself')
      if roots[0] != roots[1]:
        self._tied[roots[1].name] = roots[0]
      name = self._name if i == len(others) - 1 else f'{self._name}/{i}'
      y = self._b.add(name, y, other)
    return Tensor(y, flat=xs[0].flat)

  def _root(self, units):
    while units.name in self._tied:
      units = self._tied[units.name]
    return units

  def _number(self):
    if len(self._constants) != 1 or isinstance(self._constants[0], bool):
      self.refuse(self._name, f'computes with {self._constants}')
    return float(self._constants[0])

  def _read_subtract(self, config, x):
    return self._affine(x, 1.0, -self._number())

  def _read_multiply(self, config, x):
    return self._affine(x, self._number(), 0.0)

  def _read_divide(self, config, x):
    return self._affine(x, 1.0 / self._number(), 0.0)

  def _read_rescaling(self, config, x):
    return self._affine(x, _plain(config['scale']), _plain(config['offset']))

  def _read_normalization(self, config, x):
    axis = config['axis'][0] if isinstance(config['axis'], list) and config['axis'] else config['axis']
    if config.get('invert') or axis not in (-1, 3, None, []):
      self.refuse(self._name, f'normalises axis {axis}, or inversely')
    mean, deviation = 0.0, 1.0
    if self._made is not None:
      mean, variance = (np.asarray(getattr(self._made(), name)).reshape(-1) for name in ('mean', 'variance'))
      deviation = np.maximum(np.sqrt(variance), 1e-7)
    return self._affine(x, 1.0 / deviation, -mean / deviation)

  def _affine(self, x, factors, offsets):
    if x.layer.op not in ('image', 'affine'):
      self.refuse(self._name, 'scales what other layers have computed, while the image can be scaled')
    self._b.layers[0] = dataclasses.replace(self._b.layers[0], reads='pixels')
    return Tensor(self._b.keep(self._name, 'affine', x.layer, **of_channels(factors=factors, offsets=offsets)))

MEAN = '/mean'  # ends the names of global average pools
# Functions in a functional model, as x + y, by their classes' names; the rest are named as layers.
OPERATIONS = {'Add': 'Add', 'Subtract': 'Subtract', 'Multiply': 'Multiply', 'TrueDivide': 'Divide', 'Divide': 'Divide'}


def _pair(value):
  return list(value) if isinstance(value, (list, tuple)) else [value] * 2


def _function(config):
  return config['activation'] if isinstance(config['activation'], str) else 'activation'


def _plain(value):
  """Returns a number or an array that a configuration holds."""
  if isinstance(value, dict):
    value = value['config']['value']
  return np.asarray(value, np.float64)


def of_channels(**numbers):
  """Returns a dict of numbers, each one or three, as an affine layer has them: one a channel."""
  return {name: tuple(float(v) for v in np.broadcast_to(value, [3])) for name, value in numbers.items()}
