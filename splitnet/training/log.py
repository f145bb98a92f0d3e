"""Reports a training run: train.log, metrics.jsonl (log_files.py), TensorBoard, pictures."""

import contextlib
import json
import os
import sys

import tensorflow as tf
from tensorboard.plugins.hparams import summary_v2 as hparams  # its api imports Keras, too
from tqdm import tqdm

import utils
from splitnet.reporting import plots
from splitnet.reporting.names import unit_names, with_code_name
from splitnet.training.log_files import METRICS, SUMMARIES, TEXT, cut_back
from splitnet.training.run_texts import assignment_states, groups_markdown, hardened_now

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

  def _scalars(self, step, values, descriptions=DESCRIPTIONS):
    with self._summaries():
      for name, value in values.items():
        tf.summary.scalar(name, value, step, descriptions.get(name))

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
    descriptions = dict(DESCRIPTIONS)
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
        own = {f'units/{names[name]}/{n}': value for n, value in own.items()}
        scalars.update(own)
        descriptions.update(dict.fromkeys(own, f'assignment {name}'))
    self.line(text, brief=brief + self._epoch(step))
    self._record(step, 'train', metrics)
    self._scalars(step, scalars, descriptions)

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
