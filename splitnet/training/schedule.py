"""Changes the learning rate and the weight of the split from step to step."""

import dataclasses

import numpy as np
import tensorflow as tf

from splitnet.common.flags import parse_epochs, parse_shares, take


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Holds the schedules of a run; named as train.py's flags.

  Each is in epochs or in shares of max_steps; of the drops, the two are added.
  """

  steps_per_epoch: float  # batches in an epoch, need not be whole
  max_steps: int = 120000
  initial_lr: float = 0.1  # learning rate at the start
  lr_schedule: str = 'step'  # 'step' (released code) drops it; with 'cosine' it falls to 0 along half a cosine
  lr_warmup_epoch: float = 0.0  # over which it first rises linearly from 0
  lr_step_epoch: tuple = ()  # rising epochs after which 'step' multiplies it by lr_decay
  lr_decay: float = 0.1
  gamma2_ramp_epoch: float = 0.0  # over which the weight of the split rises from 0
  lr_warmup: float = 0.0  # the same as shares
  lr_step: tuple = ()
  gamma2_ramp: float = 0.0

  @property
  def drops(self):
    """The steps from which the learning rate is multiplied by lr_decay once more."""
    shares = [round(share * self.max_steps) for share in self.lr_step]
    return [round(min(epoch * self.steps_per_epoch, 2**31 - 1)) for epoch in self.lr_step_epoch] + shares

  @property
  def warmup(self):
    """Over how many steps the learning rate rises from 0, need not be whole."""
    return self.lr_warmup_epoch * self.steps_per_epoch or self.lr_warmup * self.max_steps

  @property
  def ramp(self):
    """Over how many steps the weight of the split rises from 0, need not be whole."""
    return self.gamma2_ramp_epoch * self.steps_per_epoch or self.gamma2_ramp * self.max_steps

  def learning_rate(self, step):
    """Returns the learning rate of a step (int tensor): float32 scalar."""
    warmup = self.warmup
    rate = tf.constant(self.initial_lr, tf.float32)
    if self.lr_schedule == 'cosine':
      left = max(self.max_steps - warmup, 1.0)
      done = tf.clip_by_value((tf.cast(step, tf.float32) - warmup) / left, 0.0, 1.0)
      rate *= (1.0 + tf.cos(np.pi * done)) / 2.0
    else:
      passed = sum(tf.cast(step >= drop, tf.float32) for drop in self.drops)
      rate *= tf.cast(self.lr_decay, tf.float32) ** passed
    if warmup:
      rate *= tf.minimum(1.0, tf.cast(step + 1, tf.float32) / warmup)
    return rate

  def objective_at(self, objective, step):
    """Returns the Objective of a step, its gamma2 as far as it has risen by then."""
    if not self.ramp:
      return objective
    risen = tf.minimum(1.0, tf.cast(step, tf.float32) / self.ramp)
    return dataclasses.replace(objective, gamma2=objective.gamma2 * risen)


def of_settings(settings, steps_per_epoch):
  """Makes a Schedule of a dict of train.py's flags, in which lists are texts."""
  parsed = {
    'lr_step_epoch': tuple(parse_epochs(settings.get('lr_step_epoch') or '')),
    'lr_step': tuple(parse_shares(settings.get('lr_step') or '')),
  }
  return take(Schedule, settings, steps_per_epoch=steps_per_epoch, **parsed)


def without_default(flags):
  """Returns which of train.py's flags have no default since others, dict by name, say it.

  The drops of a number of epochs are shares of the run; those of a number of steps are epochs, as in the released code.
  """
  given = flags['lr_step'] is not None or flags['lr_step_epoch'] is not None
  shares = flags['epochs'] is not None
  unused = {'lr_step': given or not shares, 'lr_step_epoch': given or shares, 'max_steps': shares}
  return [name for name, is_unused in unused.items() if is_unused]


def steps_of(epochs, steps_per_epoch):
  """Returns how many steps so many epochs are, at least one."""
  return min(max(1, round(epochs * steps_per_epoch)), 2**31 - 2)
