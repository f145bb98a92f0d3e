"""Tests that arrays are read, and all that would run or build more is refused."""

import os
import pickle
import subprocess
import sys

import archives
import helpers
import numpy as np
import pytest

from splitnet.data import safe_pickle


@pytest.mark.parametrize('protocol', [0, 1, 2, 4])
@pytest.mark.parametrize('dtype', ['u1', '<i2', '>i8', '>u4'])
def test_arrays_are_read(protocol, dtype):
  array = np.arange(24).reshape(4, 6).astype(dtype)
  for values in (array, np.asfortranarray(array)):
    loaded = safe_pickle.load(pickle.dumps({'a': values, 'n': 3, 'l': ['x', 1]}, protocol))
    np.testing.assert_array_equal(loaded['a'], array)
    assert loaded['n'] == 3 and loaded['l'] == ['x', 1]


def test_pickles_of_python_2_are_read():
  array = np.arange(12, dtype=np.uint8).reshape(3, 4)
  loaded = safe_pickle.load(b'\x80\x02' + archives.py2({'data': array, 'names': ['a', 'b']}) + b'.')
  assert loaded['names'] == [b'a', b'b']
  np.testing.assert_array_equal(loaded['data'], array)


class Call:
  """Pickles as a call of os.system that would make the file `mark`."""

  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return os.system, (f'touch {self.mark}',)


ALTERS = b'\x80\x02}(U\x01acnumpy.core.multiarray\n_reconstruct\n}U\x06doctorU\x04evilsbu.'
NEGATIVE = archives.py2(np.zeros(4, np.uint8)).replace(archives.py2((4,)), archives.py2((-1,)))
TOO_LARGE = archives.py2(np.zeros(4, np.uint8)).replace(archives.py2((4,)), archives.py2((1 << 30,)))


@pytest.mark.parametrize(
  'make',
  [
    lambda mark: pickle.dumps({'data': Call(mark)}, 2),
    lambda mark: pickle.dumps({'data': np.array([Call(mark)], object)}, 2),
    lambda mark: pickle.dumps({'data': np.array([1, 'a'], object)}, 2),
    lambda mark: pickle.dumps({'data': np.zeros(2, [('a', 'u1')])}, 2),
    lambda mark: pickle.dumps({'data': np.float64(1)}, 2),
    lambda mark: pickle.dumps({'data': {1, 2}}, 2),
    lambda mark: b'\x80\x02}U\x01ac__builtin__\neval\nU\x011\x85Rs.',
    lambda mark: ALTERS,
    lambda mark: b'\x80\x02}U\x01a' + NEGATIVE + b's.',
    lambda mark: b'\x80\x02}U\x01a' + TOO_LARGE + b's.',
    lambda mark: b'\x80\x02](K\x01e.',
    lambda mark: pickle.dumps({'data': 1}, 2)[:-3],
    lambda mark: b'',
  ],
)
def test_dangerous_and_damaged_pickles_are_refused(tmp_path, make):
  mark = tmp_path / 'mark'
  with pytest.raises(ValueError, match=r'^a pickle in it is refused: .'):
    safe_pickle.load(make(mark))
  assert not mark.exists()


def nested(opening, closing, depth):
  return opening * depth + closing * depth


LIST = b']q\x00' + b'](h\x00h\x00h\x00h\x00eq\x00' * 60  # each list holds the one before four times
HOSTILE = {
  'nested tuples as a key': b'\x80\x02}' + b')' + b'\x85' * 200_000 + b'K\x01s.',
  'nested tuples as a value': b'\x80\x02}U\x01a)' + b'\x85' * 200_000 + b's.',
  'nested lists as a value': b'\x80\x02}U\x01a' + nested(b'](', b'e', 200_000) + b's.',
  'a tuple as a key of several': b'\x80\x02}()K\x01u.',
  'a tuple as a key of a dict': b'\x80\x02()K\x01d.',
  'shared lists': b'\x80\x02}U\x01a' + LIST + b's.',
  'shared lists as a shape': b'\x80\x02}U\x01a'
  + archives.py2(np.zeros(4, np.uint8)).replace(archives.py2((4,)), b'(J\xff\xff\xff\xff' + LIST + b't')
  + b's.',
  'a frozen set of nested tuples': b'\x80\x04(' + b')' + b'\x85' * 200_000 + b'\x91.',
  'a byte array of an exabyte': b'\x80\x05\x96' + b'\xff' * 7 + b'\x0f.',
  'a text encoded over and over': b'\x80\x02}U\x01ac_codecs\nencode\nq\x00X\x00\x00\x10\x00'
  + b'a' * (1 << 20) + b'q\x01X\x01\x00\x00\x00aq\x02\x86Rs' + b'U\x01ah\x00h\x01h\x02\x86Rs' * 1000 + b'.',
}  # fmt: skip

LOADS = """
import resource, sys
from splitnet.data import safe_pickle
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for path in sys.argv[1:]:
  try:
    with open(path, 'rb') as f:
      safe_pickle.load(f.read())
  except ValueError as e:
    print(path, e, flush=True)
"""


@pytest.mark.slow
def test_hostile_nesting_is_refused_at_once(tmp_path):
  paths = [str(tmp_path / name) for name in HOSTILE]
  for path, content in zip(paths, HOSTILE.values()):
    with open(path, 'wb') as f:
      f.write(content)
  environment = dict(os.environ, PYTHONPATH=helpers.PROJECT)
  # In a process of its own: what such a pickle does to the stack of C ends the process.
  done = subprocess.run(
    [sys.executable, '-c', LOADS, *paths], capture_output=True, text=True, env=environment, timeout=60
  )
  assert done.returncode == 0, done.stdout
  for path, line in zip(paths, done.stdout.splitlines(), strict=True):
    assert line.startswith(f'{path} a pickle in it is refused: ') and len(line) < 400


def test_numbers_in_memory_reserve_none():
  assert safe_pickle.load(b'\x80\x02}r\xff\xff\xff\x7f.') == {}


def test_operations_without_end_are_refused(monkeypatch):
  monkeypatch.setattr(safe_pickle, 'MAX_STEPS', 1000)
  with pytest.raises(ValueError, match='more than 1,000 operations'):
    safe_pickle.load(b'\x80\x02}' + b'N0' * 3000 + b'.')
