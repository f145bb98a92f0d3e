"""Tests that arrays are read, and all that would run or build more is refused."""

import os
import pickle

import archives
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
