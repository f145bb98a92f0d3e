"""Prints the paper's tables, from runs of train.py and eval.py.

  ./tables.sh counts   parameters and FLOPs of every split of the paper, beside the paper's numbers
  ./tables.sh 1        Table 1: the learned groups against semantic, clustered and random ones
  ./tables.sh 2        Table 2: parameters, FLOPs and test error
  ./tables.sh all      every run of both, the deep split first, with a list of the runs
  ./tables.sh 3        Table 3: AlexNet on ILSVRC 2012, the learned groups against random ones
  ./tables.sh 4        Table 4: the same of ResNet-18x2
  ./tables.sh groups   how semantic the learned groups are, what hardening costs, against S, C, R and dense
  ./tables.sh 5        Table 5: evaluation time on several devices (has flags of its own: ./tables.sh 5 --help)
  ./tables.sh plan     measures a few steps and estimates the hours of Tables 1 and 2 (./tables.sh plan --help)

Each cell of a table is a run in a folder of its own, OUT/k<k>/seed<seed>/<name>. What is done is not run again, what
was interrupted continues; the table is printed and written (OUT/k<k>/table1.md and .csv, or groups.md) after every
finished run. What has not been run is an empty cell. Of AlexNet and ResNet-18 the folder is OUT/<network>-x<width>.

The settings are a recipe's. cpu takes a few epochs. Those for the paper's scale are paper, its own settings (400 epochs
of grouping, 240 of the rest); short, the same cells in 112,500 steps instead of 2,960,000; and better, longer than
short with smoothed labels and a teacher. All but paper group as group.sh does: from the baseline, other gammas, no
dropout. Tables 3 and 4 have the recipes paper, which is partly inferred, and cpu.

  ./tables.sh all --recipe short --only 2-2-2/splitnet --seeds 0,1,2      some cells, with several seeds
  ./tables.sh all --recipe short --print                                  the tables so far
  ./tables.sh 4 --dataset image_folder --data_dir DIR --width 0.25 --cache      Table 4 of your own images, scaled down
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import sys

from paper import recipes
from splitnet.common.flags import Parser, add, answer_early, boolean, integer, integers, number, one_of, switch, take


def make_parser():
  """Returns the parser of the flags."""
  parser = Parser(prog='tables.py', description=__doc__)
  parser.add_argument('table', choices=['counts', '1', '2', '3', '4', 'all', 'groups'], help='which table')
  add(parser, 'recipe', one_of(*sorted(recipes.RECIPES)), 'cpu', 'the settings of the runs')
  add(parser, 'network', one_of(*recipes.BY_NETWORK), None, 'groups: of which network [wrn]')
  add(parser, 'k', int, 8, 'wrn: width multiplier; the paper has 8')
  add(parser, 'width', number('(0, inf)'), None, 'alexnet, resnet18: width multiplier [the paper has 1 and 2]')
  text = "group or all, as train.py's; counts shows both [wrn: all, of recipe cpu group; the others: group]"
  add(parser, 'branch_input', str, None, text)
  add(parser, 'dataset', one_of(*recipes.DATASETS), None, 'which images [wrn: cifar100; the others: imagenet]')
  add(parser, 'data_dir', str, None, 'their folder [of cifar100, by download_cifar100.py: cifar100/train_val_split]')
  add(parser, 'image_size', integer(8, 4096), None, "of image files, pixels a side [the data set's]")
  switch(parser, 'skip_damaged', 'leave out image files that cannot be decoded')
  switch(parser, 'cache', 'decode image files once and keep them on the disk for training, of small data')
  add(parser, 'out', str, None, 'folder for the runs and the tables [runs/paper/RECIPE; of recipe cpu runs/tables]')
  add(parser, 'seeds', integers(0, 10**9 - 1), '0', 'one run of each cell for each of these')
  text = "per step; steps and learning rate change with it [the recipe's]"
  add(parser, 'batch_size', integer(1, recipes.TRAIN_IMAGES), None, f'images {text}')
  for stage in recipes.STAGES:
    steps = {name: recipes.stage_settings(recipe, stage)['max_steps'] for name, recipe in recipes.RECIPES.items()}
    steps = ', '.join(f'{name} {count}' for name, count in steps.items())
    add(parser, f'{stage}_steps', integer(1, 2**31 - 2), None, f"steps of a {stage} run [the recipe's, of WRN {steps}]")
  add(parser, 'precision', one_of('float32', 'bfloat16'), None, "of the convolutions [the recipe's]")
  add(parser, 'jit_compile', boolean, None, 'compile the step with XLA [on one GPU]')
  add(parser, 'only', str, '', 'run only these cells, rows or columns, such as baseline,2-2-2/semantic [all]')
  switch(parser, 'print', 'print the table of what has been run; run nothing', dest='print_only')
  add(parser, 'per_layer', str, None, 'counts: each layer of dense or of a split such as 2-2-2 [a line per network]')
  switch(parser, 'everything', 'counts: also init_conv and batch norms, which the paper leaves out')
  return parser


if __name__ == '__main__':
  answer_early('tables.py', make_parser)

import collections
import glob
import os
import re
import signal
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
from paper import counts, data, experiments, group_table, runs
from paper.published import DENSE, GROUPINGS, SPLITS, TABLE_1, TABLE_1_DENSE, TABLES, row_name
from splitnet.common.errors import UserError, program
from splitnet.common.files import write_text
from splitnet.parallel import devices
from splitnet.reporting.tables import csv_text, markdown, mean_text

PAPERS = {
  'wrn': 'WRN-16-8',
  'alexnet': 'AlexNet on the validation images of ILSVRC 2012',
  'resnet18': 'ResNet-18x2 on the validation images of ILSVRC 2012',
}


def parse_flags(argv):
  """Parses the flags; `experiment` is the experiments.Experiment that they describe."""
  flags = make_parser().parse_args(argv)
  network, _ = TABLES.get(flags.table, TABLES['1'])
  if flags.network not in (None, network) and flags.table != 'groups':
    raise UserError(f'--network is {flags.network}, but table {flags.table} is of {network}: leave the flag out')
  flags.experiment = take(experiments.Experiment, vars(flags), network=flags.network or network)
  if flags.data_dir is None and flags.experiment.dataset == 'cifar100':
    flags.data_dir = cifar100.DATA_DIR
  flags.seeds, flags.data_dir = sorted(flags.seeds), flags.data_dir and os.path.abspath(flags.data_dir)
  flags.experiment.config(DENSE)  # checks --k and --branch_input
  return flags


def chosen_cells(table, only, known):
  """Returns the names of the runs that --only asks for, in the table's order.

  `known` are the names of `make_runs`; a recipe that starts from noise or has a teacher lacks some of the cells.
  """
  cells = {cell: run for cell, run in experiments.cells(table).items() if run in known}
  words_of = {cell: {cell, *cell.split('/')} for cell in cells}
  wanted = {word.strip() for word in only.split(',') if word.strip()}
  for word in sorted(wanted.difference(*words_of.values())):
    raise UserError(f"--only names '{word}'; table {table} of this recipe has {', '.join(cells)}")
  return [run for cell, run in cells.items() if not wanted or words_of[cell] & wanted]


def collect(experiment, seeds, described):
  """Reads all results, of all seeds on disk: dict from run name to list of them."""
  on_disk = glob.glob('seed*', root_dir=experiment.folder)
  seeds = {*seeds, *(int(name[4:]) for name in on_disk if re.fullmatch(r'seed\d{1,9}', name))}
  results = collections.defaultdict(list)
  for seed in sorted(seeds):
    for name, run in experiments.make_runs(experiment, seed).items():
      if result := runs.read_result(run, described):
        results[name].append(result)
  return dict(results)


def error_text(results):
  """Returns the test error in %, of several seeds their mean, deviation and number."""
  errors = [100 - 100 * result['accuracy'] for result in results]
  return mean_text(errors, '.2f') + (f' ({len(errors)})' if len(errors) > 1 else '')


def both(names):
  """Returns the headings of columns that each stand beside the paper's."""
  return [text for name in names for text in (name, f'{name} (paper)')]


def errors_of(results, cells):
  """Returns each cell's error and the paper's; a cell: (run's name, paper's error)."""
  return [text for run, paper in cells for text in (error_text(results.get(run, [])), paper)]


def table_1(results):
  """Makes Table 1 of `collect`'s results: (header, rows) of text."""
  header = ['network', 'split layers', 'groups', *both(['dense', *GROUPINGS.values()])]
  rows = []
  for name, paper in TABLE_1_DENSE.items():
    rows.append([name.replace('-', ' with '), '', '', *errors_of(results, [(name, paper)]), *[''] * 8])
  for split, (_, layers, groups) in SPLITS.items():
    cells = [(experiments.run_of_table(split, grouping), paper) for grouping, paper in zip(GROUPINGS, TABLE_1[split])]
    rows.append([row_name(split), layers, groups, '', '', *errors_of(results, cells)])
  return header, rows


def sizes_table(results, published, dense):
  """Makes Table 2, 3 or 4 beside the dense size: (header, rows) of text.

  Args:
    results: as of `collect`; published: the paper's numbers by split; dense: (parameters, FLOPs).
  """
  names = ['parameters (10^6)', '% reduced', 'FLOPs (10^9)', '% FLOPs reduced']
  errors = {'splitnet': 'error (%)', 'random': 'error of random groups (%)'}
  groupings = list(errors)[: len(published[DENSE]) - len(names)]
  rows = []
  for split, paper in published.items():
    runs_of_row = [experiments.run_of_table(split, name) for name in groupings]
    if split == DENSE:
      runs_of_row[0] = 'baseline'
    if of_run := results.get(runs_of_row[0]):
      sizes = [np.mean([result[name] for result in of_run]) for name in ('parameters', 'flops')]
      texts = [f'{sizes[0] / 1e6:.3f}', f'{sizes[1] / 1e9:.3f}']
      beside = counts.beside_paper(texts, sizes, dense, paper)
    else:
      beside = [text for value in paper[: len(names)] for text in ('', value)]
    rows.append([row_name(split, published), *beside, *errors_of(results, zip(runs_of_row, paper[len(names) :]))])
  return ['network', *both([*names, *(errors[name] for name in groupings)])], rows


def runs_table(results):
  """Makes the table of what every finished run took: (header, rows) of text."""
  paper = {experiments.run_of_table(s, g): error for s in SPLITS for g, error in zip(GROUPINGS, TABLE_1[s])}
  paper.update(TABLE_1_DENSE)
  rows = []
  for name, result in ((name, result) for name, of_run in results.items() for result in of_run):
    cost = result['cost'] and (result['cost']['device'], f'{result["cost"]["seconds"] / 3600:.2f}')
    shown = [str(result[key]) for key in ('steps', 'batch_size', 'seed')]
    rows.append([name, *shown, *(cost or ('', '')), error_text([result]), paper.get(name, '')])
  return ['run', 'steps', 'images per step', 'seed', 'device', 'hours', 'error (%)', 'error (%) (paper)'], rows


def caption(experiment, table, results):
  """Returns what the numbers of a table are, in one paragraph."""
  stages = [*recipes.STAGES, *(key for key in experiment.stages if '-' in key)]  # and those of a split
  settings = {stage: experiments.settings_of(experiment, *stage.split('-', 1)) for stage in stages}
  steps = ', '.join(f'{stage} {settings[stage]["max_steps"]}' for stage in stages)
  described = [result['data'] for of_run in results.values() for result in of_run]
  sources = sorted({one['source'] for one in described})
  subsets = sorted({one.get('evaluated', 'test') for one in described})
  common = (
    f'on the {" and ".join(subsets) or "test"} images (data: {", ".join(sources) or "no run yet"}): '
    f'{experiment.config(DENSE).graph().name}, recipe {experiment.recipe} (steps of '
    f'{settings["baseline"]["batch_size"]} images: {steps}), branch_input {experiment.branch_input}'
  )
  if table == 'runs':
    return f"Every finished run, with the programs' whole time; errors {common}.\n\n"
  if table == 'groups':
    from_scratch = settings['group']['basemodel'] is None
    return f'Groups and accuracy {common}. {group_table.legend(from_scratch)}\n\n'
  return (
    f'Table {table} {common}, the checkpoint of the best validation accuracy. Several seeds: mean ± standard deviation '
    f'of the error (seeds). Paper: {PAPERS[experiment.network]}.\n\n'
  )


def dense_size(experiment, results):
  """Returns the dense network's (parameters, FLOPs) for the data of the runs."""
  described = next((result['data'] for of_run in results.values() for result in of_run), {})
  sizes = {'num_classes': 'classes', 'image_size': 'image_size'}
  known = {name: described[key] for name, key in sizes.items() if key in described}
  return counts.total(experiment.config(DENSE, **known))


def show(flags, described):
  """Prints the table that was asked for ('all' is three) and writes its files.

  `described` says which data there is; with None the runs may have had any. With --print nothing is written.
  """
  experiment = flags.experiment
  results = collect(experiment, flags.seeds, described)
  for table in ('2', '1', 'runs') if flags.table == 'all' else (flags.table,):
    if table in ('2', '3', '4'):
      header, rows = sizes_table(results, TABLES[table][1], dense_size(experiment, results))
    else:
      header, rows = {'1': table_1, 'runs': runs_table, 'groups': group_table.table}[table](results)
    text = caption(experiment, table, results) + markdown(header, rows)
    print('\n' + text, flush=True)
    if not flags.print_only:
      path = os.path.join(experiment.folder, f'table{table}' if table in TABLES else table)
      try:
        write_text(f'{path}.md', text)
        write_text(f'{path}.csv', csv_text(header, rows))
      except OSError as e:
        raise UserError(f"cannot write '{path}.md' ({e.strerror}): give another --out") from e


def run_table(flags):
  """Runs what is left of a table's runs, and shows the table after every run."""
  experiment = flags.experiment
  names = chosen_cells(flags.table, flags.only, experiments.make_runs(experiment, 0))
  if flags.print_only:
    show(flags, None)
    return
  opened = data.open_data(experiment.dataset, flags.data_dir, experiment.image_size, experiment.skip_damaged)
  described = data.describe(experiment.dataset, opened)
  for note in opened.notes:
    print(f'note: {note}')
  if opened.names.fine_to_coarse is None and any('semantic' in name for name in names):
    print(f"'{flags.data_dir}' has no superclasses: the semantic groups (S) are left out")
    names = [name for name in names if 'semantic' not in name]
  collect(experiment, flags.seeds, described)  # whatever does not fit is refused before anything runs
  wanted = []
  for seed in flags.seeds:
    of_seed = experiments.make_runs(experiment, seed)
    wanted += runs.with_needs([of_seed[name] for name in names])
  left = [run for run in wanted if runs.read_result(run, described) is None]
  print(f'{len(wanted)} runs, {len(wanted) - len(left)} of them done')
  half = any(run.train['precision'] == 'bfloat16' for run in left)
  if half and (note := devices.precision_note('bfloat16', training=True)):
    print(note)
  seconds = steps = 0
  for i, run in enumerate(left):
    first, last = run.steps_done, run.train['max_steps']
    text = f'{len(left) - i} runs left; now {run.folder}, {last} steps'
    text += f' from step {first}' if first else ''
    if steps:
      remaining = sum(other.train['max_steps'] - other.steps_done for other in left[i:])
      text += f'; about {runs.hours(remaining * seconds / steps)} for all that is left'
    print(text, flush=True)
    started = time.monotonic()
    runs.complete(run, flags.data_dir, described)
    seconds, steps = seconds + time.monotonic() - started, steps + last - first
    show(flags, described)
  if not left:
    show(flags, described)


@program('tables.py', lasting=True)
def main(argv):
  """Prints counts, or runs and prints a table."""
  flags = parse_flags(argv)
  try:
    if flags.table == 'counts':
      counts.print_counts(flags.experiment, flags.per_layer, flags.everything)
    else:
      run_table(flags)
  except KeyboardInterrupt:
    print('tables.py: stopped; the same command continues', file=sys.stderr)
    raise


if __name__ == '__main__':
  # A kill is an interrupt too, or the run in progress would outlive this program. What nohup ignores stays so.
  for kill in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if kill != signal.SIGHUP or signal.getsignal(kill) != signal.SIG_IGN:
      signal.signal(kill, signal.default_int_handler)
  tf.config.set_visible_devices([], 'GPU')  # this process only counts, and the runs need the GPU's memory
  sys.exit(main())
