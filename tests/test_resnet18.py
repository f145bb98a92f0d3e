"""ResNet-18: the paper's counts, the geometry, and another implementation of the same network."""

import numpy as np
import pytest
import tensorflow as tf
from graphs import even_groups, images, tiny
from networks import assert_close, scramble

from paper.published import TABLE_4
from resnet_split import ResNet18
from splitnet.common.errors import UserError
from splitnet.network import counting
from splitnet.network import network as networks
from splitnet.network.graph import Tree

DENSE = 45_673_832, 14_038_484_944


def counted(split, branch_input='group', groups=None):
  graph = ResNet18.of_split(split, width=2, branch_input=branch_input).graph()
  return counting.total(counting.counts(Tree(graph, {**even_groups(graph), **(groups or {})})))


def test_counts_of_the_dense_network():
  assert counted('1-1-1') == DENSE


def test_both_sides_are_cut_where_it_branches_as_the_paper_counts():
  # Read whole, as the paper's counts for CIFAR-100 have it, the parameters would be far from Table 4's.
  assert [round(counted(split, 'all')[0] / 1e6, 2) for split in ('1-2-2', '2-2-2')] == [31.01, 24.85]


def test_slightly_uneven_groups_give_the_papers_digits():
  uneven = {name: np.repeat([0, 1], [522, 502]) for name in ('split_p1', 'split_r21', 'split_r22')}
  parameters, flops = counted('1-2-2', groups=uneven)
  found = [parameters / 1e6, 100 - 100 * parameters / DENSE[0], flops / 1e9, 100 - 100 * flops / DENSE[1]]
  assert [f'{value:.2f}' for value in found] == list(TABLE_4['1-2-2'][:4])


def test_geometry_and_names_of_assignments():
  graph = ResNet18(ngroups3=2, ngroups2=4, ngroups1=4).graph()
  sizes = {layer.block: layer.size for layer in graph.layers}
  assert [sizes[block] for block in ('conv1', 'conv2_1', 'conv3_1', 'conv4_1', 'conv5_2')] == [56, 56, 28, 14, 1]
  assert {name: (units.size, units.groups) for name, units in graph.units.items() if units.groups > 1} == {
    'split_p3': (128, 2), 'split_r31': (256, 2), 'split_r32': (256, 2), 'split_p2': (256, 4),
    'split_r21': (512, 4), 'split_r22': (512, 4), 'split_p1': (512, 4), 'split_q1': (1000, 4),
  }  # fmt: skip
  shortcuts = [layer.name for layer in graph.layers if layer.name.endswith('shortcut')]
  assert shortcuts == ['conv3_1/shortcut', 'conv4_1/shortcut', 'conv5_1/shortcut']
  names = [ResNet18(width=width).graph().name for width in (1, 2, 0.25)]
  assert names == ['ResNet-18', 'ResNet-18x2', 'ResNet-18x0.25']


@pytest.mark.parametrize('size', [1, 31, 224])
def test_it_takes_images_of_any_size(size):
  graph = tiny(ResNet18, '1-2-2', image_size=size).graph()
  assert networks.create(graph)(images(graph, 1)).shape == [1, 12]


def test_more_groups_than_channels_is_one_sentence():
  with pytest.raises(UserError, match='9 groups were asked for at conv3, but conv1 has only 8 units'):
    tiny(ResNet18, '9-9-9-9').graph()


def keras_resnet18(graph, classes):
  """ResNet-18 in Keras's layers, with shortcuts as in the released code: convolutions alone."""
  layers = tf.keras.layers

  def norm(x, name):
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name.replace('/', '.'))(x)

  def conv(x, channels, kernel, stride, name):
    return layers.Conv2D(channels, kernel, stride, padding='same', use_bias=False, name=name.replace('/', '.'))(x)

  image = layers.Input([graph.image_size] * 2 + [3])
  x = layers.ReLU()(norm(conv(image, 64, 7, 2, 'conv1'), 'conv1/bn'))
  x = layers.MaxPooling2D(3, 2, padding='same')(x)
  for stage, channels in ((2, 64), (3, 128), (4, 256), (5, 512)):
    for unit in (1, 2):
      name, stride = f'conv{stage}_{unit}', 2 if stage > 2 and unit == 1 else 1
      shortcut = conv(x, channels, 1, stride, f'{name}/shortcut') if stride == 2 else x
      h = layers.ReLU()(norm(conv(x, channels, 3, stride, f'{name}/conv_1'), f'{name}/bn_1'))
      h = norm(conv(h, channels, 3, 1, f'{name}/conv_2'), f'{name}/bn_2')
      x = layers.ReLU()(layers.Add()([shortcut, h]))
  return tf.keras.Model(image, layers.Dense(classes, name='fc')(layers.GlobalAveragePooling2D()(x)))


def test_it_agrees_with_kerass_layers_in_inference_and_training():
  graph = ResNet18(num_classes=10, image_size=64).dense().graph()
  network, model = scramble(networks.create(graph)), keras_resnet18(graph, 10)
  order = {'batch_norm': ('gamma', 'beta', 'mu', 'sigma')}  # Keras's
  learning = [layer for layer in graph.layers if layer.variables]

  def ours(layer):
    return [network.weights[f'{layer.name}/{name}'].numpy() for name in order.get(layer.op, layer.variables)]

  def theirs(layer):
    return model.get_layer(layer.name.replace('/', '.'))

  assert len(learning) == sum(bool(layer.weights) for layer in model.layers)
  for layer in learning:
    theirs(layer).set_weights(ours(layer))
  x = images(graph)
  assert_close(network(x), model(x), 1e-4)
  assert_close(network(x, training=True), model(x, training=True), 1e-4)
  for layer in learning:
    for one, other in zip(ours(layer), theirs(layer).get_weights()):
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max(), err_msg=layer.name)
