"""Reads pickles of arrays, lists, strings and numbers; runs nothing they name."""

import io
import pickle
import re

import numpy as np
import six


def load(data):
  """Reads a pickle of Python 2, or of 3 up to protocol 4: a dict with str keys.

  Its values are integer arrays, lists, numbers and strings, which stay bytes if they are of Python 2.

  Raises:
    ValueError: the bytes are no such pickle, or ask for anything else.
  """
  try:
    loaded = _PlainUnpickler(io.BytesIO(data), encoding='bytes').load()
    if not isinstance(loaded, dict):
      raise pickle.UnpicklingError('it holds no dict')
    return {six.ensure_str(key): value.numpy() if isinstance(value, _Array) else value for key, value in loaded.items()}
  except Exception as e:  # a hostile or damaged pickle raises whatever its opcodes lead to
    raise ValueError(f'a pickle in it is refused: {" ".join(str(e).split()) or type(e).__name__}') from None


class _Function:
  """Replaces a function; unlike a real one, it cannot be altered by BUILD."""

  __slots__ = ('_make',)

  def __init__(self, make):
    self._make = make

  def __call__(self, *args):
    return self._make(*args)

  def __setstate__(self, state):
    raise pickle.UnpicklingError('it alters a function')


class _Dtype:
  """Replaces np.dtype; accepts only integers of 1 to 8 bytes."""

  __slots__ = ('code', 'order')

  def __init__(self, code, *_):
    self.code, self.order = six.ensure_str(code), '|'
    if not re.match(r'[iu][1248]$', self.code):
      raise pickle.UnpicklingError(f'it holds an array of dtype {self.code}')

  def __setstate__(self, state):
    self.order = six.ensure_str(state[1])


class _Array:
  """Replaces np.ndarray, whose own unpickling also builds objects."""

  __slots__ = ('state',)

  def __init__(self, *_):
    self.state = None

  def __setstate__(self, state):
    self.state = state

  def numpy(self):
    _, shape, dtype, fortran, raw = self.state
    values = np.frombuffer(raw, np.dtype(dtype.code).newbyteorder(dtype.order))
    if any(side < 0 for side in shape):  # reshape would infer it
      raise pickle.UnpicklingError(f'it holds an array of shape {shape}')
    return values.reshape(shape, order='F' if fortran else 'C')


_REPLACEMENTS = {
  ('numpy.core.multiarray', '_reconstruct'): _Function(_Array),
  ('numpy._core.multiarray', '_reconstruct'): _Function(_Array),  # NumPy 2
  ('numpy', 'ndarray'): _Function(_Array),
  ('numpy', 'dtype'): _Function(_Dtype),
  # Python 3 pickles bytes for Python 2 as a call of this function.
  ('_codecs', 'encode'): _Function(lambda text, encoding: text.encode('latin-1')),
}


class _PlainUnpickler(pickle.Unpickler):
  """Builds plain values and the replacements above; imports nothing."""

  def find_class(self, module, name):
    if (module, name) not in _REPLACEMENTS:
      raise pickle.UnpicklingError(f'it names {module}.{name}')
    return _REPLACEMENTS[module, name]
