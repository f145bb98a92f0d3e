"""The loop of train.py: steps, validations, checkpoints, and what is told of them."""

import os
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from splitnet.common.errors import UserError
from splitnet.data.batches import training_batches
from splitnet.training import checkpoints, initialize
from splitnet.training import log as summaries


class Loop:
  """The loop of a run in its folder, with all that its checkpoints hold, and its log."""

  def __init__(self, flags, stage, val, replicas, configuration):
    """Opens the folder, --train_dir, and goes on from its last checkpoint where there is one.

    Args:
      flags: train.py's.
      stage: a stage.Stage.
      val: an Images, the validation images.
      replicas: a strategy.Replicas.
      configuration: dict from checkpoints.describe.

    Raises:
      UserError: where the folder cannot be written or the checkpoint cannot be restored.
    """
    self._flags, self._stage, self._val, self._replicas = flags, stage, val, replicas
    self._network = stage.network
    self._best = tf.Variable(-1.0, trainable=False)
    self._since_best = tf.Variable(0, dtype=tf.int64, trainable=False)
    self._validated = tf.Variable(-1, dtype=tf.int64, trainable=False)  # the step of the last validation
    weights, momentum = self._network.weights, stage.optimizer.slots
    state = dict(step=stage.step, best=self._best, since_best=self._since_best, validated=self._validated)
    self._saver = checkpoints.Saver(
      flags.train_dir, configuration, flags.max_to_keep, writes=replicas.chief, weights=weights, momentum=momentum,
      **state,
    )  # fmt: skip
    self._log = summaries.Log(flags.train_dir) if replicas.chief else summaries.Silence()
    self._resumed = self._saver.restore()
    self._step = int(stage.step)
    variables = [*state.values(), *weights.values(), *momentum.values()]
    replicas.must_agree('the weights to start from', *(variable.numpy() for variable in variables))
    if self._resumed:
      self._log.line("going on from step %d ('%s')" % (self._step, self._resumed))

  def line(self, text):
    """Prints a line and keeps it in the log."""
    self._log.line(text)

  def train(self, images):
    """Trains until --max_steps, or until a flag stops it earlier.

    Args:
      images: an Images, the training images.

    Returns:
      (last step, best validation accuracy).

    Raises:
      UserError: where a loss or a weight is not finite.
    """
    if self._resumed:
      reason = self._make_up()
    else:
      reason = None
      # Tells what a basemodel is worth here; of random weights it would cost time and say 1 %.
      if initialize.starts_trained(self._flags) or not self._flags.max_steps:
        self._validate()
      self._log.groups(self._step, self._network)
      self._save()
    reason = self._steps(images, reason)
    if self._step % self._flags.group_summary_interval:
      self._log.groups(self._step, self._network)
    self._log.line(
      "done at step %d%s: best validation accuracy %.2f %%; last checkpoint '%s', best '%s'"
      % (
        self._step, ' (%s)' % reason if reason else '', 100 * float(self._best), self._saver.last,
        os.path.join(self._flags.train_dir, 'best'),
      )
    )  # fmt: skip
    self._replicas.gather([self._step])  # a worker that leaves before the last checkpoint is written counts as lost
    return self._step, float(self._best)

  def _steps(self, images, reason):
    """Takes the steps that are left, none where there is a reason to stop; returns the reason, None at --max_steps."""
    flags, network, log = self._flags, self._network, self._log
    iterator = iter(training_batches(images, flags.batch_size, flags.seed, self._step))
    events = [flags.display, flags.val_interval, flags.checkpoint_interval]
    events += [flags.group_summary_interval] if network.with_assignments else []
    calls, window = 1, []
    bar = tqdm(
      total=flags.max_steps, initial=self._step, unit='step', disable=None if self._replicas.chief else True,
      dynamic_ncols=True,
    )  # fmt: skip
    log.bar = bar
    try:
      while self._step < flags.max_steps and not reason:
        # Several steps a call: as many as take about a second, and never past the next event.
        count = min([calls, flags.max_steps - self._step] + [event - self._step % event for event in events])
        started = time.perf_counter()
        terms = {name: float(value) for name, value in self._stage.train(iterator, tf.constant(count)).items()}
        seconds = time.perf_counter() - started
        calls = max(1, min(100, round(count / self._replicas.chiefs(seconds))))  # alike on all workers
        if not np.isfinite(terms['total']):
          raise UserError(
            'the loss is not finite between steps %d and %d; %s' % (self._step, self._step + count, self._kept())
          )
        self._step += count
        window.append((count, seconds, terms))
        rate = float(self._stage.learning_rate(tf.constant(self._step - 1)))
        speed = flags.batch_size * sum(w[0] for w in window) / sum(w[1] for w in window)
        bar.set_postfix_str('loss %.3f acc %.3f lr %.2g %.0f img/s' % (terms['total'], terms['accuracy'], rate, speed))
        bar.update(count)
        if self._step % flags.display == 0:
          means = {n: sum(w[0] * w[2][n] for w in window) / sum(w[0] for w in window) for n in terms}
          window = []
          log.progress(self._step, means, rate, speed, network)
          reason = self._converged(log.least_confidence)
        if network.with_assignments and self._step % flags.group_summary_interval == 0:
          log.groups(self._step, network)
        if self._validation_due() or reason:
          self._validate()
          reason = self._no_better() or reason
        if self._step % flags.checkpoint_interval == 0 or self._step == flags.max_steps or reason:
          self._save()
    except KeyboardInterrupt as e:
      if self._replicas.workers and (e.__context__ or not self._replicas.chief):
        raise  # in the middle of a step that another worker has left, or not the one who writes
      self._step = int(self._stage.step)
      self._save()
      log.line("stopped at step %d; the same command goes on from '%s'" % (self._step, self._saver.last))
      raise
    finally:
      bar.close()
    return reason

  # What stops a run before --max_steps: None, or the reason in words.

  def _make_up(self):
    """Does what an interrupt came before at the step that is gone on from; what the run had stopped for."""
    reason = None
    if not self._step:
      return reason
    if self._flags.stop_when_converged and self._step % self._flags.display == 0:
      reason = self._converged(summaries.least_confidence(self._network))
    if int(self._validated) != self._step and (self._validation_due() or reason):
      self._validate()
      self._save()
    return self._no_better() or reason

  def _converged(self, least):
    wanted, least = self._flags.stop_when_converged, self._replicas.chiefs(least)
    return 'every assignment is at least %.4g confident' % least if wanted and least >= wanted else None

  def _no_better(self):
    if self._flags.patience and int(self._since_best) >= self._flags.patience:
      return 'no better validation accuracy in %d validations' % self._flags.patience
    return None

  # Validations and checkpoints.

  def _validation_due(self):
    return self._step % self._flags.val_interval == 0 or self._step == self._flags.max_steps

  def _validate(self):
    accuracy, loss = self._stage.validate(self._val, self._flags.val_iter)
    improved = np.float32(accuracy) > self._best.numpy()  # both as stored, or an equal accuracy may look better
    improved |= self._flags.train_split == 'train_val'  # of images that are trained on the accuracy chooses nothing
    if improved:
      self._check_finite()
      self._saver.save_best(self._step)
      self._best.assign(accuracy)
    self._since_best.assign(0 if improved else self._since_best + 1)
    self._validated.assign(self._step)  # last: after an interrupt before it, this step is validated again
    self._log.scalars(self._step, {'val/accuracy': accuracy, 'val/cross_entropy': loss})
    self._log.line(
      'step %d: validation accuracy %.2f %%, cross-entropy %.4f, best %.2f %%'
      % (self._step, 100 * accuracy, loss, 100 * float(self._best))
    )

  def _save(self):
    self._check_finite()
    self._saver.save(self._step)

  def _check_finite(self):
    if not self._stage.finite():
      raise UserError('step %d: a weight is not finite; %s' % (self._step, self._kept()))

  def _kept(self):
    return 'the last good checkpoint is %s; lower --initial_lr or --assignment_lr_scale' % (
      "'%s'" % self._saver.last if self._saver.last else 'none (none was written yet)'
    )
