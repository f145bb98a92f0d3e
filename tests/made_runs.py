"""Runs of the paper's tables that look done, and the tables that are printed of them; for the tests of paper/."""

import json
import os

from paper import experiments, tables

DATA = {'source': 'synthetic', 'seed': 0, 'num_val_instance': 60, 'images_per_class': 1, 'train_images': 90}


def parse(*arguments):
  """tables.py's flags from arguments of any type."""
  return tables.parse_flags([str(a) for a in arguments])


def make_runs(out, *arguments, seed=0, table='all'):
  """The runs of a folder with these flags for one seed: dict from name to Run."""
  return experiments.make_runs(parse(table, '--out', out, *arguments).experiment, seed)


def finish(run, accuracy, parameters=1000, flops=10**7, data=DATA, **more):
  """Makes a run's folder look done."""
  os.makedirs(run.folder)
  with open(os.path.join(run.folder, 'settings.json'), 'w', encoding='utf-8') as f:
    json.dump({'settings': run.settings, 'data': data}, f)
  with open(run.evaluation, 'w', encoding='utf-8') as f:
    json.dump({'accuracy': accuracy, 'parameters': parameters, 'flops': flops, **more}, f)


def rows_of(markdown):
  """The table in a Markdown text: a list of rows, header first."""
  lines = [line for line in markdown.splitlines() if line.startswith('|')]
  rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
  assert set(''.join(rows[1])) == {'-'}
  return rows[:1] + rows[2:]


def value(arguments, name):
  """What a command line gives for a flag."""
  return arguments[arguments.index('--' + name) + 1]
