"""Measures logits (accuracy, confusion) and groups (agreement with superclasses)."""

import numpy as np

import utils


def measure(logits, labels, names, groups):
  """Returns what logits say about a classifier.

  Args:
    logits: float array [images, classes].
    labels: int array [images].
    names: a ClassNames, with superclasses.
    groups: the group of each class, int array [classes]; None for a network without groups.

  Returns:
    A dict that JSON can hold: 'images' (how many), 'accuracy', 'top5_accuracy', 'cross_entropy', 'superclass_accuracy'
    (the predicted class has the right superclass), 'class_accuracy' and 'accuracy_within_superclass' (by name; None
    without images), 'superclass_of_class' (by name), 'confusion' ([true][predicted]), and with groups 'errors',
    'errors_across_groups', 'groups' (a list of class names per group), 'agreement'.
  """
  classes = logits.shape[1]
  predicted = logits.argmax(1)
  right = predicted == labels
  own = np.take_along_axis(logits, labels[:, None], 1)
  shifted = logits - logits.max(1, keepdims=True)
  log_probability = np.take_along_axis(shifted, labels[:, None], 1)[:, 0] - np.log(np.exp(shifted).sum(1))
  confusion = np.zeros((classes, classes), np.int64)
  np.add.at(confusion, (labels, predicted), 1)
  coarse = names.fine_to_coarse

  def accuracy_of(chosen):
    return float(right[chosen].mean()) if chosen.any() else None

  result = {
    'images': len(labels),
    'accuracy': float(right.mean()),
    # Ties count against the network, so that constant logits are not right five times in a hundred by their order.
    'top5_accuracy': float(((logits >= own).sum(1) <= 5).mean()),
    'cross_entropy': float(-log_probability.mean()),
    'superclass_accuracy': float((coarse[predicted] == coarse[labels]).mean()),
    'class_accuracy': {name: accuracy_of(labels == i) for i, name in enumerate(names.fine)},
    'accuracy_within_superclass': {name: accuracy_of(coarse[labels] == i) for i, name in enumerate(names.coarse)},
    'superclass_of_class': {name: names.coarse[c] for name, c in zip(names.fine, coarse)},
    'confusion': confusion.tolist(),
  }
  if groups is not None:
    result['errors'] = int((~right).sum())
    result['errors_across_groups'] = int((groups[labels] != groups[predicted]).sum())  # all of these are errors
    result['groups'] = [[names.fine[c] for c in np.flatnonzero(groups == g)] for g in range(groups.max() + 1)]
    result['agreement'] = utils.superclass_agreement(groups, coarse)
  return result


def random_agreement(sizes, superclasses, draws=1000, seed=0):
  """Returns the agreement of random groups with superclasses: (mean, deviation).

  Args:
    sizes: the number of classes in each group, list of int.
    superclasses: the superclass of each class, int array [sum(sizes)].
    draws: how many random groupings; seed: of their choice.
  """
  groups = np.repeat(np.arange(len(sizes)), sizes)
  generator = np.random.default_rng(seed)
  values = [utils.superclass_agreement(generator.permutation(groups), superclasses) for _ in range(draws)]
  return float(np.mean(values)), float(np.std(values))
