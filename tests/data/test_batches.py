"""Tests that every epoch is a permutation, and resumed in the same order."""

import numpy as np
import pytest
import tensorflow as tf

from splitnet.data.batches import WHOLE, Images, Part


def numbered(size):
  """Makes Images whose images and labels are their own index."""
  index = np.arange(size)
  return Images(np.broadcast_to(index[:, None, None, None], (size, 32, 32, 3)).astype(np.uint8), index)


def labels_of(data, batch_size, seed, count, first_step=0):
  """Returns the labels of the next `count` training batches: list of int arrays."""
  batches = data.training_batches(batch_size, seed, first_step)
  return [labels.numpy() for _, labels, _ in batches.take(count)]


# --- training batches -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('size, batch_size', [(30, 10), (30, 7), (30, 30), (7, 5)])
def test_every_epoch_is_a_permutation(size, batch_size):
  epochs = 4
  stream = np.concatenate(labels_of(numbered(size), batch_size, 0, -(-epochs * size // batch_size)))
  orders = [stream[e * size : (e + 1) * size] for e in range(epochs)]
  for order in orders:
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
  assert len({order.tobytes() for order in orders}) == epochs, 'two epochs have the same order'
  assert not any(np.array_equal(order, np.arange(size)) for order in orders)


def test_batches_are_whole_and_numbered_and_images_go_with_their_labels():
  for expected_step, (images, labels, step) in enumerate(numbered(17).training_batches(5, 0).take(8)):
    assert images.shape == (5, 32, 32, 3) and images.dtype == tf.uint8
    assert int(step) == expected_step
    np.testing.assert_array_equal(images[:, 0, 0, 0].numpy(), labels.numpy())


def test_seeds_shuffle_differently_and_the_same_seed_the_same():
  data = numbered(50)
  first, again, other = (np.concatenate(labels_of(data, 10, seed, 5)) for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


@pytest.mark.parametrize('first_step', [1, 3, 4, 5, 13])
@pytest.mark.parametrize('size, batch_size', [(20, 5), (17, 5), (5, 5)])
def test_a_later_first_step_gives_the_batches_of_an_uninterrupted_run(size, batch_size, first_step):
  whole = labels_of(numbered(size), batch_size, 3, first_step + 6)
  rest = numbered(size).training_batches(batch_size, 3, first_step).take(6)
  for (_, labels, step), expected_step in zip(rest, range(first_step, first_step + 6)):
    assert int(step) == expected_step
    np.testing.assert_array_equal(labels.numpy(), whole[expected_step])


# --- evaluation batches -----------------------------------------------------------------------------------------


def test_evaluation_batches_are_in_order_and_the_last_is_smaller():
  batches = [(images.numpy(), labels.numpy()) for images, labels in numbered(23).evaluation_batches(10)]
  assert [len(labels) for _, labels in batches] == [10, 10, 3]
  np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), np.arange(23))
  np.testing.assert_array_equal(np.concatenate([images for images, _ in batches])[:, 3, 4, 1], np.arange(23))


# --- workers and digests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('batch_size, replicas', [(10, 3), (4, 7), (1, 2)])
def test_the_parts_of_all_workers_are_the_batch(batch_size, replicas):
  rows = [Part(i, i + 1, replicas).rows(batch_size) for i in range(replicas)]
  assert [first for first, _ in rows] == [0, *(last for _, last in rows[:-1])] and rows[-1][1] == batch_size
  assert max(last - first for first, last in rows) - min(last - first for first, last in rows) <= 1
  assert WHOLE.rows(batch_size) == (0, batch_size)


def test_a_worker_gets_its_images_and_all_labels():
  data, part = numbered(17), Part(1, 3, 4)
  begin, end = part.rows(5)
  whole = data.training_batches(5, 1, 2).take(5)
  for (images, labels, step), other in zip(data.training_batches(5, 1, 2, part), whole):
    np.testing.assert_array_equal(images, other[0][begin:end])
    np.testing.assert_array_equal(labels, other[1])
    assert int(step) == int(other[2])
  for (images, labels), other in zip(data.evaluation_batches(5, part), data.evaluation_batches(5)):
    np.testing.assert_array_equal(images, other[0][slice(*part.rows(len(labels)))])
    np.testing.assert_array_equal(labels, other[1])


def test_a_digest_tells_images_and_labels():
  digests = {numbered(5).digest(), numbered(6).digest(), Images(numbered(5).images, np.arange(5)[::-1]).digest()}
  assert len(digests) == 3 and numbered(5).digest() in digests
