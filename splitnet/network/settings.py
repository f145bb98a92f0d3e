"""Holds what flags say of a network: settings, groups, and who knows which flag.

A network is a subclass of Settings, whose fields are its flags and whose `graph()` is its Graph. A dict from name to
subclass, which the programs hold, is handed to what must find one by its name.
"""

import abc
import dataclasses
import re
from typing import ClassVar

from splitnet.common import schema
from splitnet.common.errors import UserError
from splitnet.network.builder import Builder
from splitnet.network.graph import split_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(abc.ABC):
  """Says what a network looks like, by its flags; stored beside every checkpoint.

  A subclass adds its fields, among them ngroups4 and further ones if it has more than three depths. No depth has more
  groups than that above it.
  """

  network: ClassVar[str]  # name of the network, as --network has it
  split_depths: ClassVar[tuple[str, ...]]  # that may be split, three or more, bottom up; the last has the classes

  num_classes: int = 1000
  ngroups1: int = 2  # groups at the last depth
  ngroups2: int = 2  # at the one below it
  ngroups3: int = 2  # at the one below that
  # A branch reads its own group of its parent's channels (released code), or 'all' (the paper's counts for CIFAR-100).
  branch_input: str = 'group'
  image_size: int = 224  # height and width of the images, pixels

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type in (int, 'int') and value < 1:
        raise UserError(f'--{field.name} is {value}; it must be at least 1')
      if field.type in (float, 'float') and value <= 0:
        raise UserError(f'--{field.name} is {value:g}; it must be above 0')
    counts = self.counts
    for i in range(len(counts) - 1, 0, -1):
      lower, upper = counts[i - 1 : i + 1]
      if lower > upper:
        depth = self.split_depths[i - 1]
        raise UserError(
          f'{self._flag(i - 1)} is {lower} but {self._flag(i)} above it is only {upper}: a tree cannot have more '
          f'branches in {depth} than above it; give groups that do not fall going up'
        )
    if self.ngroups1 > self.num_classes:
      raise UserError(f'--ngroups1 is {self.ngroups1} but there are only {self.num_classes} classes')
    if self.branch_input not in ('group', 'all'):
      raise UserError(f"--branch_input is '{self.branch_input}'; it must be group or all")

  def _flag(self, i):
    number = len(self.split_depths) - i
    return f'--ngroups{number}' if number <= 3 else f'--groups {self.split} at {self.split_depths[i]}'

  @abc.abstractmethod
  def graph(self):
    """Returns the Graph of the network.

    Raises UserError if the images are too small for it, or a depth has fewer units than groups.
    """

  def of_stored(self, graph):
    """Returns the Graph; `graph`, that of the basemodel or the run or None, is only for a model's file."""
    return self.graph()

  @property
  def counts(self):
    """Returns the numbers of groups at `split_depths`: list of ints."""
    return [getattr(self, f'ngroups{i}') for i in range(len(self.split_depths), 0, -1)]

  @property
  def split(self):
    """Returns the paper's name of the split, such as '2-2-2'."""
    return split_name(self.counts)

  @classmethod
  def of_split(cls, split, **settings):
    """Returns the settings of a split by its name, such as '2-4-8', and further ones.

    Raises UserError if the network has no such split, or the settings contradict each other.
    """
    return cls(**group_fields(cls, split), **settings)

  def dense(self):
    """Returns the settings of the same network without any split."""
    return dataclasses.replace(self, **{f'ngroups{i + 1}': 1 for i in range(len(self.counts))})

  def to_dict(self):
    """Returns the settings as a dict that JSON can hold; `from_dict` reads it."""
    return {'network': self.network, **dataclasses.asdict(self)}

  def builder(self, name):
    """Returns a Builder of the graph; below the split depths it has a depth 'trunk'."""
    return Builder(name, {'trunk': 1, **dict(zip(self.split_depths, self.counts))}, self.image_size, self.branch_input)


def group_fields(kind, split):
  """Returns the fields that a split stands for: dict from field name to int.

  `kind` is the subclass of Settings, `split` the groups of its last depths, such as '2-4-8'; the others are not split.
  Raises UserError if it is no split, or names more depths than the network has.
  """
  counts = [int(part) for part in split.split('-')] if re.fullmatch(r'\d{1,9}(-\d{1,9}){2,}', split) else [0]
  if min(counts) < 1:
    raise UserError(
      f"'{split}' is no split: it must be three numbers of groups or more, those of the last depths, such as 2-4-8"
    )
  depths = kind.split_depths
  if len(counts) > len(depths):
    raise UserError(
      f'the split {split} has {len(counts)} depths, but {kind.network} can be split at only {len(depths)}: '
      + ', '.join(depths)
    )
  counts = [1] * (len(depths) - len(counts)) + counts
  return {f'ngroups{i + 1}': count for i, count in enumerate(reversed(counts))}


def find(networks, name):
  """Returns the network of a name, or raises UserError."""
  if name not in networks:
    *others, last = networks
    raise UserError(f"--network is '{name}'; it must be {', '.join(others)} or {last}")
  return networks[name]


def from_dict(networks, content):
  """Returns the Settings that `to_dict` wrote.

  A version before wrote no name: those are of the first of `networks`, a dict from name to subclass of Settings. Raises
  UserError if there is no network of that name, or it has no such settings.
  """
  content = dict(content)
  kind = find(networks, content.pop('network', next(iter(networks))))
  _refuse_others(networks, kind, content)
  try:
    schema.check(content, schema.fields_of(kind))
  except ValueError as e:
    raise UserError(f'{kind.network} cannot be made of these settings ({e})') from e
  return kind(**content)


def resolve(networks, asked, stored=None, source='', way_out=''):
  """Returns the Settings that a checkpoint says, flags ask for, and the defaults.

  Raises UserError if a flag contradicts the checkpoint or another flag, or the network does not have it.

  Args:
    networks: dict from name to subclass of Settings; the first one is the default.
    asked: dict from the names of flags that were given to their values; beside the fields 'network' and 'groups'.
    stored: None, or what the checkpoint fixes, with some of the keys of `to_dict`.
    source, way_out: that checkpoint, and what else can be done, for the error's sentence.
  """
  default = next(iter(networks))
  stored = {'network': default, **stored} if stored else {}

  def check(name, flag, value):
    if stored.get(name, value) != value:
      raise UserError(
        f'{flag} is {value}, but {source} was made with --{name} {stored[name]}: leave the flag out, or {way_out}'
      )

  asked = {'network': stored.get('network', default), **asked}
  kind = find(networks, asked['network'])
  check('network', '--network', asked['network'])
  groups = asked.pop('groups', None)
  _refuse_others(networks, kind, {name: value for name, value in asked.items() if name != 'network'})
  for name, value in asked.items():
    check(name, f'--{name}', value)
  for name, value in (group_fields(kind, groups) if groups else {}).items():
    if asked.get(name, value) != value:
      raise UserError(f'--{name} is {asked[name]}, but --groups {groups} says {value}: give one of the two')
    check(name, f'--{name} (of --groups {groups})', value)
    asked[name] = value
  return from_dict(networks, {**asked, **stored})


def _refuse_others(networks, kind, values):
  own = [field.name for field in dataclasses.fields(kind)]
  for name in values:
    if name not in own:
      owners = [other.network for other in networks.values() if name in other.__dataclass_fields__]
      of = f'--network {" or ".join(owners)}' if owners else 'no network of this version'
      raise UserError(f'--{name} is of {of}; --network {kind.network} has {", ".join(f"--{n}" for n in own)}')
