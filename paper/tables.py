"""The paper's tables: sizes counted from the built networks, test errors from runs of train.py and eval.py.

  python tables.py counts   parameters and FLOPs of every split of the paper, beside the paper's numbers
  python tables.py 1        Table 1: the learned groups against semantic, clustered and random ones
  python tables.py 2        Table 2: parameters, FLOPs and test error
  python tables.py all      every run of both, the deep split first, with a list of the runs
  python tables.py groups   how semantic the learned groups are, what hardening costs, against S, C, R and dense

Each cell of a table is a run in a folder of its own, OUT/k<k>/seed<seed>/<name>. What is done is not run again, what
was broken off goes on; the table is printed and written (OUT/k<k>/table1.md and .csv, or groups.md) after every
finished run. What has not been run is an empty cell. The runs' settings are RECIPES, below.
"""

import argparse
import csv
import io
import os
import re
import signal
import sys
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
import resnet_split
import utils
from paper import group_table
from paper import runs as experiments
from paper.runs import Run, read_run, with_needs
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import write_text
from splitnet.common.flags import Parser, boolean
from splitnet.network import architecture, grouping
from splitnet.parallel import devices

TRAIN_IMAGES = 45000  # the paper's, by which a recipe's epochs are counted

TEACHING = dict(distill_weight=0.7, distill_temperature=2)  # where the dense network teaches the split one

# The settings of each stage: train.py's flags, those of experiments.SHARES, and instead of max_steps also epochs.
# 'baseline', 'group' (the learned groups), 'split' (fine-tuning them), 'scratch' (a split network from scratch: columns
# S, C and R); 'all' is for each.
RECIPES = {
  # baseline.sh, group.sh --paper and split.sh.
  'paper': {
    'all': dict(batch_size=90, val_interval=1000, checkpoint_interval=5000),
    'baseline': dict(max_steps=120000, initial_lr=0.1, drop_at=(5 / 12, 7 / 12), l2_weight=0.0005),
    'group': dict(
      max_steps=200000, initial_lr=0.1, drop_at=(0.6, 0.75), l2_weight=0.0001, basemodel=None, gamma1=1, gamma2=1,
      gamma3=10, dropout_keep_prob=0.5,
    ),
    'split': dict(max_steps=120000, initial_lr=0.1, drop_at=(5 / 12, 7 / 12), l2_weight=0.0005),
    'scratch': dict(max_steps=120000, initial_lr=0.1, drop_at=(5 / 12, 7 / 12), l2_weight=0.0005),
  },
  # What one can run on a CPU, one cycle each. S, C and R get as many steps as fine-tuning, as in the paper's recipe.
  'cpu': {
    'all': dict(batch_size=90, val_interval=1000, checkpoint_interval=1000, lr_schedule='cosine'),
    'baseline': dict(max_steps=2000, initial_lr=0.15, warmup_at=0.2, l2_weight=0.0005),
    'group': dict(
      max_steps=700, initial_lr=0.05, l2_weight=0.0001, basemodel='baseline', assignment_start='spectral', gamma1=5,
      gamma2=20, ramp_at=0.4, gamma3=30, assignment_lr_scale=40, dropout_keep_prob=1,
    ),
    'split': dict(max_steps=1000, initial_lr=0.1, warmup_at=0.1, l2_weight=0.0005),
    'scratch': dict(max_steps=1000, initial_lr=0.15, warmup_at=0.2, l2_weight=0.0005),
  },
  # Far fewer steps than the paper's, for a GPU. The peak learning rate is the better one of two at k = 1 (README).
  'short': {
    'all': dict(
      batch_size=360, val_interval=125, checkpoint_interval=500, lr_schedule='cosine', precision='bfloat16',
    ),
    'baseline': dict(epochs=30, initial_lr=1.0, warmup_at=0.2, l2_weight=0.0005),
    'group': dict(
      epochs=10, initial_lr=0.1, l2_weight=0.0001, basemodel='baseline', assignment_start='spectral', gamma1=5,
      gamma2=20, ramp_at=0.5, gamma3=30, assignment_lr_scale=20, dropout_keep_prob=1,
    ),
    'split': dict(epochs=20, initial_lr=0.4, warmup_at=0.1, l2_weight=0.0005),
    'scratch': dict(epochs=60, initial_lr=1.0, warmup_at=0.2, l2_weight=0.0005),
  },
  # The same networks as well as we would train them: longer than short, with smoothed labels, the split ones taught by
  # the dense one. Not the paper's experiment.
  'better': {
    'all': dict(
      batch_size=180, val_interval=250, checkpoint_interval=1000, lr_schedule='cosine', precision='bfloat16',
      label_smoothing=0.1,
    ),
    'baseline': dict(epochs=120, initial_lr=0.2, warmup_at=0.05, l2_weight=0.0005),
    'group': dict(
      epochs=20, initial_lr=0.1, l2_weight=0.0001, basemodel='baseline', assignment_start='spectral', gamma1=5,
      gamma2=20, ramp_at=0.5, gamma3=30, assignment_lr_scale=20, dropout_keep_prob=1,
    ),
    'split': dict(
      epochs=100, initial_lr=0.2, warmup_at=0.05, l2_weight=0.0005, teacher='baseline', **TEACHING,
    ),
    'scratch': dict(
      epochs=240, initial_lr=0.2, warmup_at=0.05, l2_weight=0.0005, teacher='baseline', **TEACHING,
    ),
  },
}  # fmt: skip
STAGES = ('baseline', 'group', 'split', 'scratch')


def finding(group, groups):
  """What differs from a recipe's grouping in the run before it that finds groups from undecided noise: a dict.

  The released gammas but for gamma1: with two groups a smaller one, so that assignments become disjoint later; with
  more a larger one, without which they stayed undecided. And assignments that move far faster than the weights. Chosen
  by trial at k = 1, seed 0 (docs/groups.md).

  Args:
    group: the recipe's settings of grouping.
    groups: how many there are at the logits.
  """
  return dict(
    assignment_start='noise', gamma1=0.3 if groups == 2 else 1.5, gamma2=1, ramp_at=None, gamma3=10,
    assignment_lr_scale=32 * group['assignment_lr_scale'],
  )  # fmt: skip


# The paper's '(dropout)' rows: only these group with the recipe's dropout_keep_prob. Fine-tuning has none, as in the
# released split.sh, and so do S, C and R, of which the paper does not say it.
DROPOUT_SPLITS = ('2-2-2', '2-4-4')
DENSE_DROPOUT = 0.5  # dropout_keep_prob of the baseline with dropout, in the layers that 2-2-2 would split

# The paper's splits, named ngroups3-ngroups2-ngroups1: the name, the number of split layers, the groups.
DENSE = '1-1-1'
SPLITS = {
  '1-1-4': ('FC', '1', '4'),
  '1-2-2': ('Shallow', '6', '2'),
  '2-2-2': ('Deep', '11', '2'),
  '2-4-4': ('Hierarchical', '11', '2-4'),
}
COLUMNS = {'semantic': 'S', 'clustering': 'C', 'random': 'R', 'splitnet': 'SplitNet'}

# The paper's numbers, WRN-16-8. Table 1: test error (%), in the order of COLUMNS. Table 2: parameters (10^6),
# % reduced, FLOPs (10^9), % reduced, test error (%). Deep's error is 24.62 in Table 1 and 24.66 in Table 2.
PAPER_BASELINE = {'baseline': '24.28', 'baseline-dropout': '24.52'}
PAPER_TABLE_1 = {
  '1-1-4': ('23.80', '23.72', '24.30', '24.26'),
  '1-2-2': ('24.46', '24.54', '25.46', '23.96'),
  '2-2-2': ('25.04', '26.04', '27.12', '24.62'),
  '2-4-4': ('24.92', '25.98', '26.78', '24.80'),
}
PAPER_TABLE_2 = {
  DENSE: ('11.0', '0.0', '3.10', '0.0', '24.28'),
  '1-1-4': ('11.0', '0.35', '3.10', '0.0', '24.26'),
  '1-2-2': ('7.42', '32.54', '2.64', '14.63', '23.96'),
  '2-2-2': ('5.90', '46.39', '2.11', '31.97', '24.66'),
  '2-4-4': ('4.12', '62.58', '1.88', '39.29', '24.80'),
}


# --- flags ------------------------------------------------------------------------------------------------------


def parse_flags(argv):
  """Parses and checks the flags.

  Raises:
    UserError: where a value is out of range.
  """
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add = parser.add_argument
  add('table', choices=['counts', '1', '2', 'all', 'groups'], help='which table')
  add('--k', type=int, default=8, help='width multiplier; the paper has 8 [%(default)s]')
  add('--branch_input', default='group', help="group or all, as train.py's; 'counts' shows both [%(default)s]")
  add('--data_dir', default='cifar100/train_val_split', help='folder that download_cifar100.py wrote [%(default)s]')
  add('--out', default='runs/tables', help='folder for the runs and the tables [%(default)s]')
  add('--seeds', default='0', help='one run of each cell for each of these, separated by commas [%(default)s]')
  add(
    '--recipe',
    default='cpu',
    choices=sorted(RECIPES),
    help="cpu: a few epochs; the others are paper.sh's budgets: the paper's settings, far fewer steps, and longer than "
    "short with smoothed labels and a teacher; all but paper's group as group.sh: from the baseline, other gammas, "
    'no dropout [%(default)s]',
  )
  add('--batch_size', type=int, help="images per step; steps and learning rate go with it [the recipe's]")
  for stage in STAGES:
    steps = ', '.join('%s %d' % (name, steps_of(recipe, stage)) for name, recipe in RECIPES.items())
    add('--%s_steps' % stage, type=int, metavar='STEPS', help="steps of a %s run [the recipe's: %s]" % (stage, steps))
  add('--precision', choices=['float32', 'bfloat16'], help="of the convolutions [the recipe's, as a rule float32]")
  add('--jit_compile', type=boolean, help='compile the step with XLA: True or False [on one GPU]')
  add('--only', default='', help='run only these cells, rows or columns, such as baseline,2-2-2/semantic [all]')
  add('--print', action='store_true', dest='print_only', help='print the table of what has been run; run nothing')
  add('--per_layer', metavar='SPLIT', help='counts: each layer of dense or of a split such as 2-2-2')
  add('--everything', action='store_true', help='counts: also init_conv and batch norms, which the paper leaves out')
  flags = parser.parse_args(argv)
  flags.out, flags.data_dir = os.path.abspath(flags.out), os.path.abspath(flags.data_dir)
  split_config(DENSE, flags.k, flags.branch_input)
  for stage in STAGES:
    steps = getattr(flags, stage + '_steps')
    if steps is not None and not 1 <= steps < 2**31 - 1:
      raise UserError('--%s_steps is %d; it must be from 1 to %d' % (stage, steps, 2**31 - 2))
  if flags.batch_size is not None and not 1 <= flags.batch_size <= TRAIN_IMAGES:
    raise UserError('--batch_size is %d; it must be from 1 to %d' % (flags.batch_size, TRAIN_IMAGES))
  if not re.fullmatch(r'\d{1,9}(,\d{1,9})*', flags.seeds):
    raise UserError("--seeds is '%s'; it must be numbers separated by commas, such as 0,1,2" % flags.seeds)
  flags.seeds = sorted({int(seed) for seed in flags.seeds.split(',')})
  return flags


# --- counts -----------------------------------------------------------------------------------------------------


def split_config(split, k, branch_input):
  """The architecture.Config of a split's name, such as '2-4-4' or 'dense'."""
  match = re.fullmatch(r'(\d+)-(\d+)-(\d+)', DENSE if split == 'dense' else split)
  if not match:
    raise UserError("--per_layer is '%s'; it must be dense, or groups as in 2-4-4" % split)
  ngroups3, ngroups2, ngroups1 = map(int, match.groups())
  return architecture.Config(k=k, ngroups1=ngroups1, ngroups2=ngroups2, ngroups3=ngroups3, branch_input=branch_input)


def built_counts(split, k, branch_input='group'):
  """The layers of a network that is built with groups of even size: a list of utils.LayerCount."""
  config = split_config(split, k, branch_input)
  groups = None
  if config.split != DENSE:
    classes = grouping.random(config.num_classes, config.ngroups1, seed=0)
    groups = grouping.even_features(architecture.wide_resnet(config), classes)
  return resnet_split.Network(config, groups=groups).counts


def reduced(value, dense):
  """Percent less than the dense network, as text."""
  return '%.2f' % (100 - 100 * value / dense)


def counts_table(k, branch_input, everything=False):
  """Parameters and FLOPs of the paper's networks: (header, rows) of text."""
  header = ['network', 'parameters', '10^6 (paper)', '% reduced', '% reduced (paper)']
  header += ['FLOPs per image', '10^9 (paper)', '% FLOPs reduced', '% FLOPs reduced (paper)']
  totals = {split: utils.total_count(built_counts(split, k, branch_input), everything) for split in PAPER_TABLE_2}
  rows = []
  for split, (parameters, flops) in totals.items():
    paper = PAPER_TABLE_2[split]
    row = ['dense' if split == DENSE else '%s %s' % (SPLITS[split][0], split)]
    row += ['{:,}'.format(parameters), paper[0], reduced(parameters, totals[DENSE][0]), paper[1]]
    row += ['{:,}'.format(flops), paper[2], reduced(flops, totals[DENSE][1]), paper[3]]
    rows.append(row)
  return header, rows


def layers_table(counts, everything=False):
  """Each layer's parameters and FLOPs: (header, rows) of text."""
  rows = [(c.name, c.parameters, c.flops) for c in counts if c.counted or everything]
  rows.append(('all', *utils.total_count(counts, everything)))
  header = ['layer', 'parameters', 'FLOPs per image']
  return header, [[name, '{:,}'.format(parameters), '{:,}'.format(flops)] for name, parameters, flops in rows]


def print_counts(flags):
  """The program's `counts`."""
  what = 'with' if flags.everything else 'without'
  note = 'WRN-16-%d, 2 FLOPs per multiply-add, %s init_conv and batch norms' % (flags.k, what)
  if flags.per_layer:
    counts = built_counts(flags.per_layer, flags.k, flags.branch_input)
    print('%s of %s, branch_input %s\n' % (flags.per_layer, note, flags.branch_input))
    print(markdown(*layers_table(counts, flags.everything)), end='')
    return
  print(note + ', groups of even size; paper: WRN-16-8 without them.')
  for branch_input, meaning in (
    ('group', "a child reads its own group of its parent's channels"),
    ('all', 'a child reads all channels of its parent'),
  ):
    print('\nbranch_input %s: where the tree branches, %s.\n' % (branch_input, meaning))
    print(markdown(*counts_table(flags.k, branch_input, flags.everything)), end='')


# --- runs -------------------------------------------------------------------------------------------------------


def steps_of(recipe, stage):
  """A recipe's number of steps of a stage."""
  return recipe[stage].get('max_steps') or round(recipe[stage]['epochs'] * TRAIN_IMAGES / recipe['all']['batch_size'])


def settings_of(flags, stage):
  """The recipe's settings of a stage with the batch size, steps and precision that the flags ask for: a dict.

  With more images a step there are as many fewer steps, at as much more learning rate (Goyal et al., Accurate, Large
  Minibatch SGD, 2017).
  """
  recipe = RECIPES[flags.recipe]
  settings = {'precision': 'float32', **recipe['all'], **recipe[stage]}
  settings.pop('epochs', None)
  settings['max_steps'] = steps_of(recipe, stage)
  if flags.batch_size and flags.batch_size != settings['batch_size']:
    more = flags.batch_size / settings['batch_size']
    settings.update(batch_size=flags.batch_size, initial_lr=settings['initial_lr'] * more)
    for name in ('max_steps', 'val_interval', 'checkpoint_interval'):
      settings[name] = max(1, round(settings[name] / more))
  settings['max_steps'] = getattr(flags, stage + '_steps') or settings['max_steps']
  settings['precision'] = flags.precision or settings['precision']
  return settings


def make_runs(flags, seed):
  """All runs of both tables for one seed: dict from name to Run."""
  recipe, runs = RECIPES[flags.recipe], {}
  machine = {} if flags.jit_compile is None else {'jit_compile': flags.jit_compile}

  def add(name, stage, mode, **more):
    train = dict(mode=mode, k=flags.k, seed=seed, **settings_of(flags, stage))
    train.update(more)
    train = {key: value for key, value in train.items() if value is not None}  # None takes a recipe's setting away
    base, teacher = (runs.get(train.pop(need, None)) for need in ('basemodel', 'teacher'))
    folder = os.path.join(flags.out, 'k%d' % flags.k, 'seed%d' % seed, name)
    runs[name] = Run(folder, base, train, teacher, machine, hardens=not name.startswith('find'))

  # As many steps as grouping and fine-tuning take together, for what is compared with them.
  grouping_steps = settings_of(flags, 'group')['max_steps']
  both = grouping_steps + settings_of(flags, 'split')['max_steps']

  def groups(split):
    config = split_config(split, flags.k, flags.branch_input)
    return {name: getattr(config, name) for name in ('ngroups1', 'ngroups2', 'ngroups3', 'branch_input')}

  add('baseline', 'baseline', 'baseline')
  dropped = {name: value for name, value in groups('2-2-2').items() if name != 'branch_input'}
  # Trained on as the split networks are; only those can have a teacher.
  untaught = dict.fromkeys(['teacher', *TEACHING])
  add('baseline-long', 'split', 'baseline', basemodel='baseline', max_steps=both, **untaught)
  add('baseline-dropout', 'baseline', 'baseline', dropout_keep_prob=DENSE_DROPOUT, **dropped)
  for split in SPLITS:
    dropout = {} if split in DROPOUT_SPLITS else dict(dropout_keep_prob=1)
    add('group-' + split, 'group', 'group', **groups(split), **dropout)
    add('split-' + split, 'split', 'split', **groups(split), basemodel='group-' + split)
    if 'teacher' not in recipe['split']:
      teaching = dict(basemodel='group-' + split, teacher='baseline-long', **TEACHING)
      add('split-%s-taught' % split, 'split', 'split', **groups(split), **teaching)
    if recipe['group'].get('assignment_start') == 'spectral':  # from noise instead, for the table of groups
      name = split + '-noise'
      found = finding(recipe['group'], groups(split)['ngroups1'])
      add('find-' + split, 'group', 'group', **groups(split), **dropout, **found)
      start = dict(basemodel='find-' + split, assignment_start='noise')
      add('group-' + name, 'group', 'group', **groups(split), **dropout, **start)
      add('split-' + name, 'split', 'split', **groups(split), basemodel='group-' + name)
      # As many steps as those two, from the spectral start.
      add('group-%s-long' % split, 'group', 'group', **groups(split), **dropout, max_steps=2 * grouping_steps)
      add('split-%s-long' % split, 'split', 'split', **groups(split), basemodel='group-%s-long' % split)
    for kind in ('semantic', 'clustering', 'random'):
      base = dict(basemodel='baseline') if kind == 'clustering' else {}
      add('scratch-%s-%s' % (split, kind), 'scratch', 'split', **groups(split), grouping=kind, **base)
      start = dict(grouping=kind, grouping_start='basemodel', basemodel='baseline')
      add('given-%s-%s' % (split, kind), 'split', 'split', **groups(split), **start)
      add('given-%s-%s-long' % (split, kind), 'split', 'split', **groups(split), **start, max_steps=both)
  return runs


def run_name(split, column):
  """The run that a cell of Table 1 or 2 shows."""
  return 'split-' + split if column == 'splitnet' else 'scratch-%s-%s' % (split, column)


def cells(table):
  """A table's cells: dict from 'row' or 'row/column' to the run's name."""
  if table == 'groups':
    dense = [('dense', kind) for kind in group_table.DENSE_KINDS]
    split = [(split, kind) for split in SPLITS for kind in group_table.KINDS]
    return {'%s/%s' % cell: group_table.run_name(*cell) for cell in dense + split}
  if table == '2':
    return {'baseline': 'baseline', **{split + '/splitnet': run_name(split, 'splitnet') for split in SPLITS}}
  if table == 'all':
    first = {'baseline': 'baseline', '2-2-2/splitnet': run_name('2-2-2', 'splitnet')}
    return {**first, **cells('2'), **cells('1')}
  chosen = {name: name for name in PAPER_BASELINE}
  return {**chosen, **{'%s/%s' % (s, c): run_name(s, c) for s in SPLITS for c in COLUMNS}}


def chosen_cells(table, only, runs):
  """The names of the runs that --only asks for, in order.

  Args:
    table: as on the command line.
    only: the flag's text, '' for all.
    runs: `make_runs`'s; a recipe that starts from noise or has a teacher does not have these cells once more.

  Raises:
    UserError: where it names none.
  """
  found = {cell: run for cell, run in cells(table).items() if run in runs}
  wanted = [word.strip() for word in only.split(',') if word.strip()]
  for word in wanted:
    if not any(word in (cell, *cell.split('/')) for cell in found):
      raise UserError("--only names '%s'; table %s of this recipe has %s" % (word, table, ', '.join(found)))
  return [run for cell, run in found.items() if not wanted or {cell, *cell.split('/')} & set(wanted)]


def collect(flags, data):
  """The results of all runs there are, of all seeds on disk: dict from run name to list of `read_run`'s."""
  results, seeds = {}, set(flags.seeds)
  folder = os.path.join(flags.out, 'k%d' % flags.k)
  if os.path.isdir(folder):
    seeds.update(int(name[4:]) for name in os.listdir(folder) if re.fullmatch(r'seed\d{1,9}', name))
  for seed in sorted(seeds):
    for name, run in make_runs(flags, seed).items():
      result = read_run(run, data)
      if result:
        results.setdefault(name, []).append(result)
  return results


# --- tables -----------------------------------------------------------------------------------------------------


def error_text(results):
  """Test error in %: the mean over the seeds, with their standard deviation and number where there are several."""
  errors = [100 - 100 * result['accuracy'] for result in results]
  if len(errors) < 2:
    return '%.2f' % errors[0] if errors else ''
  return '%.2f ± %.2f (%d)' % (np.mean(errors), np.std(errors, ddof=1), len(errors))


def table_1(results):
  """Table 1 from `collect`'s results: (header, rows) of text."""
  header = ['network', 'split layers', 'groups', 'dense', 'dense (paper)']
  header += [text for name in COLUMNS.values() for text in (name, name + ' (paper)')]
  rows = []
  for name, paper in PAPER_BASELINE.items():
    rows.append([name.replace('-', ' with '), '', '', error_text(results.get(name, [])), paper] + [''] * 8)
  for split, (name, layers, groups) in SPLITS.items():
    row = ['%s %s' % (name, split), layers, groups, '', '']
    for column, paper in zip(COLUMNS, PAPER_TABLE_1[split]):
      row += [error_text(results.get(run_name(split, column), [])), paper]
    rows.append(row)
  return header, rows


def table_2(results, dense):
  """Table 2 from `collect`'s results: (header, rows) of text.

  Args:
    results: from `collect`.
    dense: (parameters, FLOPs) of the dense network.
  """
  names = ['parameters (10^6)', '% reduced', 'FLOPs (10^9)', '% FLOPs reduced', 'error (%)']
  rows = []
  for split, paper in PAPER_TABLE_2.items():
    found = results.get('baseline' if split == DENSE else run_name(split, 'splitnet'), [])
    values = [''] * 4
    if found:
      parameters, flops = (np.mean([result[name] for result in found]) for name in ('parameters', 'flops'))
      values = ['%.3f' % (parameters / 1e6), reduced(parameters, dense[0])]
      values += ['%.3f' % (flops / 1e9), reduced(flops, dense[1])]
    row = ['dense' if split == DENSE else '%s %s' % (SPLITS[split][0], split)]
    rows.append(row + [text for pair in zip([*values, error_text(found)], paper) for text in pair])
  return ['network'] + [text for name in names for text in (name, name + ' (paper)')], rows


def markdown(header, rows):
  """A table as Markdown, its columns aligned."""
  widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
  lines = [[text.ljust(width) for text, width in zip(row, widths)] for row in [header, *rows]]
  lines.insert(1, ['-' * width for width in widths])
  return ''.join('| %s |\n' % ' | '.join(line) for line in lines)


def runs_table(results):
  """What every finished run took: (header, rows) of text."""
  paper = {**PAPER_BASELINE, **{run_name(s, c): e for s in SPLITS for c, e in zip(COLUMNS, PAPER_TABLE_1[s])}}
  rows = []
  for name, found in results.items():
    for result in found:
      cost = result['cost'] or {'seconds': None, 'device': ''}
      hours = '' if cost['seconds'] is None else '%.2f' % (cost['seconds'] / 3600)
      row = [name, result['steps'], result['batch_size'], result['seed'], cost['device'], hours]
      rows.append([str(text) for text in row] + [error_text([result]), paper.get(name, '')])
  return ['run', 'steps', 'images per step', 'seed', 'device', 'hours', 'error (%)', 'error (%) (paper)'], rows


def caption(flags, table, results):
  """What the numbers of a table are, in one paragraph."""
  settings = {stage: settings_of(flags, stage) for stage in STAGES}
  steps = ['%s %d' % (stage, settings[stage]['max_steps']) for stage in STAGES]
  sources = sorted({result['data']['source'] for found in results.values() for result in found})
  common = 'on the test images (data: %s): WRN-16-%d, recipe %s (steps of %d images: %s), branch_input %s' % (
    ', '.join(sources) or 'no run yet', flags.k, flags.recipe, settings['baseline']['batch_size'], ', '.join(steps),
    flags.branch_input,
  )  # fmt: skip
  if table == 'runs':
    return "Every finished run, with the programs' whole time; errors %s.\n\n" % common
  if table == 'groups':
    from_scratch = RECIPES[flags.recipe]['group']['basemodel'] is None
    but = ' but the learned groups, which start from nothing,' if from_scratch else ''
    return (
      'Groups and accuracy %s. Agreement: share of the classes in the group that holds most of their superclass. '
      'Converged: every assignment at least %g confident from this step of grouping on. Moved: ended in another group '
      'than the spectral start had put it in; groups from a noise start take one grouping run more, which finds them, '
      'and (learned, long) those from the spectral start one run of as many steps as these two. All%s start from the '
      'same baseline of their seed; S, C and R split it at once and are fine-tuned with the same steps, or (long) with '
      'as many as grouping and fine-tuning have together, for which the dense network (long) is trained on too; that '
      'network teaches the taught ones. Steps in all count from the first weights on. Mean ± standard deviation.\n\n'
      % (common, group_table.CONVERGED, but)
    )
  return (
    'Table %s %s, the checkpoint of the best validation accuracy. Several seeds: mean ± standard deviation of the '
    'error (seeds). Paper: WRN-16-8.\n\n' % (table, common)
  )


def show(flags, data, dense):
  """Prints the table that was asked for and, where anything may be run, writes its two files; 'all' is three."""
  results = collect(flags, data)
  for table in ('2', '1', 'runs') if flags.table == 'all' else (flags.table,):
    if table == 'groups':
      header, rows = group_table.table(results, SPLITS)
    elif table == 'runs':
      header, rows = runs_table(results)
    else:
      header, rows = table_1(results) if table == '1' else table_2(results, dense)
    show_one(flags, table, caption(flags, table, results), header, rows)


def show_one(flags, table, note, header, rows):
  """Prints one table and, where anything may be run, writes OUT/k<k>/table<1 or 2>.md (or its name) and .csv."""
  text = note + markdown(header, rows)
  print('\n' + text, flush=True)
  if flags.print_only:
    return
  values = io.StringIO()
  csv.writer(values, lineterminator='\n').writerows([header, *rows])
  name = 'table' + table if table in ('1', '2') else table
  path = os.path.join(flags.out, 'k%d' % flags.k, name)
  try:
    for ending, content in (('.md', text), ('.csv', values.getvalue())):
      write_text(path + ending, content)
  except OSError as e:
    raise UserError("cannot write '%s.md' (%s): give another --out" % (path, e.strerror)) from e


def run_table(flags):
  """The program's `1` and `2`: runs what is left to run, and shows the table after every run."""
  names = chosen_cells(flags.table, flags.only, make_runs(flags, 0))
  dense = utils.total_count(built_counts(DENSE, flags.k))
  if flags.print_only:
    show(flags, None, dense)
    return
  train_images = len(cifar100.load(flags.data_dir, 'train').labels)
  data = dict(cifar100.load_names(flags.data_dir).source, train_images=train_images)
  collect(flags, data)  # whatever does not fit is told before anything runs
  wanted = [run for seed in flags.seeds for run in with_needs([make_runs(flags, seed)[name] for name in names])]
  left = [run for run in wanted if read_run(run, data) is None]
  print('%d runs, %d of them done' % (len(wanted), len(wanted) - len(left)))
  if any(each.train['precision'] == 'bfloat16' for each in left):
    note = devices.precision_note('bfloat16', training=True)
    if note:
      print(note)
  seconds = steps = 0
  for i, each in enumerate(left):
    begun, last = each.steps_done, each.train['max_steps']
    text = '%d runs left; now %s, %d steps' % (len(left) - i, each.folder, last)
    text += ' from step %d' % begun if begun else ''
    if steps:
      remaining = sum(r.train['max_steps'] - r.steps_done for r in left[i:])
      text += '; about %d h %02d min for all that is left' % divmod(round(remaining * seconds / steps / 60), 60)
    print(text, flush=True)
    started = time.monotonic()
    experiments.do(each, flags.data_dir, data)
    seconds, steps = seconds + time.monotonic() - started, steps + last - begun
    show(flags, data, dense)
  if not left:
    show(flags, data, dense)


def run(flags):
  """Does what the flags say."""
  try:
    print_counts(flags) if flags.table == 'counts' else run_table(flags)
  except KeyboardInterrupt:
    print('tables.py: stopped; the same command goes on', file=sys.stderr)
    raise


def main(argv=None):
  """Runs the program; returns its exit code."""
  return run_program('tables.py', lambda: run(parse_flags(argv)))


if __name__ == '__main__':
  # A kill is an interrupt too, or the run that is going on would outlive this program. What nohup ignores stays so.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, signal.default_int_handler)
  tf.config.set_visible_devices([], 'GPU')  # this process only counts, and the runs need the GPU's memory
  sys.exit(main())
