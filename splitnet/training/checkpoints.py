"""Checkpoints that describe themselves: each folder has its configuration.

  DIR/config.json        mode, network (its settings and its graph), hard groups of a split network, data, settings
  DIR/ckpt-STEP.*        the last checkpoints, weights and optimiser
  DIR/lock               held by the process that trains there
  DIR/best/              the one that was best on the validation images, with a config.json of its own

A folder stands for its last checkpoint, 'DIR/best' for the best one, 'DIR/ckpt-STEP' for that one. Checkpoints without
a graph, of earlier versions and of the authors' released code (which have no config.json), are read by a function
`older` that the program passes in, such as resnet_split.read_older: from (the stored settings of the network or None,
values by variable name, path) to (its settings, its Graph).
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import re

import numpy as np
import tensorflow as tf

from splitnet.common.errors import UserError
from splitnet.common.files import write_json
from splitnet.network import hardening
from splitnet.network import network as networks
from splitnet.network.graph import Graph, check_groups, hard_groups_of

CONFIG = 'config.json'
LOCK = 'lock'  # held by the process that trains

ADDED = ['validated']  # to a run's state: what checkpoints of the first version do not hold

# What a checkpoint is: its mode ('baseline', 'group', 'split' or 'released'), the settings of its network (a dict), the
# Graph, its hard groups by units name (or None), its values by variable name, its whole configuration, and the path of
# the checkpoint itself.
Stored = collections.namedtuple('Stored', 'mode network graph groups values configuration path')


def first_line(error):
  """Returns the first line of an error's text, which may have many in TensorFlow."""
  return str(error).split('\n')[0]


def _unwritable(folder, error):
  """Returns the UserError for an OSError in a run's folder."""
  return UserError(f"cannot write to the folder '{folder}' ({error.strerror}): give another --train_dir")


@contextlib.contextmanager
def locked(folder):
  """Makes a run's folder and keeps it for this process as long as the context lasts.

  Raises UserError if another process has it, or it cannot be written.
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
      raise UserError(f"another process trains in '{folder}': wait for it, or give another --train_dir") from e
    except OSError:
      pass  # a file system without locks
    yield


def describe(mode, network_settings, network, data, settings):
  """Returns the configuration to store beside a network's checkpoints, for JSON.

  `network_settings` say what the network was asked to be, `data` which data it was trained on; `settings` are the
  flags.
  """
  groups = network.groups and {name: [int(g) for g in groups] for name, groups in network.groups.items()}
  return {
    'mode': mode,
    'network': network_settings,
    'graph': network.graph.to_dict(),
    'groups': groups,
    'data': data,
    'settings': settings,
  }


def read_configuration(folder, older):
  """Reads the configuration stored in a folder: a dict, or None if there is none.

  Raises UserError if it is damaged.
  """
  path = os.path.join(folder, CONFIG)
  if not os.path.exists(path):
    return None
  try:
    with open(path) as f:
      configuration = json.load(f)
    if 'graph' not in configuration:
      network, graph = older(configuration['network'], {}, path)
      configuration.update(network=network, graph=graph.to_dict())
    graph, groups = Graph.from_dict(configuration['graph']), hard_groups(configuration)
    if groups is not None:
      check_groups(graph, groups)
    configuration['mode'], configuration['settings'], configuration['data']
    return configuration
  except (ValueError, KeyError, TypeError, AttributeError, UserError) as e:
    raise UserError(f"'{path}' is damaged ({e}): restore it or use another folder") from e


def hard_groups(configuration):
  """Returns the hard groups in a stored configuration, or None.

  They are a dict from units name to int array.
  """
  groups = configuration['groups']
  return groups and {name: np.array(g, np.int64) for name, g in groups.items()}


def latest(folder):
  """Returns the prefix of the last whole checkpoint in a folder, or None."""
  state = tf.train.get_checkpoint_state(folder)
  paths = list(state.all_model_checkpoint_paths) if state else []
  return next((path for path in reversed(paths) if os.path.exists(path + '.index')), None)


def find(path):
  """Returns the checkpoint prefix that a user's path stands for.

  The path is a folder, a prefix, or a checkpoint's .index file. Raises UserError if there is no checkpoint.
  """
  if os.path.isdir(path):
    prefix = latest(path)
    if prefix is None:
      raise UserError(f"there is no checkpoint in the folder '{path}': name a folder that train.py wrote")
    return prefix
  prefix = re.sub(r'\.(index|data-\d+-of-\d+)$', '', path)
  if not os.path.exists(prefix + '.index'):
    raise UserError(f"there is no checkpoint '{path}': name a folder that train.py wrote, or DIR/ckpt-STEP")
  return prefix


def exists(path):
  """Returns whether there is a checkpoint that a user's path stands for."""
  try:
    return bool(find(path))
  except UserError:
    return False


def digest(path):
  """Identifies what a checkpoint holds, wherever it lies: 16 hexadecimal digits.

  They are a checksum of its index, which has a checksum of every variable. Raises UserError if there is no checkpoint.
  """
  with open(find(path) + '.index', 'rb') as f:
    return hashlib.sha256(f.read()).hexdigest()[:16]


def read(path, older):
  """Reads a checkpoint of train.py or of the released code: a Stored.

  The path is what `find` takes. Raises UserError if there is none, or it cannot be read.
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
    raise UserError(f"the checkpoint '{prefix}' cannot be read ({first_line(e)})") from e
  if released:
    return Stored('released', *older(None, values, prefix), None, values, None, prefix)
  configuration = read_configuration(os.path.dirname(prefix), older)
  if configuration is None:
    raise UserError(f"'{prefix}' has no {CONFIG} beside it, so what network it holds is not known")
  graph, groups = Graph.from_dict(configuration['graph']), hard_groups(configuration)
  return Stored(configuration['mode'], configuration['network'], graph, groups, values, configuration, prefix)


def assign(variables, values, source):
  """Sets variables by name from arrays; what is not asked for is left alone.

  Raises UserError, which names the source, if a variable is missing or has another shape; nothing has been assigned
  then.
  """
  for name, variable in variables.items():
    if name not in values:
      raise UserError(f"{source} has no variable '{name}'")
    if tuple(values[name].shape) != tuple(variable.shape):
      raise UserError(
        f"variable '{name}' of {source} has shape {tuple(values[name].shape)}, but the network's has "
        f'{tuple(variable.shape)}'
      )
  for name, variable in variables.items():
    variable.assign(values[name])


def load_network(stored, harden=False, **keywords):
  """Builds the network that a checkpoint holds, split by its hard groups if any.

  Raises UserError if there is nothing to harden, a group is empty, or the checkpoint holds another network's variables.

  Args:
    stored: a Stored.
    harden: whether to split a grouping network by its present assignments first.
    **keywords: of network.create (dtype, place).
  """
  if harden and (stored.groups is not None or not has_assignments(stored)):
    raise UserError(f"--harden: '{stored.path}' is a {stored.mode} checkpoint; only a grouping one can be hardened")
  network = networks.create(stored.graph, stored.groups, harden, **({} if harden else keywords))
  assign(network.weights, stored.values, f"the checkpoint '{stored.path}'")
  return hardening.harden(network, **keywords) if harden else network


def has_assignments(stored):
  """Returns whether a checkpoint holds assignments that were learned or are to be."""
  return any(name.startswith('group/') for name in stored.values)


def unit_groups(stored):
  """Returns the hard groups of a checkpoint's units, stored or present ones.

  They are a dict from units name to int array, None for a dense network; those of a grouping checkpoint may be empty.
  """
  if stored.groups is not None or not has_assignments(stored):
    return stored.groups
  return hard_groups_of(stored.graph, stored.values)


def check_classes(stored, names, data_dir):
  """Raises UserError if a checkpoint's network has not as many classes as the data."""
  classes = stored.graph.classes.size
  if classes != len(names.fine):
    raise UserError(f"'{stored.path}' has {classes} classes, but the data in '{data_dir}' has {len(names.fine)}")


def class_groups(stored):
  """Returns the hard group of each class in a checkpoint, None for a dense network."""
  groups = unit_groups(stored)
  return groups and groups[stored.graph.classes.name]


class Saver:
  """Writes and restores a training run's checkpoints in its folder."""

  def __init__(self, folder, configuration, max_to_keep, writes=True, **state):
    """Opens a folder, which is made if missing.

    Args:
      configuration: dict from `describe`.
      max_to_keep: how many of the last checkpoints to keep.
      writes: False if another process writes, with which this one shares the folder.
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
    """Restores the last checkpoint, if there is one, and returns its path or None."""
    path = latest(self._folder)
    if path:
      try:
        names = tf.train.load_checkpoint(path).get_variable_to_shape_map()
        missing = [name for name in ADDED if not any(key.startswith(f'{name}/') for key in names)]
        checkpoint = self._last.checkpoint
        if missing:
          checkpoint = tf.train.Checkpoint(**{n: value for n, value in self._state.items() if n not in missing})
        checkpoint.restore(path).assert_consumed()
      except Exception as e:
        raise UserError(
          f"the checkpoint '{path}' cannot be restored ({first_line(e)}): remove it, to go on from the one before, or "
          'give another --train_dir'
        ) from e
    return path

  def save(self, step):
    """Writes a checkpoint of this step and returns its path."""
    return self._last.save(checkpoint_number=step) if self._writes else None

  def save_best(self, step):
    """Writes the checkpoint that is best so far; the one before goes once it is whole."""
    return self._best.save(checkpoint_number=step) if self._writes else None

  @property
  def last(self):
    """The path of the last checkpoint, or None."""
    return latest(self._folder)
