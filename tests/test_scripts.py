"""What the shell scripts call, and with which arguments: a copy of each, with a .venv whose Python only prints them."""

import glob
import os
import shutil
import subprocess
import sys

import helpers
import pytest

import train
from splitnet.common import quiet


@pytest.fixture
def project(tmp_path):
  """A copy of the scripts with a Python that prints what it is called with, if that is a program of the project."""
  folder = tmp_path / 'a project'  # with a space, as users' folders have
  python = folder / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\nif [ "$1" = -m ] && [ "$2" != pip ]; then shift; set -- "program: $@"; fi\n'
    'case "$1" in "%s"/*.py | "program: "*) printf "%%s\\n" "$@" ;; esac\n' % folder)
  python.chmod(0o755)
  for name in os.listdir(helpers.PROJECT):
    if name == 'scripts':
      shutil.copytree(os.path.join(helpers.PROJECT, name), folder / name)
    elif name.endswith('.sh') or name.startswith('requirements'):
      shutil.copy(os.path.join(helpers.PROJECT, name), folder)
      if name.startswith('requirements'):
        shutil.copy(os.path.join(helpers.PROJECT, name), folder / '.venv' / ('installed-' + name))
  return folder


def run(project, name, *arguments, **environment):
  """Runs a script from another folder: (exit code, list of (program, its arguments), stderr)."""
  done = subprocess.run(
    [project / name, *map(str, arguments)], cwd='/', env={**os.environ, **environment}, capture_output=True, text=True
  )
  calls = []
  for line in done.stdout.splitlines():
    if line.startswith(str(project)) and line.endswith('.py'):
      calls.append((os.path.basename(line), []))
    elif line.startswith('program: '):
      calls.append((line.removeprefix('program: '), []))
    else:
      calls[-1][1].append(line)
  return done.returncode, calls, done.stderr


def called(project, name, *arguments):
  """The one program that a script calls with the data at hand, and its arguments."""
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


@pytest.mark.parametrize('arguments', [['--paper', '--k', 1], ['--k', 1, '--paper']])
def test_group_sh_takes_the_papers_settings_wherever_it_is_asked_to(project, arguments):
  program, given = called(project, 'group.sh', *arguments)
  flags = train.parse_flags(given)
  assert program == 'train.py' and (flags.mode, flags.k, flags.basemodel) == ('group', 1, None)
  assert (flags.gamma1, flags.gamma2, flags.gamma3, flags.max_steps) == (1, 1, 10, 200000)
  assert (flags.lr_step_epoch, flags.dropout_keep_prob, flags.assignment_start) == ('240.0,300.0', 0.5, 'noise')


def test_group_sh_needs_a_baseline_unless_it_is_the_papers(project):
  code, calls, stderr = run(project, 'group.sh', '--data_dir', 'data')
  assert code == 1 and not calls and len(stderr.splitlines()) == 1 and './baseline.sh' in stderr
  assert called(project, 'group.sh', '--basemodel', 'mine')[0] == 'train.py'
  best = project / 'runs' / 'baseline' / 'best'
  best.mkdir(parents=True)
  (best / 'checkpoint').touch()
  given = called(project, 'group.sh')[1]
  assert train.parse_flags(given).basemodel == str(best)


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
  (['5', '--images', '400'], 'paper.table5', False),
])  # fmt: skip
def test_tables_sh_calls_the_right_program_and_fetches_images_only_to_train(project, arguments, program, fetches):
  code, calls, stderr = run(project, 'tables.sh', *arguments)
  assert (code, stderr) == (0, '')
  assert [name for name, _ in calls] == (['download_cifar100.py'] if fetches else []) + [program]
  own = arguments[1:] if program == 'paper.table5' else arguments
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


def test_without_a_python_that_will_do_there_is_one_sentence(project, tmp_path):
  shutil.rmtree(project / '.venv')
  found = tmp_path / 'found'
  found.mkdir()
  for name in ('python3', 'python3.13', 'python3.12', 'python3.11', 'python3.10'):
    (found / name).write_text('#!/bin/sh\nexit 1\n')  # to whatever it is asked: too old, too new, nothing installed
    (found / name).chmod(0o755)
  code, calls, stderr = run(project, 'eval.sh', PATH='%s:/usr/bin:/bin' % found)
  assert code == 1 and not calls and len(stderr.splitlines()) == 1
  assert 'no Python 3.10 to 3.13 found' in stderr and 'PYTHON=' in stderr
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
  code, calls, stderr = run(project, 'eval.sh', '--data_dir', 'data', PATH='%s:/usr/bin:/bin' % found)
  assert (code, stderr, [name for name, _ in calls]) == (0, '', ['eval.py'])


def test_a_python_without_tensorflow_says_where_one_is():
  command = [sys.executable, '-S', '-E', '-m', 'splitnet.reporting.compare']  # no site-packages
  done = subprocess.run(command, cwd=helpers.PROJECT, capture_output=True, text=True)
  assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
  assert done.stderr.startswith('compare.py: ') and '. .venv/bin/activate' in done.stderr


@pytest.mark.parametrize('found, present, visible, told', [
  ([], [], None, False), ([], ['/dev/nvidia0'], None, True), ([], ['/dev/nvidia0'], '0', True),
  (['GPU:0'], ['/dev/nvidia0'], None, False), ([], ['/dev/nvidia0'], '', False), ([], ['/dev/nvidia0'], '-1', False),
])  # fmt: skip
def test_a_gpu_that_tensorflow_cannot_use_is_not_passed_over_in_silence(found, present, visible, told):
  note = quiet.unused_gpu(found, present, {} if visible is None else {'CUDA_VISIBLE_DEVICES': visible})
  assert bool(note) == told and ('tensorflow[and-cuda]' in note) == told
