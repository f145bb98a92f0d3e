"""One training stage's network, optimiser and compiled steps; the step itself, on one device or on several."""

import functools

import numpy as np
import tensorflow as tf

import cifar100
from splitnet.common.errors import UserError
from splitnet.data.batches import evaluation_batches
from splitnet.parallel import devices
from splitnet.training import replicas as strategy
from splitnet.training.objective import Momentum, Objective, objective


def lr_boundaries(text):
  """The epochs in --lr_step_epoch: list of floats, rising.

  Raises:
    UserError: where it is none.
  """
  try:
    epochs = [float(part) for part in text.split(',') if part.strip()]
  except ValueError:
    epochs = None
  if epochs is None or not all(0 < e < float('inf') for e in epochs) or epochs != sorted(epochs):
    raise UserError("--lr_step_epoch is '%s'; it must be rising epochs separated by commas, such as 100,140" % text)
  return epochs


def lr_scales(network, flags):
  """Factors of the learning rate by variable name (--assignment_lr_scale and --finetune)."""
  scales = {name: flags.assignment_lr_scale for name in network.trained if name.startswith('group/')}
  if flags.finetune:
    split = {layer.name for layer in network.plan.layers if layer.branches > 1}
    for name in network.trained:
      layer = name.split('/', 1)[1] if name.startswith('branch_') else name
      if layer.rsplit('/', 1)[0] in split:
        scales[name] = 10.0
  return scales


class Stage:
  """One stage's network, optimiser and compiled steps."""

  def __init__(self, flags, network, steps_per_epoch, replicas=None, teacher=None):
    """Makes the optimiser's slots.

    Args:
      flags: train.py's.
      network: a resnet_split.Network, built in the replicas' scope.
      steps_per_epoch: number; batches in an epoch.
      replicas: a strategy.Replicas; None: one device.
      teacher: None, or the network that is learned from (--teacher).
    """
    self.network, self._flags, self._teacher = network, flags, teacher
    self._replicas = replicas or strategy.Replicas()
    with self._replicas.scope():
      self.optimizer = Momentum(network.trained, flags.momentum, lr_scales(network, flags))
    self._weights = Objective(
      flags.l2_weight, flags.gamma1, flags.gamma2, flags.gamma3, flags.weighted_group_loss, flags.label_smoothing,
      flags.distill_weight, flags.distill_temperature,
    )  # fmt: skip
    epochs = lr_boundaries(flags.lr_step_epoch)
    self._ramp_steps = flags.gamma2_ramp_epoch * steps_per_epoch
    self._warmup_steps = flags.lr_warmup_epoch * steps_per_epoch
    self._boundaries = [round(min(epoch * steps_per_epoch, 2**31 - 1)) for epoch in epochs]
    # Counted beside the weights: an interrupt comes back between the call that trains and the line after it.
    self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
    if self._replicas.count > 1:
      self._step = functools.partial(self._replicas.run, self._train_step)
      self._count = functools.partial(self._replicas.run, self._count_correct)
    else:
      compiled = devices.compile_with_xla(flags.jit_compile)
      self._step = tf.function(self._train_step, jit_compile=compiled)
      self._count = self._count_correct

  def learning_rate(self, step):
    """The learning rate of a step: initial_lr times lr_decay for every boundary passed, or along half a cosine."""
    rate = tf.constant(self._flags.initial_lr, tf.float32)
    if self._flags.lr_schedule == 'cosine':
      left = max(self._flags.max_steps - self._warmup_steps, 1.0)
      done = tf.clip_by_value((tf.cast(step, tf.float32) - self._warmup_steps) / left, 0.0, 1.0)
      rate *= (1.0 + tf.cos(np.pi * done)) / 2.0
    else:
      passed = sum(tf.cast(step >= boundary, tf.float32) for boundary in self._boundaries)
      rate *= tf.cast(self._flags.lr_decay, tf.float32) ** passed
    if self._warmup_steps:
      rate *= tf.minimum(1.0, tf.cast(step + 1, tf.float32) / self._warmup_steps)
    return rate

  def _objective(self, step):
    """The weights of the objective's terms at a step."""
    if not self._ramp_steps:
      return self._weights
    risen = tf.minimum(1.0, tf.cast(step, tf.float32) / self._ramp_steps)
    return self._weights._replace(gamma2=self._weights.gamma2 * risen)

  def _train_step(self, images, labels, step):
    """One step of gradient descent on a batch, or on this replica's share of it; returns the whole batch's terms."""
    step = tf.cast(step, tf.int32)
    share = self._replicas.share(images.shape[0])
    if share:
      images, labels = share.take(images), share.take(labels)
    images = cifar100.whiten(cifar100.augment(images, tf.stack([self._flags.seed, step]), share))
    teacher_logits = None if self._teacher is None else self._teacher(images)
    with tf.GradientTape() as tape:
      logits = self.network(
        images, training=True, dropout_seed=tf.stack([self._flags.seed + 1, step]),
        keep_prob=self._flags.dropout_keep_prob, share=share,
      )  # fmt: skip
      terms = objective(self.network, logits, labels, self._objective(step), teacher_logits)
      scalars = {name: value for name, value in terms.items() if not name.endswith('_terms')}
      scalars['accuracy'] = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), labels), tf.float32))
      if share:  # the weights add up to 1, so the regularisers, which every replica has, count once
        scalars = {name: value * share.weight for name, value in scalars.items()}
    gradients = self._gradients(tape, scalars['total'])
    if share:
      gradients, scalars = share.sum((gradients, scalars))
    self.optimizer.apply(gradients, self.learning_rate(step))
    return scalars

  def _gradients(self, tape, total):
    variables = list(self.network.trained.values())
    if self.network.placed:  # a tape leaves it to TensorFlow where gradients are computed: all on the first device
      return tf.compat.v1.gradients(total, variables, colocate_gradients_with_ops=True)
    return tape.gradient(total, variables)

  @tf.function
  def train(self, iterator, count):
    """Runs `count` steps; returns the mean of every term over them."""
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

  @tf.function(reduce_retracing=True)
  def _correct(self, images, labels):
    return self._count(images, labels)

  def _count_correct(self, images, labels):
    share = self._replicas.share(tf.shape(images)[0])
    if share:
      images, labels = share.take(images), share.take(labels)
    logits = self.network(cifar100.whiten(images))
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    right = tf.reduce_sum(tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), labels), tf.int32))
    if share:  # as floats: GPUs keep int32 in the host's memory, where they cannot be summed
      return share.sum((tf.cast(right, tf.float32), tf.reduce_sum(loss)))
    return right, tf.reduce_sum(loss)

  def validate(self, data, batches):
    """(accuracy, cross-entropy) on the validation images, moving averages; batches 0: all."""
    right, loss, seen = 0, 0.0, 0
    for i, (images, labels) in enumerate(evaluation_batches(data, self._flags.batch_size)):
      if batches and i == batches:
        break
      correct, batch_loss = self._correct(images, labels)
      right, loss, seen = right + int(correct), loss + float(batch_loss), seen + len(labels)
    return right / seen, loss / seen

  def finite(self):
    """Whether every weight is finite."""
    return all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in self.network.weights.values())
