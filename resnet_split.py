"""Wide residual networks whose layers know their input and output assignments, and the tree they harden into.

Every layer reads one set of units (channels, features or classes) and writes one. A set of units has an assignment
of its units to groups, and a layer belongs to a depth of the tree with a number of branches. Everything else follows
from these two facts: the regularisers are a sum over layers, hardening slices each kernel by the two assignments,
and counting, drawing and placing walk the same list. No function names a layer.

The same `Network` is the dense network, the grouping network (dense, with assignments to learn) and the split one
(a tree of branches): a dense network is a tree with one branch.

Sources: Kim et al., SplitNet (ICML 2017); Zagoruyko and Komodakis, Wide Residual Networks (2016); the released code
for names, initialisation and the meaning of each flag. Tensors are [batch, height, width, channels].
"""

import collections
import contextlib
import dataclasses

import numpy as np
import tensorflow as tf

import placement
import utils
from dropout import Dropout

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_DECAY = 0.9
ASSIGNMENT_STDDEV = 0.01
# Learned groups have odd sizes, for which processors' batch normalisations and convolutions are up to four times
# slower. So what branches compute has channels of zeros at the end, up to a multiple of this.
CHANNEL_MULTIPLE = 16


@dataclasses.dataclass(frozen=True)
class Config:
  """What a network looks like; stored beside every checkpoint. Names are the flags'.

  Attributes:
    k: width multiplier; the stages have 16k, 32k and 64k channels.
    num_residual_units: residual blocks per stage; the depth is 6 * num_residual_units + 4.
    ngroups1, ngroups2, ngroups3: groups at the logits, in unit_3_* and in unit_2_*; none larger than the one before.
    branch_input: 'group': where the tree branches, a child reads its own group of its parent's channels (released
      code); 'all': it reads all of them (the paper's counts).
    bn_no_scale: keep the scale of the blocks' batch normalisations at 1.
  """

  k: int = 8
  num_residual_units: int = 2
  num_classes: int = 100
  ngroups1: int = 2
  ngroups2: int = 2
  ngroups3: int = 2
  branch_input: str = 'group'
  bn_no_scale: bool = True

  def __post_init__(self):
    for name in ('k', 'num_residual_units', 'num_classes', 'ngroups1', 'ngroups2', 'ngroups3'):
      if getattr(self, name) < 1:
        raise utils.UserError('--%s is %s; it must be at least 1' % (name, getattr(self, name)))
    for upper, lower, where in (('ngroups1', 'ngroups2', 'unit_3'), ('ngroups2', 'ngroups3', 'unit_2')):
      if getattr(self, upper) < getattr(self, lower):
        raise utils.UserError(
          '--%s is %d but --%s above it is only %d: a tree cannot have more branches in %s than above it; '
          'give ngroups1 >= ngroups2 >= ngroups3' % (lower, getattr(self, lower), upper, getattr(self, upper), where)
        )
    if self.ngroups1 > self.num_classes:
      raise utils.UserError('--ngroups1 is %d but there are only %d classes' % (self.ngroups1, self.num_classes))
    for name, stage, channels in (('ngroups3', 'unit_1', 16), ('ngroups2', 'unit_2', 32), ('ngroups1', 'unit_3', 64)):
      if getattr(self, name) > channels * self.k:
        raise utils.UserError(
          '--%s is %d but %s has only %d channels to divide' % (name, getattr(self, name), stage, channels * self.k)
        )
    if self.branch_input not in ('group', 'all'):
      raise utils.UserError("--branch_input is '%s'; it must be group or all" % self.branch_input)

  @property
  def split(self):
    """The paper's name of the split, 'ngroups3-ngroups2-ngroups1', such as '2-2-2'; '1-1-1' is the dense network."""
    return '%d-%d-%d' % (self.ngroups3, self.ngroups2, self.ngroups1)

  def dense(self):
    """The same network without any split."""
    return dataclasses.replace(self, ngroups1=1, ngroups2=1, ngroups3=1)


# --- units and layers: the list that everything walks -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Units:
  """One set of units that layers write and read: its size, its assignment's name and number of groups.

  `depth` is the name of the depth whose layers its assignment serves unmerged; layers below see it merged.
  """

  name: str
  size: int
  groups: int
  depth: str


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer: which units it reads and writes, and how many branches the tree has where it stands.

  Attributes:
    name: as in the released checkpoints, such as 'unit_2_0/conv_1'.
    kind: 'conv', 'linear' or 'batch_norm' (which reads and writes the same units).
    depth: 'trunk', 'unit_2', 'unit_3' or 'logits'.
    branches: branches of the tree at this depth.
    kernel_size, stride: of a convolution, pixels.
    output_size: height (= width) of the output, pixels.
    counted: whether the paper's tables count it.
  """

  name: str
  kind: str
  input: Units
  output: Units
  depth: str
  branches: int
  kernel_size: int = 1
  stride: int = 1
  output_size: int = 1
  counted: bool = True

  @property
  def cut(self):
    """The number of groups between which hardening drops this layer's weights; 1: it drops none."""
    return min(self.branches, self.input.groups, self.output.groups)

  def merges(self, units):
    """The numbers of groups through which this layer sees its input or output units: their own, its branches, cut."""
    return [units.groups, min(units.groups, self.branches), self.cut]


# One residual block: its layers' names (shortcut None where the input is added as it is).
Block = collections.namedtuple('Block', 'name depth branches bn_1 conv_1 bn_2 conv_2 shortcut')

# A network before its variables: all layers bottom up (in the order of the released losses), the units by name, the
# blocks, and the number of branches of each depth.
Plan = collections.namedtuple('Plan', 'layers units blocks depths')


def wide_resnet(config, image_size=32):
  """Lists the layers of a wide residual network, each with its two sets of units.

  Args:
    config: a Config.
    image_size: height and width of the images, pixels.

  Returns:
    A Plan. Pre-activation blocks, as the released grouping network has them.
  """
  stages = [
    ('unit_1', 'trunk', 16 * config.k, 1, 1),
    ('unit_2', 'unit_2', 32 * config.k, 2, config.ngroups3),
    ('unit_3', 'unit_3', 64 * config.k, 2, config.ngroups2),
  ]
  depths = collections.OrderedDict(
    [('trunk', 1), ('unit_2', config.ngroups3), ('unit_3', config.ngroups2), ('logits', config.ngroups1)]
  )

  def border(name, size, below, above, last=False):
    # Between two depths: the children's groups, unless a child reads all that its parent wrote. The logits are
    # split on both sides in any case.
    groups = depths[above] if config.branch_input == 'group' or last else min(depths[below], depths[above])
    return Units(name, size, groups, above)

  streams = {
    'unit_1': border('split_p3', 16 * config.k, 'trunk', 'unit_2'),
    'unit_2': border('split_p2', 32 * config.k, 'unit_2', 'unit_3'),
    'unit_3': border('split_p1', 64 * config.k, 'unit_3', 'logits', last=True),
  }
  pixels = Units('image', 3, 1, 'trunk')
  classes = Units('split_q1', config.num_classes, config.ngroups1, 'logits')
  # With k = 1 unit_1_0 adds its input as it is, so both carry their channels in the same order.
  stem = streams['unit_1'] if config.k == 1 else Units('stem', 16, 1, 'trunk')

  layers, blocks = [], []
  size = image_size
  layers.append(Layer('init_conv', 'conv', pixels, stem, 'trunk', 1, 3, 1, size, counted=False))
  current = stem
  for stage, depth, channels, stride, branches in stages:
    level = {'unit_1': 4, 'unit_2': 3, 'unit_3': 2}[stage]
    for unit in range(config.num_residual_units):
      name = '%s_%d' % (stage, unit)
      stride_here = stride if unit == 0 else 1
      output = streams[stage]
      hidden = Units('split_r%d%d' % (level, unit + 1), channels, branches, depth)

      def layer(part, kind, source, target, size, name=name, depth=depth, branches=branches, **keywords):
        layers.append(
          Layer('%s/%s' % (name, part), kind, source, target, depth, branches, output_size=size, **keywords)
        )
        return layers[-1].name

      bn_1 = layer('bn_1', 'batch_norm', current, current, size, counted=False)
      size //= stride_here
      shortcut = None
      if unit == 0 and current.size != channels:
        shortcut = layer('shortcut', 'conv', current, output, size, kernel_size=1, stride=stride_here)
      conv_1 = layer('conv_1', 'conv', current, hidden, size, kernel_size=3, stride=stride_here)
      bn_2 = layer('bn_2', 'batch_norm', hidden, hidden, size, counted=False)
      conv_2 = layer('conv_2', 'conv', hidden, output, size, kernel_size=3)
      blocks.append(Block(name, depth, branches, bn_1, conv_1, bn_2, conv_2, shortcut))
      current = output
  layers.append(Layer('unit_last/bn', 'batch_norm', current, current, depth, branches, output_size=size, counted=False))
  layers.append(Layer('logits/fc', 'linear', current, classes, 'logits', config.ngroups1))
  units = collections.OrderedDict((u.name, u) for layer in layers for u in (layer.input, layer.output))
  return Plan(layers, units, blocks, depths)


# --- hard groups: which units a branch has ------------------------------------------------------------------------


def members(units, groups_of_units, branch, branches):
  """The units that one branch holds, ordered by their finest group: int array.

  Args:
    units: a Units.
    groups_of_units: int array [units.size], each unit's hard group in [0, units.groups).
    branch, branches: which branch, of how many at the depth of the layer that asks.
  """
  if units.groups >= branches:
    chosen = utils.parents(units.groups, branches)[groups_of_units] == branch
  else:  # the child reads all of its parent's units
    chosen = groups_of_units == utils.parents(branches, units.groups)[branch]
  order = utils.group_order(groups_of_units)
  return order[chosen[order]]


def hard_groups_of(plan, alphas):
  """The hard groups of all units of a plan.

  Args:
    plan: a Plan.
    alphas: dict from assignment name to array [groups, units].

  Returns:
    A dict from the name of each Units to an int array [size].

  Raises:
    utils.UserError: where a group is empty.
  """
  groups = {}
  for name, units in plan.units.items():
    if units.groups == 1:
      groups[name] = np.zeros(units.size, np.int64)
    else:
      groups[name] = utils.hard_groups(alphas[name])
  check_groups(plan, groups)
  return groups


def check_groups(plan, groups):
  """Raises utils.UserError where a group has no unit: a branch without channels cannot be built."""
  for name, units in plan.units.items():
    sizes = utils.group_sizes(groups[name], units.groups)
    if sizes.min() == 0:
      reader = next(layer.name for layer in plan.layers if units in (layer.input, layer.output))
      raise utils.UserError(
        'assignment %s (%d units, first at %s) leaves group %d of %d empty (sizes %s): raise --gamma3, which '
        'balances the groups, or ask for fewer groups, and group again'
        % (name, units.size, reader, int(np.argmin(sizes)), units.groups, sizes.tolist())
      )


# --- the network --------------------------------------------------------------------------------------------------


class Network(tf.Module):
  """A wide residual network as a tree of branches; dense or grouping without `groups`, split with them.

  Attributes:
    config: the Config.
    plan: the Plan that it was built from.
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
      config: a Config.
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
    self.plan = wide_resnet(config)
    self.groups = groups
    self.with_assignments = with_assignments
    self.weights = collections.OrderedDict()
    self._initializer_seed = seed
    if groups is not None:
      check_groups(self.plan, groups)
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
    return members(units, self.groups[units.name], branch, self.depths[depth])

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
      result.append(utils.SplitLayer(layer.name, self.weights[layer_weights(layer)], p, q, counted))
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


def layer_weights(layer, prefix=None):
  """The name of a layer's weights in the dense network, or of those whose names begin with `prefix`."""
  return (prefix or layer.name) + {'conv': '/kernel', 'linear': '/weights', 'batch_norm': '/gamma'}[layer.kind]


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
    utils.UserError: where a group is empty.
  """
  values = {name: v.numpy() for name, v in network.weights.items()}
  return split_by(network.config, present_groups(network), values, **keywords)


def present_groups(network):
  """The hard groups that a grouping network's assignments are at now: dict from units name to int array.

  Raises:
    utils.UserError: where a group is empty.
  """
  alphas = {name: network.weights['group/%s/alpha' % name].numpy() for name in network.soft_assignments()}
  return hard_groups_of(network.plan, alphas)


def hardened_counts(network):
  """The counts (list of utils.LayerCount) of the split network that a grouping network would now harden into.

  Raises:
    utils.UserError: where a group is empty.
  """
  return Network(network.config, groups=present_groups(network)).counts


def split_by(config, groups, values, **keywords):
  """Builds the tree of branches for hard groups and fills it with slices of a dense network's weights.

  Args:
    config: a Config.
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


def kept_weights(plan, layer, groups):
  """Which weights of a layer hardening keeps: bool array [in, out].

  Args:
    plan: the Plan; layer: one of its convolutions or its linear layer; groups: hard groups by units name.
  """
  merge = [utils.parents_along(layer.merges(u))[groups[u.name]] for u in (layer.input, layer.output)]
  return merge[0][:, None] == merge[1][None, :]
