"""Writes a training run's checkpoints, and restores the last one."""

import os
import weakref

import tensorflow as tf

from splitnet.common.errors import UserError, first_line, outside_cause
from splitnet.common.files import write_json
from splitnet.training import checkpoint_files, checkpoints
from splitnet.training.checkpoint_files import CONFIG, latest

ADDED = ['validated']  # to a run's state: what checkpoints of the first version do not hold


class Saver:
  """Writes and restores a training run's checkpoints in its folder."""

  def __init__(self, folder, configuration, max_to_keep, writes=True, **state):
    """Opens a folder, which is made if missing.

    Args:
      configuration: dict from checkpoints.describe.
      max_to_keep: how many of the last checkpoints to keep.
      writes: False if another process writes, with which this one shares the folder.
      **state: what a checkpoint holds: dicts of variables and variables.
    """
    self._folder, self._writes, self._max_to_keep = folder, writes, max_to_keep
    self._configuration, self._state = configuration, state
    if writes:
      self._describe(folder)
      self._describe(os.path.join(folder, 'best'))
      # Held open, or a file system might give its number to another folder.
      self._opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
      weakref.finalize(self, os.close, self._opened)
    self._last = tf.train.Checkpoint(**state)
    # Evaluating needs no optimiser, so the best one is a third smaller without it.
    self._best = tf.train.Checkpoint(weights=state['weights'], step=state['step'])
    # Checkpoints of earlier versions hold a counter, which is made when it is asked for.
    self._counters = [checkpoint.save_counter for checkpoint in (self._last, self._best)]

  def _describe(self, folder):
    """Makes a folder and writes the configuration there."""
    try:
      os.makedirs(folder, exist_ok=True)
      write_json(os.path.join(folder, CONFIG), self._configuration)
    except OSError as e:
      raise checkpoints.unwritable(self._folder, e) from e

  def restore(self):
    """Restores the last checkpoint, if there is one, and returns its path or None."""
    path = latest(self._folder)
    if path:
      try:
        with checkpoints.reader_of(path) as (reader, plain):
          names = reader.get_variable_to_shape_map()
          missing = [name for name in ADDED if not any(key.startswith(f'{name}/') for key in names)]
          checkpoint = self._last
          if missing:
            checkpoint = tf.train.Checkpoint(**{n: value for n, value in self._state.items() if n not in missing})
          checkpoint.restore(plain).assert_consumed()
      except Exception as e:
        raise UserError(
          f"the checkpoint '{path}' cannot be restored ({first_line(e)}): remove it, to go on from the one before, or "
          'give another --train_dir'
        ) from e
      if self._writes:  # what a kill kept the last save from
        checkpoint_files.rotate(self._folder, checkpoint_files.saved_steps(self._folder)[-1], self._max_to_keep)
    return path

  def check_folder(self):
    """Raises UserError if the run's folder has been removed, emptied or replaced."""
    try:
      there = not self._writes or (
        os.path.samestat(os.stat(self._folder), os.fstat(self._opened))
        and os.path.exists(os.path.join(self._folder, CONFIG))
      )
    except FileNotFoundError:
      there = False
    if not there:
      raise UserError(
        f"the folder '{self._folder}' has been removed or replaced while this run trained there, and its checkpoints "
        'with it: start again, or restore the folder and give the same command to go on'
      )

  def save(self, step):
    """Writes a checkpoint of this step and returns its path."""
    return self._write(self._last, self._folder, step, self._max_to_keep)

  def save_best(self, step):
    """Writes the checkpoint that is best so far; the one before goes once it is whole."""
    return self._write(self._best, os.path.join(self._folder, 'best'), step, 1)

  def _write(self, checkpoint, folder, step, keep):
    if not self._writes:
      return None
    self.check_folder()
    if not os.path.exists(os.path.join(folder, CONFIG)):
      self._describe(folder)
    try:
      return checkpoint_files.write(checkpoint, folder, step, keep)
    except Exception as e:
      cause = outside_cause(e)
      if cause is None:
        raise
      last = f"'{self.last}'" if self.last else 'none'
      raise UserError(
        f"the checkpoint '{os.path.join(folder, f'ckpt-{step}')}' cannot be written ({cause}); the last whole one is "
        f'{last}, from which the same command goes on'
      ) from e

  @property
  def last(self):
    """Returns the path of the last checkpoint, or None."""
    return latest(self._folder)
