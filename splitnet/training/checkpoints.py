"""Checkpoints that describe themselves: a folder holds the configuration that made it, and its checkpoints.

  DIR/config.json        mode, network, hard groups of a split network, data, settings
  DIR/ckpt-STEP.*        the last checkpoints, weights and optimiser
  DIR/lock               held by the process that trains there
  DIR/best/              the one that was best on the validation images, with a config.json of its own

A folder stands for its last checkpoint, 'DIR/best' for the best one, 'DIR/ckpt-STEP' for that one. Checkpoints of
the authors' released code (which have no config.json) are read too; the shapes of their variables say what network
they hold.
"""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re

import numpy as np
import tensorflow as tf

import resnet_split
import utils
from splitnet.common.errors import UserError
from splitnet.common.files import write_json
from splitnet.network import architecture

CONFIG = 'config.json'
LOCK = 'lock'  # held by the process that trains

YOUNGER = ['validated']  # of a run's state: what its first checkpoints did not hold

# What a checkpoint is: its mode ('baseline', 'group', 'split' or 'released'), its architecture.Config, its hard groups
# by units name (or None), its values by variable name, its whole configuration, and the path of the checkpoint itself.
Stored = collections.namedtuple('Stored', 'mode config groups values configuration path')


def _unwritable(folder, error):
  """The UserError for an OSError in a run's folder."""
  return UserError("cannot write to the folder '%s' (%s): give another --train_dir" % (folder, error.strerror))


@contextlib.contextmanager
def locked(folder):
  """Makes a run's folder and keeps it for this process, as long as the context lasts.

  Raises:
    UserError: where another process has it, or it cannot be written.
  """
  try:
    os.makedirs(folder, exist_ok=True)
    lock = open(os.path.join(folder, LOCK), 'w')
  except OSError as e:
    raise _unwritable(folder, e) from e
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise UserError("another process trains in '%s': wait for it, or give another --train_dir" % folder) from e
    except OSError:
      pass  # a file system without locks
    yield


def describe(mode, network, data, settings):
  """The configuration to store beside a network's checkpoints: a dict that JSON can hold.

  Args:
    mode: 'baseline', 'group' or 'split'.
    network: a resnet_split.Network.
    data: dict that says which data the network was trained on.
    settings: dict of flags.
  """
  groups = network.groups and {name: [int(g) for g in groups] for name, groups in network.groups.items()}
  return {
    'mode': mode,
    'network': dataclasses.asdict(network.config),
    'groups': groups,
    'data': data,
    'settings': settings,
  }


def read_configuration(folder):
  """The configuration stored in a folder: a dict, or None where there is none.

  Raises:
    UserError: where it is damaged.
  """
  path = os.path.join(folder, CONFIG)
  if not os.path.exists(path):
    return None
  try:
    with open(path) as f:
      configuration = json.load(f)
    config, groups = network_config(configuration), hard_groups(configuration)
    if groups is not None:
      architecture.check_groups(architecture.wide_resnet(config), groups)
    configuration['mode'], configuration['settings'], configuration['data']
    return configuration
  except (ValueError, KeyError, TypeError, AttributeError, UserError) as e:
    raise UserError("'%s' is damaged (%s): restore it or use another folder" % (path, e)) from e


def network_config(configuration):
  """The architecture.Config in a stored configuration."""
  return architecture.Config(**configuration['network'])


def hard_groups(configuration):
  """The hard groups in a stored configuration: dict from units name to int array, or None."""
  groups = configuration['groups']
  return groups and {name: np.array(g, np.int64) for name, g in groups.items()}


def latest(folder):
  """The prefix of the last checkpoint in a folder whose files are there; None where there is none."""
  state = tf.train.get_checkpoint_state(folder)
  paths = list(state.all_model_checkpoint_paths) if state else []
  return next((path for path in reversed(paths) if os.path.exists(path + '.index')), None)


def find(path):
  """The checkpoint prefix that a user's path stands for: a folder, a prefix, or a checkpoint's .index file.

  Raises:
    UserError: where there is no checkpoint.
  """
  if os.path.isdir(path):
    prefix = latest(path)
    if prefix is None:
      raise UserError("there is no checkpoint in the folder '%s': name a folder that train.py wrote" % path)
    return prefix
  prefix = re.sub(r'\.(index|data-\d+-of-\d+)$', '', path)
  if not os.path.exists(prefix + '.index'):
    raise UserError("there is no checkpoint '%s': name a folder that train.py wrote, or DIR/ckpt-STEP" % path)
  return prefix


def exists(path):
  """Whether there is a checkpoint that a user's path stands for."""
  try:
    return bool(find(path))
  except UserError:
    return False


def digest(path):
  """What a checkpoint holds, wherever it lies: 16 hexadecimal digits (its index has a checksum of every variable).

  Args:
    path: what `find` takes.

  Raises:
    UserError: where there is no checkpoint.
  """
  with open(find(path) + '.index', 'rb') as f:
    return hashlib.sha256(f.read()).hexdigest()[:16]


def read(path):
  """Reads a checkpoint of train.py or of the released code.

  Args:
    path: what `find` takes.

  Returns:
    A Stored.

  Raises:
    UserError: where there is none, or it cannot be read.
  """
  prefix = find(path)
  try:
    reader = tf.train.load_checkpoint(prefix)
    shapes = reader.get_variable_to_shape_map()
    ours = re.compile(r'weights/(.*)/\.ATTRIBUTES/VARIABLE_VALUE$')
    names = {ours.match(key).group(1).replace('.S', '/'): key for key in shapes if ours.match(key)}
    released = not names
    if released:
      names = {key: key for key in shapes if not key.endswith('/Momentum') and key != 'global_step'}
    values = {name: reader.get_tensor(key) for name, key in names.items()}
  except Exception as e:  # tf.errors and ValueErrors, each in its own words
    raise UserError("the checkpoint '%s' cannot be read (%s)" % (prefix, str(e).split('\n')[0])) from e
  if released:
    return Stored('released', config_from_shapes(values, prefix), None, values, None, prefix)
  configuration = read_configuration(os.path.dirname(prefix))
  if configuration is None:
    raise UserError("'%s' has no %s beside it, so what network it holds is not known" % (prefix, CONFIG))
  return Stored(
    configuration['mode'], network_config(configuration), hard_groups(configuration), values, configuration, prefix
  )


def config_from_shapes(values, path):
  """The Config of a released grouping network, read off the shapes of its variables.

  Args:
    values: dict from the released variable names to arrays.
    path: for the error's text.

  Raises:
    UserError: where it is not such a network.
  """

  def groups(*names):
    return next((len(values['group/%s/alpha' % n]) for n in names if 'group/%s/alpha' % n in values), 1)

  try:
    return architecture.Config(
      k=values['unit_1_0/conv_1/kernel'].shape[-1] // 16,
      num_residual_units=1 + max(int(m.group(1)) for m in (re.match(r'unit_1_(\d+)/', n) for n in values) if m),
      num_classes=values['logits/fc/biases'].shape[0],
      ngroups1=groups('split_q1'),
      ngroups2=groups('split_p2', 'split_r21'),
      ngroups3=groups('split_p3', 'split_r31'),
    )
  except KeyError as e:
    raise UserError("'%s' is no SplitNet checkpoint: it has no variable %s" % (path, e)) from e


def assign(variables, values, source):
  """Sets variables by name from arrays.

  Args:
    variables: dict from name to tf.Variable.
    values: dict from name to array; what is not asked for is left alone.
    source: where the values come from, for the error's text.

  Raises:
    UserError: where a variable is missing or has another shape; nothing has been assigned then.
  """
  for name, variable in variables.items():
    if name not in values:
      raise UserError("%s has no variable '%s'" % (source, name))
    if tuple(values[name].shape) != tuple(variable.shape):
      raise UserError(
        "variable '%s' of %s has shape %s, but the network's has %s"
        % (name, source, tuple(values[name].shape), tuple(variable.shape))
      )
  for name, variable in variables.items():
    variable.assign(values[name])


def load_network(stored, harden=False, **keywords):
  """Builds the network that a checkpoint holds, for evaluation: with its hard groups if it has any.

  Args:
    stored: a Stored.
    harden: whether to split a grouping network by its present assignments first.
    **keywords: of the network (dtype, devices).

  Raises:
    UserError: if there is nothing to harden, a group is empty, or the checkpoint holds another network's variables.
  """
  if not harden:
    network = resnet_split.Network(stored.config, groups=stored.groups, **keywords)
    assign(network.weights, stored.values, f"the checkpoint '{stored.path}'")
    return network
  groups = unit_groups(stored)
  if groups is None or stored.groups is not None:
    raise UserError(f"--harden: '{stored.path}' is a {stored.mode} checkpoint; only a grouping one can be hardened")
  architecture.check_groups(architecture.wide_resnet(stored.config), groups)
  return resnet_split.split_by(stored.config, groups, stored.values, **keywords)


def unit_groups(stored):
  """Returns the hard groups of a checkpoint's units, stored or present ones, by units name; None for a dense network.

  A group of a grouping checkpoint may be empty.
  """
  if stored.groups is not None or not any(name.startswith('group/') for name in stored.values):
    return stored.groups
  units = architecture.wide_resnet(stored.config).units.values()
  alphas = {u.name: stored.values[f'group/{u.name}/alpha'] if u.groups > 1 else np.zeros([1, u.size]) for u in units}
  return {name: utils.hard_groups(alpha) for name, alpha in alphas.items()}


def class_groups(stored):
  """Returns the hard group of each class in a checkpoint (int array [classes]), or None for a dense network."""
  groups = unit_groups(stored)
  return groups and groups['split_q1']


class Saver:
  """Writes and restores a training run's checkpoints in its folder; see the module's docstring for the layout."""

  def __init__(self, folder, configuration, max_to_keep, writes=True, **state):
    """Opens a folder.

    Args:
      folder: made if missing.
      configuration: dict from `describe`.
      max_to_keep: how many of the last checkpoints to keep.
      writes: False where another process writes, with which this one shares the folder.
      **state: what a checkpoint holds: dicts of variables and variables.
    """
    self._folder, self._writes = folder, writes
    self._best_folder = os.path.join(folder, 'best')
    try:
      for path in (folder, self._best_folder) if writes else ():
        os.makedirs(path, exist_ok=True)
        write_json(os.path.join(path, CONFIG), configuration)
    except OSError as e:
      raise _unwritable(folder, e) from e
    self._state = state
    checkpoint = tf.train.Checkpoint(**state)
    self._last = tf.train.CheckpointManager(checkpoint, folder, max_to_keep)
    # Evaluating needs no optimiser, so the best one is a third smaller without it.
    self._best = tf.train.CheckpointManager(
      tf.train.Checkpoint(weights=state['weights'], step=state['step']), self._best_folder, 1
    )

  def restore(self):
    """Restores the last checkpoint, if there is one; returns its path or None."""
    path = latest(self._folder)
    if path:
      try:
        names = tf.train.load_checkpoint(path).get_variable_to_shape_map()
        older = [name for name in YOUNGER if not any(key.startswith(name + '/') for key in names)]
        checkpoint = self._last.checkpoint
        if older:
          checkpoint = tf.train.Checkpoint(**{name: value for name, value in self._state.items() if name not in older})
        checkpoint.restore(path).assert_consumed()
      except Exception as e:
        raise UserError(
          "the checkpoint '%s' cannot be restored (%s): remove it, to go on from the one before, or give another "
          '--train_dir' % (path, str(e).split('\n')[0])
        ) from e
    return path

  def save(self, step):
    """Writes a checkpoint of this step; returns its path."""
    return self._last.save(checkpoint_number=step) if self._writes else None

  def save_best(self, step):
    """Writes the checkpoint that is best so far; the one before is removed after it is whole."""
    return self._best.save(checkpoint_number=step) if self._writes else None

  @property
  def last(self):
    """Path of the last checkpoint, or None."""
    return latest(self._folder)
