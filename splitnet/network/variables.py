"""The variables of a network: names (the released ones), shapes, order, values."""

import collections
import contextlib

import tensorflow as tf

from splitnet.network.graph import Tree

ASSIGNMENT_STDDEV = 0.01

# One variable before it is made. `value`: what fills it at the start, or with `stddev` the deviation of what is drawn;
# `node`: the (depth, branch) that it belongs to, None for an assignment.
Specification = collections.namedtuple('Specification', 'name shape value stddev trainable node')


def alpha_name(units):
  """Returns the name of the variable whose softmax assigns units to groups."""
  return f'group/{units.name}/alpha'


def specifications(tree: Tree, with_assignments=False) -> list[Specification]:
  """Lists all variables of a network, in the order in which they are made.

  Args:
    tree: the Tree, dense or divided.
    with_assignments: whether the dense network also has assignments to learn (the grouping stage).
  """
  if tree.groups is not None and with_assignments:
    raise ValueError('a split network has nothing to assign')
  found = []
  for layer, branch in tree.built:
    outputs = len(tree.members(layer.units, layer.depth, branch))
    for variable in layer.variables:
      shape, value, stddev = [outputs], 1.0 if variable in ('gamma', 'sigma') else 0.0, None
      if variable in ('kernel', 'weights'):
        inputs = len(tree.members(tree.graph.read(layer), layer.depth, branch))
        shape = [layer.kernel, layer.kernel] * (layer.op == 'conv') + [inputs, outputs]
        stddev = (1.0 / (layer.kernel**2 * inputs)) ** 0.5
      trainable = variable not in ('mu', 'sigma') and (variable != 'gamma' or layer.scaled)
      name = f'{tree.prefix(layer, branch)}/{variable}'
      found.append(Specification(name, shape, value, stddev, trainable, (layer.depth, branch)))
  if with_assignments:
    for units in tree.graph.units.values():
      if units.groups > 1:
        shape = [units.groups, units.size]
        found.append(Specification(alpha_name(units), shape, 0.0, ASSIGNMENT_STDDEV, True, None))
  return found


def make(tree: Tree, with_assignments=False, seed=0, values=None, devices=None) -> dict:
  """Makes a network's variables: dict from name to tf.Variable, float32.

  Args:
    tree, with_assignments: as for `specifications`.
    seed: of the initial values.
    values: None, or the initial values: dict from name to array.
    devices: None, or the device of each branch: dict from depth to a list of names.
  """
  variables = collections.OrderedDict()
  for name, shape, value, stddev, trainable, node in specifications(tree, with_assignments):
    device = node and devices and devices[node[0]][node[1]]
    with tf.device(device) if device else contextlib.nullcontext():
      if values is not None:
        initial = values[name]
      elif stddev is None:
        initial = tf.fill(shape, value)
      else:  # one seed a variable: the order in which they are made decides, not the placement
        initial = tf.random.stateless_normal(shape, [seed, len(variables)]) * stddev
      variables[name] = tf.Variable(initial, trainable=trainable, name=name, dtype=tf.float32)
  return variables
