"""Finds, writes, rotates and cleans up the files of checkpoints.

  ckpt-STEP.data-*-of-*, ckpt-STEP.index   a checkpoint; the index comes last and goes first, so it vouches for the rest
  ckpt-STEP_temp/                          one that is being written
  ckpt-STEP_whole/                         one that is written, whose files are on their way to the folder
  checkpoint                               TensorFlow's list of them, for its own tools; nothing is read from it

TensorFlow takes paths for patterns ([ ] * ? \\) when it looks for a checkpoint and when it removes one. Here folders
are listed, and TensorFlow gets a path without such characters (`plain_path`).
"""

import os
import re
import shutil

from splitnet.common.files import plain_path, remove_leftovers, write_text

CONFIG = 'config.json'
STATE = 'checkpoint'
STEP = r'0|[1-9]\d*'


def _names(folder):
  """Returns the names in a folder; none if there is no such folder."""
  try:
    return os.listdir(folder)
  except (FileNotFoundError, NotADirectoryError):
    return []


def saved_steps(folder):
  """Returns the steps of which a folder holds a checkpoint: list of ints, rising."""
  return sorted(int(m.group(1)) for m in (re.fullmatch(rf'ckpt-({STEP})\.index', n) for n in _names(folder)) if m)


def latest(folder):
  """Returns the prefix of the last checkpoint in a folder, or None.

  Of another program's checkpoints (NAME-STEP) that of the highest step.
  """
  steps = saved_steps(folder)
  if steps:
    return os.path.join(folder, f'ckpt-{steps[-1]}')
  others = [re.fullmatch(r'(.*-(\d+))\.index', name) for name in _names(folder)]
  others = [(int(match.group(2)), match.group(1)) for match in others if match]
  return os.path.join(folder, max(others)[1]) if others else None


def lost_step(folder):
  """Returns the step that a run reached whose checkpoints are lost, else 0.

  It is the highest one that the best checkpoint or a part of another tells of.
  """
  if latest(folder):
    return 0
  parts = (re.fullmatch(rf'ckpt-({STEP})\.data-\d+-of-\d+', name) for name in _names(folder))
  steps = [int(part.group(1)) for part in parts if part] + saved_steps(os.path.join(folder, 'best'))
  return max(steps, default=0)


def write(checkpoint, folder, step, keep):
  """Writes a tf.train.Checkpoint whole or not at all; returns its prefix.

  As many as `keep` stay: this one and those of the steps before it. Raises OSError or tf.errors.OpError if it cannot be
  written; what was there before is there still.
  """
  name = f'ckpt-{step}'
  temporary, complete = (os.path.join(folder, name + end) for end in ('_temp', '_whole'))
  shutil.rmtree(temporary, ignore_errors=True)
  os.mkdir(temporary)
  try:
    with plain_path(temporary) as path:
      checkpoint.write(os.path.join(path, name))
    for part in os.listdir(temporary):
      _sync(os.path.join(temporary, part))
    os.rename(temporary, complete)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  _move(complete, folder)
  _sync(folder)
  rotate(folder, step, keep)
  return os.path.join(folder, name)


def rotate(folder, step, keep):
  """Removes all checkpoints but `keep`, that of a step and those before it."""
  steps = saved_steps(folder)
  last = steps.index(step) + 1
  _list(folder, steps[max(0, last - keep) : last])
  for old in steps[: max(0, last - keep)] + steps[last:]:  # later ones are of a run that was cut back to before them
    _remove(folder, f'ckpt-{old}')


def _sync(path):
  """Waits until a file or a folder is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _move(complete, folder):
  """Moves a whole checkpoint's files to their folder, the index last."""
  for part in sorted(os.listdir(complete)):
    os.replace(os.path.join(complete, part), os.path.join(folder, part))
  os.rmdir(complete)


def _remove(folder, name):
  """Removes a checkpoint, the index first."""
  for part in sorted(_names(folder), reverse=True):
    if re.fullmatch(rf'{re.escape(name)}\.(index|data-\d+-of-\d+)', part):
      os.remove(os.path.join(folder, part))


def _list(folder, steps):
  """Writes TensorFlow's list of a folder's checkpoints."""
  names = [f'"ckpt-{step}"' for step in steps]
  lines = [f'model_checkpoint_path: {names[-1]}', *(f'all_model_checkpoint_paths: {name}' for name in names)]
  write_text(os.path.join(folder, STATE), '\n'.join(lines) + '\n')


def clean(folder):
  """Finishes or removes what a killed run left half done; for who holds the lock."""
  for name in _names(folder):
    path = os.path.join(folder, name)
    if re.fullmatch(r'ckpt-\d+_whole', name) and not os.path.islink(path) and os.path.isdir(path):
      _move(path, folder)
    elif re.fullmatch(r'ckpt-\d+_temp', name) and not os.path.islink(path) and os.path.isdir(path):
      shutil.rmtree(path)
    elif re.fullmatch(r'checkpoint\.tmp[0-9a-f]+', name):  # TensorFlow's, of an earlier version
      os.remove(path)
  remove_leftovers(folder, {CONFIG, STATE})
  if latest(folder):  # else a part may be all that is left, of which `lost_step` tells
    whole = set(saved_steps(folder))
    parts = [re.fullmatch(rf'ckpt-({STEP})\.data-\d+-of-\d+', name) for name in _names(folder)]
    for part in filter(None, parts):
      if int(part.group(1)) not in whole:
        os.remove(os.path.join(folder, part.group()))
