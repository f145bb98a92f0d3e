"""Draws figures 3, 4 and 5 of the paper from runs of train.py.

python -m paper.figures 3 --run runs/group                       weights become block-diagonal while grouping
python -m paper.figures 4 --basemodel runs/baseline --out DIR    class counts per group against the balance weight
python -m paper.figures 5 --checkpoint runs/group                groups against superclasses
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import sys

from paper.recipes import DATASETS
from splitnet.common.flags import Parser, Type, add, answer_early, integer, one_of, switch

REPORT_SECONDS = 30  # between lines about a run in progress
BALANCES = Type(
  'LIST', lambda text: sorted(map(float, text.split(','))), 'different numbers from 0 up, such as 0,1,10,100',
  lambda values: len(set(values)) == len(values) and values[0] >= 0 and values[-1] < float('inf'),
)  # fmt: skip

FIGURE_3 = """Figure 3: the weights of split layers at the checkpoints of a grouping run, rows and columns ordered by
the groups of the last one, so that one sees the blocks emerge. Written below each panel: how much of the squared weight
lies within the groups.

A run keeps its last two checkpoints; to keep the moments between, group with
  ./group.sh --max_to_keep 100 --checkpoint_interval N"""

FIGURE_4 = """Figure 4: class counts per group against the weight of the balance (gamma3) in the FC split, 1-1-G.
Trains a grouping run for each weight in a folder of its own, OUT/balance-<weight>, with train.py; what is done is not
repeated, and what was interrupted continues. The picture is OUT/fig4.png.

Further arguments are train.py's, such as --gamma2 5; here they begin with --gamma1 1.5 --gamma2 1
--assignment_lr_scale 100 --dropout_keep_prob 1, with which 300 steps decided all assignments of a WRN-16-1 (the
confidence that train.py logs); faster ones lose a group if the balance weighs 30."""

FIGURE_5 = """Figure 5: how many classes of each superclass are in each group. Groups keep their numbers, so that groups
which part last in the tree are neighbours; superclasses stand below the group that holds most of them."""


def make_parser():
  """Returns the parser of each figure's flags."""
  parser = Parser(prog='figures.py', description=__doc__)
  figures = parser.add_subparsers(dest='figure', required=True, metavar='{3,4,5}')
  f = figures.add_parser('3', help='weights ordered by group, from start to end of grouping', description=FIGURE_3)
  add(f, 'run', str, None, 'folder of a grouping run', required=True)
  add(f, 'layers', str, None, 'split layers, with commas [per depth the first convolution of its last block; logits]')
  add(f, 'moments', integer(2), 6, 'draw at most so many checkpoints, the first, the last and some evenly between')
  add(f, 'output', str, 'fig3.png', 'the picture, PNG')

  f = figures.add_parser('4', help='class counts per group against the balance weight', description=FIGURE_4)
  add(f, 'basemodel', str, None, 'folder or checkpoint of a baseline (needed unless --print)')
  add(f, 'dataset', one_of(*DATASETS), None, "which data [the basemodel's]")
  add(f, 'data_dir', str, None, "their folder [the basemodel's]")
  add(f, 'balances', BALANCES, '0,1,3,10,30', 'the weights, separated by commas')
  add(f, 'steps', integer(1), 300, 'steps for each weight')
  add(f, 'ngroups', integer(2), 3, 'groups, G')
  add(f, 'out', str, None, 'folder for the runs and the picture', required=True)
  switch(f, 'print', 'train nothing: print and draw all runs that OUT holds', dest='print_only')

  f = figures.add_parser('5', help='groups against superclasses', description=FIGURE_5)
  add(f, 'checkpoint', str, None, 'grouping or split run, its folder or DIR/ckpt-STEP', required=True)
  add(f, 'dataset', one_of(*DATASETS), None, "whose superclasses [the checkpoint's]")
  add(f, 'data_dir', str, None, "folder of these data [the checkpoint's]")
  add(f, 'output', str, 'fig5.png', 'the picture, PNG')
  return parser


if __name__ == '__main__':
  answer_early('figures.py', make_parser, more=True)

import functools
import glob
import os
import re

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np

import utils
from paper import data, runs
from resnet_split import read_older
from splitnet.common.errors import UserError, program
from splitnet.common.files import check_output_file, telling_of_output
from splitnet.network import hardening
from splitnet.reporting import metrics, plots
from splitnet.training import checkpoint_files, checkpoints, resume


def evenly(steps, count):
  """Chooses at most `count` of the rising steps: the ends, evenly between."""
  if len(steps) <= count:
    return steps
  nearest = np.abs(np.subtract.outer(np.linspace(steps[0], steps[-1], count), steps)).argmin(1)
  return [steps[i] for i in np.unique(nearest)]


def representative_layers(graph):
  """Chooses per depth the first split layer of its last block, no shortcut."""
  chosen = {}
  for layer in graph.weighted:
    shortcut = any(reader.op == 'add' and reader.inputs[0] == layer.name for reader in graph.readers[layer.name][:1])
    before = chosen.get(layer.depth)
    if graph.cut(layer) > 1 and not shortcut and (before is None or before.block != layer.block):
      chosen[layer.depth] = layer
  return list(chosen.values())


def chosen_layers(graph, text):
  """Returns the layers that --layers names, or the representative ones."""
  if text is None:
    return representative_layers(graph)
  split = {layer.name: layer for layer in graph.split_layers}
  try:
    return [split[name.strip()] for name in text.split(',')]
  except KeyError as e:
    raise UserError(f'--layers: {e} is no split layer; there are: {", ".join(split)}') from e


def share_within(graph, layer, kernel, groups):
  """Returns how much of a layer's squared weight hardening keeps: number in [0, 1]."""
  squares = np.square(kernel).sum(tuple(range(kernel.ndim - 2)))
  return float(squares[hardening.kept_weights(graph, layer, groups)].sum() / max(squares.sum(), 1e-20))


def figure_3(flags):
  """Draws figure 3; returns {layer name: share of the weight within, per moment}."""
  check_output_file('--output', flags.output)
  configuration = checkpoints.read_configuration(flags.run, read_older)
  if configuration is None:
    raise UserError(f"--run '{flags.run}' is no folder that train.py wrote")
  if configuration['mode'] != 'group':
    raise UserError(
      f"--run '{flags.run}' is a {configuration['mode']} run; figure 3 shows a grouping run (train.py --mode group)"
    )
  steps = checkpoint_files.saved_steps(flags.run)
  if len(steps) < 2:
    raise UserError(
      f"'{flags.run}' holds {f'only the checkpoint of step {steps[0]}' if steps else 'no checkpoint'}, but figure 3 "
      "needs the start and the end of grouping: './group.sh --max_to_keep 100 --checkpoint_interval N' keeps a "
      'checkpoint every N steps'
    )
  steps = evenly(steps, flags.moments)
  moments = [checkpoints.read(os.path.join(flags.run, f'ckpt-{step}'), read_older) for step in steps]
  graph = moments[-1].graph
  groups = checkpoints.unit_groups(moments[-1])
  rows, shares = [], {}
  for layer in chosen_layers(graph, flags.layers):
    kernels = [stored.values[layer.weights] for stored in moments]
    shares[layer.name] = [share_within(graph, layer, kernel, groups) for kernel in kernels]
    label = f'{layer.name}\n{graph.read(layer).size} inputs, {layer.units.size} outputs'
    images = [plots.order_weights(graph, layer, kernel, groups) for kernel in kernels]
    rows.append((label, images, [f'{100 * share:.0f} % within groups' for share in shares[layer.name]]))
  title = f'Weights of the {graph.split} split\nordered by the groups of step {steps[-1]}'
  print(
    f'{flags.output}: squared weight within the groups, step {steps[0]} to {steps[-1]}: '
    + ', '.join(f'{name} {100 * s[0]:.0f} to {100 * s[-1]:.0f} %' for name, s in shares.items())
  )
  with telling_of_output('--output', flags.output):
    plots.draw_moments(rows, [f'step {step}' for step in steps], title, flags.output)
  return shares


def parse_train_flags(arguments):
  """Parses train.py's '--name value' or '--name=value': dict from name to text."""
  flags, words = {}, list(arguments)
  while words:
    name, is_whole, value = words.pop(0).partition('=')
    if not name.startswith('--') or not (is_whole or words):
      raise UserError(f"'{name}' cannot be passed on to train.py: give --name value")
    flags[name[2:]] = value if is_whole else words.pop(0)
  return flags


def run_folder(out, balance):
  """Returns the folder of the run with one balance weight."""
  return os.path.join(out, f'balance-{balance:g}')


def train_flags(flags, further, balance):
  """Returns train.py's flags for a balance weight; what makes the figure wins."""
  wanted = {
    'gamma1': '1.5', 'gamma2': '1', 'assignment_lr_scale': '100', 'dropout_keep_prob': '1', 'max_to_keep': '1',
    'val_iter': '10', **further, 'mode': 'group', 'basemodel': flags.basemodel, 'dataset': flags.dataset,
    'data_dir': flags.data_dir, 'train_dir': run_folder(flags.out, balance), 'max_steps': flags.steps,
    'ngroups1': flags.ngroups, 'ngroups2': 1, 'ngroups3': 1, 'gamma3': balance,
  }  # fmt: skip
  return {name: value for name, value in wanted.items() if value is not None}


def settings_of(configuration):
  """Returns the flags of a run that a stored configuration has."""
  return {**configuration['settings'], **configuration['network'], 'mode': configuration['mode']}


def check_settings(folder, stored, wanted, whose):
  """Raises UserError if a run has other flags than `wanted`, which are `whose`.

  What the weights do not depend on may differ; values may be texts of a command line.
  """
  for name in sorted(stored.keys() & wanted.keys() - resume.FREE):
    was, now = stored[name], wanted[name]
    try:
      same = float(was) == float(now)
    except (ValueError, TypeError):
      same = str(was) == str(now)
    if not same:
      raise UserError(
        f"the run in '{folder}' was started with --{name} {was}, {whose} {now}: use the same, or another --out"
      )


def is_done(wanted):
  """Returns whether a run has all its steps; refuses another run in its folder."""
  folder = wanted['train_dir']
  steps, before = checkpoint_files.saved_steps(folder), checkpoints.read_configuration(folder, read_older)
  if before is None or not steps:
    return False
  check_settings(folder, settings_of(before), wanted, 'now it is')
  if steps[-1] > wanted['max_steps']:
    raise UserError(f"the run in '{folder}' is at step {steps[-1]} already: give --steps {steps[-1]}, or another --out")
  return steps[-1] == wanted['max_steps']


def check_alike(out, stored):
  """Raises UserError unless runs by balance weight differ in nothing else."""
  first, *others = ((balance, settings_of(run.configuration)) for balance, run in stored.items())
  known = {name: value for name, value in first[1].items() if name not in ('gamma3', *resume.CHECKPOINTS)}
  for balance, settings in others:
    check_settings(run_folder(out, balance), settings, known, f'that of balance {first[0]:g} with')


def group_sizes(stored):
  """Returns how many classes each group of a checkpoint has, empty groups too."""
  groups = checkpoints.class_groups(stored)
  if groups is None:
    raise UserError(f"'{stored.path}' is a {stored.mode} checkpoint, without groups: name a grouping or a split one")
  return utils.group_sizes(groups, stored.graph.classes.groups)


def finished_runs(out):
  """Returns the balance weights of the runs that a folder holds, rising."""
  matches = (re.fullmatch(r'balance-([\d.]+(e[+-]\d+)?)', name) for name in glob.glob('balance-*', root_dir=out))
  matches = [match for match in matches if match and checkpoint_files.saved_steps(os.path.join(out, match[0]))]
  return sorted(float(match[1]) for match in matches)


def figure_4(flags, further):
  """Draws figure 4; returns {balance weight: classes per group, the largest first}."""
  picture = os.path.join(flags.out, 'fig4.png')
  if flags.print_only:
    balances = finished_runs(flags.out)
    if not balances:
      raise UserError(f"--print: '{flags.out}' holds no run yet: leave --print out to train them")
    check_output_file('--out', picture)
  else:
    if not flags.basemodel:
      raise UserError('--basemodel is missing: name the folder or checkpoint of a baseline, or give --print')
    balances, further = flags.balances, parse_train_flags(further)
    folder = flags.basemodel if os.path.isdir(flags.basemodel) else os.path.dirname(flags.basemodel)
    trained_on = checkpoints.read_configuration(folder, read_older)
    flags.dataset, flags.data_dir = data.of_checkpoint(trained_on, flags.dataset, flags.data_dir)
    wanted = {balance: train_flags(flags, further, balance) for balance in balances}
    missing = [balance for balance in balances if not is_done(wanted[balance])]
    check_output_file('--out', picture)
    for balance in missing:
      run = runs.Run(wanted[balance]['train_dir'], None, wanted[balance])
      print(f'balance {balance:g}: {flags.steps} steps in {run.folder}', flush=True)
      os.makedirs(run.folder, exist_ok=True)
      runs.execute(run, runs.command('train.py', run.train), REPORT_SECONDS)
  stored = {balance: checkpoints.read(run_folder(flags.out, balance), read_older) for balance in balances}
  counts = {balance: sorted(group_sizes(run).tolist(), reverse=True) for balance, run in stored.items()}
  steps = {balance: int(run.path.rsplit('-', 1)[1]) for balance, run in stored.items()}
  for balance, sizes in counts.items():
    print(f'balance {balance:<6g}  classes per group {sizes}  (step {steps[balance]})')
  check_alike(flags.out, stored)
  graph, after = stored[balances[0]].graph, ' to '.join(map(str, sorted({min(steps.values()), max(steps.values())})))
  title = f'Classes per group of the FC split {graph.split} after {after} steps'
  sizes = {f'{balance:g}': sizes for balance, sizes in counts.items()}
  print(f'{picture}: largest group {", ".join(f"{s[0]} at {balance:g}" for balance, s in counts.items())} classes')
  with telling_of_output('--out', picture):
    plots.draw_sizes(sizes, graph.classes.size, title, picture)
  return counts


def superclass_order(table):
  """Orders superclasses by the group that holds most, then by where the rest is."""
  centre = np.arange(len(table)) @ table / np.maximum(table.sum(0), 1)
  return np.lexsort((centre, table.argmax(0)))


def figure_5(flags):
  """Draws figure 5; returns (table [groups, superclasses] as drawn, agreement)."""
  check_output_file('--output', flags.output)
  stored = checkpoints.read(flags.checkpoint, read_older)
  names = checkpoints.published_names(stored)
  if names is None:
    flags.dataset, flags.data_dir = data.of_checkpoint(stored.configuration, flags.dataset, flags.data_dir)
    names = data.open_data(flags.dataset, flags.data_dir, stored.graph.image_size).names
  if names.fine_to_coarse is None:
    raise UserError(
      f"'{flags.data_dir or flags.checkpoint}' has no superclasses to show the groups against: add a superclasses.json "
      'such as {"animal": ["cat", "dog"], ...} to the folder of the images'
    )
  sizes, groups = group_sizes(stored), checkpoints.class_groups(stored)
  checkpoints.check_classes(stored, names, flags.data_dir)
  table = np.zeros((len(sizes), len(names.coarse)), np.int64)
  filled = utils.superclass_table(groups, names.fine_to_coarse)
  table[: filled.shape[0], : filled.shape[1]] = filled  # the last groups may be empty
  order = superclass_order(table)
  agreement = utils.superclass_agreement(groups, names.fine_to_coarse)
  mean, deviation = metrics.random_agreement(sizes, names.fine_to_coarse)
  compared = f'agreement {agreement:.2f}, random groups of the same sizes {mean:.2f} +- {deviation:.2f}'
  print(f'{flags.output}: {compared}')
  with telling_of_output('--output', flags.output):
    plots.draw_superclasses(
      table[:, order],
      [f'group {g} ({size} classes)' for g, size in enumerate(sizes)],
      [names.coarse[i].replace('_', ' ') for i in order],
      f'Classes of each superclass in each group, split {stored.graph.split}: {compared.replace("+-", "±")}',
      flags.output,
    )
  return table[:, order], agreement


@program('figures.py')
def main(argv):
  """Draws the figure that was asked for."""
  parser = make_parser()
  flags, further = parser.parse_known_args(argv)
  if further and (flags.figure != '4' or flags.print_only):
    parser.error(f'unrecognized arguments: {" ".join(further)}')
  {'3': figure_3, '4': functools.partial(figure_4, further=further), '5': figure_5}[flags.figure](flags)


if __name__ == '__main__':
  sys.exit(main())
