"""Writes AlexNet as a graph: one tower, fully connected layers that may be split.

Sources: Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural Networks (2012); Kim
et al., SplitNet (ICML 2017), whose counts (Table 3) fix the geometry.
"""

import dataclasses

from splitnet.network.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlexNet(Settings):
  """Says what an AlexNet looks like.

  The paper's 2-4-8 are groups at fc6, fc7, fc8; its 2x5 is 2-2-2-2-2 from conv4 on.
  """

  network = 'alexnet'
  split_depths = ('conv4', 'conv5', 'fc6', 'fc7', 'fc8')

  width: float = 1.0  # multiplies all widths, 96 to 4096
  lrn: bool = True  # whether local response normalisations follow conv1 and conv2
  ngroups4: int = 1  # at conv5
  ngroups5: int = 1  # at conv4

  def graph(self):
    """Returns the Graph.

    fc6 is a convolution over its whole window (6 x 6 of 224 x 224 images), so nothing is flattened and a channel's
    positions share one group. As in the paper's tables biases are not counted.
    """
    b = self.builder('AlexNet' if self.width == 1 else f'AlexNet x{self.width:g}')

    def size(units):
      return max(1, round(units * self.width))

    def layer(name, x, units, kernel, stride=1, padding='SAME', dropout=False):
      conv = b.conv(name, x, units, kernel, stride, padding, bias=True, counted='weights')
      return b.relu(conv, dropout=dropout)

    def pooled(x, normalised=False):
      return b.max_pool(b.lrn(x) if normalised else x, 3, 2, 'VALID')

    x = pooled(layer('conv1', b.image, b.shared('conv1', size(96)), 11, 4), self.lrn)
    x = pooled(layer('conv2', x, b.shared('conv2', size(256)), 5), self.lrn)
    x = layer('conv3', x, b.border('split_p5', size(384), 'conv4'), 3)
    b.at('conv4')
    x = layer('conv4', x, b.border('split_p4', size(384), 'conv5'), 3)
    b.at('conv5')
    x = pooled(layer('conv5', x, b.border('split_p3', size(256), 'fc6'), 3))
    b.at('fc6')
    x = layer('fc6', x, b.border('split_p2', size(4096), 'fc7'), x.size, padding='VALID', dropout=True)
    b.at('fc7')
    x = b.mean(layer('fc7', x, b.border('split_p1', size(4096), 'fc8'), 1, dropout=True))  # of one pixel
    b.at('fc8')
    b.linear('fc8', x, b.inner('split_q1', self.num_classes), counted='weights')
    return b.graph()
