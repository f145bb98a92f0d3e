"""Computes each stage's objective, and descends its gradient."""

import dataclasses

import tensorflow as tf

import utils


@dataclasses.dataclass(frozen=True)
class Objective:
  """Holds the weights of the objective's terms, named as train.py's flags."""

  l2_weight: float = 0.0005  # of the weight decay, half the sum of squares
  gamma1: float = 1.0  # of the overlap (the paper's gamma2)
  gamma2: float = 1.0  # of the weight split
  gamma3: float = 10.0  # of the balance
  weighted_group_loss: bool = True  # weigh the layers' weight splits by their size (see utils.regularisers)
  label_smoothing: float = 0.0  # share of the target that is spread over all classes
  distill_weight: float = 0.5  # share of the distillation
  distill_temperature: float = 4.0  # by which both networks' logits are divided


def cross_entropy(logits, labels, label_smoothing=0.0):
  """Computes the cross-entropy of each image: [batch].

  Logits are [batch, classes]. With label_smoothing s in [0, 1) the target is 1 - s + s / classes for the label and
  s / classes for each other class. Source: Szegedy et al., Rethinking the Inception Architecture (2016), section 7.
  """
  if not label_smoothing:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
  classes = logits.shape[-1]
  others = label_smoothing / classes
  targets = tf.one_hot(labels, classes, on_value=1.0 - label_smoothing + others, off_value=others)
  return tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=logits)


def distillation(logits, teacher_logits, temperature):
  """Computes T^2 KL(teacher || student), mean over the batch: scalar.

  The class probabilities are those at temperature T; T^2 keeps the gradient's size when T changes. Both logits are
  [batch, classes]. Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), section 2.
  """
  teacher, student = (tf.nn.log_softmax(x / temperature) for x in (teacher_logits, logits))
  return temperature**2 * tf.reduce_mean(tf.reduce_sum(tf.exp(teacher) * (teacher - student), -1))


def objective(network, logits, labels, weights, teacher_logits=None):
  """Computes the loss and its terms: dict of scalars.

  They are 'cross_entropy', 'l2' (half the sum of squares), 'total', of a network with assignments what
  utils.regularisers gives, and with a teacher's logits of the same images 'distillation': it counts distill_weight, and
  the cross-entropy the rest. Source: paper, section 3.2; weights and normalisation of the released code.

  Args:
    logits, teacher_logits: [batch, classes]; labels: int [batch].
    weights: an Objective.
  """
  terms = {
    'cross_entropy': tf.reduce_mean(cross_entropy(logits, labels, weights.label_smoothing)),
    'l2': tf.add_n([_half_square(v) for v in network.decayed]),
  }
  terms['total'] = terms['cross_entropy']
  if teacher_logits is not None:
    terms['distillation'] = distillation(logits, teacher_logits, weights.distill_temperature)
    terms['total'] *= 1.0 - weights.distill_weight
    terms['total'] += weights.distill_weight * terms['distillation']
  terms['total'] += weights.l2_weight * terms['l2']
  if network.with_assignments:
    terms.update(utils.regularisers(network.split_layers(), weights.weighted_group_loss))
    terms['total'] += (
      weights.gamma1 * terms['overlap'] + weights.gamma2 * terms['weight_split'] + weights.gamma3 * terms['uniform']
    )
  return terms


def _half_square(variable):
  with tf.device(variable.device):  # where it lives: no weight travels
    return tf.nn.l2_loss(variable)


class Momentum:
  """Descends the gradient with momentum as TensorFlow 1 does.

  slot = momentum slot + gradient; v -= rate slot. (Keras's keeps the learning rate inside the slot, which differs after
  every change of the rate.)
  """

  def __init__(self, variables, momentum, scales=None):
    """Makes the slots; scales: factors of variables' learning rates, 1 if missing."""
    self._variables, self._momentum, self._scales = variables, momentum, scales or {}
    self.slots = {}
    for name, v in variables.items():
      with tf.device(v.device):
        self.slots[name] = tf.Variable(tf.zeros_like(v), trainable=False, name=name + '/Momentum')

  def apply(self, gradients, learning_rate):
    """Takes one step; gradients in the order of the variables, learning_rate a scalar.

    In a replica it changes that replica's copies, so every replica must give the same gradients.
    """
    for (name, variable), gradient in zip(self._variables.items(), gradients):
      tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle, accum=self.slots[name].handle, grad=gradient,
        lr=learning_rate * self._scales.get(name, 1.0), momentum=self._momentum,
      )  # fmt: skip
