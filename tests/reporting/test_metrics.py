"""metrics.py: what is measured of logits against naive counting, and the agreement of random groups."""

import numpy as np
import pytest

from splitnet.data.batches import ClassNames
from splitnet.reporting import metrics

NAMES = ClassNames(list('abcdef'), ['x', 'y', 'z'], np.array([0, 1, 0, 2, 1, 2]), {})
GROUPS = np.array([0, 1, 0, 1, 1, 0])


@pytest.fixture
def answers():
  """Logits of 200 images in 6 classes that are often right, and labels; class 4 has no image."""
  rng = np.random.default_rng(0)
  labels = rng.choice([0, 1, 2, 3, 5], 200).astype(np.int32)
  logits = rng.normal(0, 3, (200, 6)).astype(np.float32)
  logits[np.arange(200), labels] += 2
  return logits, labels


def test_measure_is_what_naive_counting_gives(answers):
  logits, labels = answers
  result = metrics.measure(logits, labels, NAMES, GROUPS)
  right = top5 = right_superclass = errors = across = 0
  cross_entropy = 0.0
  confusion = [[0] * 6 for _ in range(6)]
  for row, label in zip(logits.astype(np.float64).tolist(), labels.tolist()):
    ranked = sorted(range(6), key=lambda c, row=row: -row[c])
    predicted = ranked[0]
    right += predicted == label
    top5 += label in ranked[:5]
    right_superclass += NAMES.fine_to_coarse[predicted] == NAMES.fine_to_coarse[label]
    confusion[label][predicted] += 1
    cross_entropy -= row[label] - np.log(sum(np.exp(v) for v in row))
    if predicted != label:
      errors += 1
      across += GROUPS[predicted] != GROUPS[label]
  assert 0 < right < 200 and right < top5 < 200 and 0 < across < errors  # the case tells the numbers apart
  assert result['images'] == 200
  assert result['accuracy'] == right / 200
  assert result['top5_accuracy'] == top5 / 200
  assert result['superclass_accuracy'] == right_superclass / 200
  assert result['cross_entropy'] == pytest.approx(cross_entropy / 200, rel=1e-5)
  assert result['confusion'] == confusion
  assert (result['errors'], result['errors_across_groups']) == (errors, across)
  assert result['groups'] == [['a', 'c', 'f'], ['b', 'd', 'e']]
  assert result['agreement'] == 5 / 6  # x is whole in group 0, y in group 1; z is divided
  for c, name in enumerate(NAMES.fine):
    own = sum(confusion[c])
    assert result['class_accuracy'][name] == (confusion[c][c] / own if own else None)
  assert result['class_accuracy']['e'] is None
  for s, name in enumerate(NAMES.coarse):
    members = [c for c in range(6) if NAMES.fine_to_coarse[c] == s]
    expected = sum(confusion[c][c] for c in members) / sum(sum(confusion[c]) for c in members)
    assert result['accuracy_within_superclass'][name] == pytest.approx(expected)


def test_measure_of_a_dense_network_tells_nothing_of_groups(answers):
  result = metrics.measure(*answers, NAMES, None)
  assert not {'groups', 'errors', 'errors_across_groups', 'agreement'} & result.keys()


def test_ties_count_against_the_network_and_large_logits_do_not_overflow():
  result = metrics.measure(np.zeros((4, 6), np.float32), np.array([1, 2, 3, 5]), NAMES, None)
  assert result['top5_accuracy'] == 0
  assert result['cross_entropy'] == pytest.approx(np.log(6))
  large = np.array([[1e4, 0, -1e4, 0, 0, 0]], np.float32)
  assert metrics.measure(large, np.array([0]), NAMES, None)['cross_entropy'] == 0
  assert metrics.measure(large, np.array([1]), NAMES, None)['cross_entropy'] == pytest.approx(1e4)


def test_random_agreement_is_that_of_the_paper():
  """A random balanced grouping of CIFAR-100's 20 superclasses of 5 has about 0.49 at G = 4 and 0.68 at G = 2."""
  superclasses = np.arange(100) // 5
  assert metrics.random_agreement([25] * 4, superclasses)[0] == pytest.approx(0.49, abs=0.01)
  assert metrics.random_agreement([50] * 2, superclasses)[0] == pytest.approx(0.68, abs=0.01)
