"""alexnet_split.py: the paper's counts, the geometry, and another implementation of the same network."""

import numpy as np
import pytest
import tensorflow as tf
from graphs import even_groups, images
from networks import assert_close, scramble

from alexnet_split import AlexNet
from splitnet.common.errors import UserError
from splitnet.network import counting, hardening
from splitnet.network import network as networks
from splitnet.network.graph import Tree

DENSE = 62_367_776, 2_278_248_448


def make(split, **more):
  return AlexNet.of_split(split, **more)


def counted(split, **more):
  graph = make(split, **more).graph()
  return counting.total(counting.counts(Tree(graph, even_groups(graph))))


def test_counts_of_the_dense_network():
  assert counted('1-1-1') == DENSE
  graph = make('1-1-1').graph()
  biases = sum(layer.units.size for layer in graph.weighted)
  assert counting.total(counting.counts(Tree(graph)), everything=True)[0] == DENSE[0] + biases == 62_378_344


def test_slightly_uneven_groups_give_the_papers_digits():
  graph = make('1-2-5').graph()
  groups = even_groups(graph)
  groups['split_p2'] = np.repeat([0, 1], [2036, 2060])
  parameters, _ = counting.total(counting.counts(Tree(graph, groups)))
  assert f'{parameters / 1e6:.2f} {100 - 100 * parameters / DENSE[0]:.2f}' == '50.69 18.72'


def test_geometry():
  graph = make('2-4-8').graph()
  sizes = {layer.name: layer.size for layer in graph.layers}
  assert [sizes[name] for name in ('conv1', 'conv2', 'conv3', 'conv5', 'conv5/relu/pool', 'fc6')] == [
    56, 27, 13, 13, 6, 1
  ]  # fmt: skip
  assert graph.by_name['fc6'].kernel == 6 and graph.split == '2-4-8'
  assert {name: units.groups for name, units in graph.units.items() if units.groups > 1} == {
    'split_p3': 2, 'split_p2': 4, 'split_p1': 8, 'split_q1': 8
  }  # fmt: skip


def test_a_channels_positions_share_a_group():
  tree = Tree(make('2-2-2-2-2').graph(), even_groups(make('2-2-2-2-2').graph()))
  shapes = {name: v.shape for name, v in networks.create(tree.graph, tree.groups).weights.items()}
  assert shapes['branch_1/fc6/kernel'] == [6, 6, 128, 2048] and shapes['branch_0/fc8/weights'] == [2048, 500]


@pytest.mark.parametrize('size, layer', [(8, 'conv1/relu/lrn/pool'), (32, 'conv5/relu/pool'), (56, 'conv5/relu/pool')])
def test_an_image_that_is_too_small_is_one_sentence(size, layer):
  with pytest.raises(UserError, match=f'images of {size} x {size} pixels are too small for AlexNet: {layer}'):
    make('1-1-2', image_size=size).graph()
  make('1-1-2', image_size=57).graph()


@pytest.mark.parametrize('given, words', [
  (dict(width=0), ['--width is 0', 'above 0']),
  (dict(ngroups3=2, ngroups2=3, ngroups1=2), ['--ngroups2 is 3', '--ngroups1', 'only 2', 'fc7']),
  (dict(ngroups5=3, ngroups4=2), ['--groups 3-2-2-2-2 at conv4 is 3', 'conv5', 'only 2']),
  (dict(ngroups1=11, num_classes=10), ['--ngroups1 is 11', '10 classes']),
])  # fmt: skip
def test_settings_that_cannot_be_are_one_sentence(given, words):
  with pytest.raises(UserError) as error:
    AlexNet(**given)
  assert all(word in str(error.value) for word in words), error.value


def test_more_groups_than_units_is_one_sentence():
  with pytest.raises(UserError, match='17 groups were asked for at fc6, but conv5 has only 16 units'):
    make('17-20-20', width=1 / 16).graph()


# --- another implementation -----------------------------------------------------------------------------------------


def keras_alexnet(graph, classes, lrn):
  """AlexNet in Keras's layers: fully connected ones on the flattened map."""
  layers = tf.keras.layers

  def normalised(x):
    squares = tf.pad(tf.square(x), [[0, 0]] * 3 + [[2, 2]])
    sums = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
    return x / (1.0 + 2e-5 * sums) ** 0.75

  x = image = layers.Input([graph.image_size] * 2 + [3])
  for i, (channels, kernel, stride) in enumerate([(96, 11, 4), (256, 5, 1), (384, 3, 1), (384, 3, 1), (256, 3, 1)]):
    x = layers.Conv2D(channels, kernel, stride, padding='same', activation='relu', name=f'conv{i + 1}')(x)
    if i < 2 and lrn:
      x = layers.Lambda(normalised)(x)
    if i in (0, 1, 4):
      x = layers.MaxPooling2D(3, 2)(x)
  x = layers.Flatten()(x)
  for name in ('fc6', 'fc7'):
    x = layers.Dense(4096, activation='relu', name=name)(x)
  return tf.keras.Model(image, layers.Dense(classes, name='fc8')(x))


@pytest.mark.parametrize('lrn', [True, False])
def test_it_agrees_with_kerass_layers(lrn):
  graph = AlexNet(num_classes=10, image_size=128, lrn=lrn).dense().graph()
  network = scramble(networks.create(graph))
  model = keras_alexnet(graph, 10, lrn)
  for layer in graph.weighted:
    kernel, biases = (network.weights[f'{layer.name}/{name}'].numpy() for name in layer.variables)
    theirs = model.get_layer(layer.name)
    theirs.set_weights([kernel.reshape(theirs.kernel.shape), biases])
  x = 100 * images(graph, 2)  # so that the normalisation, of sums of squares times 2e-5, shows
  assert_close(network(x), model(x), 1e-4)
  assert (np.abs(network(x) - networks.create(make('1-1-1', num_classes=10, image_size=128, lrn=not lrn).graph(),
          values=network.weights)(x)).max() > 0.01 * np.abs(network(x)).max())  # fmt: skip


def test_a_tree_from_conv4_on_is_two_networks_of_keras_beside_each_other():
  # The whole path of one branch by hand, with its own channels and classes.
  graph = make('2-2-2-2-2', width=1 / 16, num_classes=12, image_size=96, lrn=False).graph()
  tree = hardening.harden(scramble(networks.create(graph, with_assignments=True)))
  x = trunk = tree.part({'trunk': [0]})(images(graph, 2))
  logits = np.zeros((2, 12), np.float32)
  for branch in (0, 1):
    own = {name: tree.weights[f'branch_{branch}/{name}'] for name in (
      f'{layer.name}/{variable}' for layer in graph.split_layers for variable in layer.variables)}  # fmt: skip
    first = tree.reads('conv4', branch)[1]
    x = trunk[..., first]
    for name in ('conv4', 'conv5'):
      x = tf.nn.relu(tf.nn.conv2d(x, own[f'{name}/kernel'], 1, 'SAME') + own[f'{name}/biases'])
    x = tf.reshape(tf.nn.max_pool2d(x, 3, 2, 'VALID'), [2, -1])
    for name in ('fc6', 'fc7'):
      x = tf.nn.relu(x @ tf.reshape(own[f'{name}/kernel'], [x.shape[1], -1]) + own[f'{name}/biases'])
    classes = np.flatnonzero(tree.groups['split_q1'] == branch)
    logits[:, classes] = x @ own['fc8/weights'] + own['fc8/biases']
  assert_close(tree(images(graph, 2)), logits)
