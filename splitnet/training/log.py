"""What a training run reports: train.log, metrics.jsonl, TensorBoard, pictures.

metrics.jsonl is what programs read: one JSON object per line, each with 'step' and 'kind'. After a resume the lines of
a step may stand there twice; the later one counts.

  kind 'train'   total, cross_entropy, l2, accuracy (means since the last line), learning_rate, images_per_second, and
                 if the stage has them distillation, overlap, weight_split, uniform, confidence (by assignment name),
                 group_sizes (lists by assignment name)
  kind 'val'     accuracy, cross_entropy, best
  kind 'groups'  hardened_parameters, parameters, hardened_flops, flops, dropped (see hardening.Dropped); or error
"""

import json
import os
import sys

import tensorflow as tf
from tqdm import tqdm

import utils
from splitnet.common.errors import UserError
from splitnet.network import counting, hardening
from splitnet.network.graph import Tree
from splitnet.reporting import plots

METRICS = 'metrics.jsonl'


def read_metrics(folder, kind=None):
  """Yields the objects in the metrics.jsonl of a run's folder, in order, if any.

  They are of one kind, or all. Raises UserError if a line is damaged, other than the last of a run that was killed
  while it wrote.
  """
  path = os.path.join(folder, METRICS)
  if not os.path.exists(path):
    return
  with open(path, 'rb') as f:
    for number, line in enumerate(f, 1):
      if not line.endswith(b'\n'):
        return
      try:
        metrics = json.loads(line)
        wanted = kind in (None, metrics['kind'])
      except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"line {number} of '{path}' is damaged ({e}): remove it") from e
      if wanted:
        yield metrics


def settings_table(settings):
  """Returns every setting on a line of its own, in the order of the names: text."""
  width = max(map(len, settings))
  return '\n'.join(f'{name:<{width}}  {value}' for name, value in sorted(settings.items()))


def size_table(counts):
  """Returns a network's parameters and FLOPs layer by layer, and in all: text.

  The totals are those of the paper's tables, and with everything.
  """
  lines = [f'{"layer":<28} {"parameters":>12} {"FLOPs per image":>18}']
  for count in counts:
    note = '' if any(count.counted) else '  (not counted)'
    lines.append(f'{count.name:<28} {count.parameters:>12,} {count.flops:>18,}{note}')
  (parameters, flops), (every_parameter, every_flop) = counting.total(counts), counting.total(counts, True)
  lines.append(
    f'{parameters:,} parameters, {flops:,} FLOPs per image (as the paper counts; with what it leaves '
    f'out {every_parameter:,} and {every_flop:,})'
  )
  return '\n'.join(lines)


def hardened_now(network):
  """Returns what the present assignments would harden into, and a line that says it.

  The first are the metrics of kind 'groups'; the line has the counts beside the dense ones, and what is lost.
  """
  try:
    tree = Tree(network.graph, hardening.present_groups(network))
  except UserError as e:
    return {'error': str(e)}, f'cannot be hardened now: {e}'
  parameters, flops = counting.total(counting.counts(tree))
  dense_parameters, dense_flops = counting.total(counting.counts(network))
  values = {name: variable.numpy() for name, variable in network.weights.items()}
  dropped = hardening.dropped_weights(network.graph, tree.groups, values)
  metrics = dict(
    hardened_parameters=parameters, parameters=dense_parameters, hardened_flops=flops, flops=dense_flops,
    dropped=dropped._asdict(),
  )  # fmt: skip
  return metrics, (
    f'hardened now: {parameters:,} of {dense_parameters:,} ({100 * parameters / dense_parameters:.1f} %) parameters, '
    f'{flops:,} of {dense_flops:,} ({100 * flops / dense_flops:.1f} %) FLOPs per image; drops '
    + hardening.describe_dropped(dropped)
  )


def assignment_states(network):
  """Returns dict from assignment name to (mean confidence, group sizes int array)."""
  states = {}
  for name, q in network.soft_assignments().items():
    sizes = utils.group_sizes(utils.hard_groups(q), len(q))
    states[name] = (float(utils.confidence(q)), sizes)
  return states


def least_confidence(network):
  """Returns the mean confidence of the least decided assignment, in (0, 1]."""
  return min(confidence for confidence, _ in assignment_states(network).values())


class Log:
  """Writes a run's train.log, metrics.jsonl, TensorBoard events and pictures."""

  def __init__(self, folder):
    self._folder = folder
    self._writer = tf.summary.create_file_writer(os.path.join(folder, 'summaries'))
    self._text = open(os.path.join(folder, 'train.log'), 'a')
    self._metrics = open(os.path.join(folder, METRICS), 'ab+')
    self._metrics.seek(0)
    # What a killed run left of its last line.
    self._metrics.truncate(self._metrics.read().rfind(b'\n') + 1)

  def line(self, text):
    """Prints a line above the progress bar and keeps it in train.log."""
    tqdm.write(text)
    sys.stdout.flush()  # a pipe would hold it back for hours
    self._text.write(text + '\n')
    self._text.flush()

  def _record(self, step, kind, metrics):
    """Appends a line to metrics.jsonl."""
    self._metrics.write(json.dumps({'step': step, 'kind': kind, **metrics}).encode() + b'\n')
    self._metrics.flush()

  def _scalars(self, step, values):
    with self._writer.as_default():
      for name, value in values.items():
        tf.summary.scalar(name, value, step)
    self._writer.flush()

  def train(self, step, terms, rate, speed, network):
    """Reports the steps since the last line: means of the objective's terms, images/s."""
    text = (
      f'step {step}: loss {terms["total"]:.4f}, cross-entropy {terms["cross_entropy"]:.4f}, accuracy '
      f'{terms["accuracy"]:.4f}, lr {rate:.3g}, {speed:.0f} images/s'
    )
    if 'distillation' in terms:
      text += f', distillation {terms["distillation"]:.4f}'
    metrics = {**terms, 'learning_rate': rate, 'images_per_second': speed}
    scalars = {f'train/{name}': value for name, value in metrics.items()}
    if network.with_assignments:
      states = assignment_states(network)
      metrics['confidence'] = {name: confidence for name, (confidence, _) in states.items()}
      metrics['group_sizes'] = {name: sizes.tolist() for name, (_, sizes) in states.items()}
      text += (
        f'; overlap {terms["overlap"]:.3f}, weight split {terms["weight_split"]:.3f}, uniform {terms["uniform"]:.3f}, '
        f'least confidence {min(metrics["confidence"].values()):.3f}'
      )
      for name, (confidence, sizes) in states.items():
        scalars[f'confidence/{name}'] = confidence
        scalars.update({f'group_size/{name}_{g}': float(size) for g, size in enumerate(sizes)})
    self.line(text)
    self._record(step, 'train', metrics)
    self._scalars(step, scalars)

  def validation(self, step, accuracy, cross_entropy, best):
    """Reports a validation: accuracy, cross-entropy and the best accuracy so far."""
    self.line(
      f'step {step}: validation accuracy {100 * accuracy:.2f} %, cross-entropy {cross_entropy:.4f}, best '
      f'{100 * best:.2f} %'
    )
    self._record(step, 'val', {'accuracy': accuracy, 'cross_entropy': cross_entropy, 'best': best})
    self._scalars(step, {'val/accuracy': accuracy, 'val/cross_entropy': cross_entropy})

  def groups(self, step, network):
    """Reports the groups of a network with assignments, and what hardening gives now."""
    if not network.with_assignments:
      return
    images = plots.ordered_weights(network)
    with self._writer.as_default():
      for name, q in network.soft_assignments().items():
        tf.summary.histogram(f'assignment/{name}', q, step)
      for layer in network.split_layers():
        tf.summary.histogram(f'weights/{layer.name}', layer.kernel, step)
      for name, (image, _, _) in images.items():
        tf.summary.image(f'ordered_by_group/{name}', image[None, :, :, None] / max(image.max(), 1e-20), step)
    self._writer.flush()
    path = os.path.join(self._folder, 'pictures', f'weights-{step:06d}.png')
    plots.draw_weights(images, f'Weights ordered by group, step {step}', path)
    for name, (confidence, sizes) in assignment_states(network).items():
      self.line(f'  {name}: group sizes {sizes.tolist()}, confidence {confidence:.3f}')
    metrics, text = hardened_now(network)
    self.line('  ' + text)
    self._record(step, 'groups', metrics)


class NoLog:
  """In place of a Log if another process keeps it."""

  def line(self, *arguments):
    """Reports nothing."""

  train = validation = groups = line
