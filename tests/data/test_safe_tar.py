"""Tests that whole archives are read, damaged and dangerous ones refused."""

import io
import os
import tarfile
import time

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


@pytest.mark.parametrize('name', ['gz', 'bz2', 'xz'])
def test_checksums_at_the_end_are_compared(tmp_path, name):
  whole = archives.pack(tmp_path / 'a.tar', {**FILES, 'folder/c': FILES['folder/a'] * 4}, f'w:{name}')
  with open(whole, 'rb') as f:
    content = bytearray(f.read())
  content[-7 if name == 'gz' else -20] ^= 1  # of the CRC, or of a checksum of the index
  damaged = tmp_path / 'damaged.tar'
  damaged.write_bytes(content)
  assert 'damaged' in refusal(str(damaged))
  damaged.write_bytes(content[:-4])
  assert 'damaged' in refusal(str(damaged))


def header(name, kind=tarfile.REGTYPE, size=0, layout=tarfile.GNU_FORMAT):
  """Returns the block of a header that says what it likes."""
  info = tarfile.TarInfo(name)
  info.type, info.size = kind, size
  return info.tobuf(layout)


def record(text):
  """Returns a record of POSIX's extended headers."""
  length = next(n for n in range(1, 1000) if len(f'{n} {text}\n') == n)
  return f'{length} {text}\n'.encode()


def extended(content, kind=tarfile.XHDTYPE):
  return header('more', kind, len(content)) + content.ljust(-(-len(content) // 512) * 512, b'\0')


HOSTILE = {
  'a junk file of a terabyte': [header('folder/junk', size=1 << 40)],
  'a name of a terabyte': [header('folder/junk', tarfile.GNUTYPE_LONGNAME, 1 << 40)],
  'an extended header of a terabyte': [header('folder/junk', tarfile.XHDTYPE, 1 << 40)],
  'a negative size': [header('folder/a', size=-512)],
  'a terabyte as an extended header says': [extended(record(f'size={1 << 40}')), header('folder/a')],
  '3,000 nested headers': [extended(record('path=x'))] * 3000,
  '3,000 nested names': [extended(b'x' * 600, tarfile.GNUTYPE_LONGNAME)] * 3000,
  'many small records': [extended(b'4 =\n' * 5000)],
  'a record of no length': [extended(b'-4 a=b\n')],
  'a sparse file': [header('folder/a', tarfile.GNUTYPE_SPARSE)],
  'a sparse file of POSIX': [extended(record('GNU.sparse.major=1') + record('GNU.sparse.minor=0')), header('folder/a')],
  'too many members': [header('folder/c')] * 10_001,
}


@pytest.mark.parametrize('blocks', HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize('compressed', [False, True])
def test_archives_beyond_the_limits_are_refused_at_once(tmp_path, blocks, compressed):
  path, started = tmp_path / 'a.tar', time.monotonic()
  content = b''.join(blocks) + bytes(1024)
  path.write_bytes(archives.compress(content) if compressed else content)
  refusal(str(path))
  assert time.monotonic() - started < 5


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(safe_tar, 'MAX_BYTES', 1 << 20)
  path = archives.pack(tmp_path / 'a.tar', {**FILES, 'folder/zeros': bytes(2 << 20)}, 'w:gz')
  assert 'more than 1,048,576 bytes' in refusal(path)


@pytest.mark.parametrize('layout', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_layout_of_names_is_read(tmp_path, layout):
  folder = '/'.join(['f' * 80] * 2)
  path = tmp_path / 'a.tar'
  with tarfile.open(path, 'w', format=layout) as tar:
    for name, content in FILES.items():
      info = tarfile.TarInfo(name.replace('folder', folder))
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  assert safe_tar.read_members(str(path), folder, ('a', 'b'), '') == {n[-1]: content for n, content in FILES.items()}


def test_a_pipe_and_a_folder_are_refused(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', tmp_path):
    assert 'no regular file' in refusal(str(path))


def test_other_files_are_refused(tmp_path):
  assert 'no file' in refusal(str(tmp_path / 'none.tar'))
  text = tmp_path / 'text.tar'
  text.write_bytes(b'hello ' * 1000)
  assert 'no tar archive' in refusal(str(text))
  assert 'lacks folder/a and folder/b' in refusal(archives.pack(tmp_path / 'other.tar', {'other/a': b'x'}))
