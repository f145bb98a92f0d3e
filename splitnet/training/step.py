"""Compiles a training step and a validation of one stage."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from splitnet.common.flags import take
from splitnet.data.batches import numbered_batches
from splitnet.parallel import devices
from splitnet.training.objective import Momentum, Objective, objective
from splitnet.training.replicas import Replicas
from splitnet.training.schedule import of_settings


@dataclasses.dataclass(frozen=True)
class StepSettings:
  """Says how a step is taken; the names are those of train.py's flags."""

  batch_size: int
  momentum: float = 0.9
  finetune: bool = False  # multiply the gradients of the split layers' weights by 10
  assignment_lr_scale: float = 1.0  # factor of the assignments' learning rate
  dropout_keep_prob: float = 1.0  # probability of keeping an input of a split layer
  seed: int = 0  # of augmentation and dropout
  jit_compile: bool | str = 'auto'  # compile the step with XLA: True, False or 'auto'


def learning_rate_scales(network, assignment_lr_scale, finetune):
  """Returns the factors of the learning rate by variable name, 1 if missing."""
  scales = {name: assignment_lr_scale for name in network.trained if name.startswith('group/')}
  for layer, branch in network.built if finetune else ():
    if network.graph.branches(layer) > 1:
      scales.update({name: 10.0 for name in network.names(layer, branch).values() if name in network.trained})
  return scales


class TrainStep:
  """Trains a stage's network with a Momentum; the variable `step` counts steps."""

  def __init__(self, network, dataset, objective, schedule, settings, replicas=None, teacher=None):
    """Makes the optimiser's slots for a Network built in the replicas' scope.

    `dataset` is a DataSet, or what else has its `augment` and `prepare`; `objective`, `schedule` and `settings` are an
    Objective, a Schedule and a StepSettings; `teacher` is None, or the network that is distilled from.
    """
    self.network, self.objective, self.schedule = network, objective, schedule
    self._dataset, self._settings, self._teacher = dataset, settings, teacher
    self._replicas = replicas or Replicas()
    with self._replicas.scope():
      scales = learning_rate_scales(network, settings.assignment_lr_scale, settings.finetune)
      self.optimizer = Momentum(network.trained, settings.momentum, scales)
    # Counted beside the weights: an interrupt comes back between the call that trains and the line after it.
    self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
    if self._replicas.count > 1:
      self._step = functools.partial(self._replicas.run, self._train_step)
      count = functools.partial(self._replicas.run, self._count_correct)
    else:
      # Nothing but the loop of `train` depends on tensors, and AutoGraph took more time than tracing itself.
      compiled = devices.compile_with_xla(settings.jit_compile)
      self._step = tf.function(self._train_step, autograph=False, jit_compile=compiled)
      count = self._count_correct
    self._correct = tf.function(count, autograph=False, reduce_retracing=True)

  def _train_step(self, images, labels, step):
    """Takes one step on a batch, or this replica's share; returns the whole's terms."""
    step, seed = tf.cast(step, tf.int32), self._settings.seed
    share = self._replicas.share(labels.shape[0])
    if share:
      images, labels = share.take_images(images), share.take(labels)
    images = self._dataset.prepare(self._dataset.augment(images, tf.stack([seed, step]), share))
    teacher_logits = None if self._teacher is None else self._teacher(images)
    with tf.GradientTape() as tape:
      logits = self.network(
        images, training=True, dropout_seed=tf.stack([seed + 1, step]), keep_prob=self._settings.dropout_keep_prob,
        share=share,
      )  # fmt: skip
      weights = self.schedule.objective_at(self.objective, step)
      terms = objective(self.network, logits, labels, weights, teacher_logits)
      scalars = {name: value for name, value in terms.items() if not name.endswith('_terms')}
      scalars['accuracy'] = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), labels), tf.float32))
      if share:  # the weights add up to 1, so the regularisers, which every replica has, count once
        scalars = {name: value * share.weight for name, value in scalars.items()}
    gradients = self._gradients(tape, scalars['total'])
    if share:
      gradients, scalars = share.sum((gradients, scalars))
    self.optimizer.apply(gradients, self.schedule.learning_rate(step))
    return scalars

  def _gradients(self, tape, total):
    variables = list(self.network.trained.values())
    if self.network.devices:  # a tape leaves it to TensorFlow where gradients are computed: all on the first device
      return tf.compat.v1.gradients(total, variables, colocate_gradients_with_ops=True)
    return tape.gradient(total, variables)

  @tf.function
  def train(self, iterator, count):
    """Takes `count` steps (int scalar) on an iterator's batches; returns terms' means."""
    names = ['cross_entropy', 'l2', 'total', 'accuracy']
    if self.network.with_assignments:
      names += ['overlap', 'weight_split', 'uniform']
    if self._teacher is not None:
      names += ['distillation']
    sums = {name: tf.zeros([]) for name in names}
    for _ in tf.range(count):
      images, labels, step = next(iterator)
      terms = self._step(images, labels, step)
      self.step.assign_add(1)
      sums = {name: sums[name] + terms[name] for name in names}
    return {name: value / tf.cast(count, tf.float32) for name, value in sums.items()}

  def _count_correct(self, images, labels):
    """Returns (how many are right, sum of the losses, predicted classes, none if the images are shared)."""
    share, counted = self._replicas.share(tf.shape(labels)[0]), 1
    if share:
      # Of a last batch with fewer images than replicas some have none: they compute another's image, or one of zeros if
      # this worker has read none, and count it as none.
      counted = tf.minimum(share.count, 1)
      share = dataclasses.replace(share, count=tf.maximum(share.count, 1))
      images = tf.concat([images, tf.zeros([1, *images.shape[1:]], images.dtype)], 0)
      images, labels = share.take_images(images), share.take(labels)
    logits = self.network(self._dataset.prepare(images))
    loss = tf.cast(counted, tf.float32) * tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    predicted = tf.argmax(logits, 1, tf.int32)
    right = counted * tf.reduce_sum(tf.cast(tf.equal(predicted, labels), tf.int32))
    if share:  # as floats: GPUs keep int32 in the host's memory, where they cannot be summed
      return *share.sum((tf.cast(right, tf.float32), tf.reduce_sum(loss))), tf.zeros([0], tf.int32)
    return right, tf.reduce_sum(loss), predicted

  def validate(self, images, limit=0, confusion=None):
    """Returns (accuracy, cross-entropy) on images, or on their first `limit` batches.

    On one device the answers are added to `confusion`, an int array [true, predicted] or None.
    """
    right, loss, seen, size = 0, 0.0, 0, self._settings.batch_size
    for _, pixels, labels in numbered_batches(images, size, limit, part=self._replicas.part):
      correct, batch_loss, predicted = self._correct(pixels, labels)
      right, loss, seen = right + int(correct), loss + float(batch_loss), seen + len(labels)
      if confusion is not None:
        np.add.at(confusion, (labels.numpy(), predicted.numpy()), 1)
    return right / seen, loss / seen

  def answer(self, images, count):
    """Returns the first images, at most `count`: (pixels, class probabilities, labels)."""
    _, pixels, labels = next(numbered_batches(images, min(count, len(images.labels)), 1))
    logits = self.network(self._dataset.prepare(pixels))
    return pixels.numpy(), tf.nn.softmax(logits).numpy(), labels.numpy()

  def is_finite(self):
    """Returns whether every weight is finite."""
    return all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in self.network.weights.values())


def make_step(network, dataset, settings, steps_per_epoch, replicas=None, teacher=None):
  """Makes the TrainStep of a network from settings named as train.py's flags.

  These are a dict with 'batch_size' and others of the fields of Objective, Schedule and StepSettings; 'lr_step'
  and 'lr_step_epoch' are texts. The other arguments are TrainStep's; steps_per_epoch need not be whole.
  """
  schedule = of_settings(settings, steps_per_epoch)
  objective, how = take(Objective, settings), take(StepSettings, settings)
  return TrainStep(network, dataset, objective, schedule, how, replicas, teacher)
