"""The network: wide residual, dense, grouping or split into a tree of branches; and hardening, which splits it.

The same `Network` is the dense network, the grouping network (dense, with assignments to learn) and the split one
(a tree of branches): a dense network is a tree with one branch. Which layers there are, and which units each reads and
writes, is architecture.py's list; no function here names a layer of the tree.

Sources: Kim et al., SplitNet (ICML 2017); Zagoruyko and Komodakis, Wide Residual Networks (2016); the released code
for names, initialisation and the meaning of each flag. Tensors are [batch, height, width, channels].
"""

import collections
import contextlib

import numpy as np
import tensorflow as tf

import utils
from splitnet.network import architecture
from splitnet.network.dropout import Dropout
from splitnet.parallel import placement

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_DECAY = 0.9
ASSIGNMENT_STDDEV = 0.01
# Learned groups have odd sizes, for which processors' batch normalisations and convolutions are up to four times
# slower. So what branches compute has channels of zeros at the end, up to a multiple of this.
CHANNEL_MULTIPLE = 16


# --- the network --------------------------------------------------------------------------------------------------


class Network(tf.Module):
  """A wide residual network as a tree of branches; dense or grouping without `groups`, split with them.

  Attributes:
    config: the architecture.Config.
    plan: the architecture.Plan that it was built from.
    groups: None, or the hard groups that it is split by (dict from units name to int array).
    depths: ordered dict from depth name to how many branches the tree has there, 1 each in a dense network.
    held: dict from depth name to the branches that are computed: all, but in a part of a tree (see spread.py).
    weights: dict from variable name to tf.Variable, named as in the released checkpoints; a branch's variables
      begin with 'branch_<i>/'. Assignments are 'group/<name>/alpha', [groups, units].
    placed: whether it was built for given devices.
  """

  def __init__(self, config, groups=None, with_assignments=False, dtype=tf.float32, seed=0, devices=None):
    """Builds and initialises the network.

    Args:
      config: an architecture.Config.
      groups: hard groups by units name; the network is then the tree of branches, else it is dense.
      with_assignments: whether the dense network also has assignments to learn (the grouping stage).
      dtype: in which the convolutions compute, tf.float32 or tf.bfloat16; variables are float32 either way.
      seed: of the initial values.
      devices: names of the devices for the branches (see placement.place); None: wherever TensorFlow puts them.
    """
    super().__init__(name='splitnet')
    if groups is not None and with_assignments:
      raise ValueError('a split network has nothing to assign')
    self.config, self.dtype = config, dtype
    self.plan = architecture.wide_resnet(config)
    self.groups = groups
    self.with_assignments = with_assignments
    self.weights = collections.OrderedDict()
    self._initializer_seed = seed
    if groups is not None:
      architecture.check_groups(self.plan, groups)
    self.depths = self.plan.depths if groups is not None else collections.OrderedDict.fromkeys(self.plan.depths, 1)
    self.held = {depth: list(range(branches)) for depth, branches in self.depths.items()}
    built = [(layer, branch) for layer in self.plan.layers for branch in self.held[layer.depth]]
    self.placed = bool(devices)
    self.counts = [self._count(layer, branch) for layer, branch in built]
    self._placement = placement.place(self.depths, self.costs(), devices)
    for layer, branch in built:
      with self._on(layer.depth, branch):
        self._build(layer, branch)
    if with_assignments:
      for units in self.plan.units.values():
        if units.groups > 1:
          initial = tf.random.stateless_normal([units.groups, units.size], self._next_seed()) * ASSIGNMENT_STDDEV
          self._variable('group/%s/alpha' % units.name, initial)
    self._class_order = self._inverse_class_order()

  # Building.

  def branches(self, layer):
    """How many branches of a layer are built: 1 in a dense network."""
    return self.depths[layer.depth]

  def _on(self, depth, branch):
    device = self._placement[depth][branch]
    return tf.device(device) if device else contextlib.nullcontext()

  def _next_seed(self):
    # One seed a variable: the order in which they are built decides, not the placement.
    return [self._initializer_seed, len(self.weights)]

  def _variable(self, name, value, trainable=True):
    self.weights[name] = tf.Variable(value, trainable=trainable, name=name, dtype=tf.float32)

  def prefix(self, layer, branch):
    """What the names of a layer's variables in a branch begin with."""
    return layer.name if self.branches(layer) == 1 else 'branch_%d/%s' % (branch, layer.name)

  def members(self, units, depth, branch):
    """The units, as numbered in the dense network, that a branch at a depth holds, in their order there."""
    if self.groups is None:
      return np.arange(units.size)
    return architecture.members(units, self.groups[units.name], branch, self.depths[depth])

  def _size(self, layer, branch):
    """How many units a branch of a layer reads and writes."""
    return [len(self.members(units, layer.depth, branch)) for units in (layer.input, layer.output)]

  def _scaled(self, layer):
    # Only the blocks' scales are kept at 1; the last batch norm's is learned, as the released network has it.
    return not self.config.bn_no_scale or layer.name == 'unit_last/bn'

  def _count(self, layer, branch):
    name, (inputs, outputs) = self.prefix(layer, branch), self._size(layer, branch)
    if layer.kind == 'conv':
      return utils.count_convolution(name, layer.kernel_size, inputs, outputs, layer.output_size, layer.counted)
    if layer.kind == 'linear':
      return utils.count_linear(name, inputs, outputs)
    return utils.count_batch_norm(name, inputs, layer.output_size, self._scaled(layer))

  def _build(self, layer, branch):
    name, (inputs, outputs) = self.prefix(layer, branch), self._size(layer, branch)
    if layer.kind == 'conv':
      shape = [layer.kernel_size, layer.kernel_size, inputs, outputs]
      std = (1.0 / (layer.kernel_size**2 * inputs)) ** 0.5
      self._variable(name + '/kernel', tf.random.stateless_normal(shape, self._next_seed()) * std)
    elif layer.kind == 'linear':
      std = (1.0 / inputs) ** 0.5
      self._variable(name + '/weights', tf.random.stateless_normal([inputs, outputs], self._next_seed()) * std)
      self._variable(name + '/biases', tf.zeros([outputs]))
    else:
      self._variable(name + '/beta', tf.zeros([inputs]))
      self._variable(name + '/gamma', tf.ones([inputs]), trainable=self._scaled(layer))
      self._variable(name + '/mu', tf.zeros([inputs]), trainable=False)
      self._variable(name + '/sigma', tf.ones([inputs]), trainable=False)

  def costs(self, everything=True):
    """FLOPs per image of each node of the tree: dict from (depth, branch) to number, as placement.py wants it.

    Without `everything` as the paper counts them.
    """
    found = collections.Counter()
    built = ((layer.depth, branch) for layer in self.plan.layers for branch in range(self.branches(layer)))
    for node, count in zip(built, self.counts):
      found[node] += count.flops if everything or count.counted else 0
    return found

  def laid_classes(self):
    """The classes of the held branches' logits laid side by side: int array."""
    units = self.plan.units['split_q1']
    return np.concatenate([self.members(units, 'logits', branch) for branch in self.held['logits']])

  def _inverse_class_order(self):
    """Where each class stands among the branches' logits laid side by side; None where they stand in order."""
    inverse = np.argsort(self.laid_classes())
    return None if np.array_equal(inverse, np.arange(len(inverse))) else inverse

  # Computing.

  def __call__(self, images, training=False, dropout_seed=None, keep_prob=1.0, share=None):
    """Logits of a batch of images.

    Args:
      images: whitened images [batch, 32, 32, 3], float.
      training: use the batch's statistics (and update the moving averages) instead of the moving averages.
      dropout_seed: int32 tensor [2], the seed of this call's dropout; needed where keep_prob < 1.
      keep_prob: probability of keeping an input of a split layer while training (released: before every split
        convolution and before the logits).
      share: the strategy.Share of a batch that the images are: while training, batch normalisation and dropout then
        act as on the whole of it. None: they are all of it.

    Returns:
      Logits [batch, classes], float32, in the order of the labels.

    A part of a tree that lacks the trunk is called with the output of the branch that its lowest ones read. It returns
    its leaves' logits side by side, or, where it has none, the output of its highest branch.
    """
    drop = Dropout(dropout_seed, keep_prob if training else 1.0, share)
    by_name = {layer.name: layer for layer in self.plan.layers}
    held, units, depth = self.held, by_name['init_conv'].output, 'trunk'
    if held['trunk']:
      with self._on('trunk', 0):
        state = {0: self._conv(by_name['init_conv'], 0, tf.cast(images, self.dtype))}
    else:
      state = {self._source(): images}
    for block in self.plan.blocks:
      if held[block.depth]:
        inputs = self._inputs(state, units, depth, block.depth)
        state = {
          branch: self._block(block, by_name, branch, inputs[branch], training, drop, share)
          for branch in held[block.depth]
        }
      units, depth = by_name[block.conv_2].output, block.depth
    features = {}
    for branch in held[depth]:
      with self._on(depth, branch):
        x = tf.nn.relu(self._batch_norm(by_name['unit_last/bn'], branch, state[branch], training, share))
        x = tf.reduce_mean(tf.cast(x, tf.float32), (1, 2))
        features[branch] = shortened(x, self.written(depth, branch))
    if not held['logits']:
      (output,) = features.values() if features else [self._output(state)]
      return output
    features = features or state
    logits, inputs = [], self._inputs(features, units, depth, 'logits')
    for branch in held['logits']:
      with self._on('logits', branch):
        x = inputs[branch]
        if self.plan.depths['logits'] > 1:
          x = drop(x)
        logits.append(self._linear(by_name['logits/fc'], branch, x))
    with self._on('trunk', 0):
      logits = logits[0] if len(logits) == 1 else tf.concat(logits, 1)
      return logits if self._class_order is None else tf.gather(logits, self._class_order, axis=1)

  def written(self, depth, branch):
    """How many channels a branch of the trunk, unit_2 or unit_3 hands to those above it, without zeros beside them."""
    last = [block for block in self.plan.blocks if block.depth == depth][-1]
    layer = next(layer for layer in self.plan.layers if layer.name == last.conv_2)
    return len(self.members(layer.output, depth, branch))

  def _output(self, state):
    """What a part without logits or pooled features hands to those above it: its highest branch's own channels."""
    depth = [block.depth for block in self.plan.blocks if self.held[block.depth]][-1]
    ((branch, x),) = state.items()
    return shortened(x, self.written(depth, branch))

  def _source(self):
    """The branch whose output a part without the trunk reads, at the depth below its lowest."""
    below = 'trunk'
    for depth, branches in self.held.items():
      if branches:
        return int(utils.parents(self.depths[depth], self.depths[below])[branches[0]])
      below = depth

  def taken(self, units, below, depth, branch):
    """What a branch reads of the depth below: (its parent's number there, the slice of the parent's channels)."""
    if self.groups is None:
      return 0, slice(None)
    parent = utils.parents(self.depths[depth], self.depths[below])[branch]
    held, wanted = self.members(units, below, parent), self.members(units, depth, branch)
    start = int(np.flatnonzero(held == wanted[0])[0])
    if not np.array_equal(held[start : start + len(wanted)], wanted):
      raise AssertionError('the units of %s are not in group order' % units.name)
    return parent, slice(None) if len(held) == len(wanted) else slice(start, start + len(wanted))

  def _inputs(self, state, units, below, depth):
    """What each held branch at a depth reads of the outputs below: dict from branch to tensor."""
    inputs = {}
    taken = {branch: self.taken(units, below, depth, branch) for branch in self.held[depth]}
    for parent, x in state.items():
      runs = {branch: channels for branch, (source, channels) in taken.items() if source == parent}
      with self._on(below, parent):
        inputs.update(_divided(x, runs))
    return inputs

  def _block(self, block, by_name, branch, x, training, drop, share):
    """Pre-activation residual block: x + conv_2(relu(bn_2(conv_1(relu(bn_1(x)))))), a first block as released."""
    drop = drop if self.plan.depths[block.depth] > 1 else Dropout(None, 1.0)
    with self._on(block.depth, branch):
      x = lengthened(x, {-1: -x.shape[-1] % CHANNEL_MULTIPLE})
      a = drop.relu(self._batch_norm(by_name[block.bn_1], branch, x, training, share, drop.factor))
      first = block.name.endswith('_0')
      residual = self._conv(by_name[block.shortcut], branch, a) if block.shortcut else (a if first else x)
      a = self._conv(by_name[block.conv_1], branch, a)
      a = drop.relu(self._batch_norm(by_name[block.bn_2], branch, a, training, share, drop.factor))
      return residual + self._conv(by_name[block.conv_2], branch, a)

  def _conv(self, layer, branch, x):
    kernel = self.weights[self.prefix(layer, branch) + '/kernel']
    inputs, outputs = kernel.shape[-2:]
    kernel = lengthened(kernel, {-2: x.shape[-1] - inputs, -1: -outputs % CHANNEL_MULTIPLE})
    return tf.nn.conv2d(x, tf.cast(kernel, self.dtype), layer.stride, 'SAME')

  def _linear(self, layer, branch, x):
    name = self.prefix(layer, branch)
    return tf.matmul(x, self.weights[name + '/weights']) + self.weights[name + '/biases']

  def _batch_norm(self, layer, branch, x, training, share=None, factor=1.0):
    """Batch normalisation with the batch's own variance (no Bessel's correction), moving averages of decay 0.9.

    The result is multiplied by `factor`, which costs nothing here.
    """
    name = self.prefix(layer, branch)
    moving_mean, moving_variance = self.weights[name + '/mu'], self.weights[name + '/sigma']
    channels = moving_mean.shape[0]
    offset, scale, shift, spread = (
      lengthened(self.weights[name + part], {0: x.shape[-1] - channels})
      for part in ('/beta', '/gamma', '/mu', '/sigma')
    )
    if factor != 1.0:
      offset, scale = offset * factor, scale * factor
    if not training:
      return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=shift, variance=spread, epsilon=BATCH_NORM_EPSILON, is_training=False
      ).y
    if share:
      y, mean, variance = _shared_batch_norm(x, scale, offset, shift, share)
    else:
      batch = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=scale,
        offset=offset,
        mean=tf.constant([]),
        variance=tf.constant([]),
        epsilon=BATCH_NORM_EPSILON,
        is_training=True,
      )
      values = tf.cast(tf.size(x) // x.shape[-1], tf.float32)  # per channel
      # The kernel reports the unbiased variance; the released code averages the biased one.
      y, mean, variance = batch.y, batch.batch_mean, batch.batch_variance * ((values - 1.0) / values)
    moving_mean.assign_sub((1.0 - BATCH_NORM_DECAY) * (moving_mean - shortened(mean, channels)))
    moving_variance.assign_sub((1.0 - BATCH_NORM_DECAY) * (moving_variance - shortened(variance, channels)))
    return y

  # What training needs.

  def soft_assignments(self):
    """The soft assignments that are learned: dict from name to tensor [groups, units]."""
    learned = [units for units in self.plan.units.values() if units.groups > 1]
    soft = {}
    for groups in {units.groups for units in learned}:  # one softmax for all with as many groups
      some = [units for units in learned if units.groups == groups]
      alphas = tf.concat([self.weights['group/%s/alpha' % units.name] for units in some], 1)
      parts = tf.split(tf.nn.softmax(alphas, axis=0), [units.size for units in some], 1)
      soft.update(zip([units.name for units in some], parts))
    return {units.name: soft[units.name] for units in learned}

  def split_layers(self):
    """The layers that the regularisers sum over (utils.SplitLayer), in the released order, with soft assignments."""
    soft = self.soft_assignments()
    merged = {}

    def at(units, layer):
      _, branches, cut = layer.merges(units)
      if (units.name, branches, cut) not in merged:
        merged[units.name, branches, cut] = utils.merge_assignment(
          utils.merge_assignment(soft[units.name], branches), cut
        )
      return merged[units.name, branches, cut]

    answered, result = set(), []
    for layer in self.plan.layers:
      if layer.kind == 'batch_norm' or layer.branches == 1:
        continue
      counted = []
      for units in (layer.input, layer.output):
        # A stage's own output is seen merged inside the stage; the depth above it answers for it.
        if units.groups > 1 and units.depth == layer.depth and units.name not in answered:
          answered.add(units.name)
          counted.append(soft[units.name])
      p, q = (at(layer.input, layer), at(layer.output, layer)) if layer.cut > 1 else (None, None)
      result.append(utils.SplitLayer(layer.name, self.weights[architecture.layer_weights(layer)], p, q, counted))
    return result

  @property
  def decayed(self):
    """The variables that weight decay applies to: every kernel and the logits' weights, not their biases."""
    return [v for name, v in self.weights.items() if name.endswith(('/kernel', '/weights'))]

  @property
  def trained(self):
    """Dict from name to trainable variable."""
    return collections.OrderedDict((name, v) for name, v in self.weights.items() if v.trainable)


def _shared_batch_norm(x, scale, offset, shift, share):
  """Batch normalisation of a strategy.Share by the mean and the variance of the whole batch.

  Args:
    x: [images of the share, height, width, channels]; scale, offset: [channels].
    shift: [channels], about the mean and the same on every replica: sums of differences from it lose no digits.
    share: the Share.

  Returns:
    (normalised x, mean, biased variance).
  """
  difference = tf.cast(x, tf.float32) - shift
  sums = share.sum(tf.stack([tf.reduce_sum(difference, (0, 1, 2)), tf.reduce_sum(tf.square(difference), (0, 1, 2))]))
  mean, square = tf.unstack(sums / (share.batch * x.shape[1] * x.shape[2]))
  variance = square - tf.square(mean)
  y = tf.nn.batch_normalization(difference, mean, variance, offset, scale, BATCH_NORM_EPSILON)
  return tf.cast(y, x.dtype), shift + mean, variance


def lengthened(value, by):
  """A tensor or array with zeros at the end of some axes; by: dict from axis to how many."""
  if not any(by.values()):
    return value
  rank = len(value.shape)
  amounts = [[0, 0] for _ in range(rank)]
  for axis, amount in by.items():
    amounts[axis][1] = amount
  return (np if isinstance(value, np.ndarray) else tf).pad(value, amounts)


def shortened(x, channels):
  """The first channels (last axis) of a tensor."""
  return x if x.shape[-1] == channels else tf.slice(x, [0] * len(x.shape), [-1] * (len(x.shape) - 1) + [channels])


def _divided(x, runs):
  """Runs of x's channels: dict from a key to tensor; runs: dict from a key to a slice of the channels."""
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


# --- hardening ----------------------------------------------------------------------------------------------------


def harden(network, **keywords):
  """Splits a grouping network by the most probable group of each unit (Algorithm 1 of the paper).

  The result computes what the grouping network computes with its between-group weights set to zero: the same blocks
  and batch normalisations, weights sliced, nothing drawn anew.

  Args:
    network: a Network with assignments.
    **keywords: of the new Network (dtype, devices).

  Returns:
    A Network that is a tree of branches.

  Raises:
    UserError: where a group is empty.
  """
  values = {name: v.numpy() for name, v in network.weights.items()}
  return split_by(network.config, present_groups(network), values, **keywords)


def present_groups(network):
  """The hard groups that a grouping network's assignments are at now: dict from units name to int array.

  Raises:
    UserError: where a group is empty.
  """
  alphas = {name: network.weights['group/%s/alpha' % name].numpy() for name in network.soft_assignments()}
  return architecture.hard_groups_of(network.plan, alphas)


def hardened_counts(network):
  """The counts (list of utils.LayerCount) of the split network that a grouping network would now harden into.

  Raises:
    UserError: where a group is empty.
  """
  return Network(network.config, groups=present_groups(network)).counts


def split_by(config, groups, values, **keywords):
  """Builds the tree of branches for hard groups and fills it with slices of a dense network's weights.

  Args:
    config: an architecture.Config.
    groups: hard groups by units name.
    values: dict from the dense network's variable names to arrays.
    **keywords: of the new Network.
  """
  network = Network(config, groups=groups, **keywords)
  for layer in network.plan.layers:
    for branch in range(network.branches(layer)):
      inputs = network.members(layer.input, layer.depth, branch)
      outputs = network.members(layer.output, layer.depth, branch)
      target = network.prefix(layer, branch)
      if layer.kind == 'conv':
        parts = {'/kernel': lambda w, i=inputs, o=outputs: w[:, :, i][..., o]}
      elif layer.kind == 'linear':
        parts = {'/weights': lambda w, i=inputs, o=outputs: w[i][:, o], '/biases': lambda w, o=outputs: w[o]}
      else:
        parts = dict.fromkeys(('/beta', '/gamma', '/mu', '/sigma'), lambda w, i=inputs: w[i])
      for suffix, cut in parts.items():
        network.weights[target + suffix].assign(cut(values[layer.name + suffix]))
  return network
