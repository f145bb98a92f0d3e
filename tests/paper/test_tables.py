"""tables.py: its counts against the paper's, the tables that it makes of results, what it runs and what it refuses."""

import csv
import dataclasses
import json
import os
import re
import signal
import sys

import helpers
import pytest
import tensorflow as tf

import eval as evaluation
import resnet_split
import train
from paper import runs as experiments
from paper import tables
from splitnet.common.errors import UserError
from splitnet.network import architecture, grouping
from splitnet.parallel import devices
from splitnet.training import checkpoints

# Convolutions and the last layer with its bias, 2 FLOPs per multiply-add, groups of even size, k = 8.
EXACT = {
  '1-1-1': (10999908, 3095498952),
  '1-1-4': (10961508, 3095422152),
  '1-2-2': (6780004, 2558576840),
  '2-2-2': (5731428, 2021705928),
  '2-4-4': (3621476, 1753244872),
}
DATA = {'source': 'synthetic', 'seed': 0, 'num_val_instance': 60, 'images_per_class': 1, 'train_images': 90}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return helpers.data(tmp_path_factory)


@pytest.fixture(scope='module')
def counted():
  return {branch_input: tables.counts_table(8, branch_input) for branch_input in ('group', 'all')}


def parse(*arguments):
  return tables.parse_flags([str(a) for a in arguments])


def finish(run, accuracy, parameters=1000, flops=10**7, data=DATA, **more):
  """Makes a run's folder look done."""
  os.makedirs(run.folder)
  with open(os.path.join(run.folder, 'settings.json'), 'w') as f:
    json.dump({'settings': run.settings, 'data': data}, f)
  with open(run.evaluation, 'w') as f:
    json.dump({'accuracy': accuracy, 'parameters': parameters, 'flops': flops, **more}, f)


def rows_of(markdown):
  """The table in a Markdown text: a list of rows, header first."""
  lines = [line for line in markdown.splitlines() if line.startswith('|')]
  rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
  assert set(''.join(rows[1])) == {'-'}
  return rows[:1] + rows[2:]


# --- counts -----------------------------------------------------------------------------------------------------


def test_counts_are_those_of_the_both_sides_reading_to_the_last_digit(counted):
  _, rows = counted['group']
  numbers = [(int(row[1].replace(',', '')), int(row[5].replace(',', ''))) for row in rows]
  assert numbers == list(EXACT.values())
  assert [row[0].split()[-1] for row in rows] == ['dense', *list(EXACT)[1:]]


def test_percentages_are_the_papers_where_branches_read_all_of_their_parent(counted):
  header, rows = counted['all']
  for here, paper in (('% reduced', '% reduced (paper)'), ('% FLOPs reduced', '% FLOPs reduced (paper)')):
    ours, theirs = ([float(row[header.index(name)]) for row in rows] for name in (here, paper))
    assert ours == pytest.approx(theirs, abs=0.15)
  assert [row[header.index('% reduced (paper)')] for row in rows] == ['0.0', '0.35', '32.54', '46.39', '62.58']


def test_layers_add_up_and_everything_adds_what_the_paper_leaves_out():
  counts = tables.built_counts('2-4-4', 1, 'all')
  for everything in (False, True):
    _, rows = tables.layers_table(counts, everything)
    assert ('init_conv' in [row[0] for row in rows]) == everything
    for column in (1, 2):
      numbers = [int(row[column].replace(',', '')) for row in rows]
      assert numbers[-1] == sum(numbers[:-1])
  _, rows = tables.layers_table(counts)
  assert [row[0] for row in rows if 'fc' in row[0]] == ['branch_%d/logits/fc' % i for i in range(4)]


def test_the_program_prints_counts(capsys):
  assert tables.main(['counts', '--k', '1', '--per_layer', 'dense', '--branch_input', 'all']) == 0
  rows = rows_of(capsys.readouterr().out)
  assert rows[1] == ['unit_1_0/conv_1', '2,304', '4,718,592']
  assert tables.main(['counts', '--k', '1']) == 0
  out = capsys.readouterr().out
  assert len(out.split('branch_input')) == 3 and 'WRN-16-1' in out


@pytest.mark.parametrize('split', list(tables.SPLITS))
def test_split_depths_are_the_networks(split):
  plan = architecture.wide_resnet(tables.split_config(split, 1, 'group'))
  split_layers = [layer for layer in plan.layers if layer.kind != 'batch_norm' and layer.branches > 1]
  assert str(len(split_layers)) == tables.SPLITS[split][1]


# --- tables of results --------------------------------------------------------------------------------------------


def test_table_1_has_means_spreads_and_empty_cells(tmp_path, capsys):
  flags = parse(1, '--k', 1, '--out', tmp_path, '--seeds', '0,1')
  first, second, third = (tables.make_runs(flags, seed) for seed in (0, 1, 7))
  finish(first['baseline'], 0.70)
  finish(first['scratch-2-4-4-random'], 0.5)
  for runs, accuracy in ((first, 0.60), (second, 0.61), (third, 0.65)):  # seed 7 is not asked for, but it is there
    finish(runs['split-2-2-2'], accuracy)
  tables.show(flags, DATA, (1000, 10**7))
  rows = rows_of(capsys.readouterr().out)
  by_name = {row[0]: dict(zip(rows[0], row)) for row in rows[1:]}
  assert len(by_name) == 6
  assert by_name['baseline']['dense'] == '30.00' and by_name['baseline']['dense (paper)'] == '24.28'
  assert by_name['baseline with dropout']['dense'] == ''
  assert by_name['baseline with dropout']['dense (paper)'] == '24.52'
  deep = by_name['Deep 2-2-2']
  assert deep['SplitNet'] == '38.00 ± 2.65 (3)'  # errors 40, 39, 35: their squares about 38 sum to 14; sqrt(14 / 2)
  assert [deep[name] for name in ('S', 'C', 'R', 'dense')] == [''] * 4
  assert [deep[name + ' (paper)'] for name in ('S', 'C', 'R', 'SplitNet')] == ['25.04', '26.04', '27.12', '24.62']
  assert by_name['Hierarchical 2-4-4']['R'] == '50.00'
  assert by_name['FC 1-1-4']['groups'] == '4'


@pytest.mark.parametrize('table', ['1', '2'])
def test_the_files_are_what_is_printed(tmp_path, capsys, table):
  flags = parse(table, '--k', 1, '--out', tmp_path)
  runs = tables.make_runs(flags, 0)
  finish(runs['baseline'], 0.701)
  finish(runs['split-1-2-2'], 0.6)
  tables.show(flags, DATA, (1000, 10**7))
  printed = capsys.readouterr().out
  with open(tmp_path / 'k1' / ('table%s.md' % table), encoding='utf-8') as f:
    assert f.read() == printed.strip('\n') + '\n'
  with open(tmp_path / 'k1' / ('table%s.csv' % table), encoding='utf-8', newline='') as f:
    rows = list(csv.reader(f))
  assert rows == rows_of(printed)
  assert len(set(rows[0])) == len(rows[0])
  assert '29.90' in rows[1] and 'synthetic' in printed and 'recipe cpu' in printed


def test_table_2_has_the_sizes_of_what_was_run(tmp_path, capsys):
  flags = parse(2, '--k', 1, '--out', tmp_path, '--branch_input', 'all')
  finish(tables.make_runs(flags, 0)['split-2-4-4'], 0.72, parameters=400000, flops=6 * 10**6)
  finish(tables.make_runs(flags, 3)['split-2-4-4'], 0.74, parameters=500000, flops=6 * 10**6)
  tables.show(flags, DATA, (1000000, 10**7))
  rows = rows_of(capsys.readouterr().out)
  shown = dict(zip(rows[0], rows[5]))
  assert list(shown.values())[1::2] == ['0.450', '55.00', '0.006', '40.00', '27.00 ± 1.41 (2)']
  assert list(shown.values())[2::2] == ['4.12', '62.58', '1.88', '39.29', '24.80']
  assert rows[1][1::2] == [''] * 5 and rows[1][2::2] == ['11.0', '0.0', '3.10', '0.0', '24.28']


def test_printing_runs_and_writes_nothing(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(experiments, 'call', None)
  finish(tables.make_runs(parse(1, '--k', 1, '--out', tmp_path), 0)['baseline'], 0.7)
  before = helpers.files(tmp_path)
  assert tables.main(['1', '--k', '1', '--out', str(tmp_path), '--print', '--data_dir', str(tmp_path / 'none')]) == 0
  assert rows_of(capsys.readouterr().out)[1][3] == '30.00'
  assert helpers.files(tmp_path) == before


def write_confidences(run, values):
  """Writes the TensorBoard events of a grouping run: dict from assignment to dict from step to confidence."""
  writer = tf.summary.create_file_writer(os.path.join(run.folder, 'summaries'))
  with writer.as_default():
    for name, confidence in values.items():
      for step, value in confidence.items():
        tf.summary.scalar('confidence/' + name, value, step)
  writer.close()


def test_the_table_of_groups_has_each_seed_and_the_means(tmp_path, capsys):
  flags = parse('groups', '--k', 1, '--out', tmp_path, '--seeds', '0,1')
  sizes = {0: [50, 50], 1: [60, 40]}
  for seed, size in sizes.items():
    runs = tables.make_runs(flags, seed)
    finish(runs['split-2-2-2'], 0.5 + 0.02 * seed, agreement=0.9 + 0.02 * seed, groups=[['x'] * n for n in size])
    finish(runs['group-2-2-2'], 0.4, agreement=0.9, groups=[['x'] * n for n in size])
    with open(runs['group-2-2-2'].grouped_evaluation, 'w') as f:
      json.dump({'accuracy': 0.41}, f)
    # All are confident at 200, one not any more at 300: converged is 400.
    p = {100: 0.5, 200: 0.995, 300: 0.98, 400: 0.992}
    write_confidences(runs['group-2-2-2'], {'split_p1': p, 'split_q1': dict.fromkeys(p, 0.999)})
  runs = tables.make_runs(flags, 0)
  finish(runs['split-2-2-2-taught'], 0.53, agreement=0.9, groups=[['x'] * 50] * 2)
  finish(runs['given-2-2-2-random'], 0.45, agreement=0.68, groups=[['x'] * 50] * 2)
  finish(runs['given-2-2-2-random-long'], 0.46, agreement=0.68, groups=[['x'] * 50] * 2)
  finish(runs['baseline'], 0.42)
  finish(runs['baseline-long'], 0.44)
  tables.show(flags, DATA, (1000, 10**7))
  rows = rows_of(capsys.readouterr().out)
  assert rows[0] == ['split', 'groups', 'seed', *[name for name, _, _ in tables.group_table.COLUMNS]]
  learned = ['2-2-2', 'learned']
  # Steps of the recipe: baseline 2000, group 700, split 1000.
  assert rows[1:] == [
    ['dense', 'baseline', '0', '2000', '', '', '', '', '', '', '', '', '42.00'],
    ['dense', 'baseline, long', '0', '3700', '', '', '', '', '', '', '', '', '44.00'],
    [*learned, '0', '3700', '0.90', '1.00', '0.992', '400', '', '', '41.00', '40.00', '50.00'],
    [*learned, '1', '3700', '0.92', '1.20', '0.992', '400', '', '', '41.00', '40.00', '52.00'],
    [*learned, 'mean', '3700 ± 0', '0.91 ± 0.01', '1.10 ± 0.14', '0.992 ± 0.000', '400 ± 0', '', '', '41.00 ± 0.00',
     '40.00 ± 0.00', '51.00 ± 1.41'],
    ['2-2-2', 'learned, taught', '0', '3700', '0.90', '1.00', '0.992', '400', '', '', '41.00', '40.00', '53.00'],
    ['2-2-2', 'R, random', '0', '3000', '0.68', '1.00', '', '', '', '', '', '', '45.00'],
    ['2-2-2', 'R, long', '0', '3700', '0.68', '1.00', '', '', '', '', '', '', '46.00'],
  ]  # fmt: skip
  assert (tmp_path / 'k1' / 'groups.md').exists()


def test_the_dense_network_is_trained_on_for_the_steps_that_the_split_one_has_had_more(tmp_path):
  for recipe in tables.RECIPES:
    runs = tables.make_runs(parse('groups', '--recipe', recipe, '--out', tmp_path), 0)
    long, fine_tuned = runs['baseline-long'], runs['split-2-2-2']
    assert (long.train['mode'], long.base, long.teacher) == ('baseline', runs['baseline'], None)
    different = {'mode', 'max_steps', 'ngroups1', 'ngroups2', 'ngroups3', 'branch_input'}
    different |= tables.TEACHING.keys()
    for name in (long.train.keys() | fine_tuned.train.keys()) - different:
      assert long.train[name] == fine_tuned.train[name], (recipe, name)
    assert long.train['max_steps'] == fine_tuned.train['max_steps'] + runs['group-2-2-2'].train['max_steps']
    # All three ways of spending the steps end with as many, where grouping starts from the baseline.
    if runs['group-2-2-2'].base:
      assert long.steps_in_all == fine_tuned.steps_in_all == runs['given-2-2-2-semantic-long'].steps_in_all


def test_the_table_of_groups_says_what_the_learned_ones_start_from(tmp_path):
  for recipe in tables.RECIPES:
    flags = parse('groups', '--recipe', recipe, '--out', tmp_path)
    text = tables.caption(flags, 'groups', {})
    assert ('All start from the same baseline' in text) == bool(tables.make_runs(flags, 0)['group-2-2-2'].base)
    assert ('which start from nothing' in text) == (recipe == 'paper')


def test_the_dense_network_teaches_one_run_where_the_recipe_has_no_teacher(tmp_path):
  for recipe in tables.RECIPES:
    runs = tables.make_runs(parse('groups', '--recipe', recipe, '--out', tmp_path), 0)
    assert ('split-2-2-2-taught' in runs) == (recipe != 'better')
    taught = runs.get('split-2-2-2-taught')
    if taught:
      alone = runs['split-2-2-2']
      assert taught.needs == [alone.base, runs['baseline-long']] and taught.teacher is runs['baseline-long']
      assert taught.train == {**alone.train, **tables.TEACHING}


def test_steps_of_a_base_that_only_clusters_the_classes_are_not_counted(tmp_path):
  runs = tables.make_runs(parse('1', '--out', tmp_path), 0)
  assert runs['scratch-2-2-2-clustering'].base is runs['baseline']
  assert runs['scratch-2-2-2-clustering'].steps_in_all == 1000
  assert runs['given-2-2-2-clustering'].steps_in_all == 3000


def test_groups_from_noise_are_found_by_the_weights_before_they_are_made_disjoint(tmp_path):
  for recipe in ('cpu', 'short', 'better'):
    runs = tables.make_runs(parse('groups', '--recipe', recipe, '--out', tmp_path), 0)
    find, group, usual = runs['find-2-2-2'], runs['group-2-2-2-noise'], runs['group-2-2-2']
    assert runs['split-2-2-2-noise'].base is group and group.base is find and find.base is runs['baseline']
    assert find.train['assignment_start'] == group.train['assignment_start'] == 'noise'
    assert group.train == {**usual.train, 'assignment_start': 'noise'}
    # The share of gamma1 is far smaller while they are found, and nothing rises meanwhile.
    assert find.train['gamma1'] / find.train['gamma3'] < usual.train['gamma1'] / usual.train['gamma3'] / 5
    assert 'ramp_at' not in find.train
    assert runs['find-1-1-4'].train['gamma1'] == runs['find-2-4-4'].train['gamma1'] > find.train['gamma1']
    assert find.train['assignment_lr_scale'] > 10 * usual.train['assignment_lr_scale']
    # What it is compared with: as many steps from the spectral start, nothing else changed.
    long = runs['group-2-2-2-long']
    assert long.train == {**usual.train, 'max_steps': find.train['max_steps'] + group.train['max_steps']}
    assert runs['split-2-2-2-long'].base is long and long.base is runs['baseline']
    for name in ('noise', 'long'):
      assert runs['split-2-2-2-' + name].train == runs['split-2-2-2'].train
      assert runs['split-2-2-2-' + name].steps_in_all == usual.train['max_steps'] + runs['split-2-2-2'].steps_in_all


def save(folder, mode, network, settings=None):
  """Writes a checkpoint of a network."""
  configuration = checkpoints.describe(mode, network, {}, settings or {})
  step = tf.Variable(0, dtype=tf.int64)
  checkpoints.Saver(str(folder), configuration, 1, weights=network.weights, step=step).save(0)


def test_what_left_its_start_is_told_from_the_checkpoints(tmp_path):
  config = architecture.Config(k=1, ngroups1=2, ngroups2=2, ngroups3=2)
  dense = resnet_split.Network(architecture.Config(k=1), seed=1)
  save(tmp_path / 'base', 'baseline', dense)
  values = {name: v.numpy() for name, v in dense.weights.items()}
  network = resnet_split.Network(config, with_assignments=True)
  start = grouping.spectral_start(network.plan, values, 3)
  # Three of 100 classes and half of one set of 64 features change sides.
  start['split_q1'][:, :3] = start['split_q1'][::-1, :3]
  start['split_r21'][:, :32] = start['split_r21'][::-1, :32]
  for name, alpha in start.items():
    network.weights['group/%s/alpha' % name].assign(alpha)
  save(tmp_path / 'run', 'group', network, {'assignment_start': 'spectral', 'seed': 3})
  features = sum(units.size for units in network.plan.units.values() if units.groups > 1) - 100
  result = {'folder': str(tmp_path / 'run'), 'base_folder': str(tmp_path / 'base')}
  assert tables.group_table.moved(result) == (pytest.approx(3), pytest.approx(100 * 32 / features))
  assert tables.group_table.moved({**result, 'base_folder': str(tmp_path / 'gone')}) == (None, None)
  save(tmp_path / 'noise', 'group', network, {'assignment_start': 'noise', 'seed': 3})
  assert tables.group_table.moved({**result, 'folder': str(tmp_path / 'noise')}) == (None, None)


def test_groups_that_never_converge_say_so():
  assert tables.group_table.converged_at({}) is None
  assert tables.group_table.converged_at({100: 0.995, 200: 0.9}) is None
  assert tables.group_table.converged_at({100: 0.99, 200: 1.0}) == 100


# --- which runs, and with which flags -----------------------------------------------------------------------------


def flag(arguments, name):
  return arguments[arguments.index('--' + name) + 1]


@pytest.mark.parametrize('recipe', sorted(tables.RECIPES))
def test_every_command_is_one_that_the_programs_take(recipe, tmp_path):
  flags = parse(1, '--recipe', recipe, '--out', tmp_path, '--branch_input', 'all')
  runs = tables.make_runs(flags, 3)
  assert len(runs) == 3 + 4 * {'paper': 12, 'better': 16}.get(recipe, 17)
  for name, run in runs.items():
    trained, *grouped, evaluated = run.commands('data', 45000)
    parsed = train.parse_flags(trained[2:])
    assert parsed.mode == {'baseline': 'baseline', 'group': 'group', 'find': 'group'}.get(name.split('-')[0], 'split')
    assert (parsed.seed, parsed.k, parsed.train_dir) == (3, 8, run.folder)
    assert parsed.grouping == (name.split('-')[4] if name.startswith(('scratch', 'given')) else 'learned')
    assert bool(parsed.basemodel) == (run.base is not None)
    if not name.startswith('baseline'):
      config = architecture.Config(ngroups1=parsed.ngroups1, ngroups2=parsed.ngroups2, ngroups3=parsed.ngroups3)
      assert config.split in name and parsed.branch_input == 'all'
    checked = evaluation.parse_flags(evaluated[2:])
    assert checked.harden == name.startswith('group') and checked.output_file == run.evaluation
    for other in map(lambda arguments: evaluation.parse_flags(arguments[2:]), grouped):
      assert (other.harden, other.checkpoint, other.output_file) == (False, run.folder, run.grouped_evaluation)
    assert len(grouped) == name.startswith('group')
    last = run.folder if parsed.mode == 'group' else os.path.join(run.folder, 'best')
    assert checked.checkpoint == last


def test_the_papers_recipe_is_that_of_the_scripts(tmp_path):
  runs = tables.make_runs(parse(1, '--recipe', 'paper', '--out', tmp_path), 0)
  scripts = {'baseline': 'baseline.sh', 'group-2-2-2': 'group.sh', 'split-2-2-2': 'split.sh'}
  for name, script in scripts.items():
    with open(os.path.join(helpers.PROJECT, script)) as f:
      text = ''.join(line for line in f if not line.startswith('#'))
    words = re.sub(r'\nelse\n.*?\nfi\n', '\n', text, flags=re.DOTALL).split()  # group.sh has the paper's settings first
    parsed = train.parse_flags(runs[name].commands('data', 45000)[0][2:])
    for i, word in enumerate(words):
      if word.startswith('--') and word[2:] in (
        'batch_size', 'l2_weight', 'initial_lr', 'lr_decay', 'max_steps', 'gamma1', 'gamma2', 'gamma3',
        'dropout_keep_prob', 'checkpoint_interval', 'ngroups1', 'ngroups2', 'ngroups3',
      ):  # fmt: skip
        assert getattr(parsed, word[2:]) == float(words[i + 1]), (name, word)
    expected = train.lr_boundaries(words[words.index('--lr_step_epoch') + 1])
    assert train.lr_boundaries(parsed.lr_step_epoch) == pytest.approx(expected)
  assert [name for name, run in runs.items() if name.startswith('group') and run.base] == []
  kept = {name: run.train['dropout_keep_prob'] for name, run in runs.items() if name.startswith('group')}
  assert kept == {'group-1-1-4': 1, 'group-1-2-2': 1, 'group-2-2-2': 0.5, 'group-2-4-4': 0.5}


def test_shares_of_the_steps_become_epochs(tmp_path):
  flags = parse(1, '--out', tmp_path, '--group_steps', 1000)
  run = tables.make_runs(flags, 0)['group-2-2-2']
  run = dataclasses.replace(run, train=dict(run.train, drop_at=(0.5, 0.75), ramp_at=0.25))
  trained, *_ = run.commands('data', 900)
  assert flag(trained, 'lr_step_epoch') == '50,75' and flag(trained, 'gamma2_ramp_epoch') == '25'
  assert not {'--drop_at', '--ramp_at'} & set(trained)


def test_only_chooses_cells_rows_and_columns(tmp_path):
  runs = tables.make_runs(parse(1, '--out', tmp_path), 0)

  def chosen(table, only):
    return tables.chosen_cells(table, only, runs)

  assert chosen('1', 'baseline, 2-2-2/semantic') == ['baseline', 'scratch-2-2-2-semantic']
  assert chosen('1', '1-1-4')[-1] == 'split-1-1-4' and len(chosen('1', '1-1-4')) == 4
  assert chosen('1', 'random') == ['scratch-%s-random' % split for split in tables.SPLITS]
  assert len(chosen('1', '')) == 2 + 16 and len(chosen('2', '')) == 5
  assert chosen('groups', 'dense') == ['baseline', 'baseline-long'] and len(chosen('groups', '')) == 2 + 4 * 10
  with pytest.raises(
    UserError, match="--only names '3-3-3'; table 2 of this recipe has baseline, 1-1-4/splitnet"
  ):
    chosen('2', '3-3-3')


@pytest.mark.parametrize('recipe, cell', [('paper', '2-2-2/noise'), ('better', '2-2-2/taught')])
def test_cells_that_a_recipe_does_not_have_are_left_out_and_refused_by_name(recipe, cell, tmp_path):
  runs = tables.make_runs(parse('groups', '--recipe', recipe, '--out', tmp_path), 0)
  assert set(tables.chosen_cells('groups', '', runs)) < set(runs)
  with pytest.raises(UserError, match="--only names '%s'; table groups of this recipe has dense" % cell):
    tables.chosen_cells('groups', cell, runs)


# --- running ------------------------------------------------------------------------------------------------------


class Recorder:
  """Stands for `experiments.call`: records the commands, and writes what eval.py would."""

  def __init__(self, fail=None):
    self.called, self.fail = [], fail

  def __call__(self, arguments, log, tell=None):
    program = os.path.basename(arguments[1])
    folder = os.path.basename(os.path.dirname(log))
    self.called.append((program, folder))
    with open(log, 'a') as f:
      f.write('said something\n\n')
    if self.fail == (program, folder):
      return 3
    if program == 'eval.py':
      with open(flag(arguments, 'output_file'), 'w') as f:
        json.dump({'accuracy': 0.5, 'parameters': 10, 'flops': 10}, f)
    return 0

  @property
  def trained(self):
    return [folder for program, folder in self.called if program == 'train.py']


@pytest.fixture
def program(tmp_path, data_dir, monkeypatch, capsys):
  """Calls tables.py with a Recorder: (exit code, stdout, stderr, the Recorder)."""

  def run(*arguments, fail=None):
    recorder = Recorder(fail)
    monkeypatch.setattr(experiments, 'call', recorder)
    defaults = ['--k', '1', '--out', str(tmp_path / 'out'), '--data_dir', data_dir]
    arguments = arguments[:1] + tuple(defaults) + arguments[1:]
    return tables.main([str(a) for a in arguments]), *capsys.readouterr(), recorder

  return run


def test_runs_come_after_what_they_need_and_are_not_repeated(program):
  code, out, _, recorder = program(2, '--only', '2-2-2')
  assert code == 0
  assert recorder.trained == ['baseline', 'group-2-2-2', 'split-2-2-2']
  evaluations = {'group-2-2-2': 2}  # as it is, and hardened
  programs = {f: ['train.py'] + ['eval.py'] * evaluations.get(f, 1) for f in recorder.trained}
  assert recorder.called == [(program, folder) for folder, called in programs.items() for program in called]
  assert out.count('| Deep 2-2-2') == 3  # the table after every run
  lines = [line for line in out.splitlines() if ' runs left; now ' in line]
  assert [line.split()[0] for line in lines] == ['3', '2', '1']
  assert ['for all that is left' in line for line in lines] == [False, True, True]
  code, out, _, recorder = program(1, '--only', '2-2-2/splitnet,2-2-2/clustering,1-1-4/random', '--seeds', '0,1')
  assert code == 0
  seed_0, seed_1 = recorder.trained[:2], recorder.trained[2:]
  assert sorted(seed_0) == ['scratch-1-1-4-random', 'scratch-2-2-2-clustering']
  assert seed_1.index('baseline') < seed_1.index('group-2-2-2') < seed_1.index('split-2-2-2')
  assert sorted(seed_1) == sorted([*seed_0, 'baseline', 'group-2-2-2', 'split-2-2-2'])
  assert '50.00 ± 0.00 (2)' in out
  code, out, _, recorder = program(1, '--only', '2-2-2/clustering', '--seeds', '1')
  assert (code, recorder.called) == (0, []) and '| Deep 2-2-2' in out


def test_a_precision_that_is_slow_here_is_told_before_the_first_run(program, tmp_path, monkeypatch):
  monkeypatch.setattr(devices, 'precision_note', lambda precision, training: 'note: %s, %s' % (precision, training))
  short = ['--recipe', 'short', '--only', 'baseline']
  code, out, _, _ = program(2, *short, '--precision', 'float32')
  assert code == 0 and 'note: ' not in out
  code, out, _, _ = program(2, *short, '--out', str(tmp_path / 'elsewhere'))
  assert code == 0 and out.index('note: bfloat16, True\n') < out.index('1 runs left')


def test_all_of_table_1_is_22_runs(program):
  code, out, _, recorder = program(1)
  assert code == 0 and len(recorder.trained) == len(set(recorder.trained)) == 22
  last = rows_of(out[out.rindex('Table 1') :])
  assert all(row[i] == '50.00' for row in last[3:] for i in (5, 7, 9, 11))


def test_a_broken_off_run_is_run_again_with_the_same_command(program, tmp_path):
  code, _, err, recorder = program(2, '--only', 'baseline', fail=('train.py', 'baseline'))
  folder = str(tmp_path / 'out' / 'k1' / 'seed0' / 'baseline')
  assert (code, recorder.called) == (1, [('train.py', 'baseline')])
  assert err.count('\n') == 1 and "'%s'" % folder in err and os.path.join(folder, 'output.txt') in err
  assert 'exit code 3: said something' in err
  code, _, _, recorder = program(2, '--only', 'baseline')
  assert (code, recorder.trained) == (0, ['baseline'])


def refused(result, *parts):
  code, _, err, recorder = result
  assert (code, recorder.called) == (1, [])
  assert err.startswith('tables.py: ') and err.count('\n') == 1
  for part in parts:
    assert part in err


def test_other_settings_are_refused_before_anything_runs(program, tmp_path):
  assert program(2, '--only', '1-2-2', '--split_steps', 10)[0] == 0
  folder = str(tmp_path / 'out' / 'k1' / 'seed0' / 'split-1-2-2')
  was = 'was made with max_steps %s, now it is %s'
  refused(program(2, '--only', 'baseline', '--split_steps', 11), folder, was % (10, 11), '--out')
  refused(program(1, '--split_steps', 10, '--baseline_steps', 7), 'baseline', was % (2000, 7))
  refused(program(2, '--seeds', 4), folder, was % (10, 1000))  # the table shows seed 0 too
  refused(program(2, '--split_steps', 10, '--branch_input', 'all'), 'branch_input group, now it is all')
  assert program(2, '--only', '1-2-2', '--split_steps', 10)[3].called == []


def test_other_data_and_what_a_run_started_from_are_settings_too(program, tmp_path):
  assert program(2, '--only', '1-2-2')[0] == 0
  seed = tmp_path / 'out' / 'k1' / 'seed0'
  other = helpers.write(tmp_path / 'other', seed=5)
  refused(program(2, '--data_dir', other), "data's seed 0, now it is 5")
  for name in ('baseline', 'group-1-2-2'):
    for file in os.listdir(seed / name):
      os.remove(seed / name / file)
    os.rmdir(seed / name)
  refused(program(2, '--group_steps', 9), 'split-1-2-2', "basemodel's max_steps 700, now it is 9")
  refused(program(2, '--baseline_steps', 9), 'split-1-2-2', "basemodel's basemodel's max_steps 2000, now it is 9")


def test_damaged_and_foreign_folders_are_refused(program, tmp_path):
  assert program(2, '--only', 'baseline')[0] == 0
  folder = tmp_path / 'out' / 'k1' / 'seed0' / 'baseline'
  for name in ('eval.json', 'settings.json'):
    kept = (folder / name).read_text()
    for content in ('{"accuracy"', '[]', '{}'):
      (folder / name).write_text(content)
      refused(program(2), str(folder / name), 'cannot be read')
    (folder / name).write_text(kept)
  os.remove(folder / 'settings.json')
  refused(program(2), str(folder), 'was not made by tables.py')


@pytest.mark.parametrize(
  'arguments, parts',
  [
    (['1', '--seeds', '0,x'], ['--seeds', "'0,x'"]),
    (['1', '--k', '0'], ['--k is 0']),
    (['2', '--split_steps', '0'], ['--split_steps is 0']),
    (['1', '--branch_input', 'some'], ['--branch_input', "'some'"]),
    (['1', '--only', 'x'], ['--only', "'x'"]),
    (['1', '--data_dir', 'nowhere', '--k', '1'], ['nowhere', 'download_cifar100.py']),
    (['counts', '--per_layer', '2-2'], ['--per_layer', "'2-2'"]),
    (['counts', '--per_layer', '4-2-2'], ['ngroups2']),
  ],
)
def test_mistakes_are_one_sentence(arguments, parts, capsys, tmp_path):
  assert tables.main([*arguments, '--out', str(tmp_path)]) == 1
  err = capsys.readouterr().err
  assert err.startswith('tables.py: ') and err.count('\n') == 1
  for part in parts:
    assert part in err


# --- the subprocess -----------------------------------------------------------------------------------------------


def test_call_logs_returns_the_code_and_keeps_others_out(tmp_path):
  log = str(tmp_path / 'output.txt')
  script = 'import sys; print("out", flush=True); print("err", file=sys.stderr); sys.exit(7)'
  assert experiments.call([sys.executable, '-c', script], log) == 7
  assert experiments.call([sys.executable, '-c', script], log) == 7
  with open(log) as f:
    assert f.read() == 'out\nerr\n' * 2
  with open(log, 'a') as f:
    experiments.fcntl.flock(f, experiments.fcntl.LOCK_EX)
    with pytest.raises(UserError, match='is being run already'):
      experiments.call([sys.executable, '-c', script], log)


def test_an_interrupt_reaches_the_run_once_and_its_ending_is_waited_for(tmp_path, data_dir, monkeypatch, capsys):
  """The stand-in for train.py interrupts this process, as a user would, and then takes the interrupt itself."""
  script = (
    'import os, signal\n'
    'try:\n'
    '  os.kill(os.getppid(), signal.SIGINT)\n'
    '  while True: signal.pause()\n'
    'except KeyboardInterrupt:\n'
    '  print("saved")\n'
  )
  command = [sys.executable, '-c', script]
  monkeypatch.setattr(experiments.Run, 'commands', lambda *_: (command, command))
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored
  try:
    assert tables.main(['2', '--k', '1', '--out', str(tmp_path), '--data_dir', data_dir]) == 130
  finally:
    signal.signal(signal.SIGINT, before)
  assert capsys.readouterr().err == 'tables.py: stopped; the same command goes on\n'
  assert (tmp_path / 'k1' / 'seed0' / 'baseline' / 'output.txt').read_text() == 'saved\n'


def test_two_cells_of_table_1_for_real(tmp_path, data_dir, monkeypatch, capsys):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
  arguments = ['1', '--k', '1', '--out', str(tmp_path), '--data_dir', data_dir, '--only', 'baseline,1-1-4/clustering']
  arguments += ['--baseline_steps', '2', '--scratch_steps', '2']
  assert tables.main(arguments) == 0
  first = capsys.readouterr().out
  table = rows_of(first[first.rindex('Table 1') :])
  by_name = {row[0]: dict(zip(table[0], row)) for row in table[1:]}
  for name, column, folder in (
    ('baseline', 'dense', 'baseline'),
    ('FC 1-1-4', 'C', 'scratch-1-1-4-clustering'),
  ):
    with open(tmp_path / 'k1' / 'seed0' / folder / 'eval.json') as f:
      assert by_name[name][column] == '%.2f' % (100 - 100 * json.load(f)['accuracy'])
  before = helpers.files(tmp_path)
  monkeypatch.setattr(experiments, 'call', None)
  assert tables.main(arguments) == 0
  assert rows_of(capsys.readouterr().out) == table
  assert helpers.files(tmp_path) == before
