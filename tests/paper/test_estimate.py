"""paper.sh, plan.py, and what tables.py and experiments.py have for them: which runs, their order and cost, moving."""

import os
import shutil
import subprocess
import sys

import helpers
import numpy as np
import pytest
import tensorflow as tf

import resnet_split
import train
import utils
from paper import estimate, tables
from paper import runs as experiments
from splitnet.common.errors import UserError
from splitnet.network import architecture
from splitnet.parallel import devices
from splitnet.training import checkpoints

SCRIPT = os.path.join(helpers.PROJECT, 'paper.sh')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return helpers.data(tmp_path_factory)


def runs_of(out, *arguments):
  return tables.make_runs(tables.parse_flags(['all', '--out', str(out), *map(str, arguments)]), 0)


def value(arguments, name):
  return arguments[arguments.index('--' + name) + 1]


# --- the runs -----------------------------------------------------------------------------------------------------


def test_the_deep_split_comes_first_then_table_2_then_table_1(tmp_path):
  runs = runs_of(tmp_path, '--recipe', 'paper')
  ordered = tables.with_needs([runs[name] for name in tables.chosen_cells('all', '', runs)])
  names = [os.path.basename(run.folder) for run in ordered]
  assert names[:3] == ['baseline', 'group-2-2-2', 'split-2-2-2']
  assert sorted(names[3:9]) == sorted(s + '-' + n for s in ('group', 'split') for n in ('1-1-4', '1-2-2', '2-4-4'))
  assert names[9] == 'baseline-dropout' and len(names) == len(set(names)) == 22
  assert all(name.startswith('scratch-') for name in names[10:])


def test_the_papers_budget_is_400_epochs_of_grouping_and_240_of_the_rest(tmp_path):
  for name, run in runs_of(tmp_path, '--recipe', 'paper').items():
    epochs = run.train['max_steps'] * run.train['batch_size'] / 45000
    expected = 400 if name.startswith('group') else 640 if name.endswith('-long') else 240
    assert (run.train['batch_size'], epochs) == (90, expected)
    assert (run.teacher is not None) == name.endswith('-taught')  # a row of the table of groups, none of the paper's
    assert not {'label_smoothing', 'lr_schedule'} & run.train.keys()
    assert run.train['precision'] == 'float32'


def test_steps_follow_the_batch_size_and_the_learning_rate_too(tmp_path):
  short, small = (runs_of(tmp_path, '--recipe', 'short', *more) for more in ([], ['--batch_size', 90]))
  for name in ('baseline', 'group-2-2-2', 'split-2-2-2', 'scratch-2-2-2-random'):
    one, other = short[name].train, small[name].train
    assert one['batch_size'] == 360 and one['precision'] == 'bfloat16'
    assert other['max_steps'] == 4 * one['max_steps'] and other['initial_lr'] == one['initial_lr'] / 4
    assert other['checkpoint_interval'] == 4 * one['checkpoint_interval']
    epochs = one['max_steps'] * 360 / 45000
    for run in (short[name], small[name]):
      trained, *_ = run.commands('data', 45000)
      share = 'ramp_at' if name.startswith('group') else 'warmup_at'
      assert float(value(trained, experiments.SHARES[share])) == pytest.approx(one[share] * epochs)
  total = {
    recipe: runs_of(tmp_path, '--recipe', recipe)['baseline'].train['max_steps'] for recipe in ('paper', 'short')
  }
  assert total['paper'] >= 30 * total['short']
  assert runs_of(tmp_path, '--recipe', 'short', '--split_steps', 7)['split-2-2-2'].train['max_steps'] == 7


def test_better_runs_are_taught_by_the_baseline_and_need_it(tmp_path):
  runs = runs_of(tmp_path, '--recipe', 'better')
  split = runs['split-2-2-2']
  assert split.teacher == runs['baseline'] and split.base == runs['group-2-2-2']
  trained, *_ = split.commands('data', 45000)
  parsed = train.parse_flags(trained[2:])
  assert parsed.teacher == os.path.join(runs['baseline'].folder, 'best') and parsed.label_smoothing == 0.1
  assert (parsed.distill_weight, parsed.distill_temperature) == (0.7, 2)
  assert tables.with_needs([runs['scratch-1-1-4-random']]) == [runs['baseline'], runs['scratch-1-1-4-random']]
  other = runs_of(tmp_path, '--recipe', 'better', '--baseline_steps', 9)['scratch-1-1-4-random']
  found = list(experiments.differences(runs['scratch-1-1-4-random'].settings, other.settings))
  assert found == ["was made with teacher's max_steps 30000, now it is 9"]


def test_what_a_machine_computes_with_is_no_setting(tmp_path, monkeypatch):
  # However many GPUs there are: train.py knows whether it can compile for them.
  monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind=None: ['GPU:0', 'GPU:1'])
  plain = runs_of(tmp_path)['baseline']
  assert '--jit_compile' not in plain.commands('data', 90)[0]
  for value in (False, True):
    chosen = runs_of(tmp_path, '--jit_compile', value)['baseline']
    assert chosen.settings == plain.settings
    assert train.parse_flags(chosen.commands('data', 90)[0][2:]).jit_compile is value


# --- moving, and what a run took ----------------------------------------------------------------------------------


def in_this_process(steps=None):
  """Stands for `experiments.call`: trains in this process, up to `steps` if given (then fails); evaluates nothing."""

  def call(arguments, log, tell=None):
    if arguments[1].endswith('eval.py'):
      checkpoints.write_json(value(arguments, 'output_file'), {'accuracy': 0.5, 'parameters': 10, 'flops': 10})
      return 0
    given = arguments[2:] + ['--num_val_instance', '20', '--display', '2']
    stop = steps and value(arguments, 'mode') == 'split'
    assert train.main(given + (['--max_steps', str(steps)] if stop else [])) == 0
    with open(log, 'a') as f:
      f.write('stopped\n')
    return 1 if stop else 0

  return call


def test_a_folder_of_runs_goes_on_where_it_was_moved_to_the_same_weights(tmp_path, data_dir, monkeypatch, capsys):
  def run(out):
    arguments = ['all', '--recipe', 'paper', '--k', 1, '--data_dir', data_dir, '--out', out, '--only', '1-1-4/splitnet']
    arguments += ['--group_steps', 1, '--split_steps', 4, '--batch_size', 15]
    return tables.main([str(a) for a in arguments]), *capsys.readouterr()

  monkeypatch.setattr(experiments, 'call', in_this_process(steps=2))
  code, _, err = run(tmp_path / 'home')
  assert code == 1 and 'exit code 1: stopped' in err
  shutil.copytree(tmp_path / 'home', tmp_path / 'away')
  monkeypatch.setattr(experiments, 'call', in_this_process())
  assert run(tmp_path / 'home')[0] == 0
  os.rename(tmp_path / 'home', tmp_path / 'kept')
  code, out, _ = run(tmp_path / 'away')
  assert code == 0 and 'going on from step 2' in out and '2 runs, 1 of them done' in out
  folders = [str(tmp_path / name / 'k1' / 'seed0' / 'split-1-1-4') for name in ('kept', 'away')]
  assert checkpoints.latest(folders[1]).endswith('ckpt-4')
  helpers.assert_same(*(helpers.weights(folder) for folder in folders))
  # Nothing is done again, and the tables and the list of runs were written.
  monkeypatch.setattr(experiments, 'call', None)
  assert run(tmp_path / 'away')[0] == 0
  assert {'table1.md', 'table2.md', 'runs.md', 'runs.csv'} <= set(os.listdir(tmp_path / 'away' / 'k1'))
  line = next(t for t in (tmp_path / 'away' / 'k1' / 'runs.csv').read_text().splitlines() if t.startswith('split'))
  name, steps, batch_size, seed, device, hours, error, paper = line.split(',', 4)[:4] + line.split(',', 4)[4].rsplit(
    ',', 3
  )  # the device's name has a comma
  assert (name, steps, batch_size, seed, error, paper) == ('split-1-1-4', '4', '15', '0', '50.00', '24.26')
  assert float(hours) >= 0 and device.strip('"') == devices.description()


def test_the_cost_of_a_run_adds_up_over_its_sessions_and_devices(tmp_path, monkeypatch):
  run = experiments.Run(str(tmp_path), None, {})
  assert run.cost is None
  monkeypatch.setattr(devices, 'description', lambda: 'one')
  experiments.add_cost(run, 10)
  experiments.add_cost(run, 5.5)
  assert run.cost == {'seconds': 15.5, 'device': 'one'}
  monkeypatch.setattr(devices, 'description', lambda: 'other')
  experiments.add_cost(run, 1)
  experiments.add_cost(run, 1)
  assert run.cost == {'seconds': 17.5, 'device': 'one + other'}
  (tmp_path / 'cost.json').write_text('{')
  assert run.cost is None


def test_a_run_that_goes_on_tells_how_far_it_is(tmp_path, monkeypatch, capsys):
  run = experiments.Run(str(tmp_path), None, {'max_steps': 100})
  log = 'step 10: loss 4.2, 9 images/s\nstep 10: validation accuracy 1.00 %\n'
  script = 'import sys, time; open(sys.argv[1], "w").write(%r); time.sleep(1)' % log
  monkeypatch.setattr(experiments, 'REPORT_SECONDS', 0.02)
  command = [sys.executable, '-c', script, str(tmp_path / 'train.log')]
  tell = lambda: experiments.print_progress(run, 4, 360)  # noqa: E731 - one minute a step
  assert experiments.call(command, str(tmp_path / 'output.txt'), tell) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines and set(lines) == {'  step 10: loss 4.2, 9 images/s; about 1 h 30 min left of 100 steps'}
  experiments.print_progress(run, 10, 360)  # nothing done in this session: nothing to tell
  assert capsys.readouterr().out == ''


def test_a_real_checkpoint_of_the_papers_width_is_small_enough_to_move(tmp_path, capsys):
  """The largest state is that of the hierarchical split's grouping network: weights, assignments and momentum."""
  config = architecture.Config(k=8, ngroups1=4, ngroups2=4, ngroups3=2)
  network = resnet_split.Network(config, with_assignments=True)
  flags = train.parse_flags(['--mode', 'group'])
  sizes = estimate.checkpoint_sizes(train.Stage(flags, network, 500.0), 'group')
  with capsys.disabled():
    print('\nk = 8: checkpoint %.2f MB, best %.2f MB' % (sizes['checkpoint'] / 1e6, sizes['best'] / 1e6))
  trained = sum(v.shape.num_elements() for v in network.trained.values())
  everything = sum(v.shape.num_elements() for v in network.weights.values())
  assert sizes['best'] == pytest.approx(4 * everything, rel=0.001) and sizes['best'] < 45e6
  assert sizes['checkpoint'] == pytest.approx(4 * (everything + trained), rel=0.001) and sizes['checkpoint'] < 100e6


# --- the plan -----------------------------------------------------------------------------------------------------


def test_a_stage_is_measured_in_a_process_of_its_own(tmp_path):
  arguments = estimate.step_arguments(runs_of(tmp_path, '--recipe', 'better', '--k', 1)['group-2-2-2'])
  before = set(os.listdir('.'))
  found = estimate.measured_apart(arguments, 3, 2)
  assert set(os.listdir('.')) == before
  config = tables.split_config('2-2-2', 1, 'group')
  network = resnet_split.Network(config, with_assignments=True)
  assert found['flops'] == utils.total_count(network.counts, everything=True)[1]
  assert found['fastest'] == pytest.approx(found['per_step'] + 3 * found['per_image'])
  assert 0 < found['fastest'] <= found['seconds'] < 60 and found['per_image'] > 0
  assert 200e6 < found['memory'] < 5e9 and found['gpu_memory'] is None
  trained, everything = (sum(v.shape.num_elements() for v in d.values()) for d in (network.trained, network.weights))
  assert found['best'] == pytest.approx(4 * everything, rel=0.05)
  assert found['checkpoint'] == pytest.approx(4 * (trained + everything), rel=0.05)
  with pytest.raises(UserError, match=r'exit code 2: .*nothing.*: try a smaller --measure_batch'):
    estimate.measured_apart(['--mode', 'nothing'], 3, 2)


def test_the_fit_stays_sane_where_a_single_image_looks_as_slow_as_a_batch(monkeypatch, tmp_path):
  ticks = iter(np.arange(0.0, 1e6))
  monkeypatch.setattr(estimate.time, 'perf_counter', lambda: next(ticks))  # every step takes one second
  run = runs_of(tmp_path, '--recipe', 'paper', '--k', 1)['scratch-1-1-4-random']
  found = estimate.measure(estimate.step_arguments(run), 3, 1)
  assert (found['seconds'], found['fastest'], found['per_image'], found['per_step']) == (1.0, 1.0, 0.25, 0.25)


MEASURED = dict(
  seconds=1.2, fastest=0.9, batch_size=8, memory=10**9, gpu_memory=None, per_image=0.1, per_step=0.1, flops=3 * 10**9,
  checkpoint=88 * 10**6, best=44 * 10**6,
)  # fmt: skip


def test_the_hours_of_a_run_by_hand():
  settings = dict(max_steps=1000, batch_size=90, val_interval=400, precision='float32')
  run = experiments.Run('folder', None, settings)
  # 90,000 training images of 3 x 2 + 1 GFLOP, 4 validations of 5,000 images of 2 GFLOP.
  training, validation = estimate.flops_of(run, 2e9, 1e9)
  assert (training, validation) == (90000 * 7e9, 4 * 5000 * 2e9)
  # An image of 9 GFLOP was measured to take 0.1 s, so 90 GFLOP/s; and 0.1 s a step.
  assert estimate.seconds_here(run, 2e9, 1e9, MEASURED) == pytest.approx(100 + (6.3e14 + 4e13) / 90e9)
  assert estimate.seconds_on_gpu(run, 2e9, 1e9, 100, 0.5) == pytest.approx(6.7e14 / 25e12)  # float32: half the peak
  run = experiments.Run('folder', None, dict(settings, precision='bfloat16'))
  assert estimate.seconds_on_gpu(run, 2e9, 1e9, 100, 0.5) == pytest.approx(6.7e14 / 50e12)


def test_the_plan_has_every_run_and_adds_up(monkeypatch, capsys):
  called = []

  def measured_apart(arguments, batch_size, steps):
    called.append((value(arguments, 'mode'), value(arguments, 'precision'), batch_size, steps))
    return dict(MEASURED, batch_size=batch_size)

  monkeypatch.setattr(estimate, 'measured_apart', measured_apart)
  monkeypatch.setattr(devices, 'precision_note', lambda precision, training: 'note: %s, %s' % (precision, training))
  assert estimate.main(['--k', '1', '--measure_batch', '5', '--precision', 'float32']) == 0
  assert called == [(m, 'float32', 5, 20) for m in ('baseline', 'group', 'split')]
  called.clear()
  assert capsys.readouterr().err.startswith('note: float32, True\n')
  assert estimate.main(['--k', '1', '--measure_batch', '5']) == 0
  # Short and better compute alike, so they are measured once.
  assert called == [(m, p, 5, 20) for p in ('float32', 'bfloat16') for m in ('baseline', 'group', 'split')]
  out, err = capsys.readouterr()
  assert err.startswith('note: bfloat16, True\n'), 'told before minutes are spent on it'
  first, second = out.split('Hours, validation included')
  rows = [[cell.strip() for cell in t.strip('|').split('|')] for t in second.splitlines() if t.startswith('|')]
  header, rows = rows[0], rows[2:]
  assert [row[0] for row in rows[:3]] == ['baseline', 'group-2-2-2', 'split-2-2-2'] and len(rows) == 2 + 4 * 3 + 2
  numbers = np.array([[float(cell.replace(',', '')) for cell in row[2:]] for row in rows])
  assert len(header) == 2 + 3 * 3 and header[2] == 'paper: steps of 90' and header[5] == 'short: steps of 360'
  np.testing.assert_allclose(numbers[:-2].sum(0), numbers[-1], rtol=0.02, atol=0.1)
  table_2 = [i for i, row in enumerate(rows) if row[0].startswith(('group-', 'split-')) or row[0] == 'baseline']
  np.testing.assert_allclose(numbers[table_2].sum(0), numbers[-2], rtol=0.02, atol=0.05)
  assert numbers[-1][0] == 6 * 120000 + 4 * 200000 + 12 * 120000
  assert len([t for t in first.splitlines() if t.startswith('|')]) == 2 + 6 and '88.0' in first and '44.0' in first


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--tflops', '0'], ['--tflops is 0', 'above 0']),
    (['--utilisation', '1.5'], ['--utilisation is 1.5', '(0, 1]']),
    (['--measure_steps', '0'], ['--measure_steps is 0']),
    (['--measure_batch', '0'], ['--measure_batch is 0']),
    (['--k', '0'], ['--k is 0']),
    (['--branch_input', 'both'], ["'both'"]),
  ],
)
def test_the_plans_mistakes_are_one_sentence(arguments, words, capsys):
  assert estimate.main(arguments) == 1
  err = capsys.readouterr().err
  assert err.startswith('estimate.py: ') and err.count('\n') == 1 and all(word in err for word in words)


# --- the script ---------------------------------------------------------------------------------------------------


def script(*arguments):
  done = subprocess.run([SCRIPT, *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
  return done.returncode, done.stdout, done.stderr


def test_paper_sh_prints_the_tables_of_its_budget(tmp_path):
  short = runs_of(tmp_path, '--recipe', 'short', '--branch_input', 'all')['split-2-2-2']
  os.makedirs(short.folder)
  checkpoints.write_json(
    os.path.join(short.folder, 'settings.json'), {'settings': short.settings, 'data': {'source': 'real'}}
  )
  checkpoints.write_json(short.evaluation, {'accuracy': 0.75, 'parameters': 5895268, 'flops': 2105592008})
  code, out, err = script('--budget', 'short', '--print', '--out', tmp_path)
  assert (code, err) == (0, '')
  assert 'recipe short' in out and 'branch_input all' in out and 'WRN-16-8' in out
  deep = [t for t in out.splitlines() if t.startswith('| Deep 2-2-2')]
  assert [cell.strip() for cell in deep[0].split('|')][2:5] == ['5.895', '5.90', '46.41']
  assert '25.00' in deep[0] and '25.00' in deep[1] and out.index('Table 2') < out.index('Table 1')
  assert any(t.startswith('| split-2-2-2') and '25.00' in t and '24.62' in t for t in out.splitlines())
  code, _, err = script('--print', '--out', tmp_path)  # the paper's budget has other settings
  assert code == 1 and err.startswith('tables.py: ') and short.folder in err and err.count('\n') == 1


def test_paper_sh_refuses_another_budget():
  for arguments in (['--budget', 'tiny'], ['--budget=tiny'], ['--budget']):
    code, out, err = script(*arguments)
    assert (code, out) == (1, '') and err.startswith('paper.sh: --budget is ') and 'paper, short or better' in err


def test_paper_sh_explains_itself():
  code, out, err = script('--help')
  assert (code, err) == (0, '') and './paper.sh --plan' in out and '--seeds' in out and 'set -euo' not in out
  code, out, err = script('--plan', '--help')
  assert (code, err) == (0, '') and '--tflops' in out and '--utilisation' in out
