"""Going on with a run: exactly where it was stopped, whatever it was doing then, and not past where it had ended."""

import glob
import json
import os
import re
import shutil
import signal

import helpers
import numpy as np
import pytest
import tensorflow as tf

import train
import utils
from splitnet.training import checkpoints
from splitnet.training.saver import Saver
from splitnet.training.step import TrainStep

pytestmark = pytest.mark.slow


def read(*path):
  with open(os.path.join(*path), encoding='utf-8') as f:
    return f.read()


# --- going on ---------------------------------------------------------------------------------------------------


def test_a_killed_and_an_interrupted_run_end_as_an_uninterrupted_one(data, tmp_path):
  more = helpers.NETWORK + helpers.GROUPS + ['--checkpoint_interval', 10, '--seed', 5]
  more += ['--num_train_instance', 50, '--assignment_lr_scale', 3, '--display', 5, '--val_iter', 1]
  more += ['--initial_lr', 0.05]

  def start(name, steps=2000):  # far from the end: on a busy machine a signal comes many steps after its line
    arguments = helpers.flags('group', data, str(tmp_path / name), *more, '--max_steps', steps)
    return helpers.start('train.py', arguments)

  broken = start('broken')
  helpers.read_until(broken, 'step 15:')
  broken.kill()
  broken.communicate()
  killed_at = helpers.read_checkpoint(str(tmp_path / 'broken')).path
  assert broken.returncode == -signal.SIGKILL and not killed_at.endswith('-0')

  broken = start('broken')
  lines = helpers.read_until(broken, 'going on from step ')
  assert killed_at in lines[-1]
  helpers.read_until(broken, f"step {int(killed_at.split('-')[-1]) + 10}:")
  broken.send_signal(signal.SIGINT)
  stdout, stderr = broken.communicate()
  assert (broken.returncode, stderr) == (130, '') and 'the same command goes on from' in stdout
  stopped_at = int(stdout.split('stopped at step ')[1].split(';')[0])
  assert helpers.read_checkpoint(str(tmp_path / 'broken')).path.endswith(f'-{stopped_at}')

  last = stopped_at + 20
  broken, whole = start('broken', last), start('whole', last)
  for process, begins in ((broken, f'going on from step {stopped_at} '), (whole, 'step 5:')):
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, '')
    assert re.search('^' + begins, stdout, re.M) and f'done at step {last}' in stdout
  helpers.assert_same(*(helpers.weights(str(tmp_path / name)) for name in ('whole', 'broken')))


def test_a_split_run_goes_on_to_more_steps_as_if_it_had_not_stopped(runs, data, tmp_path, capsys):
  arguments = helpers.flags('split', data, str(tmp_path), '--basemodel', runs['group'])
  for steps, basemodel in ((2, True), (6, False)):  # a run that was begun needs its basemodel no more
    given = arguments if basemodel else arguments[:-2]
    assert helpers.call(train, [*given, '--max_steps', steps], capsys)[0] == 0
  helpers.assert_same(helpers.weights(str(tmp_path)), helpers.weights(runs['split']))
  assert f"going on from step 2 ('{tmp_path / 'ckpt-2'}')" in read(tmp_path, 'train.log')
  assert json.loads(read(tmp_path, 'config.json'))['settings']['basemodel'] == runs['group']
  before = helpers.weights(str(tmp_path))
  assert helpers.call(train, [*arguments, '--max_steps', 6], capsys)[0] == 0  # nothing left to do
  helpers.assert_same(helpers.weights(str(tmp_path)), before)


def test_another_seed_gives_another_run(runs, data, tmp_path):
  more = ['--basemodel', runs['group'], '--max_steps', 6, '--seed', 1]
  assert train.main(helpers.flags('split', data, str(tmp_path), *more)) == 0
  one, other = helpers.weights(str(tmp_path)), helpers.weights(runs['split'])
  name = next(n for n in one if n.startswith('weights/init_conv') and not n.startswith('weights/init_conv/Mom'))
  assert not np.array_equal(one[name], other[name])


def copy_run(source, target):
  shutil.copytree(source, target)
  state = os.path.join(target, 'checkpoint')
  content = read(state)
  assert source not in content, 'checkpoints are named relative to their folder'
  return str(target)


@pytest.mark.parametrize('part', ['data-00000-of-00001', 'index'])
def test_a_damaged_last_checkpoint_is_told_and_left_as_it_is(runs, data, tmp_path, capsys, part):
  folder = copy_run(runs['split'], str(tmp_path / 'run'))
  path = os.path.join(folder, 'ckpt-6.' + part)
  with open(path, 'rb') as f:
    content = f.read()
  with open(path, 'wb') as f:
    f.write(content[: len(content) // 2])
  arguments = helpers.flags('split', data, folder, '--basemodel', runs['group'], '--max_steps', 8)
  code, _, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and stderr.count('\n') == 1 and os.path.join(folder, 'ckpt-6') in stderr, stderr
  with open(path, 'rb') as f:
    assert f.read() == content[: len(content) // 2]
  for path in glob.glob(os.path.join(folder, 'ckpt-6.*')):  # as the sentence says
    os.remove(path)
  code, stdout, _ = helpers.call(train, [*arguments[:-1], 6], capsys)
  assert code == 0 and f"going on from step 0 ('{os.path.join(folder, 'ckpt-0')}')" in stdout
  helpers.assert_same(helpers.weights(folder), helpers.weights(runs['split']))


def test_a_cosine_cannot_be_gone_on_with_to_another_end(runs, data, tmp_path, capsys):
  arguments = helpers.flags('split', data, str(tmp_path), '--basemodel', runs['group'], '--lr_schedule', 'cosine')
  assert helpers.call(train, [*arguments, '--max_steps', 2], capsys)[0] == 0
  code, _, err = helpers.call(train, [*arguments, '--max_steps', 6], capsys)
  assert code == 1 and '--max_steps 2, now it is 6' in err and err.count('\n') == 1


# --- signals, and a folder that goes ---------------------------------------------------------------------------------


def do_at(monkeypatch, step, what):
  """Does something once, when a step has been taken."""
  take_steps, done = TrainStep.train, []

  def train_steps(self, *arguments):
    terms = take_steps(self, *arguments)
    if self.step == step and not done:
      done.append(what())
    return terms

  monkeypatch.setattr(TrainStep, 'train', train_steps)


def test_sigterm_saves_as_an_interrupt_does(runs, data, tmp_path, monkeypatch, capsys):
  do_at(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
  arguments = helpers.flags('split', data, str(tmp_path), '--basemodel', runs['group'], '--max_steps', 6)
  arguments += ['--display', '1']
  code, stdout, stderr = helpers.call(train, arguments, capsys)
  assert (code, stderr) == (143, '') and 'stopped at step 3; the same command goes on' in stdout
  assert checkpoints.find(str(tmp_path)).endswith('-3')
  assert helpers.call(train, arguments, capsys)[0] == 0
  helpers.assert_same(helpers.weights(str(tmp_path)), helpers.weights(runs['split']))


@pytest.mark.parametrize('interrupted', [False, True])
def test_a_folder_that_is_removed_ends_its_run(runs, data, tmp_path, monkeypatch, capsys, interrupted):
  folder = str(tmp_path / 'run')

  def remove():
    shutil.rmtree(folder)
    if interrupted:
      raise KeyboardInterrupt

  do_at(monkeypatch, 2, remove)
  arguments = helpers.flags('split', data, folder, '--basemodel', runs['group'], '--max_steps', 6, '--display', 1)
  code, stdout, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and stderr.count('\n') == 1 and 'has been removed or replaced' in stderr and folder in stderr
  assert not os.path.exists(folder) and 'step 4' not in stdout


def test_nothing_is_looked_at_before_the_folder_is_kept(runs, data, tmp_path, capsys):
  folder = copy_run(runs['split'], str(tmp_path / 'run'))
  os.remove(os.path.join(folder, 'config.json'))  # another sentence, if it were looked for
  with checkpoints.locked(folder):
    before = helpers.files(folder)
    code, _, stderr = helpers.call(train, helpers.flags('baseline', data, folder), capsys)
    assert code == 1 and 'another process trains in' in stderr and helpers.files(folder) == before


def checkpoints_of(folder):
  return {path: content for path, content in helpers.files(folder).items() if not path.endswith('config.json')}


@pytest.mark.parametrize('state', [None, b'', b'garbage'])
def test_a_run_goes_on_without_its_state_file(runs, data, tmp_path, capsys, state):
  folder = copy_run(runs['split'], str(tmp_path / 'run'))
  path = os.path.join(folder, 'checkpoint')
  os.remove(path)
  if state is not None:
    with open(path, 'wb') as f:
      f.write(state)
  best = checkpoints_of(os.path.join(folder, 'best'))
  arguments = helpers.flags('split', data, folder, '--basemodel', runs['group'], '--max_steps', 6)
  code, stdout, stderr = helpers.call(train, arguments, capsys)
  assert (code, stderr) == (0, '') and 'going on from step 6' in stdout
  assert checkpoints_of(os.path.join(folder, 'best')) == best
  shutil.rmtree(folder + '/best')
  for name in glob.glob(folder + '/*.index'):
    os.remove(name)
  before = helpers.files(folder)
  code, _, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and 'has come to step 6' in stderr and helpers.files(folder) == before


FILES = ['train.log', 'metrics.jsonl', 'checkpoint', 'config.json', 'best', 'lock', 'summaries']


@pytest.mark.parametrize('name', FILES)
def test_a_folder_where_a_file_belongs_is_one_sentence(runs, data, tmp_path, capsys, name):
  (tmp_path / name / 'a').mkdir(parents=True)
  if name in ('best', 'summaries'):
    shutil.rmtree(tmp_path / name)
    (tmp_path / name).write_text('')
  arguments = helpers.flags('split', data, str(tmp_path), '--basemodel', runs['group'], '--max_steps', 1)
  code, _, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and stderr.count('\n') == 1 and name in stderr, stderr


@pytest.mark.parametrize('name', ['n' * 300, 'not utf-8 \udcff'])
def test_a_folder_that_cannot_be_named_so_is_one_sentence(runs, data, tmp_path, capsys, name):
  arguments = helpers.flags('split', data, str(tmp_path / name), '--basemodel', runs['group'], '--max_steps', 1)
  code, _, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and stderr.count('\n') == 1, stderr


# --- an interrupt in a validation ---------------------------------------------------------------------------------


@pytest.mark.parametrize('at', [4, 6])
def test_an_interrupt_in_a_validation_loses_nothing(runs, data, tmp_path, monkeypatch, capsys, at):
  """Step 6 is the last one: best would stay an earlier one, with nothing left to do."""
  more = ['--basemodel', runs['group'], '--max_steps', 6, '--val_interval', 2, '--checkpoint_interval', 6]
  validated = []

  def validate(self, *arguments):
    step = int(self.step)
    validated.append(step)
    if step == at and validated.count(at) == 1:
      raise KeyboardInterrupt
    return step / 10, 1.0  # each is the best so far

  monkeypatch.setattr(TrainStep, 'validate', validate)
  arguments = helpers.flags('split', data, str(tmp_path), *more)
  assert helpers.call(train, arguments, capsys)[0] == 130
  assert checkpoints.find(str(tmp_path)).endswith(f'-{at}')
  assert checkpoints.find(str(tmp_path / 'best')).endswith(f'-{at - 2}')
  code, stdout, _ = helpers.call(train, arguments, capsys)
  assert code == 0 and 'best validation accuracy 60.00 %' in stdout
  assert checkpoints.find(str(tmp_path / 'best')).endswith('-6')
  assert validated == sorted([0, 2, 4, 6, at])
  assert helpers.call(train, arguments, capsys)[0] == 0
  assert validated == sorted([0, 2, 4, 6, at])  # what has been validated is not validated again


def test_best_is_written_before_it_counts_as_the_best(runs, data, tmp_path, monkeypatch, capsys):
  """An interrupt between the two would leave the better weights nowhere."""
  save_best, broken = Saver.save_best, []

  def interrupted(self, step):
    if step == 4 and not broken:
      broken.append(step)
      raise KeyboardInterrupt
    return save_best(self, step)

  monkeypatch.setattr(Saver, 'save_best', interrupted)
  monkeypatch.setattr(TrainStep, 'validate', lambda self, *arguments: (0.9 if self.step == 4 else 0.1, 1.0))
  more = ['--basemodel', runs['group'], '--max_steps', 6, '--val_interval', 2]
  arguments = helpers.flags('split', data, str(tmp_path), *more)
  assert helpers.call(train, arguments, capsys)[0] == 130
  code, stdout, _ = helpers.call(train, arguments, capsys)
  assert code == 0 and 'best validation accuracy 90.00 %' in stdout
  assert checkpoints.find(str(tmp_path / 'best')).endswith('-4')


def test_a_run_of_before_the_last_validation_was_kept_is_gone_on_with(runs, data, tmp_path, capsys):
  folder = copy_run(runs['split'], str(tmp_path / 'run'))
  path = checkpoints.find(folder)
  reader = tf.train.load_checkpoint(path)

  def keys():
    return tf.train.load_checkpoint(path).get_variable_to_shape_map().keys()

  assert 'validated/.ATTRIBUTES/VARIABLE_VALUE' in keys()
  values = {key: reader.get_tensor(key) for key in keys() if '/.ATTRIBUTES/' in key}
  del values['validated/.ATTRIBUTES/VARIABLE_VALUE']
  state = {'weights': {}, 'momentum': {}}
  for key, value in values.items():
    first, *rest = key.removesuffix('/.ATTRIBUTES/VARIABLE_VALUE').split('/')
    if rest:
      state[first]['/'.join(rest).replace('.S', '/')] = tf.Variable(value)
    elif first != 'save_counter':
      state[first] = tf.Variable(value)
  before = helpers.weights(folder)
  tf.train.CheckpointManager(tf.train.Checkpoint(**state), folder, 5).save(6)
  assert 'validated/.ATTRIBUTES/VARIABLE_VALUE' not in keys()
  helpers.assert_same(helpers.weights(folder), before)
  arguments = helpers.flags('split', data, folder, '--basemodel', runs['group'], '--max_steps', 8)
  code, stdout, stderr = helpers.call(train, arguments, capsys)
  assert (code, stderr) == (0, '') and 'going on from step 6' in stdout and 'done at step 8' in stdout
  whole = helpers.flags('split', data, str(tmp_path / 'whole'), '--basemodel', runs['group'], '--max_steps', 8)
  assert helpers.call(train, whole, capsys)[0] == 0
  helpers.assert_same(helpers.weights(folder), helpers.weights(str(tmp_path / 'whole')))


# --- stopping early ---------------------------------------------------------------------------------------------


def test_a_grouping_run_stops_when_its_assignments_have_converged(runs, data, tmp_path, capsys):
  more = helpers.GROUPS + ['--basemodel', runs['baseline'], '--max_steps', 300, '--stop_when_converged', 0.6]
  more += ['--assignment_lr_scale', 1000, '--gamma1', 3, '--initial_lr', 0.05]
  code, stdout, _ = helpers.call(train, helpers.flags('group', data, str(tmp_path), *more), capsys)
  assert code == 0
  last = int(helpers.read_checkpoint(str(tmp_path)).path.split('-')[-1])
  assert 0 < last < 300 and last % 5 == 0
  assert f'done at step {last} (every assignment is at least 0.' in stdout
  alphas = {n: v for n, v in helpers.read_checkpoint(str(tmp_path)).values.items() if n.startswith('group/')}
  assert all(utils.confidence(tf.nn.softmax(a, 0)) >= 0.6 for a in alphas.values())
  assert f'step {last}: validation accuracy' in stdout


def test_a_run_stops_when_its_patience_is_spent(runs, data, tmp_path, capsys):
  more = ['--basemodel', runs['group'], '--max_steps', 50, '--val_interval', 2, '--patience', 3]
  more += ['--initial_lr', 0, '--num_val_instance', 30, '--val_iter', 1, '--batch_size', 30]
  code, stdout, _ = helpers.call(train, helpers.flags('split', data, str(tmp_path), *more), capsys)
  assert code == 0
  # With a learning rate of 0 only the moving averages change, so a better accuracy may come by once or twice.
  steps, accuracies, _ = zip(*helpers.validations(stdout))
  last_better = max(i for i in range(len(steps)) if accuracies[i] > max([-1.0, *accuracies[:i]]))
  assert len(steps) == last_better + 4 and steps[-1] < 50
  assert f'done at step {steps[-1]} (no better validation accuracy in 3 validations)' in stdout
  assert helpers.read_checkpoint(str(tmp_path)).path.endswith(f'-{steps[-1]}')


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_checkpoint(runs, data, tmp_path, capsys):
  more = helpers.GROUPS + ['--basemodel', runs['baseline'], '--max_steps', 40, '--initial_lr', 1e10]
  arguments = helpers.flags('group', data, str(tmp_path), *more, '--checkpoint_interval', 20, '--val_interval', 1)
  code, _, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and stderr.count('\n') == 1, stderr
  assert 'not finite' in stderr and str(tmp_path / 'ckpt-0') in stderr and '--initial_lr' in stderr
  for path in (str(tmp_path), str(tmp_path / 'best')):
    stored = helpers.read_checkpoint(path)
    assert all(np.isfinite(v).all() for v in stored.values.values())
    checkpoints.load_network(stored)
  assert helpers.read_checkpoint(str(tmp_path)).path == str(tmp_path / 'ckpt-0')


@pytest.mark.parametrize('more, why', [
  (['--stop_when_converged', 0.01, '--display', 2], r'every assignment is at least 0\.\d+ confident'),
  (['--patience', 1, '--val_interval', 2], 'no better validation accuracy in 1 validations'),
])  # fmt: skip
def test_a_run_that_has_stopped_early_stays_stopped(data, tmp_path, monkeypatch, capsys, more, why):
  accuracies = iter([0.2] + [0.1] * 9)
  monkeypatch.setattr(TrainStep, 'validate', lambda self, *arguments: (next(accuracies), 1.0))
  given = [*helpers.NETWORK, *helpers.GROUPS, '--max_steps', 8, *more]
  arguments = helpers.flags('group', data, str(tmp_path), *given)
  code, stdout, _ = helpers.call(train, arguments, capsys)
  stopped = int(re.search(rf'done at step (\d+) \({why}\)', stdout).group(1))
  assert code == 0 and stopped < 8
  code, stdout, _ = helpers.call(train, arguments, capsys)
  assert code == 0 and re.search(rf'done at step {stopped} \({why}\)', stdout)
  assert ': validation accuracy' not in stdout
  assert checkpoints.find(str(tmp_path)).endswith(f'-{stopped}')


# --- what it started from, and others in the same folder ------------------------------------------------------------


def test_a_basemodel_that_was_made_anew_is_told(runs, data, tmp_path, capsys):
  base = copy_run(runs['group'], str(tmp_path / 'base'))
  arguments = helpers.flags('split', data, str(tmp_path / 'run'), '--basemodel', base)
  assert helpers.call(train, [*arguments, '--max_steps', 1], capsys)[0] == 0
  code, stdout, _ = helpers.call(train, [*arguments, '--max_steps', 2], capsys)
  assert code == 0 and 'has changed' not in stdout
  shutil.rmtree(base)
  given = [*helpers.NETWORK, *helpers.GROUPS, '--max_steps', 1, '--seed', 3]
  assert helpers.call(train, helpers.flags('group', data, base, *given), capsys)[0] == 0
  code, stdout, _ = helpers.call(train, [*arguments, '--max_steps', 3], capsys)
  assert code == 0 and f"'{base}' has changed since this run started from it" in stdout


def test_two_runs_do_not_write_in_the_same_folder(data, tmp_path, capsys):
  folder = str(tmp_path / 'run')
  arguments = helpers.flags('baseline', data, folder, *helpers.NETWORK, '--max_steps', 100000)
  first = helpers.start('train.py', arguments)
  try:
    helpers.read_until(first, 'step 5:')
    before = checkpoints.find(folder)
    code, stdout, stderr = helpers.call(train, arguments, capsys)
    assert code == 1 and len(stderr.splitlines()) == 1
    assert f"another process trains in '{folder}'" in stderr
    assert checkpoints.find(folder) == before
  finally:
    first.kill()
    first.communicate()
  arguments[arguments.index('--max_steps') + 1] = '1'  # a killed run leaves nothing that stands in the way
  assert helpers.call(train, arguments, capsys)[0] == 0


def test_without_images_to_validate_on_best_is_the_last_validation(runs, data, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(TrainStep, 'validate', lambda self, *arguments: (0.5 - int(self.step) / 10, 1.0))
  more = ['--basemodel', runs['group'], '--max_steps', 2, '--val_interval', 1]
  for split, step in (('train', 0), ('train_val', 2)):
    folder = str(tmp_path / split)
    given = helpers.flags('split', data, folder, *more, '--train_split', split)
    code, stdout, _ = helpers.call(train, given, capsys)
    assert code == 0 and ('the validation images are trained on' in stdout) == (split == 'train_val')
    assert checkpoints.find(os.path.join(folder, 'best')).endswith(f'-{step}')
