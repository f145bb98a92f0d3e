"""Writes a report of one or several runs as one HTML file that needs nothing beside it.

  python -m serving.report dense=runs/baseline/eval.json split=runs/split/eval.json --out report.html
  python -m serving.report runs/baseline/best runs/split/best --out report.html

What is reported: a file that eval.py --output_file wrote, or a run's folder, its 'best' or DIR/ckpt-STEP, which is
evaluated on the test images then; a name and = may stand before it. The report has accuracy, size and speed, settings,
commands and curves, the tree with its groups, confusion matrices, weights while grouping, some images with the five
most probable classes and their branches, and the accuracy of every class. What is not at hand any more is left out.
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import base64
import os
import shlex
import sys
import tempfile

from splitnet.common.flags import Parser, add, answer_early, integer, one_of


def make_parser():
  """Makes the parser of the flags."""
  parser = Parser(__doc__)
  parser.add_argument('runs', nargs='+', metavar='[NAME=]RUN', help='what to report, in this order')
  add(parser, 'out', str, None, 'HTML file to write', required=True)
  add(parser, 'title', str, 'SplitNet', 'its title')
  add(parser, 'dataset', one_of('cifar100', 'image_folder', 'imagenet'), None, "which data [the last run's]")
  add(parser, 'data_dir', str, None, "their folder [the last run's]")
  add(parser, 'samples', integer(0, 1000), 24, 'images to show')
  return parser


if __name__ == '__main__':
  answer_early('report.py', make_parser)

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import jinja2
import numpy as np

import keras_split
import utils
from serving.model import Model, datasets
from splitnet.common import schema
from splitnet.common.errors import UserError, program
from splitnet.common.files import check_output_file, telling_of_output, write_text
from splitnet.data.batches import numbered_batches
from splitnet.data.dataset import DataSettings, find, of_run
from splitnet.network import counting, folding, layers
from splitnet.parallel import executor
from splitnet.reporting import metrics, plots, results
from splitnet.reporting.names import evaluated_name
from splitnet.training import checkpoints, log_files

FORMS = {'.png': 'image/png', '.svg': 'image/svg+xml'}


def embedded(path):
  """Returns a picture's file as the text that stands for it in HTML."""
  with open(path, 'rb') as f:
    content = base64.b64encode(f.read()).decode()
  return f'data:{FORMS[os.path.splitext(path)[1]]};base64,{content}'


def percent(share):
  """Returns a share as text; '' for None."""
  return '' if share is None else f'{100 * share:.2f} %'


class Entry:
  """One thing that is reported.

  Attributes:
    name, result: what it is called; what eval.py says of it, a dict.
    stored: its checkpoint, a checkpoints.Stored, or None if it is not there any more.
    metrics: what its run has reported, list of dicts.
  """

  def __init__(self, argument):
    """Reads the result, or the checkpoint, of which `measure` makes one; UserError if it is neither."""
    name, is_named, path = argument.partition('=')
    if not is_named:
      name, path = os.path.normpath(argument), argument
    self.name, self.result, self.metrics = name, None, []
    if path.endswith('.json'):
      advice = 'name a file that eval.py --output_file wrote, or a checkpoint'
      self.result = schema.read_json(path, results.Result, advice)
      path = str(self.result.get('checkpoint', ''))
    self.hardened = bool(self.result and self.result.get('hardened'))
    if self.result and not checkpoints.exists(path):
      self.stored = None
    else:
      self.stored = checkpoints.read(path, keras_split.read_other)
      self.metrics = [m for m in log_files.read_metrics(self.run_folder) if m['kind'] != 'groups']

  @property
  def run_folder(self):
    """The folder of the run that the checkpoint is of."""
    folder = os.path.dirname(self.stored.path)
    return os.path.dirname(folder) or '.' if os.path.basename(folder) == 'best' else folder

  def measure(self, dataset, data):
    """Evaluates the checkpoint if there is no result of it."""
    if self.result:
      return
    network, groups = checkpoints.load_network(self.stored), checkpoints.class_groups(self.stored)
    prepare = layers.preparation(network.graph, dataset.prepare)
    logits, speed = executor.predict(folding.folded(network), data, prepare, 100)
    parameters, flops = counting.total(counting.counts(network))
    self.result = {
      'checkpoint': self.stored.path, 'split': 'test', 'network_text': evaluated_name(network, groups),
      'parameters': parameters, 'flops': flops, 'images_per_second': speed.images_per_second,
      **metrics.measure(logits, data.labels, dataset.names, groups),
    }  # fmt: skip

  def describe(self):
    """Sets what the report says of how it was made."""
    configuration = self.stored and self.stored.configuration
    self.made, self.command, self.settings = 'its checkpoint is not there any more', None, []
    if configuration is None:
      return
    settings = configuration['settings']
    self.made = f"step {self.stored.path.rsplit('-', 1)[-1]} of {settings.get('max_steps')}, '{self.stored.path}'"
    if configuration.get('command'):
      self.command = f'python train.py {shlex.join(configuration["command"])}'
    self.settings = sorted((n, v) for n, v in {**settings, **configuration['network']}.items() if v is not None)

  def last_pictures(self):
    """Returns the pictures of the weights when grouping began and ended: list of (path, caption)."""
    folder = self.run_folder if self.stored else ''
    if self.stored and self.stored.mode == 'split':
      folder = (self.stored.configuration or {'settings': {}})['settings'].get('basemodel') or ''
    pictures = os.path.join(folder, 'pictures')
    names = sorted(n for n in os.listdir(pictures) if n.startswith('weights-')) if os.path.isdir(pictures) else []
    chosen = dict.fromkeys([*names[:1], *names[-1:]])
    return [(os.path.join(pictures, n), f'step {int(n[8:-4])} of grouping. {plots.WEIGHTS_TEXT}') for n in chosen]


def class_lines(result, members):
  """Returns the classes of a branch by superclass, as lines; whole superclasses by their name alone."""
  of = result.get('superclass_of_class')
  if not of:
    return [', '.join(members)]
  return [
    superclass if len(names) == size else f'{len(names)} of {size} {superclass}: {", ".join(names)}'
    for superclass, names, size in results.by_superclass(members, of)
  ]


def tree_of(network, class_names, result):
  """Returns the tree of a split network for the report: nested dicts."""
  sizes = {}
  for count in counting.counts(network):
    sizes.setdefault(count.node, []).append(count.counted)
  depths = list(network.depths)

  def branch(i, b):
    depth, above = depths[i], depths[i + 1] if i + 1 < len(depths) else None
    parameters, flops = np.sum(sizes.get((depth, b), [(0, 0)]), 0)
    node = {'name': depth if network.depths[depth] == 1 else f'{depth}, branch {b}', 'children': [], 'classes': []}
    node.update(parameters=int(parameters), flops=int(flops))
    if above:
      below = utils.parents(network.depths[above], network.depths[depth])
      node['children'] = [branch(i + 1, int(child)) for child in np.flatnonzero(below == b)]
    else:
      members = network.members(network.graph.classes, depth, b)
      node['classes'] = class_lines(result, [class_names[c] for c in members])
    return node

  text = 'Every branch reads what the one below it writes, and nothing else; the counts are as in the paper.'
  if result.get('agreement') is not None:
    text += f' {100 * result["agreement"]:.0f} % of the classes are in the group that has most of their superclass'
    text += f' (random groups: {100 * result["chance_agreement"]:.0f} %).' if 'chance_agreement' in result else '.'
  return {'root': branch(0, 0), 'text': text}


def class_table(entries):
  """Returns the accuracy of every class, in sections by superclass if there are any."""
  of = entries[-1].result.get('superclass_of_class') or {}

  def shown(key, name):
    values = [entry.result.get(key, {}).get(name) for entry in entries]
    return ['' if value is None else f'{100 * value:.0f}' for value in values]

  names = list(entries[-1].result['class_accuracy'])
  sections = [(superclass, [n for n in names if of[n] == superclass]) for superclass in sorted(set(of.values()))]
  return [
    {'name': superclass, 'shares': shown('accuracy_within_superclass', superclass) if superclass else [],
     'rows': [(name, shown('class_accuracy', name)) for name in members]}
    for superclass, members in sections or [('', names)]
  ]  # fmt: skip


def open_data(flags, entry):
  """Opens the data that the flags name, or those of a run: a DataSet; UserError if they are not there."""
  stored, settings = entry.stored, (entry.stored.configuration or {'settings': {}})['settings']
  chosen, data_dir = of_run(settings, flags.dataset, flags.data_dir)
  return find(datasets, chosen).open_dataset(DataSettings(data_dir, image_size=stored.graph.image_size))


def sample_images(model, dataset, data, count):
  """Returns images with their five most probable classes: list of dicts."""
  _, pixels, labels = next(numbered_batches(data, min(count, len(data.labels)), 1))
  shown = []
  with tempfile.TemporaryDirectory() as folder:
    for image, row, label in zip(pixels.numpy(), model(pixels.numpy()), labels.numpy()):
      path = os.path.join(folder, 'image.png')
      plots.save_pixels(image, path)
      shown.append({'image': embedded(path), 'label': dataset.names.fine[label], 'top': model.top(row)})
  return shown


def draw(entries, groups):
  """Adds the confusion matrices to entries, in one order; returns the picture of the curves, or None."""
  names = list(entries[-1].result['class_accuracy'])
  of = entries[-1].result.get('superclass_of_class')
  coarse = sorted(set(of.values())) if of else []
  superclasses = (coarse, np.array([coarse.index(of[name]) for name in names])) if of else None
  with tempfile.TemporaryDirectory() as folder:
    for i, entry in enumerate(entries):
      path = os.path.join(folder, f'{i}.png')
      title = f'{entry.name}: top-1 accuracy {percent(entry.result["accuracy"])}'
      plots.draw_confusion(entry.result['confusion'], names, superclasses, groups, title, path)
      entry.confusion = embedded(path)
    curves = os.path.join(folder, 'curves.svg')
    runs = [(entry.name, entry.metrics) for entry in entries if entry.metrics and not entry.hardened]
    if not runs:
      return None
    plots.draw_curves(runs, curves)
    return embedded(curves)


@program('report.py')
def main(argv):
  """Writes the report that the arguments ask for."""
  flags = make_parser().parse_args(argv)
  check_output_file('--out', flags.out)
  entries, notes, context = [Entry(argument) for argument in flags.runs], [], {}
  last = next((entry for entry in reversed(entries) if entry.stored), None)
  dataset = None
  if last:
    try:
      dataset = open_data(flags, last)
      data = dataset.load('test')
    except UserError as e:
      if not all(entry.result for entry in entries):
        raise
      notes.append(f'Without images: {e}.')
  for entry in entries:
    entry.measure(dataset, data if dataset else None)
    entry.describe()
  check_alike(entries)
  grouped = next((entry for entry in reversed(entries) if entry.result.get('groups')), None)
  groups = None
  if grouped:
    group_of = {name: g for g, members in enumerate(grouped.result['groups']) for name in members}
    groups = np.array([group_of[name] for name in grouped.result['class_accuracy']])
  context['curves'] = draw(entries, groups)
  if last:
    model = Model(last.stored.path, flags.data_dir, last.hardened)
    if model.network.groups is not None:
      title = f'{last.name}, {last.result["network_text"]}'
      context['tree'] = {'title': title, **tree_of(model.network, model.class_names, last.result)}
    if dataset and flags.samples:
      context.update(samples=sample_images(model, dataset, data, flags.samples), samples_of=last.name)
    pictures = next(filter(None, (entry.last_pictures() for entry in reversed(entries))), [])
    context['weights'] = [(embedded(path), caption) for path, caption in pictures]
  first = entries[0].result
  intro = f'{first["images"]:,} images ({first["split"]}), {len(first["class_accuracy"])} classes.'
  loader = jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__)))
  environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
  text = environment.get_template('report.html').render(
    {'tree': None, 'samples': None, 'weights': None, **context}, title=flags.title, intro=intro, entries=entries,
    percent=percent, with_superclasses='superclass_accuracy' in first, classes=class_table(entries), notes=notes,
  )  # fmt: skip
  with telling_of_output('--out', flags.out):
    write_text(flags.out, text)
  print(f"{len(text) / 1e6:.1f} MB in '{flags.out}'")


def check_alike(entries):
  """Raises UserError if results are of other classes or images, which do not stand side by side."""
  first = entries[0]
  for entry in entries:
    for key in ('class_accuracy', 'confusion'):
      if key not in entry.result:
        raise UserError(f"'{entry.name}' has no {key}: write it again with eval.py --output_file")
    if list(entry.result['class_accuracy']) != list(first.result['class_accuracy']):
      raise UserError(f"'{entry.name}' has other classes than '{first.name}': report them apart")
    if (entry.result['images'], entry.result['split']) != (first.result['images'], first.result['split']):
      raise UserError(
        f"'{entry.name}' was evaluated on {entry.result['images']:,} {entry.result['split']} images, '{first.name}' on "
        f"{first.result['images']:,} {first.result['split']} images: evaluate them alike"
      )


if __name__ == '__main__':
  sys.exit(main())
