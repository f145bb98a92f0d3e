"""Wide residual networks: settings, graphs, and which one an older checkpoint holds.

Sources: Kim et al., SplitNet (ICML 2017); Zagoruyko and Komodakis, Wide Residual Networks (2016); the released code
for names and the meaning of each flag.
"""

import dataclasses
import re

from splitnet.common.errors import UserError
from splitnet.network.graph import Builder, Graph


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
        raise UserError(f'--{name} is {getattr(self, name)}; it must be at least 1')
    for upper, lower, where in (('ngroups1', 'ngroups2', 'unit_3'), ('ngroups2', 'ngroups3', 'unit_2')):
      if getattr(self, upper) < getattr(self, lower):
        raise UserError(
          f'--{lower} is {getattr(self, lower)} but --{upper} above it is only {getattr(self, upper)}: '
          f'a tree cannot have more branches in {where} than above it; give ngroups1 >= ngroups2 >= ngroups3'
        )
    if self.ngroups1 > self.num_classes:
      raise UserError(f'--ngroups1 is {self.ngroups1} but there are only {self.num_classes} classes')
    for name, stage, channels in (('ngroups3', 'unit_1', 16), ('ngroups2', 'unit_2', 32), ('ngroups1', 'unit_3', 64)):
      if getattr(self, name) > channels * self.k:
        raise UserError(
          f'--{name} is {getattr(self, name)} but {stage} has only {channels * self.k} channels to divide'
        )
    if self.branch_input not in ('group', 'all'):
      raise UserError(f"--branch_input is '{self.branch_input}'; it must be group or all")

  @classmethod
  def of_split(cls, split, **settings):
    """Returns the Config of a split by the paper's name, with further settings.

    The name is 'ngroups3-ngroups2-ngroups1'.
    Raises:
      UserError: if it is no such name, or the settings contradict each other.
    """
    if not re.fullmatch(r'\d{1,9}-\d{1,9}-\d{1,9}', split):
      raise UserError(f"'{split}' is no split: it must be three numbers of groups, such as 2-4-4")
    return cls(**dict(zip(('ngroups3', 'ngroups2', 'ngroups1'), map(int, split.split('-')))), **settings)

  @classmethod
  def of(cls, settings):
    """Returns the Config of a dict of settings.

    Raises:
      UserError: if they are no settings of such a network.
    """
    try:
      return cls(**settings)
    except TypeError as e:
      raise UserError(f'a residual network cannot be made of {settings} ({e})') from e

  @property
  def split(self):
    """The paper's name of the split, 'ngroups3-ngroups2-ngroups1'; dense: '1-1-1'."""
    return f'{self.ngroups3}-{self.ngroups2}-{self.ngroups1}'

  def dense(self):
    """Returns the same network without any split."""
    return dataclasses.replace(self, ngroups1=1, ngroups2=1, ngroups3=1)


def wide_resnet(config: Config, image_size=32) -> Graph:
  """Builds a wide residual network, with pre-activation blocks as the released one.

  Args:
    config: a Config.
    image_size: height and width of the images, pixels.

  Returns:
    A Graph.
  """
  c = config
  depths = {'trunk': 1, 'unit_2': c.ngroups3, 'unit_3': c.ngroups2, 'logits': c.ngroups1}
  b = Builder(f'WRN-{6 * c.num_residual_units + 4}-{c.k}', depths, image_size, c.branch_input)
  streams = [
    b.border('split_p3', 16 * c.k, 'unit_2'),
    b.border('split_p2', 32 * c.k, 'unit_3'),
    b.border('split_p1', 64 * c.k, 'logits'),
  ]
  # With k = 1 unit_1_0 adds its input as it is, so both carry their channels in the same order.
  stem = streams[0] if c.k == 1 else b.shared('stem', 16)
  x = b.conv('init_conv', b.image, stem, 3, counted='none')
  for stage, (depth, stream) in enumerate(zip(('trunk', 'unit_2', 'unit_3'), streams)):
    b.at(depth)
    for unit in range(c.num_residual_units):
      name = f'unit_{stage + 1}_{unit}'
      stride, split = 2 if stage and not unit else 1, depths[depth] > 1

      def activated(x, part, name=name, split=split):
        return b.relu(b.batch_norm(f'{name}/{part}', x, scaled=not c.bn_no_scale), dropout=split)

      a = activated(x, 'bn_1')
      if unit:
        residual = x
      else:  # a stage's first block adds nothing of the stream below (released code)
        residual = b.conv(name + '/shortcut', a, stream, 1, stride) if x.units.size != stream.size else a
      hidden = b.inner(f'split_r{4 - stage}{unit + 1}', stream.size)
      a = activated(b.conv(name + '/conv_1', a, hidden, 3, stride), 'bn_2')
      x = b.add(name + '/sum', residual, b.conv(name + '/conv_2', a, stream, 3))
  x = b.mean(b.relu(b.batch_norm('unit_last/bn', x)))  # its scale is learned in any case
  b.at('logits')
  b.linear('logits/fc', x, b.inner('split_q1', c.num_classes), dropout=c.ngroups1 > 1)
  return b.graph()


def read_older(settings, values, path):
  """Tells which network a checkpoint without a graph holds.

  Args:
    settings: the network's settings beside a checkpoint of this project's earlier versions; None for one of the
      released code.
    values: of the latter: dict from the released variable names to arrays.
    path: for the error's text.

  Returns:
    (the settings as a dict, the Graph).

  Raises:
    UserError: if it is no such network.
  """
  config = Config.of(settings) if settings is not None else config_from_shapes(values, path)
  return dataclasses.asdict(config), wide_resnet(config)


def config_from_shapes(values, path):
  """Reads the Config of a released grouping network off the shapes of its variables.

  Args:
    values: dict from the released variable names to arrays.
    path: for the error's text.

  Raises:
    UserError: if it is not such a network.
  """

  def groups(*names):
    return next((len(values[f'group/{n}/alpha']) for n in names if f'group/{n}/alpha' in values), 1)

  try:
    return Config(
      k=values['unit_1_0/conv_1/kernel'].shape[-1] // 16,
      num_residual_units=1 + max(int(m.group(1)) for m in (re.match(r'unit_1_(\d+)/', n) for n in values) if m),
      num_classes=values['logits/fc/biases'].shape[0],
      ngroups1=groups('split_q1'),
      ngroups2=groups('split_p2', 'split_r21'),
      ngroups3=groups('split_p3', 'split_r31'),
    )
  except KeyError as e:
    raise UserError(f"'{path}' is no SplitNet checkpoint: it has no variable {e}") from e
