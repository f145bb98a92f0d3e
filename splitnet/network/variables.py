"""Makes a network's variables, named as in the released checkpoints."""

import contextlib

import tensorflow as tf

from splitnet.network.graph import Tree

ASSIGNMENT_STDDEV = 0.01


def make(tree: Tree, with_assignments=False, seed=0, values=None, devices=None) -> dict[str, tf.Variable]:
  """Makes a network's variables, float32, by name; arguments as of network.create.

  `devices` are None, or those of the branches: dict from depth to a list of names.
  """
  if tree.groups is not None and with_assignments:
    raise ValueError('a split network has nothing to assign')
  variables = {}

  def add(name, shape, device=None, value=0.0, stddev=None, trainable=True):
    """Makes a variable of a value, or drawn with a deviation."""
    with tf.device(device) if device else contextlib.nullcontext():
      if values is not None:
        initial = values[name]
      elif stddev is None:
        initial = tf.fill(shape, value)
      else:  # one seed a variable: the order in which they are made decides, not the placement
        initial = tf.random.stateless_normal(shape, [seed, len(variables)]) * stddev
      variables[name] = tf.Variable(initial, trainable=trainable, name=name, dtype=tf.float32)

  for layer, branch in tree.built:
    device = devices and devices[layer.depth][branch]
    outputs = len(tree.members(layer.units, layer.depth, branch))
    for variable, name in tree.names(layer, branch).items():
      if variable in ('kernel', 'weights'):
        inputs = len(tree.members(tree.graph.read(layer), layer.depth, branch))
        window = [layer.kernel, layer.kernel] if layer.op == 'conv' or layer.kernel > 1 else []
        add(name, [*window, inputs, outputs], device, stddev=(1.0 / (layer.kernel**2 * inputs)) ** 0.5)
      elif variable == 'depthwise':  # one window a channel
        add(name, [layer.kernel, layer.kernel, outputs], device, stddev=1.0 / layer.kernel)
      else:
        fixed = {'mu': True, 'sigma': True, 'gamma': not layer.scaled, 'beta': not layer.centred}
        trainable = not fixed.get(variable, False)
        add(name, [outputs], device, 1.0 if variable in ('gamma', 'sigma') else 0.0, trainable=trainable)
  for units in tree.graph.units.values() if with_assignments else ():
    if units.groups > 1:
      add(units.alpha, [units.groups, units.size], stddev=ASSIGNMENT_STDDEV)
  return variables
