"""Tests runs: their logs, cost and progress, moving them, interrupts."""

import fcntl
import json
import os
import shutil
import signal
import sys

import helpers
import pytest
from made_runs import value

import train
from paper import runs as runs_module
from paper import tables
from splitnet.common.errors import UserError
from splitnet.common.files import locked, write_json
from splitnet.parallel import devices
from splitnet.training import checkpoints


def test_call_logs_returns_the_code_and_keeps_others_out(tmp_path):
  log = str(tmp_path / 'output.txt')
  script = 'import sys; print("out", flush=True); print("err", file=sys.stderr); sys.exit(7)'
  assert runs_module.call([sys.executable, '-c', script], log) == 7
  assert runs_module.call([sys.executable, '-c', script], log) == 7
  with open(log, encoding='utf-8') as f:
    assert f.read() == 'out\nerr\n' * 2
  with open(log, 'a', encoding='utf-8') as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    with pytest.raises(UserError, match='is being run already'):
      runs_module.call([sys.executable, '-c', script], log)


def test_an_interrupt_reaches_the_run_once_and_its_ending_is_waited_for(tmp_path, data, monkeypatch, capsys):
  """Lets a stand-in for train.py interrupt this process, as a user would."""
  script = (
    'import os, signal\n'
    'try:\n'
    '  os.kill(os.getppid(), signal.SIGINT)\n'
    '  while True: signal.pause()\n'
    'except KeyboardInterrupt:\n'
    '  print("saved")\n'
  )
  command = [sys.executable, '-c', script]
  monkeypatch.setattr(runs_module.Run, 'commands', lambda *_: (command, command))
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored
  try:
    assert tables.main(['2', '--k', '1', '--out', str(tmp_path), '--data_dir', data]) == 130
  finally:
    signal.signal(signal.SIGINT, before)
  assert capsys.readouterr().err == 'tables.py: stopped; the same command continues\n'
  assert (tmp_path / 'k1' / 'seed0' / 'baseline' / 'output.txt').read_text() == 'saved\n'


def in_this_process(steps=None):
  """Stands for `runs_module.call`: trains in this process, up to `steps` if given."""

  def call(arguments, log, report=None, interval=None):
    if arguments[1].endswith('eval.py'):
      write_json(value(arguments, 'output_file'), {'accuracy': 0.5, 'parameters': 10, 'flops': 10})
      return 0
    given = arguments[2:] + ['--num_val_instance', '20', '--display', '2']
    stop = steps and value(arguments, 'mode') == 'split'
    assert train.main(given + (['--max_steps', str(steps)] if stop else [])) == 0
    with open(log, 'a', encoding='utf-8') as f:
      f.write('stopped\n')
    return 1 if stop else 0

  return call


@pytest.mark.slow
def test_a_folder_of_runs_goes_on_where_it_was_moved_to_the_same_weights(tmp_path, data, monkeypatch, capsys):
  def run(out):
    arguments = ['all', '--recipe', 'paper', '--k', 1, '--data_dir', data, '--out', out, '--only', '1-1-4/splitnet']
    arguments += ['--group_steps', 1, '--split_steps', 4, '--batch_size', 15]
    return tables.main([str(a) for a in arguments]), *capsys.readouterr()

  monkeypatch.setattr(runs_module, 'call', in_this_process(steps=2))
  code, _, err = run(tmp_path / 'home')
  assert code == 1 and 'exit code 1: stopped' in err
  shutil.copytree(tmp_path / 'home', tmp_path / 'away')
  monkeypatch.setattr(runs_module, 'call', in_this_process())
  assert run(tmp_path / 'home')[0] == 0
  os.rename(tmp_path / 'home', tmp_path / 'kept')
  code, out, _ = run(tmp_path / 'away')
  assert code == 0 and 'going on from step 2' in out and '2 runs, 1 of them done' in out
  folders = [str(tmp_path / name / 'k1' / 'seed0' / 'split-1-1-4') for name in ('kept', 'away')]
  assert checkpoints.latest(folders[1]).endswith('ckpt-4')
  helpers.assert_same(*(helpers.weights(folder) for folder in folders))
  # Nothing is done again, and the tables and the list of runs were written.
  monkeypatch.setattr(runs_module, 'call', None)
  assert run(tmp_path / 'away')[0] == 0
  assert {'table1.md', 'table2.md', 'runs.md', 'runs.csv'} <= set(os.listdir(tmp_path / 'away' / 'k1'))
  line = next(t for t in (tmp_path / 'away' / 'k1' / 'runs.csv').read_text().splitlines() if t.startswith('split'))
  name, steps, batch_size, seed, device, hours, error, paper = line.split(',', 4)[:4] + line.split(',', 4)[4].rsplit(
    ',', 3
  )  # the device's name has a comma
  assert (name, steps, batch_size, seed, error, paper) == ('split-1-1-4', '4', '15', '0', '50.00', '24.26')
  assert float(hours) >= 0 and device.strip('"') == devices.description()


def test_the_cost_of_a_run_adds_up_over_its_sessions_and_devices(tmp_path, monkeypatch):
  run = runs_module.Run(str(tmp_path), None, {})
  assert run.cost is None
  monkeypatch.setattr(devices, 'description', lambda: 'one')
  runs_module.add_cost(run, 10)
  runs_module.add_cost(run, 5.5)
  assert run.cost == {'seconds': 15.5, 'device': 'one'}
  monkeypatch.setattr(devices, 'description', lambda: 'other')
  runs_module.add_cost(run, 1)
  runs_module.add_cost(run, 1)
  assert run.cost == {'seconds': 17.5, 'device': 'one + other'}
  (tmp_path / 'cost.json').write_text('{')
  assert run.cost is None


def test_a_run_in_progress_says_how_far_it_is(tmp_path, capsys):
  run = runs_module.Run(str(tmp_path), None, {'max_steps': 100})
  runs_module.print_progress(run, 4, 360)  # nothing logged yet: nothing to say
  line = {'step': 10, 'kind': 'train', 'total': 4.2, 'accuracy': 0.25, 'images_per_second': 9.4}
  text = json.dumps(line) + '\n' + json.dumps({'step': 10, 'kind': 'val', 'accuracy': 0.01}) + '\n'
  script = f'import sys, time; open(sys.argv[1], "w").write({text!r}); time.sleep(1)'
  command = [sys.executable, '-c', script, str(tmp_path / 'metrics.jsonl')]
  report = lambda: runs_module.print_progress(run, 4, 360)  # noqa: E731 - one minute per step
  assert runs_module.call(command, str(tmp_path / 'output.txt'), report, 0.02) == 0
  lines = capsys.readouterr().out.splitlines()
  said = '  step 10: loss 4.2000, accuracy 0.2500, 9 images/s; about 1 h 30 min left of 100 steps'
  assert lines and set(lines) == {said}
  runs_module.print_progress(run, 10, 360)  # no step since it was continued: nothing to say
  assert capsys.readouterr().out == ''


def test_a_run_that_another_process_has_just_begun_is_not_to_be_removed(tmp_path):
  run = runs_module.Run(str(tmp_path / 'run'), None, {'mode': 'baseline', 'max_steps': 1})
  data = {'source': 'synthetic', 'train_images': 90}
  with locked(run.folder, 'taken', runs_module.LOCK):
    (tmp_path / 'run' / 'settings.json.7.tmp').touch()
    assert runs_module.read_result(run, data) is None
    with pytest.raises(UserError, match='is being run already'):
      runs_module.complete(run, 'nowhere', data)
    (tmp_path / 'run' / 'other').touch()
    with pytest.raises(UserError, match=r'was not made by tables\.sh'):
      runs_module.read_result(run, data)


def test_what_another_process_has_made_meanwhile_is_looked_at_again(tmp_path, monkeypatch):
  run = runs_module.Run(str(tmp_path / 'run'), None, {'mode': 'baseline', 'max_steps': 1})
  data = {'source': 'synthetic', 'train_images': 90}
  assert runs_module.read_result(run, data) is None
  settings = {'settings': {**run.settings, 'max_steps': 2}, 'data': data}
  write_json(str(tmp_path / 'run' / 'settings.json'), settings)  # by another process, with other flags
  with pytest.raises(UserError, match='max_steps 2, now it is 1'):
    runs_module.complete(run, 'nowhere', data)
  with open(tmp_path / 'run' / 'settings.json', encoding='utf-8') as f:
    assert json.load(f) == settings
