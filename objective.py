"""What training minimises, and how: the objective of each stage and gradient descent with momentum."""

import collections

import tensorflow as tf

import utils

# The objective's weights, named as the flags (gamma1 weighs the overlap; the paper calls that gamma2).
Objective = collections.namedtuple('Objective', 'l2_weight gamma1 gamma2 gamma3 weighted_group_loss')


def objective(network, logits, labels, weights):
  """The loss and its terms (paper, section 3.2; released weights and normalisation).

  Args:
    network: a resnet_split.Network; with assignments, the three regularisers are added.
    logits: [batch, classes]; labels: int [batch].
    weights: an Objective.

  Returns:
    A dict of scalars: 'cross_entropy', 'l2' (half the sum of squares), 'total', and what utils.regularisers gives.
  """
  cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
  terms = {
    'cross_entropy': tf.reduce_mean(cross_entropy),
    'l2': tf.add_n([tf.nn.l2_loss(v) for v in network.decayed]),
  }
  terms['total'] = terms['cross_entropy'] + weights.l2_weight * terms['l2']
  if network.with_assignments:
    terms.update(utils.regularisers(network.split_layers(), weights.weighted_group_loss))
    terms['total'] += (
      weights.gamma1 * terms['overlap'] + weights.gamma2 * terms['weight_split'] + weights.gamma3 * terms['uniform']
    )
  return terms


class Momentum:
  """Gradient descent with momentum as TensorFlow 1 has it: slot = momentum slot + gradient; v -= rate slot.

  (Keras's keeps the learning rate inside the slot, which differs after every change of the rate.)
  """

  def __init__(self, variables, momentum, scales=None):
    """Makes the slots.

    Args:
      variables: dict from name to trainable variable.
      momentum: number in [0, 1).
      scales: dict from name to a factor of that variable's learning rate; 1 where it is missing.
    """
    self._variables, self._momentum, self._scales = variables, momentum, scales or {}
    self.slots = {
      name: tf.Variable(tf.zeros_like(v), trainable=False, name=name + '/Momentum') for name, v in variables.items()
    }

  def apply(self, gradients, learning_rate):
    """One step; gradients in the order of the variables, learning_rate a scalar."""
    for (name, variable), gradient in zip(self._variables.items(), gradients):
      tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle, accum=self.slots[name].handle, grad=gradient,
        lr=learning_rate * self._scales.get(name, 1.0), momentum=self._momentum,
      )  # fmt: skip
