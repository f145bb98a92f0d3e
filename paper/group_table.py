"""How good groups are, from the runs of tables.py: agreement with the superclasses, sizes, and what they cost.

A row is one run: the learned groups, from a spectral start (and again, fine-tuned with the dense network for a teacher)
and from undecided noise (in two runs, the first of which finds them: `tables.finding`; the spectral start's long row
groups for as many steps as both), beside groups that are given: semantic (S, the yardstick), clustering (C) and random
(R, the floor). All start from the same trained baseline; given groups split it at once and are fine-tuned as the
learned ones are, or (long) for as many steps as learning and fine-tuning take together. The dense rows are that
baseline, and (long) the same trained on, unsplit, for these steps.
"""

import os

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

from splitnet.network import architecture
from splitnet.network import grouping as groupings
from splitnet.training import checkpoints

CONVERGED = 0.99  # every assignment's mean confidence

KINDS = {
  'splitnet': 'learned',
  'taught': 'learned, taught',
  'noise': 'learned, noise start',
  'splitnet-long': 'learned, long',
  'semantic': 'S, semantic',
  'clustering': 'C, clustering',
  'random': 'R, random',
  'semantic-long': 'S, long',
  'clustering-long': 'C, long',
  'random-long': 'R, long',
}

# Of those that are learned: the run that groups, and the one that fine-tunes.
LEARNED = {
  'splitnet': ('group-%s', 'split-%s'),
  'taught': ('group-%s', 'split-%s-taught'),
  'noise': ('group-%s-noise', 'split-%s-noise'),
  'splitnet-long': ('group-%s-long', 'split-%s-long'),
}

DENSE_KINDS = {'baseline': 'baseline', 'long': 'baseline, long'}  # run 'baseline' or 'baseline-long'

# What is shown of a run: the column's name, the key in `row_of`'s dict, and how a number is written.
COLUMNS = [
  ('steps in all', 'steps', '%.0f'),
  ('agreement', 'agreement', '%.2f'),
  ('largest group / mean', 'largest', '%.2f'),
  ('least confidence', 'confidence', '%.3f'),
  ('converged at step', 'converged', '%.0f'),
  ('classes moved (%)', 'classes', '%.0f'),
  ('features moved (%)', 'features', '%.1f'),
  ('grouped (%)', 'grouped', '%.2f'),
  ('hardened (%)', 'hardened', '%.2f'),
  ('fine-tuned (%)', 'accuracy', '%.2f'),
]


def confidences(folder):
  """The least mean confidence of a grouping run's assignments over its steps, from its TensorBoard events.

  Args:
    folder: of train.py --mode group.

  Returns:
    Dict from step to number in (0, 1], rising steps; empty where there are no events.
  """
  folder = os.path.join(folder, 'summaries')
  if not os.path.isdir(folder):
    return {}
  events = event_accumulator.EventAccumulator(folder, size_guidance={event_accumulator.TENSORS: 0})
  events.Reload()
  least = {}
  for tag in events.Tags()['tensors']:
    if tag.startswith('confidence/'):
      for event in events.Tensors(tag):
        value = float(tf.make_ndarray(event.tensor_proto))
        least[event.step] = min(value, least.get(event.step, 1.0))
  return dict(sorted(least.items()))


def converged_at(least):
  """The first step from which on every assignment was at least CONVERGED confident; None where it never was.

  Args:
    least: dict from step to the least confidence, rising steps.
  """
  late = [step for step, value in least.items() if value < CONVERGED]
  after = [step for step in least if not late or step > late[-1]]
  return after[0] if after else None


def moved(grouping):
  """How much of what is assigned ended in another group than it started in: percent of the classes, of the features.

  Args:
    grouping: of experiments.read_run, of a grouping run.

  Returns:
    (number, number); None for both where it started from noise, or a checkpoint is not there any more.
  """
  if not checkpoints.exists(grouping['folder']):
    return None, None
  stored = checkpoints.read(grouping['folder'])
  settings = stored.configuration['settings']
  if settings['assignment_start'] != 'spectral' or not checkpoints.exists(grouping['base_folder']):
    return None, None
  plan = architecture.wide_resnet(stored.config)
  alphas = groupings.spectral_start(plan, checkpoints.read(grouping['base_folder']).values, settings['seed'])
  started = architecture.hard_groups_of(plan, alphas)
  ended = architecture.hard_groups_of(plan, {name: stored.values['group/%s/alpha' % name] for name in alphas})
  return tuple(100 * share for share in groupings.moved(plan, started, ended))


def row_of(result, grouping=None):
  """What is shown of one run: a dict of numbers, None where there is none.

  Args:
    result: of experiments.read_run, of a split network or a dense one.
    grouping: of the grouping run that it was hardened from; None where its groups were not learned.
  """
  sizes = result['group_sizes']
  row = {'steps': result['steps_in_all'], 'agreement': result['agreement'], 'accuracy': 100 * result['accuracy']}
  if sizes:
    row['largest'] = max(sizes) * len(sizes) / sum(sizes)
  if grouping:
    least = confidences(grouping['folder'])
    row['confidence'] = list(least.values())[-1] if least else None
    row['converged'] = converged_at(least)
    row['classes'], row['features'] = moved(grouping)
    row['grouped'] = grouping['grouped_accuracy'] and 100 * grouping['grouped_accuracy']
    row['hardened'] = 100 * grouping['accuracy']
  return {key: row.get(key) for _, key, _ in COLUMNS}


def run_name(split, kind):
  """The name of the run of a split network with groups of one of KINDS, or of 'dense' of one of DENSE_KINDS."""
  if split == 'dense':
    return kind if kind == 'baseline' else 'baseline-' + kind
  return LEARNED[kind][1] % split if kind in LEARNED else 'given-%s-%s' % (split, kind)


def grouping_name(split, kind):
  """The name of the grouping run that such a network was hardened from; None where its groups are given."""
  return LEARNED[kind][0] % split if kind in LEARNED else None


def table(results, splits):
  """The table of `tables.collect`'s results: (header, rows) of text, a row a seed, and their mean.

  Args:
    results: dict from run name to list of results.
    splits: names of the splits.
  """
  header = ['split', 'groups', 'seed'] + [name for name, _, _ in COLUMNS]
  rows = []
  for split in ['dense', *splits]:
    for column, kind in (DENSE_KINDS if split == 'dense' else KINDS).items():
      groupings = {result['seed']: result for result in results.get(grouping_name(split, column), [])}
      numbers = {}
      for result in results.get(run_name(split, column), []):
        numbers[result['seed']] = row_of(result, groupings.get(result['seed']))
      for seed, row in numbers.items():
        rows.append([split, kind, '%d' % seed] + [write(row[key], form) for _, key, form in COLUMNS])
      if len(numbers) > 1:
        means = [mean_text([row[key] for row in numbers.values()], form) for _, key, form in COLUMNS]
        rows.append([split, kind, 'mean'] + means)
  return header, rows


def write(value, form):
  """A number as text; '' for None."""
  return '' if value is None else form % value


def mean_text(values, form):
  """Mean ± standard deviation of the sample; '' where a number is missing."""
  if None in values:
    return ''
  return '%s ± %s' % (form % np.mean(values), form % np.std(values, ddof=1))
