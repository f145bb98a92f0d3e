"""What a run starts from: the network that flags and basemodel ask for, the teacher, the run that is gone on with."""

import dataclasses

import tensorflow as tf

import resnet_split
from splitnet.common.errors import UserError
from splitnet.network import architecture, grouping
from splitnet.training import checkpoints

# What may differ when a run is gone on with: it changes what is watched or kept, never the weights at a step.
FREE_ON_RESUME = {
  'data_dir', 'train_dir', 'max_steps', 'display', 'val_interval', 'val_iter', 'checkpoint_interval',
  'group_summary_interval', 'max_to_keep', 'stop_when_converged', 'patience', 'gpu_fraction', 'log_device_placement',
  'jit_compile',  # the exception: another rounding, as on another device, and other dropout masks
  'devices', 'num_logical_devices', 'num_replicas',
}  # fmt: skip
CHECKPOINT_FLAGS = ('basemodel', 'teacher')  # known by their content, so that a run and they may be moved

NETWORK_FLAGS = [field.name for field in dataclasses.fields(architecture.Config)]


def begun(flags):
  """The configuration of the run that is gone on with, which --train_dir holds; None for a new one.

  Raises:
    UserError: where the folder holds a run of another stage, or checkpoints of something else.
  """
  before = checkpoints.read_configuration(flags.train_dir)
  if checkpoints.latest(flags.train_dir) is None:
    return None  # where there is a configuration all the same, the run ended before its first checkpoint
  if before is None:
    raise UserError("'%s' holds checkpoints that train.py did not write: give another --train_dir" % flags.train_dir)
  if before['mode'] != flags.mode:
    raise UserError(
      "the run in '%s' was started with --mode %s, now it is %s: use the same, or another --train_dir"
      % (flags.train_dir, before['mode'], flags.mode)
    )
  return before


def read_network(flags, before):
  """What network it is: by the run that is gone on with, else by the basemodel; and by the flags.

  Args:
    flags: the parsed flags.
    before: from `begun`.

  Returns:
    (the basemodel, a checkpoints.Stored or None; architecture.Config).

  Raises:
    UserError: where there is no basemodel and one is needed, or a flag contradicts what is there.
  """
  if before:
    source = "the run in '%s'" % flags.train_dir
    return None, resolve_network(flags, before['network'], source, 'give another --train_dir')
  if not flags.basemodel:
    need_basemodel(flags)
  base, fixed = read_basemodel(flags)
  return base, resolve_network(flags, fixed, "the basemodel '%s'" % flags.basemodel)


def need_basemodel(flags):
  """Raises UserError where a stage cannot start without the basemodel that is missing."""
  if flags.mode == 'split' and flags.grouping == 'learned':
    raise UserError('--mode split needs --basemodel, the folder or checkpoint of a grouping run')
  if flags.grouping_start == 'basemodel':
    raise UserError('--grouping_start basemodel needs --basemodel, the folder or checkpoint of a baseline run')
  if flags.grouping == 'clustering':
    raise UserError('--grouping clustering needs --basemodel, the folder or checkpoint of a baseline run')
  if flags.assignment_start == 'spectral':
    raise UserError('--assignment_start spectral needs --basemodel, the folder or checkpoint of a baseline run')


def resolve_network(flags, stored, source, other='start from another checkpoint'):
  """The architecture.Config: what a checkpoint says, what the flags say, and the defaults, in that order.

  Args:
    flags: the parsed flags.
    stored: dict of the network flags that the checkpoint fixes.
    source, other: that checkpoint, and the way out, for the error's text.

  Raises:
    UserError: where a flag contradicts the checkpoint.
  """
  chosen = dict(stored)
  for name in NETWORK_FLAGS:
    value = getattr(flags, name)
    if value is None:
      continue
    if name in stored and stored[name] != value:
      raise UserError(
        '--%s is %s, but %s was made with --%s %s: leave the flag out, or %s'
        % (name, value, source, name, stored[name], other)
      )
    chosen[name] = value
  config = architecture.Config(**chosen)
  if flags.mode == 'group' and config.ngroups1 == 1:
    raise UserError('--ngroups1 is 1, so there is nothing to group: give at least 2, or train with --mode baseline')
  return config


def read_basemodel(flags):
  """The basemodel (a checkpoints.Stored, or None) and the network flags that it fixes (dict).

  Raises:
    UserError: where it is not of a kind that this stage can start from.
  """
  if not flags.basemodel:
    return None, {}
  stored = checkpoints.read(flags.basemodel)
  fixed = dataclasses.asdict(stored.config)
  allowed = {
    'baseline': ['baseline'],
    'group': ['baseline', 'group', 'released'] if flags.assignment_start == 'noise' else ['baseline'],
    'split': ['group', 'released', 'split'] if flags.grouping == 'learned' else ['baseline'],
  }[flags.mode]
  if stored.mode not in allowed:
    raise UserError(
      "--basemodel '%s' is a %s checkpoint; here --mode %s starts from: %s"
      % (flags.basemodel, stored.mode, flags.mode, ', '.join(allowed))
    )
  if stored.mode in ('baseline', 'released'):  # neither knows everything about the split
    for name in ['branch_input'] + (['ngroups1', 'ngroups2', 'ngroups3'] if stored.mode == 'baseline' else []):
      del fixed[name]
  return stored, fixed


def build_network(flags, config, base, names, placed=None, before=None):
  """The network of this stage, with the basemodel's weights and the groups that the flags ask for.

  Args:
    flags, config: the flags and the architecture.Config.
    base: the basemodel, a checkpoints.Stored, or None.
    names: a ClassNames.
    placed: the devices for the branches, or None.
    before: from `begun`; the network of such a run gets its weights from its checkpoint.
  """
  keywords = dict(dtype=tf.dtypes.as_dtype(flags.precision), devices=placed)
  if before:
    groups = checkpoints.hard_groups(before)
    return resnet_split.Network(config, groups=groups, with_assignments=flags.mode == 'group', **keywords)
  where = base and "the basemodel '%s'" % base.path
  if flags.mode == 'split' and flags.grouping != 'learned':
    plan = architecture.wide_resnet(config)
    if flags.grouping == 'semantic':
      class_groups = grouping.semantic(names, config.ngroups1)
    elif flags.grouping == 'random':
      class_groups = grouping.random(config.num_classes, config.ngroups1, flags.seed)
    elif flags.grouping == 'clustering':
      class_groups = grouping.clustering(base.values['logits/fc/weights'], plan, flags.seed)
    else:
      class_groups = grouping.read_file(flags.grouping, names, config)
    if flags.grouping_start == 'basemodel':
      return resnet_split.split_by(
        config, grouping.carried_down(plan, base.values, class_groups), base.values, **keywords
      )
    groups = grouping.even_features(plan, class_groups)
    return resnet_split.Network(config, groups=groups, seed=flags.seed, **keywords)
  if flags.mode == 'split':
    if base.groups is not None:
      network = resnet_split.Network(config, groups=base.groups, **keywords)
      checkpoints.assign(network.weights, base.values, where)
      return network
    dense = resnet_split.Network(config, with_assignments=True)
    checkpoints.assign(dense.weights, base.values, where)
    return resnet_split.harden(dense, **keywords)
  network = resnet_split.Network(config, with_assignments=flags.mode == 'group', seed=flags.seed, **keywords)
  if base:
    has_assignments = any(name.startswith('group/') for name in base.values)
    wanted = {n: v for n, v in network.weights.items() if has_assignments or not n.startswith('group/')}
    checkpoints.assign(wanted, base.values, where)
  if flags.assignment_start == 'spectral':
    for name, alpha in grouping.spectral_start(network.plan, base.values, flags.seed).items():
      network.weights['group/%s/alpha' % name].assign_add(alpha)
  return network


def starts_trained(flags):
  """Whether a new run starts from the weights of a basemodel; --grouping clustering may take only its classes."""
  return bool(flags.basemodel) and (flags.grouping == 'learned' or flags.grouping_start == 'basemodel')


def load_teacher(flags, config):
  """The network to distil from, or None.

  Raises:
    UserError: where there is none, or it has other classes.
  """
  if not flags.teacher:
    return None
  stored = checkpoints.read(flags.teacher)
  if stored.config.num_classes != config.num_classes:
    raise UserError(
      "--teacher '%s' has %d classes, but the network has %d: give a teacher of the same data"
      % (flags.teacher, stored.config.num_classes, config.num_classes)
    )
  return checkpoints.load_network(stored, dtype=tf.dtypes.as_dtype(flags.precision))


def note_digests(flags, before):
  """Sets flags.basemodel_digest and flags.teacher_digest.

  Args:
    flags: the parsed flags.
    before: None, or the configuration of the run that is gone on with. It needs its basemodel no more, so one that has
      changed or is not there is as it was.

  Returns:
    A sentence where the basemodel has changed, since whoever made it anew may expect to start from it; else None.
  """
  old, changed = before['settings'] if before else {}, None
  for name in CHECKPOINT_FLAGS:
    path, digest = getattr(flags, name), None
    if before and name == 'basemodel' and (not path or path == old.get(name) or not checkpoints.exists(path)):
      flags.basemodel, digest = old.get(name), old.get(name + '_digest')
      if path and digest and checkpoints.exists(path) and checkpoints.digest(path) != digest:
        changed = (
          "'%s' has changed since this run started from it, which changes nothing here: to start from what it holds "
          'now, give another --train_dir' % path
        )
    elif path:
      digest = checkpoints.digest(path)
    setattr(flags, name + '_digest', digest)
  return changed


def check_resume(configuration, before, train_dir, default):
  """Compares a run with what it is to go on with.

  Args:
    configuration, before: what checkpoints.describe gives now, and what is stored beside the run's checkpoints.
    train_dir: its folder.
    default: function from a flag's name to its default, for flags that are younger than the run.

  Raises:
    UserError: where it was started with other settings than now.
  """
  for section in ('network', 'settings', 'data'):
    old, new = before[section], configuration[section]
    for name in new:
      was = old.get(name, default(name))
      free = name in FREE_ON_RESUME and not (name == 'max_steps' and new.get('lr_schedule') == 'cosine')
      digest = new.get(name + '_digest') if name in CHECKPOINT_FLAGS else None
      moved = digest and digest == old.get(name + '_digest')
      if free or moved or was == new[name]:
        continue
      flag = name.removesuffix('_digest')
      if flag != name:
        raise UserError(
          "the run in '%s' was started with another --%s than '%s' holds now: restore it, or give another --train_dir"
          % (train_dir, flag, new[flag])
        )
      raise UserError(
        "the run in '%s' was started with %s%s %s, now it is %s: use the same, or another --train_dir"
        % (train_dir, 'data ' if section == 'data' else '--', name, was, new[name])
      )
