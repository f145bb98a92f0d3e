"""Writes residual networks as graphs; reads older checkpoints of them.

Sources: Kim et al., SplitNet (ICML 2017); Zagoruyko and Komodakis, Wide Residual Networks (2016); He et al., Deep
Residual Learning for Image Recognition (2016); the released code for names and the meaning of each flag.
"""

import dataclasses
import re

from splitnet.common.errors import UserError
from splitnet.network.settings import Settings, from_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class WideResNet(Settings):
  """Says what a wide residual network looks like."""

  network = 'wrn'
  split_depths = ('unit_2', 'unit_3', 'logits')

  k: int = 8  # width multiplier; the stages have 16k, 32k and 64k channels
  num_residual_units: int = 2  # per stage; the depth is 6 * num_residual_units + 4
  num_classes: int = 100
  bn_no_scale: bool = True  # keep the scale of the blocks' batch normalisations at 1
  image_size: int = 32

  def graph(self):
    """Returns the Graph: pre-activation blocks, as the released grouping network has."""
    b = self.builder(f'WRN-{6 * self.num_residual_units + 4}-{self.k}')
    streams = [
      b.border('split_p3', 16 * self.k, 'unit_2'),
      b.border('split_p2', 32 * self.k, 'unit_3'),
      b.border('split_p1', 64 * self.k, 'logits'),
    ]
    # With k = 1 unit_1_0 adds its input as it is, so both carry their channels in the same order.
    stem = streams[0] if self.k == 1 else b.shared('stem', 16)
    x = b.conv('init_conv', b.image, stem, 3, counted='none')
    for stage, (depth, stream) in enumerate(zip(('trunk', 'unit_2', 'unit_3'), streams)):
      b.at(depth)
      for unit in range(self.num_residual_units):
        name = f'unit_{stage + 1}_{unit}'
        stride, split = 2 if stage and not unit else 1, b.depths[depth] > 1

        def activated(x, part, name=name, split=split):
          return b.relu(b.batch_norm(f'{name}/{part}', x, scaled=not self.bn_no_scale), dropout=split)

        a = activated(x, 'bn_1')
        if unit:
          residual = x
        else:  # a stage's first block adds nothing of the stream below (released code)
          residual = b.conv(name + '/shortcut', a, stream, 1, stride) if x.units.size != stream.size else a
        hidden = b.inner(f'split_r{4 - stage}{unit + 1}', stream.size)
        a = activated(b.conv(name + '/conv_1', a, hidden, 3, stride), 'bn_2')
        x = b.add(name + '/sum', residual, b.conv(name + '/conv_2', a, stream, 3))
    x = b.mean(b.relu(b.batch_norm('unit_last/bn', x)))  # its scale is learned in any case
    b.at('logits')
    b.linear('logits/fc', x, b.inner('split_q1', self.num_classes), dropout=self.ngroups1 > 1)
    return b.graph()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet18(Settings):
  """Says what a ResNet-18 looks like.

  The paper's ResNet-18x2 has width 2, and groups at conv4, conv5 and fc.
  """

  network = 'resnet18'
  split_depths = ('conv2', 'conv3', 'conv4', 'conv5', 'fc')

  width: float = 1.0  # multiplies the channels, 64 to 512
  ngroups4: int = 1  # at conv3
  ngroups5: int = 1  # at conv2

  def graph(self):
    """Returns the Graph: post-activation blocks (released code).

    Shortcuts have no batch normalisation.
    """
    name = 'ResNet-18' if self.width == 1 else f'ResNet-18x{self.width:g}'
    b, stages = self.builder(name), self.split_depths[:-1]
    streams = [
      b.border(f'split_p{4 - i}', max(1, round(64 * 2**i * self.width)), above)
      for i, above in enumerate(self.split_depths[1:])
    ]
    # conv2's first block adds its input as it is, so conv1 writes the same units.
    x = b.conv('conv1', b.image, streams[0], 7, 2)
    x = b.max_pool(b.relu(b.batch_norm('conv1/bn', x)), 3, 2)
    for stage, (depth, stream) in enumerate(zip(stages, streams)):
      b.at(depth)
      split = b.depths[depth] > 1
      for unit in (1, 2):
        block, residual, stride = f'{depth}_{unit}', x, 2 if stage and unit == 1 else 1
        if stride == 2:
          residual = b.conv(f'{block}/shortcut', x, stream, 1, stride)
        hidden = b.inner(f'split_r{5 - stage}{unit}', stream.size)
        x = b.batch_norm(f'{block}/bn_1', b.conv(f'{block}/conv_1', x, hidden, 3, stride))
        # The block's end is not dropped from: the next one adds it as it is.
        x = b.conv(f'{block}/conv_2', b.relu(x, dropout=split), stream, 3)
        x = b.relu(b.add(f'{block}/sum', residual, b.batch_norm(f'{block}/bn_2', x)))
    x = b.mean(x)
    b.at('fc')
    b.linear('fc', x, b.inner('split_q1', self.num_classes), dropout=self.ngroups1 > 1)
    return b.graph()


def read_older(settings, values, path):
  """Returns the settings, a dict, and the Graph of a checkpoint without a graph.

  Raises UserError if it is no such network.

  Args:
    settings: the network's settings beside a checkpoint of this project's earlier versions; None for one of the
      released code.
    values: of the latter: dict from the released variable names to arrays.
    path: for the error's text.
  """
  if values is None:
    raise UserError(f"'{path}' is a Keras model, of which this program can do nothing: name a checkpoint of train.py")
  wide = {WideResNet.network: WideResNet}
  found = config_from_shapes(values, path) if settings is None else from_dict(wide, settings)
  return found.to_dict(), found.graph()


def config_from_shapes(values, path):
  """Reads the WideResNet of a released grouping network off the shapes of its variables.

  Raises UserError if they (arrays by the released names, of the checkpoint `path`) are not such a network's.
  """

  def groups(*names):
    return next((len(values[f'group/{n}/alpha']) for n in names if f'group/{n}/alpha' in values), 1)

  try:
    return WideResNet(
      k=values['unit_1_0/conv_1/kernel'].shape[-1] // 16,
      num_residual_units=1 + max(int(m.group(1)) for m in (re.match(r'unit_1_(\d+)/', n) for n in values) if m),
      num_classes=values['logits/fc/biases'].shape[0],
      ngroups1=groups('split_q1'),
      ngroups2=groups('split_p2', 'split_r21'),
      ngroups3=groups('split_p3', 'split_r31'),
    )
  except KeyError as e:
    raise UserError(f"'{path}' is no SplitNet checkpoint: it has no variable {e}") from e
