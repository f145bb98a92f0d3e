"""Changes the learning rate and the weight of the split from step to step."""

import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Holds the schedules of a run, in epochs; named as train.py's flags."""

  steps_per_epoch: float  # batches in an epoch, need not be whole
  max_steps: int = 120000
  initial_lr: float = 0.1  # learning rate at the start
  lr_schedule: str = 'step'  # 'step' (released code) drops it; with 'cosine' it falls to 0 along half a cosine
  lr_warmup_epoch: float = 0.0  # over which it first rises linearly from 0
  lr_step_epoch: tuple = ()  # rising epochs after which 'step' multiplies it by lr_decay
  lr_decay: float = 0.1
  gamma2_ramp_epoch: float = 0.0  # over which the weight of the split rises from 0

  def learning_rate(self, step):
    """Returns the learning rate of a step (int tensor): float32 scalar."""
    warmup = self.lr_warmup_epoch * self.steps_per_epoch
    rate = tf.constant(self.initial_lr, tf.float32)
    if self.lr_schedule == 'cosine':
      left = max(self.max_steps - warmup, 1.0)
      done = tf.clip_by_value((tf.cast(step, tf.float32) - warmup) / left, 0.0, 1.0)
      rate *= (1.0 + tf.cos(np.pi * done)) / 2.0
    else:
      boundaries = [round(min(epoch * self.steps_per_epoch, 2**31 - 1)) for epoch in self.lr_step_epoch]
      passed = sum(tf.cast(step >= boundary, tf.float32) for boundary in boundaries)
      rate *= tf.cast(self.lr_decay, tf.float32) ** passed
    if warmup:
      rate *= tf.minimum(1.0, tf.cast(step + 1, tf.float32) / warmup)
    return rate

  def objective_at(self, objective, step):
    """Returns the Objective of a step, its gamma2 as far as it has risen by then."""
    if not self.gamma2_ramp_epoch:
      return objective
    risen = tf.minimum(1.0, tf.cast(step, tf.float32) / (self.gamma2_ramp_epoch * self.steps_per_epoch))
    return dataclasses.replace(objective, gamma2=objective.gamma2 * risen)
