"""Small networks, trees and groups for the tests."""

import numpy as np
import tensorflow as tf

from resnet_split import WideResNet
from splitnet.network import hardening
from splitnet.network.builder import Builder
from splitnet.network.network import create

# a-b-c = ngroups3-ngroups2-ngroups1. 2-3-5 merges unevenly twice, 3-3-3 has three ways from the bottom.
SPLITS = ['1-1-4', '1-2-2', '2-2-2', '2-4-4', '2-3-5', '3-3-3']


def config_of(split, **keywords):
  ngroups3, ngroups2, ngroups1 = (int(part) for part in split.split('-'))
  keywords = {'k': 1, 'num_residual_units': 2, 'num_classes': 20, **keywords}
  return WideResNet(ngroups1=ngroups1, ngroups2=ngroups2, ngroups3=ngroups3, **keywords)


def graph_of(split, **keywords):
  return config_of(split, **keywords).graph()


def build(config, groups=None, **keywords):
  """The network of a WideResNet, of keywords of network.create."""
  return create(config.graph(), groups, **keywords)


def even_groups(graph):
  """Hard groups of equal size (as nearly as it goes) at every set of units, in order."""
  return {name: np.arange(units.size) * units.groups // units.size for name, units in graph.units.items()}


def random_groups(graph, seed=0):
  """Hard groups in no order and of no even size, none empty."""
  rng = np.random.RandomState(seed)
  return {
    name: rng.permutation(np.append(np.arange(units.groups), rng.randint(units.groups, size=units.size - units.groups)))
    for name, units in graph.units.items()
  }


def images(batch=4, size=16, seed=0):
  # Half the real height and width, for speed: nothing here depends on them.
  return tf.constant(np.random.RandomState(seed).normal(size=(batch, size, size, 3)), tf.float32)


def scramble(network, seed=0):
  """Uneven random assignments, and batch norms whose every channel differs, so that a swapped channel shows."""
  rng = np.random.RandomState(seed)
  for name, variable in network.weights.items():
    shape = tuple(variable.shape)
    if name.endswith('/alpha'):
      alpha = rng.normal(size=shape) * 2 + np.linspace(1, -1, shape[0])[:, None]
      some = rng.permutation(shape[1])[: shape[0]]
      alpha[np.arange(shape[0]), some] = 20  # no group is empty
      variable.assign(alpha)
    elif name.endswith(('/beta', '/mu', '/biases')):
      variable.assign(rng.normal(size=shape) * 0.3)
    elif name.endswith(('/gamma', '/sigma')):
      variable.assign(rng.uniform(0.5, 1.5, size=shape))
  return network


def grouping(config, seed=0):
  return scramble(build(config, with_assignments=True, seed=seed), seed)


def drop_between_groups(dense, groups):
  for layer in dense.graph.weighted:
    kernel = dense.weights[layer.weights]
    kernel.assign(kernel * hardening.kept_weights(dense.graph, layer, groups))


DENSE = dict(ngroups1=1, ngroups2=1, ngroups3=1)
TREES = {
  'dense': DENSE,
  'dense of width 2': dict(DENSE, k=2),
  'dense, three blocks': dict(DENSE, num_residual_units=3),
  '2-2-2': dict(ngroups1=2, ngroups2=2, ngroups3=2),
  '2-4-4': dict(ngroups1=4, ngroups2=4, ngroups3=2, num_residual_units=1),
  '2-4-4 all': dict(ngroups1=4, ngroups2=4, ngroups3=2, num_residual_units=1, branch_input='all'),
  '2-3-5 all': dict(ngroups1=5, ngroups2=3, ngroups3=2, branch_input='all'),
  '1-2-3': dict(ngroups1=3, ngroups2=2, ngroups3=1, num_residual_units=1),
  '1-1-4': dict(ngroups1=4, ngroups2=1, ngroups3=1, num_residual_units=1),
}


def make(seed=0, negative=False, dtype=tf.float32, **config):
  """A network whose batch normalisations have seen something; with `negative`, a tenth of their scales are below 0."""
  graph = WideResNet(**dict(dict(k=1), **config)).graph()
  rng = np.random.default_rng(seed)
  groups = {n: rng.permutation(np.arange(u.size) % u.groups) for n, u in graph.units.items()}
  network = create(graph, groups if graph.classes.groups > 1 else None, dtype=dtype)
  for name, variable in network.weights.items():
    if name.endswith(('/mu', '/beta', '/biases')):
      variable.assign(rng.normal(0, 0.3, variable.shape))
    elif name.endswith('/sigma'):
      variable.assign(rng.uniform(0.3, 2, variable.shape))
    elif name.endswith('/gamma'):
      sign = np.where(rng.random(variable.shape) < 0.1, -1, 1) if negative else 1
      variable.assign(rng.uniform(0.5, 1.5, variable.shape) * sign)
  return network


def assert_close(one, other, tolerance=1e-5):
  np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def chain(groups=(2, 2, 4), image_size=16, branch_input='group', norm=True):
  """A small network like AlexNet: biases, pools, local response norms below what is split, dropout."""
  b = Builder('chain', {'trunk': 1, **dict(zip(('conv2', 'fc1', 'fc2'), groups))}, image_size, branch_input)
  x = b.relu(b.conv('conv1', b.image, b.shared('conv1', 20), 5, bias=True))
  x = b.max_pool(b.lrn(x) if norm else x, 3, 2, 'VALID')
  x = b.relu(b.conv('stem', x, b.border('split_p3', 24, 'conv2'), 3, bias=True))
  b.at('conv2')
  x = b.max_pool(b.relu(b.conv('conv2', x, b.border('split_p2', 36, 'fc1'), 3, bias=True)), 3, 2)
  b.at('fc1')
  x = b.conv('fc1', x, b.border('split_p1', 52, 'fc2'), x.size, padding='VALID', bias=True, counted='weights')
  x = b.mean(b.relu(x, dropout=True))
  b.at('fc2')
  b.linear('fc2', x, b.inner('split_q1', 12))
  return b.graph()


def post_activation(groups=(2, 2, 4), image_size=16, branch_input='group'):
  """A small network like ResNet-18: rectifiers behind the sums, shortcuts and their batch normalisations."""
  b = Builder('post', {'trunk': 1, **dict(zip(('stage2', 'stage3', 'fc'), groups))}, image_size, branch_input)
  streams = [b.border('split_p3', 24, 'stage2'), b.border('split_p2', 36, 'stage3'), b.border('split_p1', 52, 'fc')]
  x = b.conv('conv1', b.image, b.shared('stem', 20), 7, 2)
  x = b.max_pool(b.relu(b.batch_norm('conv1/bn', x)), 3, 2)
  for stage, (depth, stream) in enumerate(zip(('trunk', 'stage2', 'stage3'), streams)):
    b.at(depth)
    for unit in range(2):
      name, stride, residual = f'block_{stage}_{unit}', 1 + (stage > 0 and unit == 0), x
      if x.units != stream:
        residual = b.batch_norm(f'{name}/bn_0', b.conv(f'{name}/shortcut', x, stream, 1, stride))
      hidden = b.inner(f'split_r{stage}{unit}', stream.size)
      h = b.relu(b.batch_norm(f'{name}/bn_1', b.conv(f'{name}/conv_1', x, hidden, 3, stride)))
      h = b.batch_norm(f'{name}/bn_2', b.conv(f'{name}/conv_2', h, stream, 3))
      x = b.relu(b.add(f'{name}/sum', residual, h))
  x = b.mean(x)
  b.at('fc')
  b.linear('fc', x, b.inner('split_q1', 12))
  return b.graph()
