"""Reads pickles of arrays, flat lists, strings and numbers; runs nothing."""

import io
import pickle
import re

import numpy as np
import six

MAX_STEPS = 5_000_000  # operations of a pickle; CIFAR-100's largest has 300,000

# What a dict of arrays and lists needs. Left out: sets, byte arrays, objects by class, persistent and extension ids.
_OPERATIONS = (
  'PROTO', 'FRAME', 'MARK', 'STOP', 'POP', 'POP_MARK', 'DUP', 'NONE', 'NEWTRUE', 'NEWFALSE', 'INT', 'BININT',
  'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT', 'STRING', 'BINSTRING', 'SHORT_BINSTRING',
  'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
  'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'EMPTY_LIST', 'LIST', 'APPEND', 'APPENDS', 'EMPTY_DICT',
  'DICT', 'SETITEM', 'SETITEMS', 'GET', 'BINGET', 'LONG_BINGET', 'PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE',
  'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'BUILD',
)  # fmt: skip
_SCALARS = (str, bytes, int, float, type(None))


def load(data):
  """Reads a pickle of Python 2, or of 3 up to protocol 4: a dict with str keys.

  Its values are integer arrays, lists, numbers and strings, which stay bytes if they are of Python 2. Raises ValueError
  if the bytes are no such pickle, or ask for anything else.
  """
  try:
    loaded = _PlainUnpickler(data).load()
    if not isinstance(loaded, dict):
      raise pickle.UnpicklingError('it holds no dict')
    return {six.ensure_str(key): _plain(value) for key, value in loaded.items()}
  except Exception as e:  # a hostile or damaged pickle raises whatever its operations lead to
    reason = ''.join(c if c.isprintable() else ' ' for c in str(e)[:200])
    raise ValueError(f'a pickle in it is refused: {" ".join(reason.split()) or type(e).__name__}') from None


def _plain(value):
  """Returns an array, a flat list or a scalar; anything else is refused."""
  if isinstance(value, _Array):
    return value.numpy()
  if not all(isinstance(item, _SCALARS) for item in (value if isinstance(value, list) else [value])):
    raise pickle.UnpicklingError('it holds more than arrays and lists of strings and numbers')
  return value


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
      raise pickle.UnpicklingError(f'it holds an array of dtype {self.code[:20]}')

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
    if not isinstance(raw, bytes) or not all(isinstance(side, int) and side >= 0 for side in shape):
      raise pickle.UnpicklingError('it holds an array without a shape or without bytes')
    values = np.frombuffer(raw, np.dtype(dtype.code).newbyteorder(dtype.order))
    return values.reshape(shape, order='F' if fortran else 'C')


_REPLACEMENTS = {
  ('numpy.core.multiarray', '_reconstruct'): _Function(_Array),
  ('numpy._core.multiarray', '_reconstruct'): _Function(_Array),  # NumPy 2
  ('numpy', 'ndarray'): _Function(_Array),
  ('numpy', 'dtype'): _Function(_Dtype),
}


class _Limited(dict):
  """Holds the operations, and counts how often one is looked up."""

  steps = 0

  def __getitem__(self, key):
    self.steps += 1
    if self.steps > MAX_STEPS:
      raise pickle.UnpicklingError(f'it has more than {MAX_STEPS:,} operations')
    if key not in self:
      raise pickle.UnpicklingError(f'it has an operation {bytes([key])!r} that no array needs')
    return super().__getitem__(key)


class _PlainUnpickler(pickle._Unpickler):
  """Builds plain values and the replacements above; imports nothing.

  Python's own, not the one in C, which reserves memory by the numbers in a pickle and hashes nested keys, however deep.
  """

  def __init__(self, data):
    super().__init__(io.BytesIO(data), encoding='bytes')
    # Python 3 pickles bytes for Python 2 as a call of this function; each text once.
    self._replacements = {**_REPLACEMENTS, ('_codecs', 'encode'): _Function(self._encode)}
    self._left = len(data)
    codes = [getattr(pickle, name)[0] for name in _OPERATIONS]
    self.dispatch = _Limited({code: pickle._Unpickler.dispatch[code] for code in codes})
    setters = {pickle.DICT: self._items, pickle.SETITEM: lambda: self.stack[-2:-1], pickle.SETITEMS: self._items}
    for code, keys in setters.items():
      self.dispatch[code[0]] = self._with_plain_keys(pickle._Unpickler.dispatch[code[0]], keys)

  def _items(self):
    return self.stack[::2]

  @staticmethod
  def _with_plain_keys(operation, keys):
    """Returns an operation that first checks the keys it is about to hash."""

    def checked(unpickler):
      if not all(isinstance(key, (str, bytes)) for key in keys()):
        raise pickle.UnpicklingError('it has a key that is no string')
      operation(unpickler)

    return checked

  def find_class(self, module, name):
    if (module, name) not in self._replacements:
      raise pickle.UnpicklingError(f'it names {module}.{name}')
    return self._replacements[module, name]

  def _encode(self, text, _):
    self._left -= len(text)
    if self._left < 0:
      raise pickle.UnpicklingError('it repeats a text')
    return text.encode('latin-1')
