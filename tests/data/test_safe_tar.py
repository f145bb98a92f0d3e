"""Tests that whole archives are read, damaged and dangerous ones refused."""

import os
import tarfile

import archives
import numpy as np
import pytest

from splitnet.common.errors import UserError
from splitnet.data import safe_tar

FILES = {'folder/a': np.random.RandomState(0).bytes(5000), 'folder/b': b'b' * 300}


def read(path):
  return safe_tar.read_members(path, 'folder', ('a', 'b'), 'give another')


def refusal(path):
  """Returns the sentence with which an archive is refused, which names it and the way out."""
  with pytest.raises(UserError) as error:
    read(path)
  assert path in str(error.value) and str(error.value).endswith('give another') and '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:bz2', 'w:xz'])
def test_members_are_read_and_nothing_else(tmp_path, mode):
  members = {'./folder/b': FILES['folder/b'], 'folder/c': b'c', 'other/a': b'x', 'folder/a': FILES['folder/a']}
  path = archives.pack(tmp_path / 'a.tar', members, mode)
  assert read(path) == {'a': FILES['folder/a'], 'b': FILES['folder/b']}
  assert os.listdir(tmp_path) == ['a.tar']


def link(name, kind, target):
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, target
  return {name: info}


@pytest.mark.parametrize(
  'extra',
  [
    {'../outside': b'x'},
    {'/absolute': b'x'},
    {'folder/../../outside': b'x'},
    {'..\\outside': b'x'},
    {'C:\\outside': b'x'},
    link('folder/soft', tarfile.SYMTYPE, '/etc/passwd'),
    link('folder/hard', tarfile.LNKTYPE, 'folder/a'),
    link('folder/device', tarfile.CHRTYPE, ''),
  ],
)
def test_dangerous_members_are_refused(tmp_path, extra):
  said = refusal(archives.pack(tmp_path / 'a.tar', {**FILES, **extra}))
  assert 'is refused because its member ' + repr(next(iter(extra))) in said


def test_huge_members_are_refused(tmp_path, monkeypatch):
  path = archives.pack(tmp_path / 'a.tar', FILES)
  monkeypatch.setattr(safe_tar, 'MAX_MEMBER_BYTES', 4999)
  assert "'folder/a' has 5000 bytes" in refusal(path)


@pytest.mark.parametrize('name', ['tar', 'tar.gz', 'tar.xz'])
@pytest.mark.parametrize('share', [0, 0.3, 0.8])
def test_truncated_archives_are_refused(tmp_path, name, share):
  path = archives.pack(tmp_path / f'a.{name}', FILES, 'w:' + name[4:])
  os.truncate(path, int(share * os.path.getsize(path)) if name != 'tar' else int(share * 5000))
  assert 'cut short' in refusal(path)


def test_other_files_are_refused(tmp_path):
  assert 'no file' in refusal(str(tmp_path / 'none.tar'))
  text = tmp_path / 'text.tar'
  text.write_bytes(b'hello ' * 1000)
  assert 'no tar archive' in refusal(str(text))
  assert 'lacks folder/a and folder/b' in refusal(archives.pack(tmp_path / 'other.tar', {'other/a': b'x'}))
