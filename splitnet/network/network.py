"""Makes the network of any graph: dense, grouping (with assignments), or a tree."""

import contextlib

import numpy as np
import tensorflow as tf

import utils
from splitnet.network import layers, variables
from splitnet.network.dropout import Dropout
from splitnet.network.graph import Tree


class Network(Tree):
  """Computes logits by a graph and weights, which may be on several devices.

  Attributes:
    graph, groups, depths: of the Tree; a dense network is a tree with one branch.
    weights: dict from variable name to tf.Variable, or, once folded, to array. Names are those of the released
      checkpoints; a branch's begin with 'branch_<i>/'. Assignments are 'group/<units>/alpha', [groups, units].
    dtype: in which the convolutions compute, tf.float32 or tf.bfloat16; variables are float32 either way.
    nodes: dict from depth to the branches that are computed: all, but in a part.
    with_assignments: whether it is a grouping network.
    devices: None, or where the branches are: dict from depth to the device name of each.
  """

  def __init__(self, graph, weights, groups=None, dtype=tf.float32, devices=None, nodes=None):
    super().__init__(graph, groups)
    self.weights, self.dtype, self.devices = weights, dtype, devices
    self.with_assignments = any(name.startswith('group/') for name in weights)
    self._whole = nodes is None
    self.nodes = {d: list(range(n)) for d, n in self.depths.items()} if nodes is None else nodes
    # Where each class stands among the leaves' logits side by side; None: where its number says.
    order = np.argsort(self.leaf_classes())
    self._class_order = order if self._whole and not np.array_equal(order, np.arange(len(order))) else None
    # The layers that multiply by dropout's factor.
    self._scaling = {_scaling(graph, layer) for layer in graph.layers if layer.op == 'relu' and layer.dropout}

  def leaf_classes(self):
    """Returns the classes of the computed leaves' logits side by side, maybe none."""
    depth = self.graph.layers[-1].depth
    classes = [self.members(self.graph.classes, depth, branch) for branch in self.nodes[depth]]
    return np.concatenate(classes) if classes else np.zeros(0, np.int64)

  # Computing.

  @tf.autograph.experimental.do_not_convert  # no control flow here depends on tensors
  def __call__(self, images, training=False, dropout_seed=None, keep_prob=1.0, share=None):
    """Computes the logits of a batch of images: [batch, classes], float32.

    A part of a tree that lacks the image is called with what the branch wrote that its lowest ones read, or with what
    its only lowest one reads of that. It returns its leaves' logits side by side, or, if it has none, what its highest
    branch writes.

    Args:
      images: prepared images [batch, height, width, 3], float.
      training: use the batch's statistics (and update the moving averages) instead of the moving averages.
      dropout_seed: int32 tensor [2], the seed of this call's dropout; needed if keep_prob < 1.
      keep_prob: probability of keeping a value where the graph says that values are dropped in training.
      share: the part of a batch that the images are (see layers.Call): while training, batch normalisation and
        dropout then act as on the whole of it. None: they are all of it.
    """
    if training and not self.trained:
      raise ValueError('a folded network cannot be trained')
    dropout = Dropout(dropout_seed, keep_prob if training else 1.0, share)
    call = layers.Call(images, self.dtype, training, dropout, share)
    depth, tensors = None, {}  # those of the present depth and what it reads, by layer and branch
    for block in self.graph.blocks:
      if not self.nodes[block[0].depth]:
        continue
      if block[0].depth != depth:
        depth = block[0].depth
        tensors = self._read(depth, tensors, images)
      for branch in self.nodes[depth]:
        with self._on(depth, branch):
          for layer in block:
            tensors[layer.name, branch] = self._compute(layer, branch, tensors, call)
    output = self.graph.output(depth)
    if output is not self.graph.layers[-1]:
      (branch,) = self.nodes[depth]
      return layers.shortened(tensors[output.name, branch], self._written(output, branch))
    with self._on(self.graph.layers[0].depth, 0):
      logits = [tensors[output.name, branch] for branch in self.nodes[depth]]
      logits = logits[0] if len(logits) == 1 else tf.concat(logits, 1)
      return logits if self._class_order is None else tf.gather(logits, self._class_order, axis=1)

  def _on(self, depth, branch):
    device = self.devices and self.devices[depth][branch]
    return tf.device(device) if device else contextlib.nullcontext()

  def _compute(self, layer, branch, tensors, call):
    names = self.names(layer, branch).items()
    own = {variable: self.weights[name] for variable, name in names if name in self.weights}
    inputs = [tensors[name, branch] for name in layer.inputs]
    factor = call.dropout.factor if layer.name in self._scaling else 1.0
    return layers.compute(layer, inputs, own, self._written(layer, branch), call, factor)

  def _written(self, layer, branch):
    """Returns how many units a branch of a layer writes."""
    return len(self.members(layer.units, layer.depth, branch))

  def _read(self, depth, tensors, given):
    """Returns what the computed branches of a depth read, by layer and branch."""
    source = self.graph.borders[depth]
    if source is None:
      return {}
    reads = {branch: self.reads(depth, branch) for branch in self.nodes[depth]}
    result = {}
    for parent in dict.fromkeys(parent for parent, _ in reads.values()):
      runs = {branch: channels for branch, (other, channels) in reads.items() if other == parent}
      if tensors:
        x = tensors[source.name, parent]
      else:
        x = tf.cast(given, self.output_spec(source.depth, parent).dtype)
        if len(runs) == 1 and x.shape[-1] < self._written(source, parent):
          runs = dict.fromkeys(runs, slice(None))
      with self._on(source.depth, parent):
        parts = layers.divided(x, runs)
      for branch, part in parts.items():
        with self._on(depth, branch):
          result[source.name, branch] = layers.padded(part)
    return result

  # Parts.

  def part(self, nodes, copied=False):
    """Returns a network that computes some branches only, with their weights alone.

    `nodes` maps depths to lists of branches, all above one branch. `copied` variables go where the caller's tf.device
    says.
    """
    nodes = {depth: list(nodes.get(depth, [])) for depth in self.depths}
    weights = {}
    for layer, branch in self.built:
      for name in self.names(layer, branch).values():
        if branch in nodes[layer.depth] and name in self.weights:
          value = self.weights[name]
          copy = copied and isinstance(value, tf.Variable)
          weights[name] = tf.Variable(value.numpy(), trainable=False) if copy else value
    return Network(self.graph, weights, self.groups, self.dtype, None, nodes)

  def output_spec(self, depth, branch):
    """Returns the tf.TensorSpec of what a branch hands to those above it."""
    output = self.graph.output(depth)
    units = self._written(output, branch)
    if output.op == 'mean':
      return tf.TensorSpec([None, units], tf.float32)
    return tf.TensorSpec([None, output.size, output.size, units], self.dtype)

  @property
  def input_spec(self):
    """Returns the tf.TensorSpec of what a part whose lowest depth is one branch reads."""
    depth = next(depth for depth, branches in self.nodes.items() if branches)
    below, branch = self.graph.borders[depth], self.nodes[depth][0]
    spec = self.output_spec(below.depth, self.reads(depth, branch)[0])
    return tf.TensorSpec([*spec.shape[:-1], len(self.members(below.units, depth, branch))], spec.dtype)

  # What training needs.

  @property
  def trained(self):
    """Maps names to trainable variables."""
    return {name: v for name, v in self.weights.items() if isinstance(v, tf.Variable) and v.trainable}

  @property
  def decayed(self):
    """Lists the variables that weight decay applies to: weights, no biases."""
    return [v for name, v in self.weights.items() if name.endswith(('/kernel', '/weights'))]

  def soft_assignments(self):
    """Returns the assignments that are learned: units name to tensor [groups, units]."""
    learned = [units for units in self.graph.units.values() if units.groups > 1]
    soft = {}
    for groups in {units.groups for units in learned}:  # one softmax for all with as many groups
      some = [units for units in learned if units.groups == groups]
      alphas = tf.concat([self.weights[units.alpha] for units in some], 1)
      parts = tf.split(tf.nn.softmax(alphas, axis=0), [units.size for units in some], 1)
      soft.update(zip([units.name for units in some], parts))
    return {units.name: soft[units.name] for units in learned}

  def split_layers(self):
    """Returns what the regularisers sum over, utils.SplitLayer, in the released order."""
    graph, soft, merged = self.graph, self.soft_assignments(), {}

    def at(units, layer):
      _, branches, cut = graph.merges(layer, units)
      key = units.name, branches, cut
      if key not in merged:
        merged[key] = utils.merge_assignment(utils.merge_assignment(soft[units.name], branches), cut)
      return merged[key]

    answered, result = set(), []
    for layer in graph.split_layers:
      counted, both = [], (graph.read(layer), layer.units)
      for units in both:
        # A depth's own output is seen merged inside the depth; the one above it answers for it.
        if units.groups > 1 and units.depth == layer.depth and units.name not in answered:
          answered.add(units.name)
          counted.append(soft[units.name])
      p, q = (at(units, layer) for units in both) if graph.cut(layer) > 1 else (None, None)
      result.append(utils.SplitLayer(layer.name, self.weights[layer.weights], p, q, counted))
    return result


def _scaling(graph, rectifier):
  """Names the batch normalisation that only a rectifier reads, or the rectifier."""
  below = graph.source(rectifier)
  return (below if below.op == 'batch_norm' and graph.readers[below.name] == [rectifier] else rectifier).name


def create(graph, groups=None, with_assignments=False, dtype=tf.float32, seed=0, values=None, place=None):
  """Makes a network and its variables; raises UserError if a group is empty.

  Args:
    groups: hard groups by units name; the network is then the tree of branches, else it is dense.
    with_assignments: whether the dense network also has assignments to learn (the grouping stage).
    dtype: in which the convolutions compute.
    values: None, or the initial values by variable name.
    place: None, or a function from a Tree to the device names of its branches, dict from depth to list.
  """
  tree = Tree(graph, groups)
  devices = place(tree) if place else None
  return Network(graph, variables.make(tree, with_assignments, seed, values, devices), groups, dtype, devices)
