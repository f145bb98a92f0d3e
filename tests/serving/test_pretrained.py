"""The networks in pretrained/: that each is whole, is small, and knows the classes of images that the test makes.

CIFAR-100 is not part of the project. So the images are made: from noise, until the dense network is sure of their
class. The split networks, fine-tuned since, take a part of them for the same; weights or classes in another order would
be right in 1 of 100. README.md has the command for all 10,000 test images of CIFAR-100, which the cards are about.
"""

import glob
import os
import re

import helpers
import numpy as np
import pytest
import tensorflow as tf

import cifar100
from serving import infer
from serving.model import Model
from splitnet.network import folding

FOLDERS = sorted(glob.glob(os.path.join(helpers.PROJECT, 'pretrained', '*')))
NAMES = [os.path.basename(folder) for folder in FOLDERS]
PER_CLASS, STEPS = 1, 25


@pytest.fixture(scope='module')
def models():
  return dict(zip(NAMES, map(Model, FOLDERS)))


@pytest.fixture(scope='module')
def made(models):
  """Images that the dense network takes for their class, wherever they are shifted and mirrored: (images, labels)."""
  network = folding.folded(models['wrn-16-1-dense'].network)
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(100), PER_CLASS)
  images = tf.Variable(tf.image.resize(rng.normal(128, 40, (len(labels), 8, 8, 3)).astype(np.float32), (32, 32)))

  @tf.function(autograph=False)
  def step(shift, mirrored):
    with tf.GradientTape() as tape:
      shown = tf.roll(images, shift, [1, 2])
      shown = tf.where(mirrored, shown[:, :, ::-1], shown)
      losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, network(cifar100.prepare(shown)))
      loss = tf.reduce_sum(losses) + 4e-6 * tf.reduce_sum(tf.image.total_variation(shown))
    gradient = tape.gradient(loss, images)
    gradient /= tf.sqrt(tf.reduce_mean(gradient**2, (1, 2, 3), keepdims=True)) + 1e-12
    images.assign(tf.clip_by_value(images - 6 * gradient, 0, 255))

  for _ in range(STEPS):
    step(tf.constant(rng.integers(-2, 3, 2), tf.int32), tf.constant(bool(rng.integers(2))))
  return np.round(images.numpy()).astype(np.uint8), labels


@pytest.mark.slow
@pytest.mark.parametrize('name, least', [('dense', 0.9), ('2-2-2', 0.15), ('2-4-4', 0.1)])
def test_they_know_the_classes_of_made_images(models, made, name, least):
  images, labels = made
  probabilities = np.asarray(models[f'wrn-16-1-{name}'](images))
  assert (probabilities.argmax(1) == labels).mean() >= least
  np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-4)


def test_they_are_small_and_say_what_they_are(models):
  assert NAMES == ['wrn-16-1-2-2-2', 'wrn-16-1-2-4-4', 'wrn-16-1-dense']
  assert sum(len(content or b'') for content in helpers.files(os.path.dirname(FOLDERS[0])).values()) < 4e6
  for name, model in models.items():
    assert len(model.class_names) == 100 and model.class_names[:2] == ['apple', 'aquarium_fish']
    assert {value.dtype for value in model.stored.values.values()} == {np.dtype(np.float32)}
    groups = model.groups
    assert len(groups or []) == {'wrn-16-1-2-2-2': 2, 'wrn-16-1-2-4-4': 4}.get(name, 0)
    with open(os.path.join(helpers.PROJECT, 'pretrained', name, 'MODEL_CARD.md'), encoding='utf-8') as f:
      card = f.read()
    assert float(re.search(r'accuracy, top 1 \| ([\d.]+) % of 10,000 images', card)[1]) > 40
    assert f'{name}\n' in card and 'Licence' in card and '/tmp' not in card
    assert 'cifar100, 45,000 training images' in card
    if groups:
      assert all(f'Group {g}: {", ".join(sorted(members))}.' in card for g, members in enumerate(groups))


def test_a_photograph_is_answered_by_one_of_them_unless_another_is_named(made, tmp_path, capsys):
  path = str(tmp_path / 'photo.png')
  tf.io.write_file(path, tf.io.encode_png(made[0][0]))
  code, out, err = helpers.call(infer, [path], capsys)
  assert (code, err) == (0, '') and path in out and len(out.splitlines()) == 6
