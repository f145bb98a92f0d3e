"""The files of checkpoints: which count, kills while one is written, leftovers, odd names, siblings, full disks."""

import os
import resource
import shutil
import threading

import pytest
import tensorflow as tf

import resnet_split
from splitnet.common.errors import UserError
from splitnet.training import checkpoint_files, checkpoints, resume
from splitnet.training.saver import Saver

CONFIGURATION = {'mode': 'baseline', 'network': {}, 'groups': None, 'data': {}, 'settings': {}}


def saver_of(folder, keep=2):
  """(a Saver of one variable in a folder, the variable)."""
  value = tf.Variable(0.0)
  state = dict(weights={'a/b': value}, step=tf.Variable(0, dtype=tf.int64), validated=tf.Variable(0))
  return Saver(str(folder), CONFIGURATION, keep, **state), value


def save(folder, *steps, keep=2):
  """Writes checkpoints of some steps, the value of each its step."""
  saver, value = saver_of(folder, keep)
  for step in steps:
    value.assign(step)
    saver.save(step)
  return saver


def restored(folder):
  """(the prefix that is restored, the value)."""
  saver, value = saver_of(folder)
  return saver.restore(), float(value)


def names(folder):
  return sorted(name for name in os.listdir(folder) if name not in ('config.json', 'best', 'lock'))


def files_of(*steps):
  return sorted(['checkpoint', *(f'ckpt-{s}.{end}' for s in steps for end in ('data-00000-of-00001', 'index'))])


# --- which there are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('state', [None, b'', b'\x00\xff garbage', b'model_checkpoint_path: "ckp', b'\n' * 9999])
def test_whole_checkpoints_are_found_whatever_the_state_file_says(tmp_path, state):
  save(tmp_path, 1, 2)
  (tmp_path / 'checkpoint').unlink()
  if state is not None:
    (tmp_path / 'checkpoint').write_bytes(state)
  assert restored(tmp_path) == (str(tmp_path / 'ckpt-2'), 2)
  save(tmp_path, 3)
  assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'ckpt-3')
  assert names(tmp_path) == files_of(2, 3)


def test_a_checkpoint_of_which_the_state_file_does_not_tell_yet_counts(tmp_path):
  save(tmp_path, 1)
  state = (tmp_path / 'checkpoint').read_text()
  save(tmp_path, 10)
  (tmp_path / 'checkpoint').write_text(state)  # killed just before it was written
  assert restored(tmp_path) == (str(tmp_path / 'ckpt-10'), 10)


@pytest.mark.parametrize('left', ['best', 'data'])
def test_a_run_whose_checkpoints_are_lost_is_refused(tmp_path, left):
  saver = save(tmp_path, 4)
  if left == 'best':
    saver.save_best(4)
  for name in files_of(4)[1:]:
    if left == 'best' or name.endswith('.index'):
      (tmp_path / name).unlink()
  with checkpoints.locked(str(tmp_path)), pytest.raises(UserError, match='has come to step 4') as error:
    resume.stored_run(str(tmp_path), 'baseline', resnet_split.read_older)
  assert str(tmp_path) in str(error.value) and checkpoint_files.lost_step(str(tmp_path)) == 4


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
  saver_of(tmp_path)[0].save_best(0)  # what a basemodel is worth is told before the first step
  assert checkpoint_files.lost_step(str(tmp_path)) == 0


# --- kills ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
  """Stands for the end of the process: nothing that changes a file runs after it."""


CALLS = [(os, name) for name in ('mkdir', 'rename', 'replace', 'remove', 'rmdir', 'fsync')] + [(shutil, 'rmtree')]


def kill_at(monkeypatch, number):
  """Makes the number-th call that changes a file, and all after it, fail."""
  count = [0]

  def dying(function):
    def call(*arguments, **keywords):
      count[0] += 1
      if count[0] > number:
        raise Killed
      return function(*arguments, **keywords)

    return call

  for module, name in CALLS:
    monkeypatch.setattr(module, name, dying(getattr(module, name)))


@pytest.mark.parametrize('again', [False, True])  # another step, or the last one again with other values
def test_a_kill_at_any_call_leaves_a_whole_checkpoint(tmp_path, monkeypatch, again):
  outcomes, number, step = [], 0, 2 if again else 3
  while not outcomes or outcomes[-1] != 'survived':
    folder = tmp_path / str(number)
    saver = save(folder, 1, 2)
    saver._state['weights']['a/b'].assign(7)
    with monkeypatch.context() as patch:
      kill_at(patch, number)
      try:
        saver.save(step)
        outcomes.append('survived')
      except Killed:
        outcomes.append('killed')
    with checkpoints.locked(str(folder)):
      path, value = restored(folder)
    assert (path, value) in [(str(folder / 'ckpt-2'), 2), (str(folder / f'ckpt-{step}'), 7)]
    outcomes[-1] = outcomes[-1] if outcomes[-1] == 'survived' else value
    left = {name.split('.')[0] for name in names(folder)}
    assert left <= {'checkpoint', 'ckpt-1', 'ckpt-2', 'ckpt-3'}  # nothing half done
    save(folder, 4, 5)
    assert names(folder) == files_of(4, 5)
    number += 1
  assert 2 in outcomes and 7 in outcomes and outcomes == sorted(outcomes, key=str)


def test_leftovers_are_removed_and_what_is_not_ours_stays(tmp_path):
  saver = save(tmp_path, 1, 2)
  saver.save_best(2)
  ours = ['checkpoint.tmp0a1b', 'checkpoint.123.tmp', 'config.json.9.tmp', 'ckpt-1_temp/part']
  ours.append('ckpt-0.data-00000-of-00001')
  theirs = ['ckpt-1_temporary/a', 'notes.1.tmp', 'checkpoint.tmpl', 'ckpt-x.index', 'other-3.data-00000-of-00001']
  for name in ours + theirs:
    for folder in (tmp_path, tmp_path / 'best'):
      (folder / name).parent.mkdir(exist_ok=True)
      (folder / name).write_text('left')
  with checkpoints.locked(str(tmp_path)):
    pass
  for folder in (tmp_path, tmp_path / 'best'):
    assert not any((folder / name).exists() for name in ours)
    assert not (folder / 'ckpt-1_temp').exists() and all((folder / name).exists() for name in theirs)
  assert restored(tmp_path) == (str(tmp_path / 'ckpt-2'), 2)


# --- names ---------------------------------------------------------------------------------------------------------


NAMES = ['run [lr=0.1]', 'a*', 'a?b', 'back\\slash', '[', '{a,b}', 'a b\n', '日本', 'http:', '~']


@pytest.mark.parametrize('name', NAMES)
def test_no_name_of_a_folder_is_a_pattern(tmp_path, name):
  sibling = tmp_path / 'ab'
  save(sibling, 1, 2)
  before = {path.name: path.read_bytes() for path in sibling.iterdir() if path.is_file()}
  folder = tmp_path / name / 'run'
  save(folder, 1, 2, 3, 4).save_best(3)
  assert names(folder) == files_of(3, 4) and restored(folder) == (str(folder / 'ckpt-4'), 4)
  assert {path.name: path.read_bytes() for path in sibling.iterdir() if path.is_file()} == before
  assert checkpoints.digest(str(folder)) != checkpoints.digest(str(folder / 'best'))


def test_rotation_leaves_a_sibling_that_the_name_would_match(tmp_path):
  save(tmp_path / 'ab', 1, 2)
  save(tmp_path / 'a*', 1, 2, 3, 4)
  assert names(tmp_path / 'ab') == files_of(1, 2) and names(tmp_path / 'a*') == files_of(3, 4)


# --- others, and the disk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('how', ['removed', 'replaced', 'emptied'])
def test_a_folder_that_is_gone_is_told_at_once_and_not_made_again(tmp_path, how):
  folder = tmp_path / 'run'
  saver = save(folder, 1)
  saver.check_folder()
  shutil.rmtree(folder)
  if how == 'replaced':
    save(folder, 5)
  if how == 'emptied':
    folder.mkdir()
  before = names(folder) if how != 'removed' else None
  for write in (saver.check_folder, lambda: saver.save(2), lambda: saver.save_best(2)):
    if how == 'emptied':  # the same folder or another: some file systems give its number again
      assert not (folder / 'config.json').exists()
    with pytest.raises(UserError, match='has been removed or replaced') as error:
      write()
    assert str(folder) in str(error.value)
  assert folder.exists() == (how != 'removed') and (before is None or names(folder) == before)


def test_best_that_was_removed_is_written_again(tmp_path):
  saver = save(tmp_path, 1)
  shutil.rmtree(tmp_path / 'best')
  saver.save_best(1)
  assert names(tmp_path / 'best') == files_of(1) and (tmp_path / 'best' / 'config.json').exists()


def test_a_checkpoint_that_the_disk_does_not_take_is_one_sentence(tmp_path):
  saver = save(tmp_path, 1)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
  try:
    with pytest.raises(UserError, match=r'cannot be written \(File too large') as error:
      saver.save(2)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert str(tmp_path / 'ckpt-1') in str(error.value) and '\n' not in str(error.value)
  assert names(tmp_path) == files_of(1) and restored(tmp_path)[1] == 1
  saver.save(3)
  assert restored(tmp_path)[0] == str(tmp_path / 'ckpt-3')


def test_what_a_kill_kept_the_last_save_from_removing_goes_when_the_run_goes_on(tmp_path):
  save(tmp_path, 1, 2, 3, keep=3)
  (tmp_path / 'checkpoint').unlink()
  assert saver_of(tmp_path, keep=2)[0].restore() == str(tmp_path / 'ckpt-3')
  assert names(tmp_path) == files_of(2, 3)


def test_a_reader_beside_a_run_that_saves_all_the_time_finds_a_checkpoint(tmp_path):
  saver = save(tmp_path, 0, keep=1)
  (tmp_path / 'lock').touch()
  stop, errors = threading.Event(), []

  def write():
    try:
      step = 0
      while not stop.is_set():
        step += 1
        saver.save(step)
    except BaseException as e:
      errors.append(e)

  writer = threading.Thread(target=write)
  writer.start()
  try:
    for _ in range(200):
      assert len(checkpoints.digest(str(tmp_path))) == 16
  finally:
    stop.set()
    writer.join()
  assert not errors


def test_a_reader_tries_again_where_a_run_may_be_training_only(tmp_path, monkeypatch):
  waits = []

  def sleep(seconds):
    waits.append(seconds)
    if len(waits) == 2:
      save(tmp_path, 5)

  monkeypatch.setattr(checkpoints.time, 'sleep', sleep)
  with pytest.raises(UserError, match='no checkpoint'):
    checkpoints.digest(str(tmp_path))
  assert not waits
  (tmp_path / 'lock').touch()
  assert checkpoints.digest(str(tmp_path)) and len(waits) == 2
