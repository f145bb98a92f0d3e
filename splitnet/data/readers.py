"""Reads class names and arrays of images, checked against what they must be.

It needs no TensorFlow, as a program that only prepares data does not.
"""

import collections
import zipfile
from typing import Annotated

import numpy as np
from pydantic import Field

from splitnet.common import schema
from splitnet.common.errors import UserError

MAX_ARRAY_BYTES = 1 << 33  # it is held in memory
MAX_CLASSES = 1 << 20


@schema.record
class Names(schema.TypedDict):
  """Describes names.json; a data set's own record adds where its images come from."""

  fine: Annotated[list[schema.Text], Field(min_length=1, max_length=MAX_CLASSES)]
  coarse: Annotated[list[schema.Text], Field(min_length=1, max_length=MAX_CLASSES)]
  fine_to_coarse: list[schema.Count]


def read_names(path, kind, advice, missing=None):
  """Reads the names of classes and superclasses, a `kind` (extends Names).

  `advice` and `missing` are as of schema.read_json. Raises UserError if the JSON file is missing or something else.
  """
  content = schema.read_json(path, kind, advice, missing)
  fine, coarse, fine_to_coarse = (content[field] for field in Names.__annotations__)
  fault = ''
  if len(fine_to_coarse) != len(fine):
    fault = f"'fine_to_coarse' has {len(fine_to_coarse)} numbers for {len(fine)} classes"
  elif max(fine_to_coarse) >= len(coarse):
    fault = f"'fine_to_coarse' has {max(fine_to_coarse)}, but the superclasses are 0 to {len(coarse) - 1}"
  for field, names in (('fine', fine), ('coarse', coarse)):
    (name, count), *_ = collections.Counter(names).most_common(1)
    if count > 1:
      fault = f"'{field}' has {schema.show(name)} {count} times"
  if fault:
    raise UserError(f"'{path}' is damaged ({fault}): {advice}")
  return content


def read_subset(path, size, classes, advice, missing=None):
  """Reads a subset of images [N, size, size, 3] and labels [N], an .npz file.

  Images are uint8, labels integers below `classes`, returned as int32; for the rest see `read_arrays`.
  """
  wanted = {'images': ('u1', (size, size, 3)), 'labels': ('iu', ())}
  arrays = read_arrays(path, wanted, advice, missing)
  labels = arrays['labels']
  low, high = int(labels.min()), int(labels.max())
  if low < 0 or high >= classes:
    raise UserError(
      f"'{path}' does not fit (its labels are {low} to {high}, but the classes are 0 to {classes - 1}): {advice}"
    )
  return arrays['images'], labels.astype(np.int32)


def read_arrays(path, wanted, advice, missing=None):
  """Reads arrays of one length, at least 1, of an .npz file: dict by name.

  Their checksums are compared; their headers are checked before anything is made.

  Args:
    path: of the file.
    wanted: dict from name to (types, shape): 'u1' for uint8 or 'iu' for integers, and the shape behind the length.
    advice, missing: as of schema.read_json.

  Raises UserError if the file is missing, damaged, or holds something else.
  """
  try:
    with schema.open_file(path) as f, zipfile.ZipFile(f) as archive:
      arrays = {name: _read_array(archive, name, *what) for name, what in wanted.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
      raise ValueError('it has ' + ', '.join(f'{length} {name}' for name, length in lengths.items()))
    return arrays
  except OSError as e:
    if missing and isinstance(e, (FileNotFoundError, NotADirectoryError)):
      raise UserError(missing) from e
    raise UserError(f"'{path}' cannot be read ({e.strerror or e}): {advice}") from e
  except Exception as e:  # a damaged zip raises what it likes
    reason = ' '.join(str(e).split())[:200] or type(e).__name__
    raise UserError(f"'{path}' is damaged ({reason}): {advice}") from e


def _read_array(archive, name, types, shape):
  """Reads an array of a zip file; raises ValueError or what zipfile raises."""
  if f'{name}.npy' not in archive.namelist():
    raise ValueError(f"it has no array '{name}'")
  with archive.open(f'{name}.npy') as f:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(f)
    if version not in readers:
      raise ValueError(f"'{name}' is of version {version} of the format")
    found, fortran, dtype = readers[version](f)
    fits = dtype == np.uint8 if types == 'u1' else dtype.kind in types
    if not fits or len(found) != 1 + len(shape) or found[1:] != shape or found[0] < 1:
      must = f'{"uint8" if types == "u1" else "integers"} [N{"".join(f", {side}" for side in shape)}], N at least 1'
      raise ValueError(f"'{name}' is {schema.show(str(dtype))[1:-1]} {schema.show(list(found))}; it must be {must}")
    size = dtype.itemsize * int(np.prod(found, dtype=object))
    if size > MAX_ARRAY_BYTES:
      raise ValueError(f"'{name}' would have {size:,} bytes")
    content = f.read(size + 1)  # one more than there should be: at its end the checksum is compared
  if len(content) != size:
    raise ValueError(f"'{name}' has {'more' if len(content) > size else 'fewer'} bytes than its header says")
  return np.frombuffer(content, dtype).reshape(found, order='F' if fortran else 'C')
