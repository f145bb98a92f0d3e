"""Tests which runs a recipe has, their settings and flags, and their order."""

import dataclasses
import fractions
import os

import helpers
import pytest
import script_calls
import tensorflow as tf
from made_runs import make_runs, parse, value

import eval as evaluation
import resnet_split
import train
from paper import published, recipes, tables
from paper import runs as runs_module
from splitnet.common.errors import UserError
from splitnet.common.flags import parse_epochs


def test_the_deep_split_comes_first_then_table_2_then_table_1(tmp_path):
  runs = make_runs(tmp_path, '--recipe', 'paper')
  ordered = runs_module.with_needs([runs[name] for name in tables.chosen_cells('all', '', runs)])
  names = [os.path.basename(run.folder) for run in ordered]
  assert names[:3] == ['baseline', 'group-2-2-2', 'split-2-2-2']
  assert sorted(names[3:9]) == sorted(s + '-' + n for s in ('group', 'split') for n in ('1-1-4', '1-2-2', '2-4-4'))
  assert names[9] == 'baseline-dropout' and len(names) == len(set(names)) == 22
  assert all(name.startswith('scratch-') for name in names[10:])


def test_the_papers_budget_is_400_epochs_of_grouping_and_240_of_the_rest(tmp_path):
  for name, run in make_runs(tmp_path, '--recipe', 'paper').items():
    epochs = run.train['max_steps'] * run.train['batch_size'] / 45000
    expected = 400 if name.startswith('group') else 640 if name.endswith('-long') else 240
    assert (run.train['batch_size'], epochs) == (90, expected)
    assert (run.teacher is not None) == name.endswith('-taught')  # a row of the table of groups, none of the paper's
    assert not {'label_smoothing', 'lr_schedule'} & run.train.keys()
    assert run.train['precision'] == 'float32'


def test_steps_follow_the_batch_size_and_the_learning_rate_too(tmp_path):
  short, small = (make_runs(tmp_path, '--recipe', 'short', *more) for more in ([], ['--batch_size', 90]))
  for name in ('baseline', 'group-2-2-2', 'split-2-2-2', 'scratch-2-2-2-random'):
    one, other = short[name].train, small[name].train
    assert one['batch_size'] == 360 and one['precision'] == 'bfloat16'
    assert other['max_steps'] == 4 * one['max_steps'] and other['initial_lr'] == one['initial_lr'] / 4
    assert other['checkpoint_interval'] == 4 * one['checkpoint_interval']
    epochs = one['max_steps'] * 360 / 45000
    for run in (short[name], small[name]):
      trained, *_ = run.commands('data', 45000)
      share = 'ramp_at' if name.startswith('group') else 'warmup_at'
      assert float(value(trained, runs_module.SHARES[share])) == pytest.approx(one[share] * epochs)
  total = {
    recipe: make_runs(tmp_path, '--recipe', recipe)['baseline'].train['max_steps'] for recipe in ('paper', 'short')
  }
  assert total['paper'] >= 30 * total['short']
  assert make_runs(tmp_path, '--recipe', 'short', '--split_steps', 7)['split-2-2-2'].train['max_steps'] == 7


def test_better_runs_are_taught_by_the_baseline_and_need_it(tmp_path):
  runs = make_runs(tmp_path, '--recipe', 'better')
  split = runs['split-2-2-2']
  assert split.teacher == runs['baseline'] and split.base == runs['group-2-2-2']
  trained, *_ = split.commands('data', 45000)
  parsed = train.parse_flags(trained[2:])
  assert parsed.teacher == os.path.join(runs['baseline'].folder, 'best') and parsed.label_smoothing == 0.1
  assert (parsed.distill_weight, parsed.distill_temperature) == (0.7, 2)
  assert runs_module.with_needs([runs['scratch-1-1-4-random']]) == [runs['baseline'], runs['scratch-1-1-4-random']]
  other = make_runs(tmp_path, '--recipe', 'better', '--baseline_steps', 9)['scratch-1-1-4-random']
  found = list(runs_module.differences(runs['scratch-1-1-4-random'].settings, other.settings))
  assert found == ["was made with teacher's max_steps 30000, now it is 9"]


def test_what_a_machine_computes_with_is_no_setting(tmp_path, monkeypatch):
  # However many GPUs there are: train.py knows whether it can compile for them.
  monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind=None: ['GPU:0', 'GPU:1'])
  plain = make_runs(tmp_path)['baseline']
  assert '--jit_compile' not in plain.commands('data', 90)[0]
  for compiled in (False, True):
    chosen = make_runs(tmp_path, '--jit_compile', compiled)['baseline']
    assert chosen.settings == plain.settings
    assert train.parse_flags(chosen.commands('data', 90)[0][2:]).jit_compile is compiled


def test_the_dense_network_is_trained_on_for_the_steps_that_the_split_one_has_had_more(tmp_path):
  for recipe in recipes.RECIPES:
    runs = make_runs(tmp_path, '--recipe', recipe)
    long, fine_tuned = runs['baseline-long'], runs['split-2-2-2']
    assert (long.train['mode'], long.base, long.teacher) == ('baseline', runs['baseline'], None)
    different = {'mode', 'max_steps', 'ngroups1', 'ngroups2', 'ngroups3', 'branch_input'}
    different |= recipes.TEACHING.keys()
    for name in (long.train.keys() | fine_tuned.train.keys()) - different:
      assert long.train[name] == fine_tuned.train[name], (recipe, name)
    assert long.train['max_steps'] == fine_tuned.train['max_steps'] + runs['group-2-2-2'].train['max_steps']
    # All three ways of spending the steps end with as many, where grouping starts from the baseline.
    if runs['group-2-2-2'].base:
      assert long.steps_in_all == fine_tuned.steps_in_all == runs['given-2-2-2-semantic-long'].steps_in_all


def test_the_dense_network_teaches_one_run_where_the_recipe_has_no_teacher(tmp_path):
  for recipe in recipes.RECIPES:
    runs = make_runs(tmp_path, '--recipe', recipe)
    assert ('split-2-2-2-taught' in runs) == (recipe != 'better')
    taught = runs.get('split-2-2-2-taught')
    if taught:
      alone = runs['split-2-2-2']
      assert taught.needs == [alone.base, runs['baseline-long']] and taught.teacher is runs['baseline-long']
      assert taught.train == {**alone.train, **recipes.TEACHING}


def test_steps_of_a_base_that_only_clusters_the_classes_are_not_counted(tmp_path):
  runs = make_runs(tmp_path)
  assert runs['scratch-2-2-2-clustering'].base is runs['baseline']
  assert runs['scratch-2-2-2-clustering'].steps_in_all == 1450
  assert runs['given-2-2-2-clustering'].steps_in_all == 3450


def test_groups_from_noise_are_found_by_the_weights_before_they_are_made_disjoint(tmp_path):
  for recipe in ('cpu', 'short', 'better'):
    runs = make_runs(tmp_path, '--recipe', recipe)
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


@pytest.mark.parametrize('recipe', sorted(recipes.RECIPES))
def test_every_command_is_one_that_the_programs_take(recipe, tmp_path):
  runs = make_runs(tmp_path, '--recipe', recipe, '--branch_input', 'all', seed=3)
  assert len(runs) == 3 + 4 * {'paper': 12, 'better': 16}.get(recipe, 17)
  for name, run in runs.items():
    trained, *grouped, evaluated = run.commands('data', 45000)
    parsed = train.parse_flags(trained[2:])
    assert parsed.mode == {'baseline': 'baseline', 'group': 'group', 'find': 'group'}.get(name.split('-')[0], 'split')
    assert (parsed.seed, parsed.k, parsed.train_dir) == (3, 8, run.folder)
    assert parsed.grouping == (name.split('-')[4] if name.startswith(('scratch', 'given')) else 'learned')
    assert bool(parsed.basemodel) == (run.base is not None)
    if not name.startswith('baseline'):
      config = resnet_split.WideResNet(ngroups1=parsed.ngroups1, ngroups2=parsed.ngroups2, ngroups3=parsed.ngroups3)
      assert config.split in name and parsed.branch_input == 'all'
    checked = evaluation.parse_flags(evaluated[2:])
    assert checked.harden == name.startswith('group') and checked.output_file == run.evaluation
    for other in map(lambda arguments: evaluation.parse_flags(arguments[2:]), grouped):
      assert (other.harden, other.checkpoint, other.output_file) == (False, run.folder, run.grouped_evaluation)
    assert len(grouped) == name.startswith('group')
    last = run.folder if parsed.mode == 'group' else os.path.join(run.folder, 'best')
    assert checked.checkpoint == last


def test_the_papers_recipe_is_that_of_the_scripts(tmp_path, project):
  runs = make_runs(tmp_path, '--recipe', 'paper')
  scripts = {'baseline': ['baseline.sh'], 'group-2-2-2': ['group.sh', '--paper'], 'split-2-2-2': ['split.sh']}
  for name, script in scripts.items():
    code, calls, stderr = script_calls.run(project, *script, '--data_dir', 'data', '--basemodel', '')
    assert code == 0, stderr
    of_script = train.parse_flags(calls[-1][1])
    parsed = train.parse_flags(runs[name].commands('data', 45000)[0][2:])
    for flag in (
      'mode', 'batch_size', 'l2_weight', 'initial_lr', 'lr_decay', 'max_steps', 'gamma1', 'gamma2', 'gamma3',
      'dropout_keep_prob', 'checkpoint_interval',
    ):  # fmt: skip
      assert getattr(parsed, flag) == getattr(of_script, flag), (name, flag)
    # Where the rate falls the scripts leave to train.py.
    shares = [float(fractions.Fraction(text)) for text in train.STAGE_DEFAULTS[parsed.mode]['lr_step'].split(',')]
    epochs = parsed.max_steps * 90 / 45000
    assert parse_epochs(parsed.lr_step_epoch) == pytest.approx([share * epochs for share in shares])
  assert [name for name, run in runs.items() if name.startswith('group') and run.base] == []
  kept = {name: run.train['dropout_keep_prob'] for name, run in runs.items() if name.startswith('group')}
  assert kept == {'group-1-1-4': 1, 'group-1-2-2': 1, 'group-2-2-2': 0.5, 'group-2-4-4': 0.5}


def test_the_hierarchical_split_is_grouped_for_longer_in_as_many_steps(tmp_path):
  runs = make_runs(tmp_path)
  deep, hierarchical = (
    [runs[f'{stage}-{split}'].train['max_steps'] for stage in ('group', 'split')] for split in ('2-2-2', '2-4-4')
  )
  assert hierarchical[0] > 2 * deep[0] and sum(hierarchical) == sum(deep)
  assert runs['given-2-4-4-random-long'].train['max_steps'] == sum(deep)
  assert make_runs(tmp_path, '--group_steps', 9)['group-2-4-4'].train['max_steps'] == 9


def test_shares_of_the_steps_become_epochs(tmp_path):
  run = make_runs(tmp_path, '--group_steps', 1000)['group-2-2-2']
  run = dataclasses.replace(run, train=dict(run.train, drop_at=(0.5, 0.75), ramp_at=0.25))
  trained, *_ = run.commands('data', 900)
  assert value(trained, 'lr_step_epoch') == '50,75' and value(trained, 'gamma2_ramp_epoch') == '25'
  assert not {'--drop_at', '--ramp_at'} & set(trained)


def test_only_chooses_cells_rows_and_columns(tmp_path):
  runs = make_runs(tmp_path)

  def chosen(table, only):
    return tables.chosen_cells(table, only, runs)

  assert chosen('1', 'baseline, 2-2-2/semantic') == ['baseline', 'scratch-2-2-2-semantic']
  assert chosen('1', '1-1-4')[-1] == 'split-1-1-4' and len(chosen('1', '1-1-4')) == 4
  assert chosen('1', 'random') == [f'scratch-{split}-random' for split in published.SPLITS]
  assert len(chosen('1', '')) == 2 + 16 and len(chosen('2', '')) == 5
  assert chosen('groups', 'dense') == ['baseline', 'baseline-long'] and len(chosen('groups', '')) == 2 + 4 * 10
  with pytest.raises(UserError, match="--only names '3-3-3'; table 2 of this recipe has baseline, 1-1-4/splitnet"):
    chosen('2', '3-3-3')


@pytest.mark.parametrize('recipe, cell', [('paper', '2-2-2/noise'), ('better', '2-2-2/taught')])
def test_cells_that_a_recipe_does_not_have_are_left_out_and_refused_by_name(recipe, cell, tmp_path):
  runs = make_runs(tmp_path, '--recipe', recipe)
  assert set(tables.chosen_cells('groups', '', runs)) < set(runs)
  with pytest.raises(UserError, match=f"--only names '{cell}'; table groups of this recipe has dense"):
    tables.chosen_cells('groups', cell, runs)


@pytest.mark.parametrize('recipe', sorted(recipes.RECIPES))
def test_a_recipe_of_the_papers_scale_has_the_papers_counts_and_a_folder_of_its_own(recipe, tmp_path):
  experiment = parse('all', '--recipe', recipe).experiment
  folder = os.path.join(helpers.PROJECT, 'runs', *(['tables'] if recipe == 'cpu' else ['paper', recipe]))
  assert (experiment.out, experiment.branch_input) == (folder, 'group' if recipe == 'cpu' else 'all')
  experiment = parse('all', '--recipe', recipe, '--out', tmp_path, '--branch_input', 'group').experiment
  assert (experiment.out, experiment.branch_input) == (str(tmp_path), 'group')
