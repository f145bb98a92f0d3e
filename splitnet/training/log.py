"""What a training run reports: train.log, metrics.jsonl, TensorBoard, pictures.

metrics.jsonl is what programs read: one JSON object per line, each with 'step' and 'kind'. A run that is resumed from a
checkpoint takes back what was reported of later steps, so that no step stands anywhere twice.

  kind 'train'   total, cross_entropy, l2, accuracy (means since the last line), learning_rate, images_per_second, and
                 if the stage has them distillation, overlap, weight_split, uniform, confidence (by assignment name),
                 group_sizes (lists by assignment name)
  kind 'val'     accuracy, cross_entropy, best
  kind 'groups'  hardened_parameters, parameters, hardened_flops, flops, dropped (see hardening.Dropped); or error
"""

import contextlib
import itertools
import json
import os
import re
import struct
import sys
from typing import Annotated, Literal

import numpy as np
import tensorflow as tf
from pydantic import Field
from tensorboard.plugins.hparams import api as hparams
from tqdm import tqdm

import utils
from splitnet.common import schema
from splitnet.common.errors import UserError
from splitnet.common.files import whole_file
from splitnet.network import counting, hardening
from splitnet.network.graph import Tree
from splitnet.parallel import devices
from splitnet.reporting import plots
from splitnet.reporting.names import network_name, unit_names, with_code_name

METRICS = 'metrics.jsonl'
TEXT = 'train.log'
SUMMARIES = 'summaries'


@schema.record
class Step(schema.TypedDict):
  """What every line of metrics.jsonl holds."""

  step: schema.Count
  kind: Literal['val', 'groups']


@schema.record
class TrainingStep(schema.TypedDict):
  """Of a line of kind 'train' what others read."""

  step: schema.Count
  kind: Literal['train']
  total: float
  cross_entropy: schema.NotRequired[float]
  accuracy: schema.Share
  images_per_second: Annotated[float, Field(ge=0)]
  confidence: schema.NotRequired[dict[schema.Text, schema.Share]]


Metrics = Annotated[Step | TrainingStep, Field(discriminator='kind')]


def read_metrics(folder, kind=None):
  """Yields the objects in the metrics.jsonl of a run's folder, in order, if any.

  They are of one kind, or all. Raises UserError if a line is damaged, other than the last of a run that was killed
  while it wrote.
  """
  path = os.path.join(folder, METRICS)
  try:
    with contextlib.suppress(FileNotFoundError), schema.open_file(path) as f:
      for number in itertools.count(1):  # noqa: B007 - the sentence below has it
        line = f.readline(schema.MAX_BYTES)
        if not line.endswith(b'\n'):
          return
        metrics = schema.parse_json(line, Metrics)
        if kind in (None, metrics['kind']):
          yield metrics
  except OSError as e:
    raise UserError(f"'{path}' cannot be read ({e.strerror}): remove it") from e
  except ValueError as e:
    raise UserError(f"line {number} of '{path}' is damaged ({e}): remove it") from e


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


def groups_markdown(groups, names):
  """Returns a Markdown table of the classes of each group, by superclass if there are any."""
  lines = ['| group | classes |', '|---|---|']
  for g in range(groups.max() + 1):
    members = np.flatnonzero(groups == g)
    inside = ', '.join(names.fine[c] for c in members)
    if names.coarse:
      of = {s: [names.fine[c] for c in members if names.fine_to_coarse[c] == s] for s in range(len(names.coarse))}
      inside = '; '.join(f'**{names.coarse[s]}**: {", ".join(classes)}' for s, classes in of.items() if classes)
    lines.append(f'| {g} ({len(members)}) | {inside} |')
  return '\n'.join(lines)


def _rewrite(path, kept):
  """Writes what is kept of a file, bytes, unless that is all of it."""
  if os.path.getsize(path) != len(kept):
    with whole_file(path, 'wb') as f:
      f.write(kept)


def _line_steps(lines):
  """Yields the step of each line of train.log; those of a line that begins with a blank is the line's before it."""
  step = -1
  for line in lines:
    if not line.startswith(b' '):
      match = re.match(rb'step (\d+): ', line)
      step = int(match.group(1)) if match else -1
    yield step


def _events(content):
  """Yields (bytes, step) of each whole event in the content of a TensorBoard file; step -1: of none.

  Each has 8 bytes of length, 4 of checksum, the event, and 4 of checksum.
  """
  start = 0
  while start + 12 <= len(content):
    (length,) = struct.unpack_from('<Q', content, start)
    end = start + length + 16
    if end > len(content):
      return
    event = tf.compat.v1.Event.FromString(content[start + 12 : end - 4])
    yield content[start:end], event.step if event.HasField('summary') else -1
    start = end


def cut_back(folder, step):
  """Removes what a run has reported of steps after the one that it is resumed at.

  Args:
    folder: the run's; step: int; -1 if it starts anew.

  Raises:
    UserError: if a file is damaged.
  """
  path = os.path.join(folder, TEXT)
  if os.path.exists(path):
    with open(path, 'rb') as f:
      lines = f.read().splitlines(keepends=True)
    lines = [line for line, of in zip(lines, _line_steps(lines)) if of <= step and line.endswith(b'\n')]
    lines = lines if step >= 0 else []  # not even what was said of a run's start
    _rewrite(path, b''.join(lines))
  path = os.path.join(folder, METRICS)
  if os.path.exists(path):
    kept = [metrics for metrics in read_metrics(folder) if metrics['step'] <= step]
    _rewrite(path, b''.join(json.dumps(metrics).encode() + b'\n' for metrics in kept))
  summaries = os.path.join(folder, SUMMARIES)
  for name in os.listdir(summaries) if os.path.isdir(summaries) else ():
    path = os.path.join(summaries, name)
    if '.tfevents.' in name and os.path.isfile(path):
      with open(path, 'rb') as f:
        content = f.read()
      try:
        _rewrite(path, b''.join(event for event, of in _events(content) if of <= step))
      except ValueError as e:
        raise UserError(f"'{path}' is damaged ({e}): remove it") from e


STATES = {'baseline': 'dense', 'group': 'grouping', 'split': 'split'}


def run_text(network, configuration, validation_images):
  """Returns what is said of a run with this configuration (see checkpoints.describe).

  Returns:
    (three lines: which network, which images, how long and where; the tables of settings and layers).
  """
  data, settings = configuration['data'], configuration['settings']
  counts, where = counting.counts(network), os.path.join(settings['train_dir'], TEXT)
  parameters, flops = counting.total(counts)
  epochs = settings['max_steps'] * settings['batch_size'] / data['train_images']
  source = 'CIFAR-100' if settings['dataset'] == 'cifar100' else settings['dataset']
  source += f' ({data["source"]})' if data.get('source', source) != source else ''
  name = network_name(network.graph, STATES[configuration['mode']])
  lines = [
    f'{name}: {parameters:,} parameters, {flops:,} FLOPs per image',
    f"{source} in '{settings['data_dir']}': {data['train_images']:,} images to train on, "
    f'{validation_images:,} to validate, {data["classes"]} classes',
    f'{settings["max_steps"]:,} steps of {settings["batch_size"]} images, {epochs:.4g} epochs, on '
    f"{devices.description()}; settings and layers: '{where}'",
  ]
  rows = {**settings, **configuration['network'], 'mode': configuration['mode']}
  rows.update({} if configuration['mode'] == 'baseline' else {'groups': network.graph.split})
  rows.update({f'data {name}': value for name, value in data.items() if name != 'class_names'})
  return lines, [settings_table({**rows, 'computes on': devices.description()}), size_table(counts)]


# What the scalars are, by the beginning of their tags.
DESCRIPTIONS = {
  'accuracy/train': 'Share of the training images since the last point that got their class.',
  'accuracy/val': 'Share of the validation images that get their class.',
  'loss/total': 'What is minimised: all terms with their weights.',
  'loss/cross_entropy': 'Cross-entropy on the training images.',
  'loss/val_cross_entropy': 'Cross-entropy on the validation images.',
  'loss/l2': 'Half the sum of the squared weights, before its weight.',
  'loss/distillation': "Divergence from the teacher's class probabilities.",
  'groups/least_confidence': 'Mean confidence of the least decided assignment: 1 if every unit has one group.',
  'groups/overlap': 'Overlap of the assignments (gamma1): 0 if no unit is in two groups.',
  'groups/weight_split': 'Weights between groups (gamma2): 0 if there are none.',
  'groups/uniform': 'Balance of the groups (gamma3): 1 if all have the same size.',
  'speed/images_per_second': 'Images per second of training.',
  'speed/learning_rate': 'Learning rate.',
}


class Log:
  """Writes a run's train.log, metrics.jsonl, TensorBoard events and pictures."""

  def __init__(self, folder, step=-1, steps_per_epoch=None, names=None, brief=False):
    """Opens the files.

    Args:
      folder: the run's; step: the one at which it is resumed; -1 if it starts anew.
      steps_per_epoch: so that lines tell the epoch, too; None: they do not.
      names: the ClassNames of the data, for what shows classes; None: nothing does.
      brief: whether only short lines are printed; train.log has all.

    Raises:
      UserError: if one is damaged.
      OSError: if one cannot be written.
    """
    self._folder, self._steps_per_epoch, self._names, self._brief = folder, steps_per_epoch, names, brief
    cut_back(folder, step)
    os.makedirs(os.path.join(folder, SUMMARIES), exist_ok=True)  # its errors say what is wrong, TensorFlow's do not
    self._writer = tf.summary.create_file_writer(os.path.join(folder, SUMMARIES))
    # Without a buffer nothing is left to be written when a full disk has ended the run.
    self._text = open(os.path.join(folder, TEXT), 'ab', buffering=0)
    self._metrics = open(os.path.join(folder, METRICS), 'ab', buffering=0)
    self._alone = False

  def _append(self, file, text):
    """Appends a line to a file.

    A part of it may be written before the disk is full, which the next start takes back.
    """
    try:
      file.write(text.encode() + b'\n')
    except OSError as e:
      e.filename = file.name
      raise

  def line(self, text, shown=True, brief=None):
    """Keeps a line in train.log and prints it above the progress bar.

    Args:
      text: the line, or several.
      shown: whether it is printed.
      brief: what a brief run prints instead; '' is nothing, None the same.
    """
    self._append(self._text, text)
    if self._brief and brief is not None:
      text = brief
    if shown and text:
      tqdm.write(text)
      sys.stdout.flush()  # a pipe would hold it back for hours
    if getattr(sys.stdout, 'error', None) and not self._alone:
      self._alone = True
      print(
        f"note: this output cannot be written any more ({sys.stdout.error.strerror}); the run goes on, its log is "
        f"'{self._text.name}'", file=sys.stderr, flush=True,
      )  # fmt: skip

  def _record(self, step, kind, metrics):
    """Appends a line to metrics.jsonl."""
    self._append(self._metrics, json.dumps({'step': step, 'kind': kind, **metrics}))

  def _epoch(self, step):
    return f', epoch {step / self._steps_per_epoch:.2f}' if self._steps_per_epoch else ''

  @contextlib.contextmanager
  def _summaries(self):
    """Opens a context in which summaries go to the run's events."""
    with self._writer.as_default():
      yield
    self._writer.flush()

  def _scalars(self, step, values, description=None):
    with self._summaries():
      for name, value in values.items():
        tf.summary.scalar(name, value, step, DESCRIPTIONS.get(name, description))

  def settings(self, settings):
    """Reports a new run's settings, but for its paths, to TensorBoard, which compares runs by them."""
    paths = ('data_dir', 'train_dir', 'basemodel', 'teacher', 'basemodel_digest', 'teacher_digest')
    plain = {n: v for n, v in settings.items() if n not in paths and isinstance(v, (bool, int, float, str))}
    with self._summaries():
      hparams.hparams(plain)

  def train(self, step, terms, rate, speed, network):
    """Reports the steps since the last line: means of the objective's terms, images/s."""
    text = (
      f'step {step}: loss {terms["total"]:.4f}, cross-entropy {terms["cross_entropy"]:.4f}, accuracy '
      f'{terms["accuracy"]:.4f}, lr {rate:.3g}, {speed:.0f} images/s{self._epoch(step)}'
    )
    brief = f'step {step}: loss {terms["total"]:.3f}, accuracy {100 * terms["accuracy"]:.1f} %, {speed:.0f} images/s'
    if 'distillation' in terms:
      text += f', distillation {terms["distillation"]:.4f}'
    metrics = {**terms, 'learning_rate': rate, 'images_per_second': speed}
    scalars = {
      **{f'loss/{n}': terms[n] for n in ('total', 'cross_entropy', 'l2', 'distillation') if n in terms},
      'accuracy/train': terms['accuracy'], 'speed/learning_rate': rate, 'speed/images_per_second': speed,
    }  # fmt: skip
    if network.with_assignments:
      states, names = assignment_states(network), unit_names(network.graph)
      metrics['confidence'] = {name: confidence for name, (confidence, _) in states.items()}
      metrics['group_sizes'] = {name: sizes.tolist() for name, (_, sizes) in states.items()}
      least = min(metrics['confidence'].values())
      text += (
        f'; overlap {terms["overlap"]:.3f}, weight split {terms["weight_split"]:.3f}, uniform {terms["uniform"]:.3f}, '
        f'least confidence {least:.3f}'
      )
      brief += f', groups decided to {100 * least:.0f} %'
      scalars.update({f'groups/{n}': terms[n] for n in ('overlap', 'weight_split', 'uniform')})
      scalars['groups/least_confidence'] = least
      for name, (confidence, sizes) in states.items():
        own = {'confidence': confidence, **{f'size of group {g}': float(size) for g, size in enumerate(sizes)}}
        self._scalars(step, {f'units/{names[name]}/{n}': v for n, v in own.items()}, f'assignment {name}')
    self.line(text, brief=brief + self._epoch(step))
    self._record(step, 'train', metrics)
    self._scalars(step, scalars)

  def validation(self, step, accuracy, cross_entropy, best, confusion=None):
    """Reports a validation: accuracy, cross-entropy, the best accuracy so far, and the confusion matrix."""
    self.line(
      f'step {step}: validation accuracy {100 * accuracy:.2f} %, cross-entropy {cross_entropy:.4f}, best '
      f'{100 * best:.2f} %{self._epoch(step)}', brief=f'step {step}: validation accuracy {100 * accuracy:.2f} %',
    )  # fmt: skip
    self._record(step, 'val', {'accuracy': accuracy, 'cross_entropy': cross_entropy, 'best': best})
    self._scalars(step, {'accuracy/val': accuracy, 'loss/val_cross_entropy': cross_entropy})
    if confusion is not None and self._names:
      text = 'True classes from top to bottom, predicted ones from left to right, by superclass; dark is often.'
      order = plots.class_order(self._names.fine_to_coarse, len(confusion))
      with self._summaries():
        tf.summary.image('classes/confusion', plots.confusion_pixels(confusion, order)[None], step, description=text)

  def samples(self, step, images, probabilities, labels):
    """Reports some images with their classes and what the network takes them for."""
    if self._names:
      sheet = plots.answer_sheet(images, probabilities, labels, self._names.fine)
      with self._summaries():
        text = 'Validation images, below each its class; if the network says otherwise, that in red.'
        tf.summary.image('classes/samples', sheet[None], step, description=text)

  def classes(self, step, groups):
    """Reports the hard groups of the classes, int array, to TensorBoard as text."""
    if self._names:
      with self._summaries():
        tf.summary.text('groups/classes', groups_markdown(groups, self._names), step)

  def groups(self, step, network):
    """Reports the groups of a network with assignments, and what hardening gives now."""
    if not network.with_assignments:
      return
    images, names = plots.ordered_weights(network), unit_names(network.graph)
    assignments = network.soft_assignments()
    with self._summaries():
      for name, q in assignments.items():
        tf.summary.histogram(f'units/{names[name]}/assignment', q, step, description=f'assignment {name}')
      for layer in network.split_layers():
        tf.summary.histogram(f'weights/{layer.name}', layer.kernel, step)
      for name, image in images.items():
        pixels = plots.weight_pixels(*image)[None]
        tf.summary.image(f'weights by group/{name}', pixels, step, description=plots.WEIGHTS_TEXT)
    self.classes(step, utils.hard_groups(assignments[network.graph.classes.name]))
    path = os.path.join(self._folder, 'pictures', f'weights-{step:06d}.png')
    plots.draw_weights(images, f'Weights ordered by group, step {step}', path)
    self.line(f'step {step}: groups', brief='')
    for name, (confidence, sizes) in assignment_states(network).items():
      text = f'group sizes {sizes.tolist()}, confidence {confidence:.3f}'
      shown = f'step {step}: the {names[name]} are in groups of {sizes.tolist()}' if names[name] == 'classes' else ''
      self.line(f'  {with_code_name(name, names[name])}: {text}', brief=shown)
    metrics, text = hardened_now(network)
    self.line('  ' + text, brief='')
    self._record(step, 'groups', metrics)


class NoLog:
  """In place of a Log if another process keeps it."""

  def line(self, *arguments, **keywords):
    """Reports nothing."""

  train = validation = groups = classes = samples = settings = line
