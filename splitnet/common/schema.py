"""Reads files that others may have written or damaged: bounded and checked.

What a JSON file must be is a type that pydantic understands; objects are `record`s, whose further keys are kept:

  @record
  class Names(TypedDict):
    fine: list[str]

Schemas take TypedDict, NotRequired and the types below from here. Whatever the bytes are, `read_json` returns such a
value, or raises a UserError that names file, field and value.
"""

import dataclasses
import errno
import functools
import os
import re
import reprlib
import stat
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict  # of Python before 3.12 pydantic wants these

from splitnet.common.errors import UserError

MAX_BYTES = 1 << 26  # of a JSON file: ten times what the results of 1,000 classes take

Count = Annotated[int, Field(ge=0, lt=1 << 53)]  # JSON's numbers are exact up to here
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, lt=1 << 53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]

# Decorators for TypedDicts: objects that may have further keys, which are kept, and objects that may not.
record = with_config(ConfigDict(strict=True, extra='allow'))
exact = with_config(ConfigDict(strict=True, extra='forbid'))


def open_file(path):
  """Opens a regular file for reading; OSError if it is none, such as a pipe."""
  try:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer blocks no one
  except ValueError as e:  # a zero character
    raise OSError(errno.EINVAL, str(e)) from e
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise OSError(errno.EINVAL, 'it is no regular file')
  return open(descriptor, 'rb')


def read_bytes(path, limit):
  """Reads a regular file whole; OSError if it is none or longer than the limit."""
  with open_file(path) as f:
    content = f.read(limit + 1)
  if len(content) > limit:
    raise OSError(errno.EFBIG, f'it has more than {limit:,} bytes')
  return content


def read_json(path, kind, advice, missing=None):
  """Reads a JSON file whose content is a `kind`, a type; else raises UserError.

  The sentence ends with `advice`, what the user can do. `missing` is the whole sentence if there is no such file; None:
  it is like any other that cannot be read.
  """
  try:
    return parse_json(read_bytes(path, MAX_BYTES), kind)
  except OSError as e:
    if missing and isinstance(e, (FileNotFoundError, NotADirectoryError)):
      raise UserError(missing) from e
    raise UserError(f"'{path}' cannot be read ({e.strerror}): {advice}") from e
  except ValueError as e:
    raise UserError(f"'{path}' is damaged ({e}): {advice}") from e


def parse_json(content, kind):
  """Parses bytes of JSON that are a `kind`, a type.

  Raises ValueError, whose text is one line that names field and value, if they are something else.
  """
  return _validate(_adapter(kind).validate_json, content.removeprefix(b'\xef\xbb\xbf'))


def check(value, kind):
  """Returns a value that is a `kind`, a type; ValueError as `parse_json`."""
  return _validate(functools.partial(_adapter(kind).validate_python, strict=True), value)


@functools.cache
def fields_of(kind, **others):
  """Returns the type of a dict with a dataclass's fields and nothing else.

  Those without a default must be there. `others` are types of fields that are of another type there.
  """
  types = {field.name: others.get(field.name, field.type) for field in dataclasses.fields(kind)}
  types.update({
    field.name: NotRequired[types[field.name]]
    for field in dataclasses.fields(kind)
    if field.default is not dataclasses.MISSING
  })
  return exact(TypedDict(kind.__name__, types))


def _validate(validate, value):
  try:
    return validate(value)
  except ValidationError as e:
    raise ValueError(_sentence(e.errors(include_url=False)[0])) from None


@functools.cache
def _adapter(kind):
  return TypeAdapter(kind)


def _sentence(error):
  """Says in a line what pydantic found; error: one of ValidationError.errors()."""
  field = '.'.join(str(part) for part in error['loc'])
  field = f"'{field}'" if len(field) < 100 and field.isprintable() else show(field)
  if error['type'] == 'json_invalid':
    return f'no JSON: {error["ctx"]["error"]}'
  if error['type'] == 'missing':
    return f'it has no {field}'
  must = re.sub(r'^\w+ should', 'it must', error['msg'].removeprefix('Value error, '))
  return f'{field if error["loc"] else "it"} is {show(error["input"])}; {must}'


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxdict = 2, 60, 60, 4, 2


def show(value):
  """Returns a value as short text on one line, for a sentence."""
  try:
    return _SHORT.repr(value)
  except ValueError:  # a whole number of more digits than Python turns into text
    return 'a number of thousands of digits'
