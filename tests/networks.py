"""Small networks, trees and groups for the tests."""

import numpy as np
import tensorflow as tf

import resnet_split
from resnet_split import Network
from splitnet.network import architecture
from splitnet.network.architecture import Config

# a-b-c = ngroups3-ngroups2-ngroups1. 2-3-5 merges unevenly twice, 3-3-3 has three ways from the bottom.
SPLITS = ['1-1-4', '1-2-2', '2-2-2', '2-4-4', '2-3-5', '3-3-3']


def config_of(split, **keywords):
  ngroups3, ngroups2, ngroups1 = (int(part) for part in split.split('-'))
  keywords = {'k': 1, 'num_residual_units': 2, 'num_classes': 20, **keywords}
  return Config(ngroups1=ngroups1, ngroups2=ngroups2, ngroups3=ngroups3, **keywords)


def weighted(plan):
  """The layers that have weights."""
  return [layer for layer in plan.layers if layer.kind != 'batch_norm']


def even_groups(config):
  """Hard groups of equal size (as nearly as it goes) at every set of units, in order."""
  plan = architecture.wide_resnet(config)
  return {name: np.arange(units.size) * units.groups // units.size for name, units in plan.units.items()}


def random_groups(plan, seed=0):
  """Hard groups in no order and of no even size, none empty."""
  rng = np.random.RandomState(seed)
  return {
    name: rng.permutation(np.append(np.arange(units.groups), rng.randint(units.groups, size=units.size - units.groups)))
    for name, units in plan.units.items()
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
  return scramble(Network(config, with_assignments=True, seed=seed), seed)


def drop_between_groups(dense, groups):
  for layer in weighted(dense.plan):
    kernel = dense.weights[architecture.layer_weights(layer)]
    kernel.assign(kernel * architecture.kept_weights(dense.plan, layer, groups))


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
  config = architecture.Config(**dict(dict(k=1), **config))
  rng = np.random.default_rng(seed)
  groups = {n: rng.permutation(np.arange(u.size) % u.groups) for n, u in architecture.wide_resnet(config).units.items()}
  network = resnet_split.Network(config, groups=groups if config.ngroups1 > 1 else None, dtype=dtype)
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
