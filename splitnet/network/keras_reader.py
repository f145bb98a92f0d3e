"""Reads the configuration of a Keras model, functional or sequential, as a graph."""

import collections
import dataclasses
import functools
import re

from splitnet.common.errors import UserError
from splitnet.network.builder import Builder
from splitnet.network.graph import Graph
from splitnet.network.keras_layers import ACTIVATIONS, IDENTITIES, MEAN, OPERATIONS, REFUSED, LayerReader, Tensor


def read_model(path, config, model=None):
  """Reads a model's configuration, a dict: (its Graph, all of it trunk; its weights by variable name).

  Without the loaded model there are no weights. Raises UserError, which names the path, if a layer cannot be read.
  """
  reader = _ModelReader(path, model)
  return reader.read(config), reader.values


class _ModelReader(LayerReader):
  """Walks a model's layers in an order in which they can be computed."""

  def __init__(self, path, model):
    super().__init__(path, None)
    self._model = model

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
    if source.op == 'avg_pool' and source.name.endswith(MEAN):
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
    if kind in REFUSED and not (kind in OPERATIONS and constants):
      self.refuse(name, f'({kind}) {REFUSED[kind]}')
    if config and config.get('data_format', 'channels_last') != 'channels_last':
      self.refuse(name, f'({kind}) has its channels first')
    method = getattr(self, f'_read_{OPERATIONS.get(kind, kind).lower()}', None)
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

  def _numbers_of(self, name, node):
    """Returns what a call is given beside tensors."""
    args = node['args']
    if args and not _sources(args[0]):
      self.refuse(name, f'computes with a constant, {args[0]}, before the tensor')
    return [value for value in args if value is not None and not _sources(value)]

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
