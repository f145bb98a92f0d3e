"""Measures logits (accuracy, confusion) and groups (agreement with superclasses)."""

import numpy as np
from scipy import special

import utils


def measure(logits, labels, names, groups):
  """Returns what logits [images, classes] say about a classifier and its groups.

  Returns:
    A dict that JSON can hold: 'images' (how many), 'accuracy', 'top5_accuracy', 'cross_entropy', 'superclass_accuracy'
    (the predicted class has the right superclass), 'class_accuracy' and 'accuracy_within_superclass' (by name; None
    without images), 'superclass_of_class' (by name), 'confusion' ([true][predicted]), and with groups 'errors',
    'errors_across_groups', 'groups' (a list of class names per group), 'agreement', and 'chance_agreement' of random
    groups of the same sizes. What is about superclasses is missing if the data has none.
  """
  classes, predicted = logits.shape[1], logits.argmax(1)
  right = predicted == labels
  own = np.take_along_axis(logits, labels[:, None], 1)
  coarse = names.fine_to_coarse

  def accuracy_of(chosen):
    return float(right[chosen].mean()) if chosen.any() else None

  result = {
    'images': len(labels),
    'accuracy': float(right.mean()),
    # Ties count against the network, so that constant logits are not right five times in a hundred by their order.
    'top5_accuracy': float(((logits >= own).sum(1) <= 5).mean()),
    'cross_entropy': float((special.logsumexp(logits, 1) - own[:, 0]).mean()),
    'class_accuracy': {name: accuracy_of(labels == i) for i, name in enumerate(names.fine)},
    'confusion': np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).tolist(),
  }
  if coarse is not None:
    result['superclass_accuracy'] = float((coarse[predicted] == coarse[labels]).mean())
    inside = {name: accuracy_of(coarse[labels] == i) for i, name in enumerate(names.coarse)}
    result['accuracy_within_superclass'] = inside
    result['superclass_of_class'] = {name: names.coarse[c] for name, c in zip(names.fine, coarse)}
  if groups is not None:
    result['errors'] = int((~right).sum())
    result['errors_across_groups'] = int((groups[labels] != groups[predicted]).sum())  # all of these are errors
    result['groups'] = [[names.fine[c] for c in np.flatnonzero(groups == g)] for g in range(groups.max() + 1)]
    if coarse is not None:
      result['agreement'] = utils.superclass_agreement(groups, coarse)
      result['chance_agreement'], _ = random_agreement(np.bincount(groups), coarse)
  return result


def random_agreement(sizes, superclasses, draws=1000, seed=0):
  """Returns the agreement of random groups of these sizes: (mean, deviation)."""
  groups = np.repeat(np.arange(len(sizes)), sizes)
  generator = np.random.default_rng(seed)
  values = [utils.superclass_agreement(generator.permutation(groups), superclasses) for _ in range(draws)]
  return float(np.mean(values)), float(np.std(values))
