"""Runs the training loop: steps, validations, checkpoints, and their reports."""

import dataclasses
import os
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from splitnet.common.errors import UserError, terminable
from splitnet.data.batches import UNREADABLE
from splitnet.training import log, run_texts
from splitnet.training.saver import Saver

SAMPLES = 24  # images that the end of a run shows with what the network takes them for
MOST_CLASSES = 2000  # of which a confusion matrix is kept


@dataclasses.dataclass(frozen=True)
class LoopSettings:
  """Says how long a run trains, and what is kept of it; named as train.py's flags."""

  train_dir: str
  max_steps: int
  batch_size: int
  seed: int = 0  # of shuffling
  display: int = 100  # steps between log lines
  val_interval: int = 1000  # steps between validations
  checkpoint_interval: int = 5000  # steps between checkpoints
  group_summary_interval: int = 5000  # steps between reports of the groups
  val_iter: int = 0  # batches per validation; 0: all
  max_to_keep: int = 2  # how many of the last checkpoints to keep
  stop_when_converged: float = 0.0  # stop when every assignment's mean confidence is at least this; 0: never
  patience: int = 0  # stop after this many validations without a better accuracy; 0: never
  train_split: str = 'train'  # with 'train_val' the validation images choose nothing, and best is the last validation
  validate_first: bool = False  # validate before the first step, which tells what a basemodel is worth here
  brief: bool = False  # print short lines only; train.log has all

  def __post_init__(self):
    if self.patience and self.train_split == 'train_val':
      raise UserError(
        f'--patience {self.patience} stops by images that --train_split train_val trains on: leave one of the two out'
      )


class Loop:
  """Trains in a folder, with all that its checkpoints hold, and its log."""

  def __init__(self, settings, train_step, replicas, configuration, names=None):
    """Opens the run's folder, and restores its last checkpoint if there is one.

    `settings` are a LoopSettings, the Replicas those that the TrainStep was made for, the configuration is that of
    checkpoints.describe, `names` the ClassNames of the data or None, for what the log shows of classes. Raises
    UserError if the folder cannot be written or the checkpoint cannot be restored.
    """
    self._settings, self._train_step, self._replicas = settings, train_step, replicas
    self._configuration = configuration
    self._network = train_step.network
    self._best = tf.Variable(-1.0, trainable=False)
    self._since_best = tf.Variable(0, dtype=tf.int64, trainable=False)
    self._validated = tf.Variable(-1, dtype=tf.int64, trainable=False)  # the step of the last validation
    weights, momentum = self._network.weights, train_step.optimizer.slots
    state = dict(step=train_step.step, best=self._best, since_best=self._since_best, validated=self._validated)
    self._saver = Saver(
      settings.train_dir, configuration, settings.max_to_keep, writes=replicas.chief, weights=weights,
      momentum=momentum, **state,
    )  # fmt: skip
    self._resumed = self._saver.restore()
    self._step = int(train_step.step)
    self._log = log.NoLog()
    if replicas.chief:
      before = self._step if self._resumed else -1
      steps_per_epoch = train_step.schedule.steps_per_epoch
      self._log = log.Log(settings.train_dir, before, steps_per_epoch, names, settings.brief)
    variables = [*state.values(), *weights.values(), *momentum.values()]
    replicas.must_agree('the weights to start from', *(variable.numpy() for variable in variables))
    if self._resumed:
      self._log.line(f"going on from step {self._step} ('{self._resumed}')")

  def note(self, text):
    """Prints a line and keeps it in the log."""
    self._log.line(text)

  def begin(self, validation_images, verbose=False):
    """Tells what the run is in three lines, and with `verbose` all settings and layers.

    A new one keeps all of that in its log. A brief run prints nothing of it.
    """
    lines, tables = run_texts.run_text(self._network, self._configuration, validation_images)
    for text in (*lines, *tables):
      shown = verbose or text in lines
      if not self._resumed:
        self._log.line(text, shown=shown, brief='')
      elif shown and self._replicas.chief and not self._settings.brief:
        print(text, flush=True)

  def train(self, images, validation):
    """Trains until max_steps, or until a setting stops it earlier.

    Returns (last step, best validation accuracy); raises UserError if a loss or a weight is not finite, or the run's
    folder is gone. Both arguments are Images.
    """
    with terminable():
      return self._train(images, validation)

  def _train(self, images, validation):
    self._validation = validation
    if self._resumed:
      reason = self._catch_up()
    else:
      reason = None
      self._log.settings({**self._configuration['settings'], 'network': self._network.graph.name})
      if self._network.groups is not None:
        self._log.classes(self._step, self._network.groups[self._network.graph.classes.name])
      if self._settings.validate_first or not self._settings.max_steps:
        self._validate()
      self._log.groups(self._step, self._network)
      self._save()
    reason = self._take_steps(images, reason)
    if self._step % self._settings.group_summary_interval:
      self._log.groups(self._step, self._network)
    if self._replicas.count == 1:
      self._log.samples(self._step, *self._train_step.answer(validation, SAMPLES))
    best = float(self._best)
    done = f'done at step {self._step}{f" ({reason})" if reason else ""}: best validation accuracy {100 * best:.2f} %'
    self._log.line(
      f"{done}; last checkpoint '{self._saver.last}', best '{os.path.join(self._settings.train_dir, 'best')}'",
      brief=done,
    )
    self._replicas.gather([self._step])  # a worker that leaves before the last checkpoint is written counts as lost
    return self._step, best

  def _take_steps(self, images, reason):
    """Takes the steps that are left, until there is a reason to stop; returns it."""
    settings, network = self._settings, self._network
    iterator = iter(images.training_batches(settings.batch_size, settings.seed, self._step, self._replicas.part))
    intervals = [settings.display, settings.val_interval, settings.checkpoint_interval]
    intervals += [settings.group_summary_interval] if network.with_assignments else []
    steps_per_call, window = 1, []  # what came since the last log line: (steps, seconds, terms) of each call
    bar = tqdm(
      total=settings.max_steps, initial=self._step, unit='step', disable=None if self._replicas.chief else True,
      dynamic_ncols=True,
    )  # fmt: skip
    try:
      while self._step < settings.max_steps and not reason:
        self._saver.check_folder()
        # As many steps as take about a second, and never past the next event.
        next_events = [interval - self._step % interval for interval in intervals]
        count = min(steps_per_call, settings.max_steps - self._step, *next_events)
        started = time.perf_counter()
        try:
          terms = {n: float(value) for n, value in self._train_step.train(iterator, tf.constant(count)).items()}
        except UNREADABLE as e:
          images.explain(e, settings.batch_size, int(self._train_step.step), settings.seed)
        seconds = time.perf_counter() - started
        steps_per_call = max(1, min(100, round(count / self._replicas.of_chief(seconds))))  # alike on all workers
        if not np.isfinite(terms['total']):
          raise UserError(
            f'the loss is not finite between steps {self._step} and {self._step + count}; {self._way_back()}'
          )
        self._step += count
        window.append((count, seconds, terms))
        rate = float(self._train_step.schedule.learning_rate(tf.constant(self._step - 1)))
        steps = sum(count for count, _, _ in window)
        speed = settings.batch_size * steps / sum(seconds for _, seconds, _ in window)
        text = f'{speed:.0f} img/s'
        if not settings.brief:
          text = f'loss {terms["total"]:.3f} acc {terms["accuracy"]:.3f} lr {rate:.2g} {text}'
        bar.set_postfix_str(text)
        bar.update(count)
        if self._step % settings.display == 0:
          means = {name: sum(count * terms[name] for count, _, terms in window) / steps for name in terms}
          window = []
          self._log.train(self._step, means, rate, speed, network)
          reason = self._converged()
        if network.with_assignments and self._step % settings.group_summary_interval == 0:
          self._log.groups(self._step, network)
        if self._validation_due() or reason:
          self._validate()
          reason = self._no_better() or reason
        if self._step % settings.checkpoint_interval == 0 or self._step == settings.max_steps or reason:
          self._save()
    except KeyboardInterrupt as e:
      if self._replicas.workers and (e.__context__ or not self._replicas.chief):
        raise  # in the middle of a step that another worker has left, or not the one who writes
      self._step = int(self._train_step.step)
      self._save()
      self._log.line(f"stopped at step {self._step}; the same command goes on from '{self._saver.last}'")
      raise
    finally:
      bar.close()
    return reason

  # What stops a run before max_steps: None, or the reason in words.

  def _catch_up(self):
    """Does what an interrupt prevented at the step that is resumed; returns as above."""
    reason = None
    if not self._step:
      return reason
    if self._step % self._settings.display == 0:
      reason = self._converged()
    if int(self._validated) != self._step and (self._validation_due() or reason):
      self._validate()
      self._save()
    return self._no_better() or reason

  def _converged(self):
    wanted = self._settings.stop_when_converged
    if not wanted:
      return None
    least = self._replicas.of_chief(run_texts.least_confidence(self._network))
    return f'every assignment is at least {least:.4g} confident' if least >= wanted else None

  def _no_better(self):
    patience = self._settings.patience
    spent = patience and int(self._since_best) >= patience
    return f'no better validation accuracy in {patience} validations' if spent else None

  # Validations and checkpoints.

  def _validation_due(self):
    return self._step % self._settings.val_interval == 0 or self._step == self._settings.max_steps

  def _validate(self):
    classes = self._network.graph.classes.size
    counted = self._replicas.count == 1 and classes <= MOST_CLASSES
    confusion = np.zeros([classes, classes], np.int64) if counted else None
    accuracy, loss = self._train_step.validate(self._validation, self._settings.val_iter, confusion)
    improved = np.float32(accuracy) > self._best.numpy()  # both as stored, or an equal accuracy may look better
    improved |= self._settings.train_split == 'train_val'  # of images that are trained on the accuracy chooses nothing
    if improved:
      self._check_finite()
      self._saver.save_best(self._step)
      self._best.assign(accuracy)
    self._since_best.assign(0 if improved else self._since_best + 1)
    self._validated.assign(self._step)  # last: after an interrupt before it, this step is validated again
    self._log.validation(self._step, accuracy, loss, float(self._best), confusion)

  def _save(self):
    self._check_finite()
    self._saver.save(self._step)

  def _check_finite(self):
    if not self._train_step.is_finite():
      raise UserError(f'step {self._step}: a weight is not finite; {self._way_back()}')

  def _way_back(self):
    last = f"'{self._saver.last}'" if self._saver.last else 'none (none was written yet)'
    return f'the last good checkpoint is {last}; lower --initial_lr or --assignment_lr_scale'
