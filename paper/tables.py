"""The paper's tables: sizes of its networks, and test errors from runs of train.py and eval.py.

  ./tables.sh counts   parameters and FLOPs of every split of the paper, beside the paper's numbers
  ./tables.sh 1        Table 1: the learned groups against semantic, clustered and random ones
  ./tables.sh 2        Table 2: parameters, FLOPs and test error
  ./tables.sh all      every run of both, the deep split first, with a list of the runs
  ./tables.sh groups   how semantic the learned groups are, what hardening costs, against S, C, R and dense
  ./tables.sh 5        Table 5: evaluation time on several devices (has flags of its own: ./tables.sh 5 --help)
  ./tables.sh plan     measures a few steps and estimates the hours of all runs (./tables.sh plan --help)

Each cell of a table is a run in a folder of its own, OUT/k<k>/seed<seed>/<name>. What is done is not run again, what
was interrupted continues; the table is printed and written (OUT/k<k>/table1.md and .csv, or groups.md) after every
finished run. What has not been run is an empty cell.

The settings are a recipe's. cpu takes a few epochs. Those for the paper's scale are paper, its own settings (400 epochs
of grouping, 240 of the rest); short, the same cells in 112,500 steps instead of 2,960,000; and better, longer than
short with smoothed labels and a teacher. All but paper group as group.sh does: from the baseline, other gammas, no
dropout.

  ./tables.sh all --recipe short --only 2-2-2/splitnet --seeds 0,1,2      some cells, with several seeds
  ./tables.sh all --recipe short --print                                  the tables so far
"""

import collections
import glob
import itertools
import os
import re
import signal
import sys
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
from paper import counts, group_table, recipes, runs
from paper.published import DENSE, GROUPINGS, SPLITS, TABLE_1, TABLE_1_DENSE, TABLE_2, row_name
from splitnet.common.errors import UserError, program
from splitnet.common.files import write_text
from splitnet.common.flags import Parser, add, boolean, integer, integers, one_of, switch, take
from splitnet.parallel import devices
from splitnet.reporting.tables import csv_text, markdown, mean_text


def parse_flags(argv):
  """Parses the flags; `experiment` is the recipes.Experiment that they describe."""
  parser = Parser(prog='tables.py', description=__doc__)
  parser.add_argument('table', choices=['counts', '1', '2', 'all', 'groups'], help='which table')
  add(parser, 'recipe', one_of(*sorted(recipes.RECIPES)), 'cpu', 'the settings of the runs')
  add(parser, 'k', int, 8, 'width multiplier; the paper has 8')
  add(parser, 'branch_input', str, None, "group or all, as train.py's; counts shows both [all; of recipe cpu group]")
  add(parser, 'data_dir', str, 'cifar100/train_val_split', 'folder that download_cifar100.py wrote')
  add(parser, 'out', str, None, 'folder for the runs and the tables [runs/paper/RECIPE; of recipe cpu runs/tables]')
  add(parser, 'seeds', integers(0, 10**9 - 1), '0', 'one run of each cell for each of these')
  text = "per step; steps and learning rate change with it [the recipe's]"
  add(parser, 'batch_size', integer(1, recipes.TRAIN_IMAGES), None, f'images {text}')
  for stage in recipes.STAGES:
    steps = ', '.join(f'{name} {recipes.steps_of(recipe, stage)}' for name, recipe in recipes.RECIPES.items())
    add(parser, f'{stage}_steps', integer(1, 2**31 - 2), None, f"steps of a {stage} run [the recipe's: {steps}]")
  add(parser, 'precision', one_of('float32', 'bfloat16'), None, "of the convolutions [the recipe's]")
  add(parser, 'jit_compile', boolean, None, 'compile the step with XLA [on one GPU]')
  add(parser, 'only', str, '', 'run only these cells, rows or columns, such as baseline,2-2-2/semantic [all]')
  switch(parser, 'print', 'print the table of what has been run; run nothing', dest='print_only')
  add(parser, 'per_layer', str, None, 'counts: each layer of dense or of a split such as 2-2-2 [a line per network]')
  switch(parser, 'everything', 'counts: also init_conv and batch norms, which the paper leaves out')
  flags = parser.parse_args(argv)
  flags.seeds, flags.data_dir = sorted(flags.seeds), os.path.abspath(flags.data_dir)
  flags.experiment = take(recipes.Experiment, vars(flags))
  flags.experiment.config(DENSE)  # checks --k and --branch_input
  return flags


def chosen_cells(table, only, known):
  """Returns the names of the runs that --only asks for, in the table's order.

  `known` are the names of `make_runs`; a recipe that starts from noise or has a teacher lacks some of the cells.
  """
  cells = {cell: run for cell, run in recipes.cells(table).items() if run in known}
  words_of = {cell: {cell, *cell.split('/')} for cell in cells}
  wanted = {word.strip() for word in only.split(',') if word.strip()}
  for word in sorted(wanted.difference(*words_of.values())):
    raise UserError(f"--only names '{word}'; table {table} of this recipe has {', '.join(cells)}")
  return [run for cell, run in cells.items() if not wanted or words_of[cell] & wanted]


def collect(experiment, seeds, data):
  """Reads all results, of all seeds on disk: dict from run name to list of them."""
  on_disk = glob.glob('seed*', root_dir=experiment.folder)
  seeds = {*seeds, *(int(name[4:]) for name in on_disk if re.fullmatch(r'seed\d{1,9}', name))}
  results = collections.defaultdict(list)
  for seed in sorted(seeds):
    for name, run in recipes.make_runs(experiment, seed).items():
      if result := runs.read_result(run, data):
        results[name].append(result)
  return dict(results)


def error_text(results):
  """Returns the test error in %, of several seeds their mean, deviation and number."""
  errors = [100 - 100 * result['accuracy'] for result in results]
  return mean_text(errors, '.2f') + (f' ({len(errors)})' if len(errors) > 1 else '')


def both(names):
  """Returns the headings of columns that each stand beside the paper's."""
  return [text for name in names for text in (name, f'{name} (paper)')]


def table_1(results):
  """Makes Table 1 of `collect`'s results: (header, rows) of text."""
  header = ['network', 'split layers', 'groups', 'dense', 'dense (paper)']
  header += both(GROUPINGS.values())
  rows = []
  for name, paper in TABLE_1_DENSE.items():
    rows.append([name.replace('-', ' with '), '', '', error_text(results.get(name, [])), paper, *[''] * 8])
  for split, (_, layers, groups) in SPLITS.items():
    row = [row_name(split), layers, groups, '', '']
    for grouping, paper in zip(GROUPINGS, TABLE_1[split]):
      row += [error_text(results.get(recipes.run_of_table(split, grouping), [])), paper]
    rows.append(row)
  return header, rows


def table_2(results, dense):
  """Makes Table 2 beside the dense (parameters, FLOPs): (header, rows) of text."""
  names = ['parameters (10^6)', '% reduced', 'FLOPs (10^9)', '% FLOPs reduced', 'error (%)']
  rows = []
  for split, paper in TABLE_2.items():
    of_split = results.get('baseline' if split == DENSE else recipes.run_of_table(split, 'splitnet'), [])
    values = []
    for name, unit, of_dense in zip(('parameters', 'flops'), (1e6, 1e9), dense):
      size = np.mean([result[name] for result in of_split]) if of_split else None
      values += ['', ''] if size is None else [f'{size / unit:.3f}', counts.reduced(size, of_dense)]
    values.append(error_text(of_split))
    rows.append([row_name(split), *itertools.chain(*zip(values, paper))])
  return ['network', *both(names)], rows


def runs_table(results):
  """Makes the table of what every finished run took: (header, rows) of text."""
  paper = {recipes.run_of_table(s, g): error for s in SPLITS for g, error in zip(GROUPINGS, TABLE_1[s])}
  paper.update(TABLE_1_DENSE)
  rows = []
  for name, of_run in results.items():
    for result in of_run:
      row = [name, *(str(result[key]) for key in ('steps', 'batch_size', 'seed'))]
      cost = result['cost']
      row += [cost['device'], f'{cost["seconds"] / 3600:.2f}'] if cost else ['', '']
      rows.append([*row, error_text([result]), paper.get(name, '')])
  return ['run', 'steps', 'images per step', 'seed', 'device', 'hours', 'error (%)', 'error (%) (paper)'], rows


def caption(experiment, table, results):
  """Returns what the numbers of a table are, in one paragraph."""
  settings = {stage: recipes.settings_of(experiment, stage) for stage in recipes.STAGES}
  steps = ', '.join(f'{stage} {settings[stage]["max_steps"]}' for stage in recipes.STAGES)
  sources = sorted({result['data']['source'] for of_run in results.values() for result in of_run})
  common = (
    f'on the test images (data: {", ".join(sources) or "no run yet"}): WRN-16-{experiment.k}, recipe '
    f'{experiment.recipe} (steps of {settings["baseline"]["batch_size"]} images: {steps}), branch_input '
    f'{experiment.branch_input}'
  )
  if table == 'runs':
    return f"Every finished run, with the programs' whole time; errors {common}.\n\n"
  if table == 'groups':
    from_scratch = settings['group']['basemodel'] is None
    return f'Groups and accuracy {common}. {group_table.legend(from_scratch)}\n\n'
  return (
    f'Table {table} {common}, the checkpoint of the best validation accuracy. Several seeds: mean ± standard deviation '
    'of the error (seeds). Paper: WRN-16-8.\n\n'
  )


def show(flags, data):
  """Prints the table that was asked for ('all' is three) and writes its files.

  `data` says which data there is; with None the runs may have had any. With --print nothing is written.
  """
  experiment = flags.experiment
  results = collect(experiment, flags.seeds, data)
  make = {
    '1': lambda: table_1(results),
    '2': lambda: table_2(results, counts.total(experiment.config(DENSE))),
    'runs': lambda: runs_table(results),
    'groups': lambda: group_table.table(results),
  }
  for table in ('2', '1', 'runs') if flags.table == 'all' else (flags.table,):
    header, rows = make[table]()
    text = caption(experiment, table, results) + markdown(header, rows)
    print('\n' + text, flush=True)
    if not flags.print_only:
      path = os.path.join(experiment.folder, f'table{table}' if table in ('1', '2') else table)
      try:
        write_text(f'{path}.md', text)
        write_text(f'{path}.csv', csv_text(header, rows))
      except OSError as e:
        raise UserError(f"cannot write '{path}.md' ({e.strerror}): give another --out") from e


def run_table(flags):
  """Runs what is left of a table's runs, and shows the table after every run."""
  experiment = flags.experiment
  names = chosen_cells(flags.table, flags.only, recipes.make_runs(experiment, 0))
  if flags.print_only:
    show(flags, None)
    return
  train_images = len(cifar100.load(flags.data_dir, 'train').labels)
  data = dict(cifar100.load_names(flags.data_dir).source, train_images=train_images)
  collect(experiment, flags.seeds, data)  # whatever does not fit is refused before anything runs
  wanted = []
  for seed in flags.seeds:
    of_seed = recipes.make_runs(experiment, seed)
    wanted += runs.with_needs([of_seed[name] for name in names])
  left = [run for run in wanted if runs.read_result(run, data) is None]
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
    runs.complete(run, flags.data_dir, data)
    seconds, steps = seconds + time.monotonic() - started, steps + last - first
    show(flags, data)
  if not left:
    show(flags, data)


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
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, signal.default_int_handler)
  tf.config.set_visible_devices([], 'GPU')  # this process only counts, and the runs need the GPU's memory
  sys.exit(main())
