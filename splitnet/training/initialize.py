"""Makes what a new run starts from: base weights, groups and teacher."""

import dataclasses
import functools

import tensorflow as tf

from splitnet.common.errors import UserError
from splitnet.network import grouping, hardening, settings
from splitnet.network import network as networks
from splitnet.parallel import placement
from splitnet.training import checkpoints


@dataclasses.dataclass(frozen=True)
class Start:
  """Says what a run is asked to start from, named as train.py's flags."""

  mode: str  # 'baseline', 'group' or 'split'
  network: dict = dataclasses.field(default_factory=dict)  # what was asked for of the network, by flag
  basemodel: str | None = None  # folder or checkpoint whose weights the network gets; see `read_basemodel`
  assignment_start: str = 'noise'  # 'noise' or 'spectral', where the assignments of `group` start
  grouping: str = 'learned'  # of `split`: harden the basemodel; or semantic, clustering, random, a file
  grouping_start: str = 'scratch'  # of a grouping that is not learned; 'basemodel': the weights of a baseline
  teacher: str | None = None  # folder or checkpoint to distil from
  precision: str = 'float32'  # in which the convolutions compute
  seed: int = 0  # of initial values and groupings

  def __post_init__(self):
    if self.grouping_start == 'basemodel' and self.grouping == 'learned':
      raise UserError(
        '--grouping_start basemodel is for a grouping that is not learned; learned groups start there anyway'
      )
    if self.grouping not in ('learned', 'clustering') and self.basemodel and self.grouping_start == 'scratch':
      raise UserError(
        f"--grouping '{self.grouping}' trains from scratch, so it takes no --basemodel (here '{self.basemodel}'; with "
        "split.sh give --basemodel ''); to start from the weights of a baseline add --grouping_start basemodel"
      )

  @property
  def trained(self):
    """Tells whether the weights are a basemodel's; clustering may only read it."""
    return bool(self.basemodel) and (self.grouping == 'learned' or self.grouping_start == 'basemodel')

  @property
  def dtype(self):
    """Returns the type in which the convolutions compute."""
    return tf.dtypes.as_dtype(self.precision)


def read_basemodel(start, older):
  """Reads the basemodel that a run starts from: a checkpoints.Stored, or None.

  Raises UserError if one is needed and none is given, or it is not of a kind that this stage can start from.
  """
  if not start.basemodel:
    needs = [
      ('--mode split', 'grouping', start.mode == 'split' and start.grouping == 'learned'),
      ('--grouping_start basemodel', 'baseline', start.grouping_start == 'basemodel'),
      ('--grouping clustering', 'baseline', start.grouping == 'clustering'),
      ('--assignment_start spectral', 'baseline', start.assignment_start == 'spectral'),
    ]
    for flag, kind, needed in needs:
      if needed:
        raise UserError(f'{flag} needs --basemodel, the folder or checkpoint of a {kind} run')
    return None
  stored = checkpoints.read(start.basemodel, older)
  allowed = {
    'baseline': ['baseline'],
    'group': ['baseline', 'group', 'released'] if start.assignment_start == 'noise' else ['baseline'],
    'split': ['group', 'released', 'split'] if start.grouping == 'learned' else ['baseline'],
  }[start.mode]
  if stored.mode not in allowed:
    raise UserError(
      f"--basemodel '{start.basemodel}' is a {stored.mode} checkpoint; here --mode {start.mode} starts from: "
      + ', '.join(allowed)
    )
  return stored


def choose_network(start, networks, base=None, before=None, train_dir=''):
  """Returns the Settings of the network.

  What the run to resume says (`before`, its stored configuration) comes first, then the basemodel (a
  checkpoints.Stored), what is asked for, and the defaults. Raises UserError if what is asked for contradicts the run or
  the basemodel. `networks` is a dict from name to subclass of Settings.
  """
  if before:
    fixed, source, way_out = before['network'], f"the run in '{train_dir}'", 'give another --train_dir'
  elif base:
    source, way_out = f"the basemodel '{start.basemodel}'", 'start from another checkpoint'
    # Neither a baseline nor a released checkpoint knows everything about the split.
    unknown = {'baseline': ('branch_input', 'ngroups', 'split_at'), 'released': ('branch_input',)}.get(base.mode, ())
    fixed = {name: value for name, value in base.network.items() if not name.startswith(unknown)}
  else:
    fixed, source, way_out = {}, '', ''
  return settings.resolve(networks, start.network, fixed, source, way_out)


def build_network(start, graph, base=None, names=None, devices=None, before=None):
  """Builds the network of a stage, with the basemodel's weights and its groups.

  Raises UserError if there is nothing to group, a group is empty, or the basemodel holds other variables than its
  configuration says. `base` is the basemodel (a checkpoints.Stored) or None, `names` the data's ClassNames, `devices`
  those for the branches or None, `before` the stored configuration of the run to resume, whose weights come from its
  own checkpoint, or None.
  """
  if start.mode == 'group' and graph.classes.groups == 1:
    raise UserError('--ngroups1 is 1, so there is nothing to group: give at least 2, or train with --mode baseline')
  keywords = dict(dtype=start.dtype, place=placement.placer(devices))
  build = functools.partial(networks.create, graph, with_assignments=start.mode == 'group', **keywords)
  if before:
    return build(groups=checkpoints.hard_groups(before))
  if start.mode == 'split' and start.grouping == 'learned':
    return checkpoints.load_network(base._replace(graph=graph), harden=base.groups is None, **keywords)
  if start.mode == 'split':
    classes = group_classes(start, graph, base, names)
    if start.grouping_start == 'basemodel':
      groups = grouping.carried_down(graph, base.values, classes)
      return build(groups=groups, values=hardening.split_values(graph, groups, base.values))
    return build(groups=grouping.even_features(graph, classes), seed=start.seed)
  network = build(seed=start.seed)
  if base:
    assigned = checkpoints.has_assignments(base)
    wanted = {n: v for n, v in network.weights.items() if assigned or not n.startswith('group/')}
    checkpoints.assign(wanted, base.values, f"the basemodel '{base.path}'")
  if start.assignment_start == 'spectral':
    for name, alpha in grouping.spectral_start(graph, base.values, start.seed).items():
      network.weights[graph.units[name].alpha].assign_add(alpha)
  return network


def group_classes(start, graph, base, names):
  """Groups the classes as --grouping says, if not learned: int array [classes]."""
  if start.grouping == 'semantic':
    return grouping.semantic(names, graph.classes.groups)
  if start.grouping == 'random':
    return grouping.random(graph.classes.size, graph.classes.groups, start.seed)
  if start.grouping == 'clustering':
    return grouping.clustering(graph, base.values, start.seed)
  return grouping.read_file(start.grouping, names, graph)


def load_teacher(start, graph, older):
  """Loads the network to distil from, or None; UserError if its classes are others."""
  if not start.teacher:
    return None
  stored = checkpoints.read(start.teacher, older)
  theirs, ours = stored.graph.classes.size, graph.classes.size
  if theirs != ours:
    raise UserError(
      f"--teacher '{start.teacher}' has {theirs} classes, but the network has {ours}: give a teacher of the same data"
    )
  theirs, ours = stored.graph.layers[0].reads, graph.layers[0].reads
  if theirs != ours:
    raise UserError(
      f"--teacher '{start.teacher}' reads {theirs} images, but the network {ours} ones: give a teacher whose images "
      'are prepared alike'
    )
  return checkpoints.load_network(stored, dtype=start.dtype)
