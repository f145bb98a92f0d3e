"""Tests that files are written whole or not at all, and checked beforehand."""

import json
import os

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
  with open('file.json') as f:
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


def test_what_cannot_be_written_is_told_with_flag_and_path(tmp_path, monkeypatch):
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
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  with pytest.raises(UserError, match='cannot be written to'):
    files.check_folder('--out', str(tmp_path))
