"""What a training run tells: log lines, TensorBoard summaries, and pictures of the weights ordered by group."""

import os
import sys

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import resnet_split
import utils
from splitnet.common.errors import UserError
from splitnet.network import architecture
from splitnet.reporting import plots


def size_lines(network):
  """A network's parameters and FLOPs layer by layer, and in all as the paper's tables count them: list of lines."""
  lines = ['%-28s %12s %18s' % ('layer', 'parameters', 'FLOPs per image')]
  for count in network.counts:
    line = '%-28s %12s %18s' % (count.name, '{:,}'.format(count.parameters), '{:,}'.format(count.flops))
    lines.append(line if count.counted else line + '  (not counted)')
  parameters, flops = utils.total_count(network.counts)
  lines.append(
    '%s parameters, %s FLOPs per image (without init_conv and batch norms, as in the paper; with them %s and %s)'
    % tuple(map('{:,}'.format, (parameters, flops, *utils.total_count(network.counts, everything=True))))
  )
  return lines


def hardened_line(network):
  """What the present assignments would harden into, in one line: its counts beside the dense ones, and what is lost."""
  try:
    hardened = utils.total_count(resnet_split.hardened_counts(network))
  except UserError as e:
    return 'cannot be hardened now: %s' % e
  dense = utils.total_count(network.counts)
  shares = ['{:,} of {:,} ({:.1f} %)'.format(part, whole, 100 * part / whole) for part, whole in zip(hardened, dense)]
  values = {name: variable.numpy() for name, variable in network.weights.items()}
  dropped = architecture.dropped_weights(network.plan, resnet_split.present_groups(network), values)
  return 'hardened now: %s parameters, %s FLOPs per image; drops %s' % (*shares, architecture.describe_dropped(dropped))


class Log:
  """A run's train.log, its TensorBoard events and its pictures, all in its folder."""

  def __init__(self, folder):
    self._folder = folder
    self._writer = tf.summary.create_file_writer(os.path.join(folder, 'summaries'))
    self._file = open(os.path.join(folder, 'train.log'), 'a')
    self.bar = None
    self.least_confidence = 0.0

  def line(self, text):
    """Prints a line above the progress bar and keeps it in train.log."""
    tqdm.write(text)
    sys.stdout.flush()  # a pipe would hold it back for hours
    self._file.write(text + '\n')
    self._file.flush()

  def scalars(self, step, values):
    """Writes TensorBoard scalars."""
    with self._writer.as_default():
      for name, value in values.items():
        tf.summary.scalar(name, value, step)
    self._writer.flush()

  def progress(self, step, terms, rate, speed, network):
    """The log line and scalars of the steps since the last one.

    Args:
      step: int; terms: dict of means of the objective's terms; rate: learning rate; speed: images/s.
      network: a resnet_split.Network.
    """
    text = 'step %d: loss %.4f, cross-entropy %.4f, accuracy %.4f, lr %.3g, %.0f images/s' % (
      step, terms['total'], terms['cross_entropy'], terms['accuracy'], rate, speed,
    )  # fmt: skip
    if 'distillation' in terms:
      text += ', distillation %.4f' % terms['distillation']
    scalars = {'train/' + name: value for name, value in terms.items()}
    scalars.update({'train/learning_rate': rate, 'train/images_per_second': speed})
    if network.with_assignments:
      states = assignment_states(network)
      self.least_confidence = min(confidence for confidence, _ in states.values())
      text += '; overlap %.3f, weight split %.3f, uniform %.3f, least confidence %.3f' % (
        terms['overlap'], terms['weight_split'], terms['uniform'], self.least_confidence,
      )  # fmt: skip
      for name, (confidence, sizes) in states.items():
        scalars['confidence/' + name] = confidence
        scalars.update({'group_size/%s_%d' % (name, g): float(size) for g, size in enumerate(sizes)})
    self.line(text)
    self.scalars(step, scalars)

  def groups(self, step, network):
    """Histograms of the assignments and weights, and pictures of the split layers' weights ordered by group."""
    if not network.with_assignments:
      return
    images = plots.ordered_weights(network)
    with self._writer.as_default():
      for name, q in network.soft_assignments().items():
        tf.summary.histogram('assignment/' + name, q, step)
      for layer in network.split_layers():
        tf.summary.histogram('weights/' + layer.name, layer.kernel, step)
      for name, (image, _, _) in images.items():
        tf.summary.image('ordered_by_group/' + name, image[None, :, :, None] / max(image.max(), 1e-20), step)
    self._writer.flush()
    path = os.path.join(self._folder, 'pictures', 'weights-%06d.png' % step)
    plots.draw_weights(images, 'Weights ordered by group, step %d' % step, path)
    for name, (confidence, sizes) in assignment_states(network).items():
      self.line('  %s: group sizes %s, confidence %.3f' % (name, sizes.tolist(), confidence))
    self.line('  ' + hardened_line(network))


class Silence:
  """In place of a Log where another process keeps it."""

  bar, least_confidence = None, 0.0

  def line(self, text):
    pass

  def scalars(self, step, values):
    pass

  def progress(self, step, terms, rate, speed, network):
    pass

  def groups(self, step, network):
    pass


def least_confidence(network):
  """The mean confidence of the assignment that is the least decided, in (0, 1]."""
  return min(confidence for confidence, _ in assignment_states(network).values())


def assignment_states(network):
  """Dict from assignment name to (mean confidence, group sizes int array)."""
  states = {}
  for name, q in network.soft_assignments().items():
    q = q.numpy()
    states[name] = (float(np.mean(q.max(0))), utils.group_sizes(utils.hard_groups(q), len(q)))
  return states
