"""Tests tables.py: the tables that it makes, what it runs and refuses."""

import csv
import json
import os
import subprocess

import forking
import helpers
import pytest
from made_runs import DATA, finish, make_runs, parse, rows_of, value

from paper import experiments, tables
from paper import runs as runs_module
from splitnet.parallel import devices


def test_table_1_has_means_spreads_and_empty_cells(tmp_path, capsys):
  flags = parse(1, '--k', 1, '--out', tmp_path, '--seeds', '0,1')
  first, second, third = (experiments.make_runs(flags.experiment, seed) for seed in (0, 1, 7))
  finish(first['baseline'], 0.70)
  finish(first['scratch-2-4-4-random'], 0.5)
  for runs, accuracy in ((first, 0.60), (second, 0.61), (third, 0.65)):  # seed 7 is not asked for, but it is there
    finish(runs['split-2-2-2'], accuracy)
  tables.show(flags, DATA)
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
  runs = experiments.make_runs(flags.experiment, 0)
  finish(runs['baseline'], 0.701)
  finish(runs['split-1-2-2'], 0.6)
  tables.show(flags, DATA)
  printed = capsys.readouterr().out
  with open(tmp_path / 'k1' / (f'table{table}.md'), encoding='utf-8') as f:
    assert f.read() == printed.strip('\n') + '\n'
  with open(tmp_path / 'k1' / (f'table{table}.csv'), encoding='utf-8', newline='') as f:
    rows = list(csv.reader(f))
  assert rows == rows_of(printed)
  assert len(set(rows[0])) == len(rows[0])
  assert '29.90' in rows[1] and 'synthetic' in printed and 'recipe cpu' in printed


def test_table_2_has_the_sizes_of_what_was_run(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(tables.counts, 'total', lambda config: (1000000, 10**7))
  flags = parse(2, '--k', 1, '--out', tmp_path, '--branch_input', 'all')
  finish(experiments.make_runs(flags.experiment, 0)['split-2-4-4'], 0.72, parameters=400000, flops=6 * 10**6)
  finish(experiments.make_runs(flags.experiment, 3)['split-2-4-4'], 0.74, parameters=500000, flops=6 * 10**6)
  tables.show(flags, DATA)
  rows = rows_of(capsys.readouterr().out)
  shown = dict(zip(rows[0], rows[5]))
  assert list(shown.values())[1::2] == ['0.450', '55.00', '0.006', '40.00', '27.00 ± 1.41 (2)']
  assert list(shown.values())[2::2] == ['4.12', '62.58', '1.88', '39.29', '24.80']
  assert rows[1][1::2] == [''] * 5 and rows[1][2::2] == ['11.0', '0.0', '3.10', '0.0', '24.28']


def test_printing_runs_and_writes_nothing(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(runs_module, 'call', None)
  finish(make_runs(tmp_path, '--k', 1)['baseline'], 0.7)
  before = helpers.files(tmp_path)
  assert tables.main(['1', '--k', '1', '--out', str(tmp_path), '--print', '--data_dir', str(tmp_path / 'none')]) == 0
  assert rows_of(capsys.readouterr().out)[1][3] == '30.00'
  assert helpers.files(tmp_path) == before


# --- running ------------------------------------------------------------------------------------------------------


class Recorder:
  """Stands for `runs_module.call`: records commands, writes what eval.py would."""

  def __init__(self, fail=None):
    self.called, self.fail = [], fail

  def __call__(self, arguments, log, report=None, interval=None):
    program = os.path.basename(arguments[1])
    folder = os.path.basename(os.path.dirname(log))
    self.called.append((program, folder))
    with open(log, 'a', encoding='utf-8') as f:
      f.write('said something\n\n')
    if self.fail == (program, folder):
      return 3
    if program == 'eval.py':
      with open(value(arguments, 'output_file'), 'w', encoding='utf-8') as f:
        json.dump({'accuracy': 0.5, 'parameters': 10, 'flops': 10}, f)
    return 0

  @property
  def trained(self):
    return [folder for program, folder in self.called if program == 'train.py']


@pytest.fixture
def program(tmp_path, data, monkeypatch, capsys):
  """Calls tables.py with a Recorder: (exit code, stdout, stderr, the Recorder)."""

  def run(*arguments, fail=None):
    recorder = Recorder(fail)
    monkeypatch.setattr(runs_module, 'call', recorder)
    defaults = ['--k', '1', '--out', str(tmp_path / 'out'), '--data_dir', data]
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
  monkeypatch.setattr(devices, 'precision_note', lambda precision, training: f'note: {precision}, {training}')
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
  assert err.count('\n') == 1 and f"'{folder}'" in err and os.path.join(folder, 'output.txt') in err
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
  refused(program(2, '--seeds', 4), folder, was % (10, 1450))  # the table shows seed 0 too
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
  refused(program(2, '--group_steps', 9), 'split-1-2-2', "basemodel's max_steps 250, now it is 9")
  refused(program(2, '--baseline_steps', 9), 'split-1-2-2', "basemodel's basemodel's max_steps 2000, now it is 9")


def test_damaged_and_foreign_folders_are_refused(program, tmp_path):
  assert program(2, '--only', 'baseline')[0] == 0
  folder = tmp_path / 'out' / 'k1' / 'seed0' / 'baseline'
  for name in ('eval.json', 'settings.json'):
    kept = (folder / name).read_text()
    for content in ('{"accuracy"', '[]', '{}'):
      (folder / name).write_text(content)
      refused(program(2), str(folder / name), 'is damaged')
    (folder / name).write_text(kept)
  os.remove(folder / 'settings.json')
  refused(program(2), str(folder), 'was not made by tables.sh')


@pytest.mark.parametrize(
  'arguments, parts',
  [
    (['1', '--seeds', '0,x'], ['--seeds', "'0,x'"]),
    (['1', '--k', '0'], ['--k is 0']),
    (['2', '--split_steps', '0'], ["--split_steps is '0'"]),
    (['1', '--branch_input', 'some'], ['--branch_input', "'some'"]),
    (['1', '--only', 'x'], ['--only', "'x'"]),
    (['1', '--data_dir', 'nowhere', '--k', '1'], ['nowhere', 'download_cifar100.py']),
    (['counts', '--per_layer', '2-2'], ["'2-2' is no split", '2-4-8']),
    (['counts', '--per_layer', '4-2-2'], ['ngroups2']),
  ],
)
def test_mistakes_are_one_sentence(arguments, parts, capsys, tmp_path):
  code, _, err = helpers.call(tables, [*arguments, '--out', tmp_path], capsys)
  assert code in (1, 2)
  assert err.startswith('tables.py: ') and err.count('\n') == 1
  for part in parts:
    assert part in err


@pytest.mark.slow
def test_two_cells_of_table_1_for_real(tmp_path, data, monkeypatch, capsys):
  def call(command, log, *_):
    done = forking.run(command[1:])
    with open(log, 'a', encoding='utf-8') as f:
      f.write(done.stdout + done.stderr)
    return done.returncode

  monkeypatch.setattr(runs_module, 'call', call)
  arguments = ['1', '--k', '1', '--out', str(tmp_path), '--data_dir', data, '--only', 'baseline,1-1-4/clustering']
  arguments += ['--baseline_steps', '2', '--scratch_steps', '2']
  assert tables.main(arguments) == 0
  first = capsys.readouterr().out
  table = rows_of(first[first.rindex('Table 1') :])
  by_name = {row[0]: dict(zip(table[0], row)) for row in table[1:]}
  for name, column, folder in (
    ('baseline', 'dense', 'baseline'),
    ('FC 1-1-4', 'C', 'scratch-1-1-4-clustering'),
  ):
    with open(tmp_path / 'k1' / 'seed0' / folder / 'eval.json', encoding='utf-8') as f:
      assert by_name[name][column] == '%.2f' % (100 - 100 * json.load(f)['accuracy'])
  before = helpers.files(tmp_path)
  monkeypatch.setattr(runs_module, 'call', None)
  assert tables.main(arguments) == 0
  assert rows_of(capsys.readouterr().out) == table
  assert helpers.files(tmp_path) == before


# --- the script -----------------------------------------------------------------------------------------------------


def script(*arguments):
  command = [os.path.join(helpers.PROJECT, 'tables.sh'), *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
  return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_script_prints_the_tables_of_a_recipe(tmp_path, capsys):
  short = make_runs(tmp_path, '--recipe', 'short', '--branch_input', 'all')['split-2-2-2']
  finish(short, 0.75, 5895268, 2105592008, data={'source': 'real'})
  code, out, err = script('all', '--recipe', 'short', '--print', '--out', tmp_path)
  assert (code, err) == (0, '')
  assert 'recipe short' in out and 'branch_input all' in out and 'WRN-16-8' in out
  deep = [t for t in out.splitlines() if t.startswith('| Deep 2-2-2')]
  assert [cell.strip() for cell in deep[0].split('|')][2:5] == ['5.895', '5.90', '46.41']
  assert '25.00' in deep[0] and '25.00' in deep[1] and out.index('Table 2') < out.index('Table 1')
  assert any(t.startswith('| split-2-2-2') and '25.00' in t and '24.62' in t for t in out.splitlines())
  # It has other settings.
  code, _, err = helpers.call(tables, ['all', '--recipe', 'paper', '--print', '--out', tmp_path], capsys)
  assert code == 1 and err.startswith('tables.py: ') and short.folder in err and err.count('\n') == 1


@pytest.mark.slow
def test_the_script_explains_itself():
  code, out, err = script()
  assert (code, out) == (2, '') and err.startswith('tables.sh: ') and err.count('\n') == 1
  code, out, err = script('--help')
  assert (code, err) == (0, '')
  for name in ('1', '2', '5', 'all', 'groups', 'counts', 'plan'):
    assert f'./tables.sh {name} ' in err + out
  assert '--seeds' in out and '--recipe' in out
  for arguments in (['all', '--recipe', 'tiny'], ['all', '--recipe=tiny']):
    code, out, err = script(*arguments, '--print')
    assert code and out == '' and err.startswith('tables.py: ') and err.count('\n') == 1 and 'short' in err
  code, out, err = script('plan', '--help')
  assert (code, err) == (0, '') and '--tflops' in out and '--utilisation' in out
