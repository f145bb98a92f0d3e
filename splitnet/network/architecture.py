"""What a network consists of: its layers, each with the units that it reads and writes, and their hard groups.

Every layer reads one set of units (channels, features or classes) and writes one. A set of units has an assignment
of its units to groups, and a layer belongs to a depth of the tree with a number of branches. Everything else follows
from these two facts: the regularisers are a sum over layers, hardening slices each kernel by the two assignments,
and counting, drawing and placing walk the same list. No function names a layer.

Sources: Kim et al., SplitNet (ICML 2017); Zagoruyko and Komodakis, Wide Residual Networks (2016); the released code
for names and the meaning of each flag.
"""

import collections
import dataclasses

import numpy as np

import utils
from splitnet.common.errors import UserError


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
        raise UserError('--%s is %s; it must be at least 1' % (name, getattr(self, name)))
    for upper, lower, where in (('ngroups1', 'ngroups2', 'unit_3'), ('ngroups2', 'ngroups3', 'unit_2')):
      if getattr(self, upper) < getattr(self, lower):
        raise UserError(
          '--%s is %d but --%s above it is only %d: a tree cannot have more branches in %s than above it; '
          'give ngroups1 >= ngroups2 >= ngroups3' % (lower, getattr(self, lower), upper, getattr(self, upper), where)
        )
    if self.ngroups1 > self.num_classes:
      raise UserError('--ngroups1 is %d but there are only %d classes' % (self.ngroups1, self.num_classes))
    for name, stage, channels in (('ngroups3', 'unit_1', 16), ('ngroups2', 'unit_2', 32), ('ngroups1', 'unit_3', 64)):
      if getattr(self, name) > channels * self.k:
        raise UserError(
          '--%s is %d but %s has only %d channels to divide' % (name, getattr(self, name), stage, channels * self.k)
        )
    if self.branch_input not in ('group', 'all'):
      raise UserError("--branch_input is '%s'; it must be group or all" % self.branch_input)

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


def layer_weights(layer, prefix=None):
  """The name of a layer's weights in the dense network, or of those whose names begin with `prefix`."""
  return (prefix or layer.name) + {'conv': '/kernel', 'linear': '/weights', 'batch_norm': '/gamma'}[layer.kind]


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
    UserError: where a group is empty.
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
  """Raises UserError where a group has no unit: a branch without channels cannot be built."""
  for name, units in plan.units.items():
    sizes = utils.group_sizes(groups[name], units.groups)
    if sizes.min() == 0:
      reader = next(layer.name for layer in plan.layers if units in (layer.input, layer.output))
      raise UserError(
        'assignment %s (%d units, first at %s) leaves group %d of %d empty (sizes %s): raise --gamma3, which '
        'balances the groups, or ask for fewer groups, and group again'
        % (name, units.size, reader, int(np.argmin(sizes)), units.groups, sizes.tolist())
      )


def kept_weights(plan, layer, groups):
  """Which weights of a layer hardening keeps: bool array [in, out].

  Args:
    plan: the Plan; layer: one of its convolutions or its linear layer; groups: hard groups by units name.
  """
  merge = [utils.parents_along(layer.merges(u))[groups[u.name]] for u in (layer.input, layer.output)]
  return merge[0][:, None] == merge[1][None, :]


# What hardening drops: the share of the squared weights of all layers that it cuts, the largest such share of the
# weights of one output unit, the name of that unit's layer, and its number there.
Dropped = collections.namedtuple('Dropped', 'share largest layer unit')


def dropped_weights(plan, groups, values):
  """How much of a grouping network's weights hardening drops: near nothing once grouping has converged.

  One unit can matter: the batch normalisation behind it scales it up where its own group's weights are small.

  Args:
    plan: the Plan; groups: hard groups by units name.
    values: dict from the dense network's variable names to arrays.

  Returns:
    A Dropped.
  """
  dropped, total, largest = 0.0, 0.0, (0.0, '', 0)
  for layer in plan.layers:
    if layer.kind == 'batch_norm' or layer.cut == 1:
      continue
    weights = np.asarray(values[layer_weights(layer)], np.float64)
    squares = np.square(weights).reshape(-1, *weights.shape[-2:]).sum(0)  # [in, out]
    outside = np.where(kept_weights(plan, layer, groups), 0.0, squares).sum(0)
    shares = outside / np.maximum(squares.sum(0), np.finfo(np.float64).tiny)
    dropped, total = dropped + outside.sum(), total + squares.sum()
    largest = max(largest, (float(shares.max()), layer.name, int(shares.argmax())))
  return Dropped(float(dropped / max(total, np.finfo(np.float64).tiny)), *largest)


def describe_dropped(dropped):
  """A Dropped in words; percentages have two digits and no exponent, which %g would give to 100."""
  share, largest = (
    np.format_float_positional(100 * value, precision=2, unique=False, fractional=False, trim='-')
    for value in (dropped.share, dropped.largest)
  )
  return "%s %% of the squared weights of split layers; of one unit's at most %s %% (%s, output %d)" % (
    share,
    largest,
    dropped.layer,
    dropped.unit,
  )
