"""Your own Keras model as a graph, with its weights; where it can be split, and what that saves.

  python keras_split.py MODEL.keras [--groups 2-2-2]

The model is a functional or sequential image classifier, as model.save('MODEL.keras') writes it. The program prints
above which layers a tree of it can branch. train.py, eval.py and serving.export take the file for a baseline
checkpoint: `--network MODEL.keras` in train.py, `--checkpoint MODEL.keras` elsewhere. docs/keras.md says more.
"""

import collections
import dataclasses
import functools
import json
import re
import sys
import zipfile

import numpy as np

import resnet_split
from splitnet.common.errors import UserError, program
from splitnet.common.flags import Parser, add
from splitnet.network import branching, counting, settings
from splitnet.network.builder import Builder
from splitnet.network.graph import Graph, Tree
from splitnet.network.graph_checks import FUNCTIONS
from splitnet.reporting.tables import markdown
from splitnet.training import checkpoints
from splitnet.training.checkpoints import MODEL_FILE

MAX_CONFIG = 1 << 26  # bytes
MAX_RATIO = 100  # of unpacked bytes to packed ones; weights can hardly be packed at all

_DEVIATION = np.array([0.229, 0.224, 0.225])
# How pixels from 0 to 255 become what a model reads, if no layer of it says so: factor, offset and whether the channels
# are then reversed; the names of the last three are those of keras.applications.
PREPROCESS = {
  'data': None,  # as the data set prepares them
  'pixels': None,  # as they are
  'unit': (1 / 255, 0.0, False),  # from 0 to 1
  'tf': (1 / 127.5, -1.0, False),  # from -1 to 1
  'torch': (1 / (255 * _DEVIATION), -np.array([0.485, 0.456, 0.406]) / _DEVIATION, False),
  'caffe': (1.0, -np.array([123.68, 116.779, 103.939]), True),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasNetwork(settings.Settings):
  """Where a Keras model branches, and how its images are prepared."""

  network = 'keras'
  split_depths = ('lowest', 'lower', 'middle', 'upper', 'classes')

  split_at: str = ''  # the layers above which it branches, bottom up; '': branching.default_borders
  preprocess: str = ''  # one of PREPROCESS; '': its own layers do
  ngroups4: int = 1  # above the last but two of split_at
  ngroups5: int = 1

  def graph(self):
    """Raises UserError: what the network is stands in its file."""
    raise UserError("--network keras is that of a model's file: give --network MODEL.keras")

  def of_stored(self, graph):
    """Returns the Graph of a file or a checkpoint with the branches of these settings."""
    if graph is None:
      return self.graph()
    graph = prepared(graph, self.preprocess)
    names = [name.strip() for name in self.split_at.split(',') if name.strip()]
    below = branching.find_borders(graph, names) if names else branching.default_borders(graph)
    wanted = next((len(self.counts) - i for i, count in enumerate(self.counts) if count > 1), 1) - 1  # beside classes
    if wanted > len(below):
      raise UserError(
        f'--groups {self.split} divides {wanted} depths below the classes, but the tree branches above {len(below)} '
        f'layers: name {wanted} with --split_at'
      )
    return branching.branched(graph, below, self.counts[len(self.counts) - len(below) - 1 :], self.branch_input)


def start_from_file(flags):
  """Makes of `--network MODEL.keras` the basemodel that it is; raises UserError if there is another one."""
  if flags.network and flags.network.endswith(MODEL_FILE):
    if flags.basemodel not in (None, '', flags.network):
      raise UserError(
        f"--network '{flags.network}' is where a run starts, and so is --basemodel '{flags.basemodel}': leave one out"
      )
    flags.basemodel, flags.network = flags.network, None


def prepared(graph, preprocess):
  """Returns the Graph whose images are prepared in one of the ways of PREPROCESS.

  Raises UserError if the graph's own layers do so already, or nothing says how.
  """
  image = graph.layers[0]
  if any(layer.name == 'preprocess' for layer in graph.layers) or (preprocess == 'data' and image.reads == 'prepared'):
    return graph  # of a checkpoint
  if image.reads == 'pixels':
    if preprocess not in ('', 'pixels'):
      raise UserError(f'--preprocess is {preprocess}, but {graph.name} prepares its images itself: leave it out')
    return graph
  if preprocess == '':
    raise UserError(
      f'no layer of {graph.name} prepares its images (Rescaling or Normalization), so say with --preprocess how they '
      f'were prepared when it was trained: {", ".join(PREPROCESS)}'
    )
  if preprocess == 'data':
    return Graph(graph.name, graph.depths, (dataclasses.replace(image, reads='prepared'), *graph.layers[1:]))
  layers = [dataclasses.replace(image, reads='pixels')]
  if PREPROCESS[preprocess]:
    factors, offsets, reverse = PREPROCESS[preprocess]
    numbers = {'factors': factors, 'offsets': offsets}
    numbers = {name: tuple(float(v) for v in np.broadcast_to(value, [3])) for name, value in numbers.items()}
    layers.append(
      dataclasses.replace(
        image, name='preprocess', op='affine', inputs=('image',), reads='prepared', reverse=reverse, **numbers
      )
    )
  layers += [
    dataclasses.replace(layer, inputs=tuple(layers[-1].name if name == 'image' else name for name in layer.inputs))
    for layer in graph.layers[1:]
  ]
  return Graph(graph.name, graph.depths, tuple(layers))


# --- reading --------------------------------------------------------------------------------------------------------


def read_other(stored, values, path):
  """Returns what checkpoints.read needs of an older checkpoint, or of a model's file.

  Of a file (`values` is None) that is its settings (a dict), its Graph without branches, and its values by variable
  name; of a checkpoint, what resnet_split.read_older returns. Raises UserError if it is neither, or cannot be split.
  """
  if values is not None:
    return resnet_split.read_older(stored, values, path)
  config = _read_config(path)
  _Reader(path, None).read(config)  # before anything of it is made
  reader = _Reader(path, _load(path))
  graph = reader.read(config)
  known = {'network': KerasNetwork.network, 'num_classes': graph.classes.size, 'image_size': graph.image_size}
  return known, graph, reader.values


def _read_config(path):
  """Returns the configuration that a model's file holds, a dict."""
  advice = "write it with model.save('MODEL.keras')"
  try:
    with zipfile.ZipFile(path) as archive:
      sizes = [(info.file_size, info.compress_size) for info in archive.infolist()]
      config = archive.getinfo('config.json')
      if config.file_size > MAX_CONFIG or sum(full for full, _ in sizes) > MAX_RATIO * sum(n for _, n in sizes) + 2**20:
        raise ValueError('it is far larger unpacked')
      config = json.loads(archive.read(config))
    if not isinstance(config, dict):
      raise ValueError('its config.json is no object')
    return config
  except OSError as e:
    raise UserError(f"the Keras model '{path}' cannot be read ({e.strerror})") from e
  except KeyError as e:
    raise UserError(f"'{path}' is no Keras model (it has no config.json): {advice}") from e
  except (zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError, RuntimeError, EOFError) as e:
    raise UserError(f"'{path}' is no Keras model, or damaged ({str(e) or type(e).__name__}): {advice}") from e
  except Exception as e:  # zlib.error and others of a damaged archive
    raise UserError(f"'{path}' is damaged ({e}): {advice}") from e


def _load(path):
  """Loads a model whose configuration has been read: nothing of it is code."""
  import keras  # takes a second, and only models' files need it

  try:
    return keras.saving.load_model(path, compile=False, safe_mode=True)
  except Exception as e:  # a damaged file raises what it likes
    reason = str(e).strip().split('\n')[0] or type(e).__name__
    raise UserError(f"the Keras model '{path}' cannot be loaded ({reason[:200]})") from e


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


class _Reader:
  """Writes a model's configuration as a graph.

  Attributes:
    values: the weights, dict from the graph's variable names to arrays.
  """

  def __init__(self, path, model):
    """Takes the file's path, for errors, and the loaded model; None: its weights are not read."""
    self._path, self._model, self.values = path, model, {}
    self._tied = {}  # units that sums join: from a name to other units

  def refuse(self, name, reason):
    """Raises the UserError that a layer cannot be read."""
    layer = f"layer '{name}' " if name else ''
    raise UserError(f"'{self._path}' cannot be split: {layer}{reason}")

  def read(self, config):
    """Returns the Graph, all of it trunk; raises UserError if a layer cannot be read."""
    try:
      self._check_kind(config)
      name = re.sub(r'\s', '_', config['config']['name'])
      size = self._input_size(config)
      self._b = Builder(name, {'trunk': 1}, size)
      image = dataclasses.replace(self._b.layers[0], reads='unknown')
      self._b.layers[0] = self._b.image = image
      self._end(self._walk(config, Tensor(image), self._model))
      layers = tuple(dataclasses.replace(x, units=self._root(x.units)) for x in self._b.layers)
      return Graph(name, self._b.depths, layers)
    except (KeyError, TypeError, IndexError, AttributeError) as e:  # fields that Keras always writes
      raise UserError(f"'{self._path}' is damaged ({type(e).__name__}: {e})") from e
    except ValueError as e:
      self.refuse(None, f'it makes no graph ({e})')

  # The whole.

  def _check_kind(self, config):
    kind = config.get('class_name')
    if kind not in ('Functional', 'Sequential') or str(config.get('module')).split('.')[0] != 'keras':
      self.refuse(None, f"it is a model of the class '{kind}', while functional and sequential ones can be read")

  def _input_size(self, config):
    content = config['config']
    first = [layer for layer in content['layers'] if layer['class_name'] == 'InputLayer']
    if first:
      shape = first[0]['config'].get('batch_shape') or first[0]['config'].get('batch_input_shape')
    elif content['layers'] and content['layers'][0]['class_name'] in ('Functional', 'Sequential'):
      return self._input_size(content['layers'][0])
    else:
      shape = content.get('build_input_shape')
    if len(first) > 1:
      self.refuse(None, 'it reads several inputs, while the data are images alone')
    if not shape or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not isinstance(shape[1], int):
      self.refuse(None, f'its input is {shape}, while (None, SIZE, SIZE, 3) can be read: square RGB images of one size')
    return shape[1]

  def _walk(self, config, given, model):
    """Adds the layers of a model, which may be inside another one; returns what it writes."""
    content = config['config']
    if config['class_name'] == 'Sequential':
      x, self._alone = given, True
      for layer in content['layers']:
        if layer['class_name'] != 'InputLayer':
          x = self._layer(layer, layer['config']['name'], [x], [], model)
          self._alone = True
      return x
    inputs, outputs = (_names(content[key]) for key in ('input_layers', 'output_layers'))
    if len(inputs) != 1 or len(outputs) != 1:
      self.refuse(None, f'it has {len(inputs)} inputs and {len(outputs)} outputs, while one of each can be read')
    done, waiting = {inputs[0]: given}, [layer for layer in content['layers'] if layer['name'] != inputs[0]]
    for layer in waiting:
      if len(layer['inbound_nodes']) != 1:
        times = len(layer['inbound_nodes'])
        self.refuse(layer['name'], f'is used {times} times, while every layer of a tree stands in one place')
    reads = collections.Counter(source for layer in waiting for source in _sources(layer['inbound_nodes']))
    while waiting:
      ready = [layer for layer in waiting if all(name in done for name in _sources(layer['inbound_nodes']))]
      if not ready:
        self.refuse(waiting[0]['name'], 'reads what no layer writes')
      for layer in ready:
        name, nodes = layer['name'], layer['inbound_nodes']
        tensors = [done[source] for source in _sources(nodes)]
        self._alone = all(reads[source] == 1 for source in _sources(nodes))
        done[name] = self._layer(layer, name, tensors, self._numbers_of(name, nodes[0]), model)
      waiting = [layer for layer in waiting if layer['name'] not in done]
    return done[outputs[0]]

  def _end(self, x):
    """Makes the last layer linear."""
    last = x.layer
    if last.op == 'activation' and last.function == 'sigmoid':
      self.refuse(last.block, 'ends in a sigmoid for each class, while a softmax over all, or logits, can be read')
    source = self._b.layers[-2]
    alone = last is self._b.layers[-1] and last.inputs == (source.name,)
    if last.op != 'conv' or not alone or last.kernel != source.size or (last.padding == 'SAME' and last.kernel > 1):
      self.refuse(last.block, f'is the last ({last.op}), while Dense with one output a class can be read there')
    if last.units.size < 2:
      self.refuse(last.name, 'writes one output, while a classifier has one for each of at least 2 classes')
    self._b.layers.pop()
    if source.op == 'avg_pool' and source.name.endswith(_MEAN):
      self._b.layers.pop()
      source = self._b.mean(next(layer for layer in self._b.layers if layer.name == source.inputs[0]))
    elif source.size == 1:
      source = self._b.mean(source)
    self._b.linear(last.name, source, last.units, bias=last.bias, dropout=last.dropout)
    # A layer that only a Dropout before it concerns cannot drop what it reads, but the last one can.
    self._b.layers = [dataclasses.replace(x, dropout=False) if x.op == 'conv' else x for x in self._b.layers]
    if self._model is not None:
      kernel = self.values.pop(f'{last.name}/kernel')
      self.values[f'{last.name}/weights'] = kernel.reshape(kernel.shape[-2:]) if last.kernel == 1 else kernel

  # A layer.

  def _layer(self, layer, name, xs, constants, model):
    """Adds a layer of the model; returns what it writes."""
    kind, config = layer['class_name'], layer['config']
    registered = layer.get('registered_name') or kind
    if str(layer.get('module')).split('.')[0] != 'keras' or '>' in registered:
      self.refuse(name, f"is of a class of your own ('{registered}'), whose code a model file does not hold")
    if kind in ('Functional', 'Sequential'):
      return self._walk(layer, *self._one(name, xs), None if model is None else model.get_layer(name))
    if kind in REFUSED and not (kind in _OPERATIONS and constants):
      self.refuse(name, f'({kind}) {REFUSED[kind]}')
    if config and config.get('data_format', 'channels_last') != 'channels_last':
      self.refuse(name, f'({kind}) has its channels first')
    method = getattr(self, f'_read_{_OPERATIONS.get(kind, kind).lower()}', None)
    if kind in IDENTITIES:
      return xs[0]
    if method is None and kind.lower() in ACTIVATIONS:
      return self._activate(name, *self._one(name, xs), ACTIVATIONS[kind.lower()])
    if method is None:
      self.refuse(name, f'({kind}) is of a kind that cannot be read')
    if any(x.ended for x in xs) and kind not in ('Reshape', 'Flatten'):
      self.refuse(name, f'({kind}) reads a softmax, which can stand at the end only')
    self._name, self._constants = self._unique(name), constants
    self._made = None if model is None else functools.partial(model.get_layer, name)
    return method(config, *xs)

  def _one(self, name, xs):
    if len(xs) != 1:
      self.refuse(name, f'reads {len(xs)} tensors')
    return xs

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
    kernel, stride = self._square(config['kernel_size'], 'a window'), self._square(config['strides'], 'strides')
    if self._square(config.get('dilation_rate', 1), 'a dilation') != 1:
      self.refuse(self._name, 'is dilated')
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
    kernel, stride = self._square(config['kernel_size'], 'a window'), self._square(config['strides'], 'strides')
    if self._square(config.get('dilation_rate', 1), 'a dilation') != 1:
      self.refuse(self._name, 'is dilated')
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
    layer = self._windowed('avg_pool', x, x.layer.units, x.layer.size, 1, 'valid', self._name + _MEAN)
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

  def _numbers_of(self, name, node):
    """Returns what a call is given beside tensors."""
    args = node['args']
    if args and not _sources(args[0]):
      self.refuse(name, f'computes with a constant, {args[0]}, before the tensor')
    return [value for value in args if value is not None and not _sources(value)]

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
    numbers = {'factors': factors, 'offsets': offsets}
    numbers = {name: tuple(float(v) for v in np.broadcast_to(value, [3])) for name, value in numbers.items()}
    self._b.layers[0] = dataclasses.replace(self._b.layers[0], reads='pixels')
    return Tensor(self._b.keep(self._name, 'affine', x.layer, **numbers))


_MEAN = '/mean'  # ends the names of global average pools
# Functions in a functional model, as x + y, by their classes' names; the rest are named as layers.
_OPERATIONS = {'Add': 'Add', 'Subtract': 'Subtract', 'Multiply': 'Multiply', 'TrueDivide': 'Divide', 'Divide': 'Divide'}


def _pair(value):
  return list(value) if isinstance(value, (list, tuple)) else [value] * 2


def _function(config):
  return config['activation'] if isinstance(config['activation'], str) else 'activation'


def _plain(value):
  """Returns a number or an array that a configuration holds."""
  if isinstance(value, dict):
    value = value['config']['value']
  return np.asarray(value, np.float64)


def _names(layers):
  """Returns the names of a model's inputs or outputs, [name, 0, 0] or a list or dict of such."""
  if isinstance(layers, dict):
    layers = list(layers.values())
  return [layers[0]] if layers and isinstance(layers[0], str) else [layer[0] for layer in layers]


def _sources(node):
  """Returns the names of the layers that a call reads, in order."""
  if isinstance(node, dict):
    if node.get('class_name') == '__keras_tensor__':
      return [node['config']['keras_history'][0]]
    return [name for value in node.values() for name in _sources(value)]
  return [name for value in node for name in _sources(value)] if isinstance(node, (list, tuple)) else []


# --- where it can be split ------------------------------------------------------------------------------------------


def sizes_of(graph):
  """Returns the parameters and FLOPs of a graph's tree with groups of even size."""
  groups = {name: np.arange(units.size) * units.groups // units.size for name, units in graph.units.items()}
  return counting.total(counting.counts(Tree(graph, groups)), everything=True)


def choices(graph, branches=2):
  """Returns a table of what branches above each layer save, as text; those of the default are marked."""
  found, defaults, rows = branching.borders(graph), branching.default_borders(graph), []
  for below, layer in found.items():
    last = below == max(found)
    tree = branching.branched(graph, [] if last else [layer], [branches] * (1 if last else 2))
    name = f'{layer.name} (default)' if layer in defaults else layer.name
    shape = f'{layer.size} x {layer.size} x {layer.units.size}'
    rows.append(['(only the classes)' if last else name, shape, str(len(graph.weighted) - below), *_saved(graph, tree)])
  return markdown(['--split_at', 'writes', 'weighted layers above', 'parameters saved', 'FLOPs saved'], rows)


def _saved(graph, tree):
  return [f'{100 * (1 - size / whole):.1f} %' for size, whole in zip(sizes_of(tree), sizes_of(graph))]


def parse_flags(argv):
  """Parses the flags."""
  parser = Parser(__doc__)
  parser.add_argument('model', metavar='MODEL.keras', help='file that model.save wrote')
  add(parser, 'groups', str, '2-2-2', 'numbers of branches above each layer of --split_at, and of groups of classes')
  add(parser, 'split_at', str, '', 'layers above which it branches, bottom up [two, see above]')
  return parser.parse_args(argv)


@program('keras_split.py')
def main(argv):
  """Prints the layers above which a model can branch, and what a split saves."""
  flags = parse_flags(argv)
  known, graph, _ = read_other(None, None, checkpoints.find(flags.model))
  parameters, flops = sizes_of(graph)
  print(f'{graph.name}: images of {graph.image_size} x {graph.image_size} pixels, {graph.classes.size} classes')
  print(f'{parameters:,} parameters, {flops:,} FLOPs per image\n\nTwo branches above one layer would save:\n')
  print(choices(graph))
  preprocess = 'pixels' if graph.layers[0].reads == 'unknown' else ''
  known.update(preprocess=preprocess, split_at=flags.split_at)
  del known['network']
  tree = KerasNetwork.of_split(flags.groups, **known).of_stored(graph)
  saved = _saved(graph, tree)
  above = ', '.join(layer.name for layer in tree.borders.values() if layer)
  print(f'--groups {tree.split} above {above}: saves {saved[0]} of the parameters and {saved[1]} of the FLOPs')


if __name__ == '__main__':
  sys.exit(main())
