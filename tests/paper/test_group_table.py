"""Tests the table of groups: what it reads, each seed's row and the means."""

import json
import os

import networks
import pytest
import tensorflow as tf
from made_runs import DATA, finish, parse, rows_of

import resnet_split
from paper import experiments, group_table, recipes, tables
from splitnet.network import grouping
from splitnet.training import checkpoints
from splitnet.training.saver import Saver

LOGGED = {'total': 1.0, 'accuracy': 0.5, 'images_per_second': 10.0}


def write_metrics(run, values):
  """Writes a grouping run's metrics: assignment -> dict from step to confidence."""
  lines = [{'step': 0, 'kind': 'val', 'accuracy': 0.5, 'cross_entropy': 1.0, 'best': 0.5}]
  for step in next(iter(values.values())):
    confidence = {name: of_step[step] for name, of_step in values.items()}
    lines += [{'step': step, 'kind': 'train', **LOGGED, 'confidence': confidence}]
  with open(os.path.join(run.folder, 'metrics.jsonl'), 'w', encoding='utf-8') as f:
    f.write(''.join(json.dumps(line) + '\n' for line in lines) + '{"step": 500, "kind": "tr')  # the last one torn


def test_the_table_of_groups_has_each_seed_and_the_means(tmp_path, capsys):
  flags = parse('groups', '--k', 1, '--out', tmp_path, '--seeds', '0,1')
  sizes = {0: [50, 50], 1: [60, 40]}
  for seed, size in sizes.items():
    runs = experiments.make_runs(flags.experiment, seed)
    measured = dict(agreement=0.9 + 0.02 * seed, chance_agreement=0.55, groups=[['x'] * n for n in size])
    finish(runs['split-2-2-2'], 0.5 + 0.02 * seed, **measured)
    finish(runs['group-2-2-2'], 0.4, agreement=0.9, groups=[['x'] * n for n in size])
    with open(runs['group-2-2-2'].grouped_evaluation, 'w', encoding='utf-8') as f:
      json.dump({'accuracy': 0.41}, f)
    # All are confident at 200, one not any more at 300: converged is 400.
    p = {100: 0.5, 200: 0.995, 300: 0.98, 400: 0.992}
    write_metrics(runs['group-2-2-2'], {'split_p1': p, 'split_q1': dict.fromkeys(p, 0.999)})
  runs = experiments.make_runs(flags.experiment, 0)
  finish(runs['split-2-2-2-taught'], 0.53, agreement=0.9, groups=[['x'] * 50] * 2)
  finish(runs['given-2-2-2-random'], 0.45, agreement=0.68, groups=[['x'] * 50] * 2)
  finish(runs['given-2-2-2-random-long'], 0.46, agreement=0.68, groups=[['x'] * 50] * 2)
  finish(runs['baseline'], 0.42)
  finish(runs['baseline-long'], 0.44)
  tables.show(flags, DATA)
  rows = rows_of(capsys.readouterr().out)
  assert rows[0] == ['split', 'groups', 'seed', *group_table.COLUMNS]
  learned = ['2-2-2', 'learned']
  # Steps of the recipe: baseline 2000, group 250, split 1450.
  assert rows[1:] == [
    ['dense', 'baseline', '0', '2000', *[''] * 9, '42.00'],
    ['dense', 'baseline, long', '0', '3700', *[''] * 9, '44.00'],
    [*learned, '0', '3700', '0.90', '0.55', '1.00', '0.992', '400', '', '', '41.00', '40.00', '50.00'],
    [*learned, '1', '3700', '0.92', '0.55', '1.20', '0.992', '400', '', '', '41.00', '40.00', '52.00'],
    [*learned, 'mean', '3700 ± 0', '0.91 ± 0.01', '0.55 ± 0.00', '1.10 ± 0.14', '0.992 ± 0.000', '400 ± 0', '', '',
     '41.00 ± 0.00', '40.00 ± 0.00', '51.00 ± 1.41'],
    ['2-2-2', 'learned, taught', '0', '3700', '0.90', '', '1.00', '0.992', '400', '', '', '41.00', '40.00', '53.00'],
    ['2-2-2', 'R, random', '0', '3450', '0.68', '', '1.00', '', '', '', '', '', '', '45.00'],
    ['2-2-2', 'R, long', '0', '3700', '0.68', '', '1.00', '', '', '', '', '', '', '46.00'],
  ]  # fmt: skip
  assert (tmp_path / 'k1' / 'groups.md').exists()


def test_the_table_of_groups_says_what_the_learned_ones_start_from(tmp_path):
  for recipe in recipes.RECIPES:
    flags = parse('groups', '--recipe', recipe, '--out', tmp_path)
    text = tables.caption(flags.experiment, 'groups', {})
    runs = experiments.make_runs(flags.experiment, 0)
    assert ('All start from the same baseline' in text) == bool(runs['group-2-2-2'].base)
    assert ('which start from nothing' in text) == (recipe == 'paper')


def save(folder, mode, network, settings=None):
  """Writes a checkpoint of a network."""
  configuration = checkpoints.describe(mode, {}, network, {}, settings or {})
  step = tf.Variable(0, dtype=tf.int64)
  Saver(str(folder), configuration, 1, weights=network.weights, step=step).save(0)


def test_what_left_its_start_is_told_from_the_checkpoints(tmp_path):
  config = resnet_split.WideResNet(k=1, ngroups1=2, ngroups2=2, ngroups3=2)
  dense = networks.build(resnet_split.WideResNet(k=1), seed=1)
  save(tmp_path / 'base', 'baseline', dense)
  values = {name: v.numpy() for name, v in dense.weights.items()}
  network = networks.build(config, with_assignments=True)
  start = grouping.spectral_start(network.graph, values, 3)
  # Three of 100 classes and half of one set of 64 features change sides.
  start['split_q1'][:, :3] = start['split_q1'][::-1, :3]
  start['split_r21'][:, :32] = start['split_r21'][::-1, :32]
  for name, alpha in start.items():
    network.weights[f'group/{name}/alpha'].assign(alpha)
  save(tmp_path / 'run', 'group', network, {'assignment_start': 'spectral', 'seed': 3})
  features = sum(units.size for units in network.graph.units.values() if units.groups > 1) - 100
  result = {'folder': str(tmp_path / 'run'), 'base_folder': str(tmp_path / 'base')}
  assert group_table.moved(result) == (pytest.approx(3), pytest.approx(100 * 32 / features))
  assert group_table.moved({**result, 'base_folder': str(tmp_path / 'gone')}) == (None, None)
  save(tmp_path / 'noise', 'group', network, {'assignment_start': 'noise', 'seed': 3})
  assert group_table.moved({**result, 'folder': str(tmp_path / 'noise')}) == (None, None)


def test_of_a_step_that_was_logged_twice_the_later_line_counts(tmp_path):
  values = ((1, 0.6), (2, 0.8), (2, 0.7))
  lines = [{'step': step, 'kind': 'train', **LOGGED, 'confidence': {'split_q1': c}} for step, c in values]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert group_table.least_confidences(str(tmp_path)) == {1: 0.6, 2: 0.7}
  assert group_table.least_confidences(str(tmp_path / 'none')) == {}


def test_groups_that_never_converge_say_so():
  assert group_table.converged_at({}) is None
  assert group_table.converged_at({100: 0.995, 200: 0.9}) is None
  assert group_table.converged_at({100: 0.99, 200: 1.0}) == 100
