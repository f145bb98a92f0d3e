"""Tests that the classes are a tree that can be seen; nothing cuts across it."""

import numpy as np
import pytest

from splitnet.data import synthetic


@pytest.fixture(scope='module')
def images():
  return synthetic.make(20, 0)


def test_synthetic_names():
  fine, coarse, fine_to_coarse, _ = synthetic.classes()
  assert len(set(fine)) == 100 and len(set(coarse)) == 20
  assert np.bincount(fine_to_coarse).tolist() == [5] * 20
  assert [name[:-2] for name in fine] == [coarse[group] for group in fine_to_coarse]
  assert len({name.split('_')[2] for name in coarse}) == 20  # no shape in two superclasses
  family_and_ground = [tuple(name.split('_')[:2]) for name in coarse]
  assert {place: family_and_ground.count(place) for place in family_and_ground} == dict.fromkeys(
    [('night', 'starry'), ('night', 'rainy'), ('day', 'checked'), ('day', 'wavy')], 5
  )
  neighbours = np.mean(np.diff(fine_to_coarse) == 0)
  assert neighbours < 0.15  # 0.8, were the classes numbered by superclass


def test_every_class_has_its_own_emblem():
  emblems = synthetic.emblems()
  assert np.array_equal(emblems, emblems[..., ::-1])
  cells = emblems.reshape(20, 5, -1)
  differing = (cells[:, None, :, None] != cells[None, :, None, :]).mean(-1)  # of two superclasses and two letters
  assert (differing.reshape(20, 20, 25) == 0).sum() == 100  # each with itself only
  letters = differing[~np.eye(20, dtype=bool)].mean(0)  # [5, 5], over the pairs of superclasses
  same, other = np.diag(letters).mean(), letters[~np.eye(5, dtype=bool)].mean()
  assert abs(same - other) < 0.03  # 0.2 and more, were a superclass's emblems repeated in the next


@pytest.fixture(scope='module')
def prototypes():
  """The classes' mean images, whitened, by place: float [20, 5, features]; no thing is far away."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(synthetic, 'FAR', np.float32(0))
    images = synthetic.make(60, 0)
  number = synthetic.classes()[3]
  whitened = images['train_images'].astype(np.float32)
  whitened -= whitened.mean((1, 2), keepdims=True)
  whitened /= whitened.std((1, 2), keepdims=True)
  means = np.stack([whitened[images['train_labels'] == label].mean(0) for label in range(100)])
  return means.reshape(100, -1)[number]


def cosines(prototypes):
  """Cosines [20, 5, 20, 5] between the classes, from their common mean."""
  features = prototypes.reshape(100, -1) - prototypes.mean((0, 1))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  return (features @ features.T).reshape(20, 5, 20, 5)


def levels(distances):
  """Mean distance of two classes of one superclass, of one ground, of one family, and of different families."""
  at = np.arange(100).reshape(20, 5, 1, 1), np.arange(100).reshape(1, 1, 20, 5)
  shared = np.select([at[0] == at[1]] + [at[0] // size == at[1] // size for size in (5, 25, 50)], [9, 0, 1, 2], 3)
  return [distances[shared == level].mean() for level in range(4)]


@pytest.mark.slow
def test_the_tree_can_be_seen(prototypes):
  superclass, ground, family, none = levels(1 - cosines(prototypes))
  assert superclass < 0.85 * ground and ground < 0.9 * family and family < 0.3 * none
  shuffled = np.random.RandomState(0).permutation(prototypes.reshape(100, -1)).reshape(prototypes.shape)
  assert np.ptp(levels(1 - cosines(shuffled))) < 0.15  # the measure itself can fail


def by_letter(cosine):
  """How much more alike two superclasses' classes of one letter are than those of two letters."""
  letters = cosine.transpose(0, 2, 1, 3)[~np.eye(20, dtype=bool)].mean(0)  # [5, 5], over the pairs of superclasses
  return np.diag(letters).mean() - letters[~np.eye(5, dtype=bool)].mean()


def test_nothing_cuts_across_the_superclasses(prototypes):
  assert abs(by_letter(cosines(prototypes))) < 0.01
  spread = prototypes.std()
  crossing = prototypes + spread * np.random.RandomState(0).randn(5, prototypes.shape[-1])
  assert by_letter(cosines(crossing)) > 0.1  # the measure itself can fail


def test_classes_of_a_superclass_differ():
  """Drawn with the same random numbers, two classes of a superclass differ on the thing and nowhere else."""
  emblems = synthetic.emblems()
  for s, superclass in enumerate(synthetic.SUPERCLASSES):
    one, other = (synthetic.draw(*superclass, emblems[s, [c] * 20], np.random.default_rng(3)) for c in (0, 1))
    share = (one != other).any(-1).mean((1, 2))
    assert share.mean() > 0.01 and share.max() < 0.25


def test_images_of_a_class_vary(images):
  assert len({image.tobytes() for image in images['train_images']}) == 2000
  one = images['train_images'][images['train_labels'] == 0].astype(float)
  assert one.std(axis=0).mean() > 20


def test_random_images_are_the_same_every_time():
  images, labels = synthetic.random_images(30, 8, classes=5)
  assert images.shape == (30, 8, 8, 3) and images.dtype == np.uint8 and len(np.unique(images)) == 256
  assert labels.dtype == np.int32 and set(labels) == set(range(5))
  np.testing.assert_array_equal(images, synthetic.random_images(30, 8)[0])
  assert not np.array_equal(images, synthetic.random_images(30, 8, seed=1)[0])
