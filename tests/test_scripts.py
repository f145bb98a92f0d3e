"""What the shell scripts call, and with which arguments."""

import glob
import json
import shutil
import subprocess

import pytest
from script_calls import run

import eval as evaluation
import train


def finish(project, *stages):
  """Makes it look as if stages had been run."""
  for stage in stages:
    for folder in (stage, f'{stage}/best'):
      (project / 'runs' / folder).mkdir(parents=True, exist_ok=True)
      (project / 'runs' / folder / 'checkpoint').touch()


def called(project, name, *arguments):
  """The one program that a script calls with the data and the stages before at hand, and its arguments."""
  finish(project, 'baseline', 'group', 'split')
  code, calls, stderr = run(project, name, *arguments, '--data_dir', 'data')
  assert (code, stderr, len(calls)) == (0, '', 1)
  program, given = calls[0]
  count = len(arguments) + 2
  mine = [str(a) for a in arguments if a != '--paper']
  assert [a for a in given[len(given) - count :] if a in mine] == mine, "the user's are the last, and win"
  return program, given


@pytest.mark.parametrize('more, kept', [
  ([], True), (['--batch_size', '50'], True), (['--devices', '/CPU:0'], True), (['--checkpoint', 'runs/group'], False),
  (['--split=val'], False), (['--precision', 'bfloat16'], False), (['--test_iter', '3'], False),
])  # fmt: skip
def test_eval_sh_evaluates_all_images_and_keeps_only_the_split_networks_result(project, more, kept):
  program, given = called(project, 'eval.sh', *more)
  assert program == 'eval.py' and ('--output_file' in given) == kept
  assert ('--test_iter' in given) == ('--test_iter' in more)


@pytest.mark.parametrize('name', ['run', 'run/ckpt-6', None])
def test_eval_sh_fetches_cifar_100_only_for_what_was_trained_on_it(project, name):
  folder = project / 'run'
  folder.mkdir()
  for dataset in ('cifar100', 'image_folder'):
    (folder / 'config.json').write_text(json.dumps({'settings': {'k': 1, 'dataset': dataset}}, indent=1))
    arguments = ['--checkpoint', folder.parent / name] if name else ['--checkpoint', folder, '--dataset', dataset]
    code, calls, stderr = run(project, 'eval.sh', *arguments)
    assert (code, stderr) == (0, '')
    called = ['eval.py'] if dataset == 'image_folder' else ['download_cifar100.py', 'eval.py']
    assert [program for program, _ in calls] == called
    assert ('--data_dir' in calls[-1][1]) == (dataset == 'cifar100'), "eval.py takes the run's own folder"


@pytest.mark.parametrize('arguments', [['--paper', '--k', 1], ['--k', 1, '--paper']])
def test_group_sh_takes_the_papers_settings_wherever_it_is_asked_to(project, arguments):
  program, given = called(project, 'group.sh', *arguments)
  flags = train.parse_flags(given)
  assert program == 'train.py' and (flags.mode, flags.k, flags.basemodel) == ('group', 1, None)
  assert (flags.gamma1, flags.gamma2, flags.gamma3, flags.max_steps, flags.batch_size) == (1, 1, 10, 200000, 90)
  assert (flags.lr_step_epoch, flags.dropout_keep_prob, flags.assignment_start) == ('240.0,300.0', 0.5, 'noise')


@pytest.mark.parametrize('script, before, flag, first', [
  ('group.sh', 'baseline', '--basemodel', './baseline.sh'), ('split.sh', 'group', '--basemodel', './group.sh'),
  ('eval.sh', 'split', '--checkpoint', './split.sh'),
])  # fmt: skip
def test_a_script_that_is_run_too_early_names_the_one_to_run_first(project, script, before, flag, first):
  code, calls, stderr = run(project, script)
  assert code == 1 and not calls and len(stderr.splitlines()) == 1
  assert stderr.startswith(f'{script}: there ') and first in stderr and flag in stderr
  for way_out in ([flag, 'mine'], [f'{flag}=mine'], ['--help'], *([['--paper']] if script == 'group.sh' else [])):
    assert run(project, script, '--data_dir', 'data', *way_out)[0] == 0, way_out
  finish(project, before)
  code, [(_, given)], _ = run(project, script, '--data_dir', 'data')
  assert code == 0 and given[given.index(flag) + 1].startswith(str(project / 'runs' / before))


def test_group_sh_starts_from_the_best_of_the_baseline(project):
  flags = train.parse_flags(called(project, 'group.sh')[1])
  assert flags.basemodel == str(project / 'runs' / 'baseline' / 'best')
  assert (flags.max_steps, flags.lr_step, flags.gamma2_ramp) == (20000, '0.75', 0.5)
  flags = train.parse_flags(called(project, 'group.sh', '--epochs', 4)[1])
  assert (flags.epochs, flags.max_steps, flags.lr_step, flags.gamma2_ramp) == (4, None, '0.75', 0.5)


@pytest.mark.parametrize('script, words', [('baseline.sh', 6), ('group.sh', 28), ('split.sh', 8), ('eval.sh', 6)])
def test_the_scripts_pass_only_what_differs_from_the_defaults(project, script, words):
  """Editing a default in train.py takes effect."""
  program, given = called(project, script)
  assert len(given) - 2 == words  # without --data_dir data
  parser = (train if program == 'train.py' else evaluation).make_parser()
  for name, value in zip(given[::2], given[1::2]):
    assert name.startswith('--') and str(parser.get_default(name[2:])) != value, name


@pytest.mark.parametrize('script, mode', [('baseline.sh', 'baseline'), ('group.sh', 'group'), ('split.sh', 'split')])
def test_each_stage_has_a_folder_of_its_own_in_runs(project, script, mode):
  given = called(project, script, *(['--paper'] if mode == 'group' else []))[1]
  flags = train.parse_flags(given)
  assert (flags.mode, flags.train_dir) == (mode, str(project / 'runs' / mode))
  assert (flags.batch_size, flags.k) == (90, None)  # k: the basemodel's, else 8


def test_the_readmes_way_to_train_a_split_network_from_scratch(project):
  given = called(project, 'split.sh', '--grouping', 'semantic', '--basemodel', '', '--train_dir', 'runs/semantic')[1]
  assert train.parse_flags(given).grouping == 'semantic'


@pytest.mark.parametrize('arguments, program, fetches', [
  (['counts'], 'paper.tables', False), (['1', '--k', '1', '--print'], 'paper.tables', False),
  (['1'], 'paper.tables', True),
  (['all', '--recipe', 'short'], 'paper.tables', True),
  (['all', '--recipe', 'short', '--print'], 'paper.tables', False),
  (['5', '--images', '400'], 'paper.table5', False), (['plan', '--recipe', 'short'], 'paper.estimate', False),
])  # fmt: skip
def test_tables_sh_calls_the_right_program_and_fetches_images_only_to_train(project, arguments, program, fetches):
  code, calls, stderr = run(project, 'tables.sh', *arguments)
  assert (code, stderr) == (0, '')
  assert [name for name, _ in calls] == (['download_cifar100.py'] if fetches else []) + [program]
  own = arguments if program == 'paper.tables' else arguments[1:]
  assert calls[-1][1][-len(own) :] == own


def test_worker_sh_hands_its_arguments_on(project):
  code, calls, _ = run(project, 'scripts/worker.sh', '--port', '2222')
  assert code == 0 and calls == [('splitnet.parallel.worker', ['--port', '2222'])]


def test_images_that_are_there_or_named_are_not_fetched(project):
  assert [name for name, _ in run(project, 'baseline.sh')[1]] == ['download_cifar100.py', 'train.py']
  for arguments in (['--data_dir', 'mine'], ['--data_dir=mine'], ['--help']):
    assert [name for name, _ in run(project, 'baseline.sh', *arguments)[1]] == ['train.py']
  names = project / 'cifar100' / 'train_val_split' / 'names.json'
  names.parent.mkdir(parents=True)
  names.touch()
  assert [name for name, _ in run(project, 'baseline.sh')[1]] == ['train.py']


@pytest.mark.parametrize('arguments', [['--fast'], ['--seed'], ['--seed', 'one'], ['--seed', '1', '--real']])
def test_demo_sh_refuses_what_it_does_not_take(project, arguments):
  code, calls, stderr = run(project, 'demo.sh', *arguments)
  assert code == 2 and not calls and len(stderr.splitlines()) == 1 and './demo.sh takes' in stderr


def test_demo_sh_tells_what_it_takes(project):
  done = subprocess.run([project / 'demo.sh', '--help'], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '') and '--real' in done.stdout and '--seed' in done.stdout
  assert max(map(len, done.stdout.splitlines())) <= 125


def test_without_a_python_that_will_do_there_is_one_sentence(project, tmp_path):
  shutil.rmtree(project / '.venv')
  found = tmp_path / 'found'
  found.mkdir()
  for name in ('python3', 'python3.13', 'python3.12', 'python3.11', 'python3.10'):
    (found / name).write_text('#!/bin/sh\nexit 1\n')  # to whatever it is asked: too old, too new, nothing installed
    (found / name).chmod(0o755)
  finish(project, 'split')
  code, calls, stderr = run(project, 'eval.sh', PATH=f'{found}:/usr/bin:/bin')
  assert code == 1 and not calls and len(stderr.splitlines()) == 1
  assert 'no Python 3.10 to 3.13' in stderr and 'PYTHON=' in stderr
  assert not (project / '.venv').exists()


def test_an_empty_environment_is_not_preferred_to_a_python_that_has_all(project, tmp_path):
  """As one is that was made where there is no network to install from."""
  python = project / '.venv' / 'bin' / 'python'
  found = tmp_path / 'found'
  found.mkdir()
  (found / 'python3').write_text(python.read_text())
  (found / 'python3').chmod(0o755)
  python.write_text('#!/bin/sh\nexit 1\n')
  for name in glob.glob('installed-*', root_dir=project / '.venv'):
    (project / '.venv' / name).unlink()
  finish(project, 'split')
  code, calls, stderr = run(project, 'eval.sh', '--data_dir', 'data', PATH=f'{found}:/usr/bin:/bin')
  assert (code, stderr, [name for name, _ in calls]) == (0, '', ['eval.py'])
