"""Tests that files are written whole or not at all, and checked beforehand."""

import errno
import json
import os
import re
import stat
import subprocess
import sys
import tempfile

import helpers
import pytest

from splitnet.common import files
from splitnet.common.errors import UserError


def test_project_is_the_folder_of_the_programs():
  assert os.path.samefile(files.PROJECT, helpers.PROJECT)


def test_whole_file_makes_its_folder_and_leaves_nothing_beside_it(tmp_path):
  path = str(tmp_path / 'new' / 'file')
  with files.whole_file(path, 'wb') as f:
    f.write(b'\x00\xff')
    assert not os.path.exists(path)
  assert helpers.files(tmp_path / 'new') == {str(tmp_path / 'new'): None, path: b'\x00\xff'}


@pytest.mark.parametrize('failure', [OSError('disk full'), KeyboardInterrupt()])
@pytest.mark.parametrize('before', [None, 'before'])
def test_a_failure_leaves_what_was_there(tmp_path, failure, before):
  path = tmp_path / 'file'
  if before:
    files.write_text(str(path), before)
  with pytest.raises(type(failure)), files.whole_file(str(path)) as f:
    f.write('half of')
    raise failure
  folder = str(tmp_path)
  assert helpers.files(folder) == {folder: None} | ({str(path): before.encode()} if before else {})


def test_json_is_read_back(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  files.write_json('file.json', {'a': [1, 2.5, None, 'ä']})
  with open('file.json', encoding='utf-8') as f:
    text = f.read()
  assert json.loads(text) == {'a': [1, 2.5, None, 'ä']} and text.endswith('}\n')
  with pytest.raises(TypeError):
    files.write_json('file.json', {'a': object()})
  assert helpers.files('.') == {'.': None, './file.json': text.encode()}


def test_folders_are_made(tmp_path, monkeypatch):
  files.check_output_file('--output', str(tmp_path / 'a' / 'b' / 'file'))
  assert os.listdir(tmp_path / 'a' / 'b') == []
  monkeypatch.chdir(tmp_path)
  files.check_output_file('--output', 'file')
  assert os.listdir(tmp_path) == ['a']


def test_what_cannot_be_written_is_told_with_flag_and_path(tmp_path):
  (tmp_path / 'file').write_text('')
  below = str(tmp_path / 'file' / 'below')
  for check, path, reason in (
    (files.check_folder, below, 'cannot be made'),
    (files.check_output_file, below, 'cannot be made'),
    (files.check_output_file, str(tmp_path), 'is a folder'),
  ):
    with pytest.raises(UserError, match=reason) as error:
      check('--out', path)
    assert str(error.value).startswith('--out: ') and str(tmp_path) in str(error.value)
  with pytest.raises(UserError, match='cannot be written to'):
    files.check_folder('--out', '/proc/self')


# --- links, devices, pipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('exists', [True, False])
def test_a_link_is_followed_and_stays(tmp_path, exists):
  (tmp_path / 'elsewhere').mkdir()
  target, link = tmp_path / 'elsewhere' / 'target', tmp_path / 'link'
  if exists:
    target.write_text('before')
    target.chmod(0o640)
  link.symlink_to(os.path.join('elsewhere', 'target'))
  files.check_output_file('--output', str(link))
  files.write_text(str(link), 'after')
  assert link.is_symlink() and target.read_text() == 'after' and os.listdir(target.parent) == ['target']
  assert not exists or target.stat().st_mode & 0o777 == 0o640


def test_a_link_to_itself_is_refused(tmp_path):
  (tmp_path / 'link').symlink_to('link')
  with pytest.raises(UserError, match='cannot be written'):
    files.check_output_file('--output', str(tmp_path / 'link'))
  with pytest.raises(OSError):
    files.write_text(str(tmp_path / 'link'), 'x')
  assert (tmp_path / 'link').is_symlink()


def test_a_pipe_gets_the_content_and_a_device_stays_one(tmp_path):
  pipe = str(tmp_path / 'pipe')
  os.mkfifo(pipe)
  reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
  files.check_output_file('--output', pipe)
  files.write_json(pipe, {'a': 1})
  assert json.loads(os.read(reading, 1000)) == {'a': 1} and stat.S_ISFIFO(os.stat(pipe).st_mode)
  os.close(reading)
  (tmp_path / 'null').symlink_to('/dev/null')
  for path in ('/dev/null', str(tmp_path / 'null')):
    files.check_output_file('--output', path)
    with files.whole_file(path, 'wb') as f:
      f.write(b'x')
    assert stat.S_ISCHR(os.stat(path).st_mode)
  assert os.listdir(tmp_path) == ['pipe', 'null'] or os.listdir(tmp_path) == ['null', 'pipe']


def test_standard_output_is_added_to(tmp_path):
  """Not replaced, if it is a file."""
  program = "from splitnet.common import files\nprint(1, flush=True)\nfiles.write_text('/dev/stdout', '2')\nprint(3)"
  with open(tmp_path / 'out', 'ab') as out:
    done = subprocess.run([sys.executable, '-c', program], cwd=helpers.PROJECT, stdout=out)
  assert done.returncode == 0 and (tmp_path / 'out').read_text() == "1\n23\n"


# --- names, and full disks ----------------------------------------------------------------------------------------


def test_the_longest_name_is_written_and_a_longer_one_refused(tmp_path):
  path = str(tmp_path / ('ä' * 127))
  files.check_output_file('--output', path)
  files.write_text(path, 'x')
  assert os.listdir(tmp_path) == ['ä' * 127]
  for path in (str(tmp_path / ('x' * 256)), 'x' * 5000, str(tmp_path / 'a\0b')):
    with pytest.raises(UserError, match=r'--output: .* cannot be'):
      files.check_output_file('--output', path)


def test_a_name_and_a_text_that_are_not_utf8_are_written(tmp_path):
  path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b'\xff'))
  files.check_output_file('--output', path)
  files.write_text(path, path)
  with open(path, encoding='utf-8') as f:
    assert f.read().endswith('\\udcff')


@pytest.mark.parametrize('check', [files.check_folder, files.check_output_file])
def test_an_empty_name_is_refused(check):
  with pytest.raises(UserError, match='--out is empty'):
    check('--out', '')


def test_a_full_disk_is_told_before_and_after(tmp_path, monkeypatch):
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def fail(*_, **__):
    raise full

  monkeypatch.setattr(tempfile, 'TemporaryFile', fail)
  with pytest.raises(UserError, match=r'--output: .*No space left'):
    files.check_output_file('--output', str(tmp_path / 'file'))
  sentence = r"--output: 'x' cannot be written .No space left"
  with pytest.raises(UserError, match=sentence), files.telling_of_output('--output', 'x'):
    raise full


# --- keeping a folder -----------------------------------------------------------------------------------------------


def test_a_folder_is_kept_for_one_and_nothing_stays_of_it(tmp_path):
  folder = str(tmp_path / 'new' / 'er')
  with files.locked(folder, 'it is taken'):
    with pytest.raises(UserError, match='it is taken'), files.locked(folder, 'it is taken'):
      raise AssertionError('locked twice')
    assert os.listdir(folder) == ['lock']
  assert not os.listdir(tmp_path)
  with files.locked(folder, 'it is taken'):
    files.write_text(os.path.join(folder, 'kept'), '')
  assert os.listdir(folder) == ['kept']
  with files.locked(str(tmp_path), 'it is taken', 'other'):
    pass
  assert os.listdir(tmp_path) == ['new']


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
  """Whoever had it before may remove it between another's opening and locking it."""
  path, flock, removed = str(tmp_path / 'lock'), files.fcntl.flock, []

  def removing(*arguments):
    if not removed:
      removed.append(os.remove(path))
    return flock(*arguments)

  monkeypatch.setattr(files.fcntl, 'flock', removing)
  with files.locked(str(tmp_path), 'it is taken'):
    assert removed and os.path.exists(path)
    with pytest.raises(UserError, match='it is taken'), files.locked(str(tmp_path), 'it is taken'):
      raise AssertionError('locked twice')


def test_leftovers_of_whole_files_are_removed(tmp_path):
  for name in ('a.json.12.tmp', 'b.json.12.tmp', 'a.json', 'a.tmp', 'a.json.x.tmp'):
    (tmp_path / name).touch()
  files.remove_leftovers(str(tmp_path), {'a.json'})
  assert sorted(os.listdir(tmp_path)) == ['a.json', 'a.json.x.tmp', 'a.tmp', 'b.json.12.tmp']
  files.remove_leftovers(str(tmp_path))
  assert sorted(os.listdir(tmp_path)) == ['a.json', 'a.json.x.tmp', 'a.tmp']
  files.remove_leftovers(str(tmp_path / 'nowhere'))


@pytest.mark.parametrize('name', ['a[b]', 'a*', 'a?', 'a\\b'])
def test_a_plain_path_leads_to_the_folder_and_is_no_pattern(tmp_path, name):
  folder = tmp_path / name
  folder.mkdir()
  with files.plain_path(str(folder)) as plain:
    assert not re.search(r'[][*?\\]', plain) and os.path.samefile(plain, folder)
  assert not os.path.exists(plain)
