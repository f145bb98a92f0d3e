"""Reads checkpoints that describe themselves: each folder has its configuration.

  DIR/config.json        mode, network (its settings and its graph), hard groups of a split network, data, settings
  DIR/ckpt-STEP.*        the last checkpoints, weights and optimiser
  DIR/lock               held by the process that trains there
  DIR/best/              the one that was best on the validation images, with a config.json of its own

A folder stands for its last checkpoint, 'DIR/best' for the best one, 'DIR/ckpt-STEP' for that one. Checkpoints without
a graph, of earlier versions and of the authors' released code (which have no config.json), are read by a function
`older` that the program passes in, such as resnet_split.read_older: from (the stored settings of the network or None,
values by variable name, path) to (its settings, its Graph). A Keras model's file, MODEL.keras, stands for a baseline;
`older`, such as keras_split.read_other, then reads (None, None, path) to (settings, Graph, values).
"""

import collections
import contextlib
import functools
import hashlib
import os
import re
import time
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from splitnet.common import files, schema
from splitnet.common.errors import UserError, first_line, outside_cause
from splitnet.common.files import plain_path
from splitnet.data.batches import ClassNames
from splitnet.network import hardening
from splitnet.network import network as networks
from splitnet.network.graph import Graph, check_groups, hard_groups_of
from splitnet.training import checkpoint_files
from splitnet.training.checkpoint_files import CONFIG, latest

LOCK = 'lock'  # held by the process that trains
MODEL_FILE = '.keras'  # ends the name of a Keras model's file

# What a checkpoint is: its mode ('baseline', 'group', 'split' or 'released'), the settings of its network (a dict), the
# Graph, its hard groups by units name (or None), its values by variable name, its whole configuration, and the path of
# the checkpoint itself.
Stored = collections.namedtuple('Stored', 'mode network graph groups values configuration path')


def unwritable(folder, error):
  """Returns the UserError for an error of writing in a folder; a bug stays itself."""
  cause = outside_cause(error)
  return UserError(f"cannot write to the folder '{folder}' ({cause}): give another --train_dir") if cause else error


@contextlib.contextmanager
def locked(folder):
  """Makes a run's folder and keeps it for this process as long as the context lasts.

  What a killed run left half done is finished or removed first. Raises UserError if another process has it, or it
  cannot be written.
  """
  if os.fsencode(folder) != folder.encode(errors='replace'):
    raise UserError(f"the name of the folder '{folder}' is not UTF-8, as TensorFlow needs it: give another --train_dir")
  with contextlib.ExitStack() as stack:
    try:
      taken = f"another process trains in '{folder}': wait for it, or give another --train_dir"
      stack.enter_context(files.locked(folder, taken, LOCK))
      for path in (folder, os.path.join(folder, 'best')):
        checkpoint_files.clean(path)
      files.remove_leftovers(os.path.join(folder, 'pictures'))
    except OSError as e:
      raise unwritable(folder, e) from e
    yield


def describe(mode, network_settings, network, data, settings, command=()):
  """Returns the configuration to store beside a network's checkpoints, for JSON.

  `network_settings` say what the network was asked to be, `data` which data it was trained on; `settings` are the
  flags, and `command` the words that they were given by.
  """
  groups = network.groups and {name: [int(g) for g in groups] for name, groups in network.groups.items()}
  graph = network.graph.to_dict()
  return dict(
    mode=mode, network=network_settings, graph=graph, groups=groups, data=data, settings=settings,
    command=list(map(str, command)),
  )  # fmt: skip


@schema.record
class Settings(schema.TypedDict):
  """Describes the flags of a run that other programs read."""

  seed: schema.NotRequired[int]
  dataset: schema.NotRequired[schema.Text]
  assignment_start: schema.NotRequired[str]
  basemodel: schema.NotRequired[str | None]
  basemodel_digest: schema.NotRequired[str | None]
  teacher: schema.NotRequired[str | None]


@schema.record
class Data(schema.TypedDict):
  """Says which data a network was trained on."""

  source: schema.NotRequired[schema.Text]
  class_names: schema.NotRequired[list[schema.Text]]
  superclass_names: schema.NotRequired[list[schema.Text]]
  superclass_of_class: schema.NotRequired[list[schema.Count]]


@schema.record
class Configuration(schema.TypedDict):
  """Describes config.json; versions before wrote no graph."""

  mode: Literal['baseline', 'group', 'split']
  network: dict[schema.Text, int | float | str | bool]
  graph: schema.NotRequired[dict[str, Any]]
  groups: dict[schema.Text, list[schema.Count]] | None
  settings: Settings
  data: Data


def read_configuration(folder, older):
  """Reads a folder's configuration, a dict or None; UserError if it is damaged."""
  path, advice = os.path.join(folder, CONFIG), 'restore it or use another folder'
  if not os.path.lexists(path):
    return None
  configuration = schema.read_json(path, Configuration, advice)
  try:
    if 'graph' not in configuration:
      network, graph = older(configuration['network'], {}, path)
      configuration.update(network=network, graph=graph.to_dict())
    graph, groups = Graph.from_dict(configuration['graph']), hard_groups(configuration)
    if groups is not None:
      check_groups(graph, groups)
  except (ValueError, UserError) as e:
    raise UserError(f"'{path}' is damaged ({e}): {advice}") from e
  return configuration


def hard_groups(configuration):
  """Returns the hard groups in a stored configuration, by units name, or None."""
  groups = configuration['groups']
  return groups and {name: np.array(g, np.int64) for name, g in groups.items()}


def find(path):
  """Returns the checkpoint prefix that a user's path stands for.

  The path is a folder, a prefix, a checkpoint's .index file, or a Keras model's file. Raises UserError if there is no
  checkpoint.
  """
  if path.endswith(MODEL_FILE) and os.path.isfile(path):
    return path
  if path.endswith(('.h5', '.hdf5')) or os.path.exists(os.path.join(path, 'saved_model.pb')):
    raise UserError(f"'{path}' does not end in {MODEL_FILE}: load it in Keras, and model.save('MODEL{MODEL_FILE}')")
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


def _patient(function):
  """Decorates a reader of checkpoints to try again in the folder of a run.

  One that trains there may just have removed the checkpoint that was found.
  """

  @functools.wraps(function)
  def wrapper(path, *arguments):
    for seconds in (0.05, 0.2, 0.6):
      try:
        return function(path, *arguments)
      except UserError:
        if not any(os.path.exists(os.path.join(path, where, LOCK)) for where in ('', '..')):
          raise
        time.sleep(seconds)
    return function(path, *arguments)

  return wrapper


@_patient
def digest(path):
  """Identifies what a checkpoint holds, wherever it lies: 16 hexadecimal digits.

  They are a checksum of its index, which has a checksum of every variable. Raises UserError if there is no checkpoint.
  """
  prefix = find(path)
  try:
    with open(prefix if prefix.endswith(MODEL_FILE) else prefix + '.index', 'rb') as f:
      return hashlib.sha256(f.read()).hexdigest()[:16]
  except OSError as e:
    raise UserError(f"the checkpoint '{prefix}' cannot be read ({e.strerror})") from e


@contextlib.contextmanager
def reader_of(prefix):
  """Opens a context with TensorFlow's reader of a checkpoint and the prefix for it."""
  folder, name = os.path.split(prefix)
  if re.search(r'[][*?\\]', name):
    raise UserError(f"TensorFlow takes '{name}' for a pattern: rename the files, without [ ] * ? and \\")
  with plain_path(folder) as plain:
    yield tf.train.load_checkpoint(os.path.join(plain, name)), os.path.join(plain, name)


@_patient
def read(path, older):
  """Reads a checkpoint of train.py or of the released code: a Stored.

  The path is what `find` takes. Raises UserError if there is none, or it cannot be read.
  """
  prefix = find(path)
  if prefix.endswith(MODEL_FILE):
    network, graph, values = older(None, None, prefix)
    return Stored('baseline', network, graph, None, values, None, prefix)
  try:
    with reader_of(prefix) as (reader, _):
      shapes = reader.get_variable_to_shape_map()
      ours = re.compile(r'weights/(.*)/\.ATTRIBUTES/VARIABLE_VALUE$')
      names = {ours.match(key).group(1).replace('.S', '/'): key for key in shapes if ours.match(key)}
      released = not names
      if released:
        names = {key: key for key in shapes if not key.endswith('/Momentum') and key != 'global_step'}
      values = {name: reader.get_tensor(key) for name, key in names.items()}
  except UserError:
    raise
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
  trained_on = (stored.configuration or {'data': {}})['data'].get('class_names', names.fine)
  if trained_on != names.fine:
    other = next((old, new) for old, new in zip(trained_on, names.fine) if old != new)
    raise UserError(
      f"'{stored.path}' was trained on other classes than the data in '{data_dir}' has: '{other[0]}' instead of "
      f"'{other[1]}'"
    )


def published_names(stored):
  """Returns the ClassNames that a published checkpoint brings, or None.

  Raises UserError if they are not those of its network.
  """
  data = stored.configuration['data'] if stored.configuration else {}
  if 'superclass_of_class' not in data:
    return None
  classes, superclasses, of = data.get('class_names', []), data.get('superclass_names', []), data['superclass_of_class']
  if not len(classes) == len(of) == stored.graph.classes.size or max(of) >= len(superclasses):
    raise UserError(f"the names of the classes beside '{stored.path}' are damaged: restore its {CONFIG}")
  return ClassNames(classes, superclasses, np.array(of), {'source': data.get('source')})


def class_groups(stored):
  """Returns the hard group of each class in a checkpoint, None for a dense network."""
  groups = unit_groups(stored)
  return groups and groups[stored.graph.classes.name]
