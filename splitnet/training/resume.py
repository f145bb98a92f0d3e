"""Finds the run to resume, and checks that it had the same settings."""

from splitnet.common.errors import UserError
from splitnet.training import checkpoint_files, checkpoints
from splitnet.training.schedule import of_settings

# What may differ on resume: it changes what is watched or kept, never the weights at a step.
FREE = {
  'data_dir', 'train_dir', 'max_steps', 'display', 'val_interval', 'val_iter', 'checkpoint_interval',
  'group_summary_interval', 'max_to_keep', 'stop_when_converged', 'patience', 'gpu_fraction', 'log_device_placement',
  'jit_compile',  # the exception: another rounding, as on another device, and other dropout masks
  'devices', 'num_logical_devices', 'num_replicas',
  'verbose', 'brief',
  'skip_damaged',  # which images are trained on is compared itself
}  # fmt: skip
# What the schedules are made of; only at which steps things change is compared, however that was said.
SCHEDULES = {
  'epochs', 'lr_step', 'lr_step_epoch', 'lr_warmup', 'lr_warmup_epoch', 'gamma2_ramp', 'gamma2_ramp_epoch'
}  # fmt: skip
CHECKPOINTS = ('basemodel', 'teacher')  # known by their content, so that a run and they may be moved


def stored_run(train_dir, mode, older):
  """Returns the stored configuration of the run to resume, or None.

  Raises UserError if the folder holds a run of another stage, or checkpoints of something else.
  """
  before = checkpoints.read_configuration(train_dir, older)
  if checkpoints.latest(train_dir) is None:
    lost = checkpoint_files.lost_step(train_dir)
    if lost:
      raise UserError(
        f"the run in '{train_dir}' has come to step {lost} or further, but has no whole checkpoint any more: restore "
        'its files ckpt-STEP.*, or give another --train_dir'
      )
    return None  # if there is a configuration all the same, the run ended before its first checkpoint
  if before is None:
    raise UserError(f"'{train_dir}' holds checkpoints that train.py did not write: give another --train_dir")
  if before['mode'] != mode:
    raise UserError(
      f"the run in '{train_dir}' was started with --mode {before['mode']}, now it is {mode}: use the same, or another "
      '--train_dir'
    )
  return before


def identify_checkpoints(basemodel, teacher, before):
  """Returns which checkpoints a run depends on, by path and content.

  A resumed run does not need its basemodel any more, so one that has changed or is gone is stored as it was. `before`
  is the stored configuration of the run to resume, or None. Returns (dict of 'basemodel', 'basemodel_digest', 'teacher'
  and 'teacher_digest'; the sentence or None, since whoever made a basemodel anew may expect to start from it).
  """
  old, changed = before['settings'] if before else {}, None
  paths, digests = {'basemodel': basemodel, 'teacher': teacher}, {}
  for name, path in paths.items():
    digest = None
    if before and name == 'basemodel' and (not path or path == old.get(name) or not checkpoints.exists(path)):
      paths[name], digest = old.get(name), old.get(f'{name}_digest')
      if path and digest and checkpoints.exists(path) and checkpoints.digest(path) != digest:
        changed = (
          f"'{path}' has changed since this run started from it, which changes nothing here: to start from what it "
          'holds now, give another --train_dir'
        )
    elif path:
      digest = checkpoints.digest(path)
    digests[f'{name}_digest'] = digest
  return {**paths, **digests}, changed


def schedule_steps(configuration):
  """Returns at which steps a configuration's schedules change, None if not known."""
  settings = configuration['settings']
  try:
    schedule = of_settings(settings, configuration['data']['train_images'] / settings['batch_size'])
  except (ArithmeticError, KeyError, TypeError, ValueError):  # of an earlier version, or damaged
    return None
  drops = schedule.drops if schedule.lr_schedule == 'step' else ()
  return *drops, schedule.warmup, schedule.ramp


def check_settings(configuration, before, train_dir, default):
  """Raises UserError if the run to resume was started with other settings than now.

  `configuration` and `before` are what checkpoints.describe gives now, and what is stored beside the run's checkpoints;
  `default` gives a flag's default, for flags that are younger than the run.
  """
  free_names = FREE | SCHEDULES if schedule_steps(before) == schedule_steps(configuration) else FREE - {'max_steps'}
  for section in ('network', 'settings', 'data'):
    old, new = before[section], configuration[section]
    for name in new:
      was = old.get(name, default(name))
      free = name in free_names and not (name == 'max_steps' and new.get('lr_schedule') == 'cosine')
      digest = new.get(f'{name}_digest') if name in CHECKPOINTS else None
      moved = digest and digest == old.get(f'{name}_digest')
      if free or moved or was == new[name]:
        continue
      flag = name.removesuffix('_digest')
      if flag != name:
        raise UserError(
          f"the run in '{train_dir}' was started with another --{flag} than '{new[flag]}' holds now: restore it, or "
          'give another --train_dir'
        )
      raise UserError(
        f"the run in '{train_dir}' was started with {'data ' if section == 'data' else '--'}{name} {was}, now it is "
        f'{new[name]}: use the same, or another --train_dir'
      )
