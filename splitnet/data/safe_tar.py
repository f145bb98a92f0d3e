"""Reads files in a tar archive that may be hostile, to its end; extracts nothing."""

import bz2
import contextlib
import gzip
import io
import lzma
import posixpath
import re
import tarfile
import zlib

from splitnet.common import schema
from splitnet.common.errors import UserError

MAX_MEMBER_BYTES = 1 << 29
MAX_BYTES = 1 << 30  # of the whole tar, uncompressed
MAX_HEADERS = 10_000
MAX_EXTENSION_BYTES = 1 << 14  # of a header that says more of the next member, such as its long name
MAX_EXTENSIONS_BYTES = 1 << 24  # of all of them

BLOCK = 512
_COMPRESSED = {b'\x1f\x8b': gzip.open, b'BZh': bz2.open, b'\xfd7zXZ': lzma.open}  # by how a file begins
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


def read_members(path, folder, names, alternative):
  """Reads files of one folder of a tar, plain or compressed: dict by name.

  Raises UserError, which ends with `alternative`, if it is missing, not a whole tar, dangerous, or lacks a file.
  """
  contents = {}
  try:
    with _open(path) as stream:
      for header in _headers(stream):
        fault = _fault(header)
        if fault:
          raise UserError(f'{path} is refused because its member {schema.show(header.name)} {fault}: {alternative}')
        if header.type in _FILES:
          parent, _, name = posixpath.normpath(header.name).rpartition('/')
          content = stream.take(_padded(header.size), keep=folder in (None, parent) and name in names)
          if content is not None:
            contents[name] = content[: header.size]
      stream.finish()
  except FileNotFoundError:
    raise UserError(f'there is no file {path}: {alternative}') from None
  except PermissionError:
    raise UserError(f'{path} may not be read: change its mode, or {alternative}') from None
  except (tarfile.TarError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as e:
    reason = e.strerror if isinstance(e, OSError) else e if isinstance(e, _OverLimit) else None
    reason = f' ({reason})' if reason else ''
    raise UserError(f'{path} is no tar archive, or cut short or damaged{reason}: {alternative}') from None
  missing = [f'{folder}/{name}' if folder else name for name in names if name not in contents]
  if missing:
    raise UserError(f'{path} lacks {" and ".join(missing)}, or is cut short: {alternative}')
  return contents


class _OverLimit(ValueError):
  """Says which limit an archive exceeds."""


class _Stream:
  """Reads a stream forwards, at most MAX_BYTES."""

  def __init__(self, stream):
    self._stream, self._left = stream, MAX_BYTES

  def read(self, size):
    """Reads up to `size` bytes, fewer only at the end."""
    content = self._stream.read(size)
    self._left -= len(content)
    if self._left < 0:
      raise _OverLimit(f'it holds more than {MAX_BYTES:,} bytes')
    return content

  def take(self, size, keep=True):
    """Reads `size` bytes and returns them if kept; EOFError if there are fewer."""
    parts = []
    while size:
      part = self.read(min(size, 1 << 20))
      if not part:
        raise EOFError
      size -= len(part)
      parts += [part] if keep else []
    return b''.join(parts) if keep else None

  def finish(self):
    """Reads the rest: the checksum of a compressed file is its last part."""
    while self.read(1 << 20):
      pass


@contextlib.contextmanager
def _open(path):
  """Opens a file that may be compressed: a _Stream."""
  with schema.open_file(path) as f:
    begin = f.peek(6)
    unpack = next((unpack for magic, unpack in _COMPRESSED.items() if begin.startswith(magic)), io.BufferedReader)
    with unpack(f) as stream:
      yield _Stream(stream)


def _headers(stream):
  """Yields the members' headers, TarInfos; the content is read before the next."""
  extension_bytes, said = 0, {}
  for _ in range(MAX_HEADERS):
    block = stream.read(BLOCK)
    if not block.strip(b'\0'):  # the end
      return
    header = tarfile.TarInfo.frombuf(block, 'utf-8', 'surrogateescape')
    if header.type in _EXTENSIONS:
      extension_bytes += header.size
      if not 0 <= header.size <= MAX_EXTENSION_BYTES or extension_bytes > MAX_EXTENSIONS_BYTES:
        raise _OverLimit(f'a header that says more of a member has {header.size:,} bytes')
      content = stream.take(_padded(header.size))[: header.size]
      if header.type == tarfile.GNUTYPE_LONGNAME:
        said['path'] = content.rstrip(b'\0').decode('utf-8', 'surrogateescape')
      elif header.type in _PAX:
        said.update(_pax_records(content))
      continue
    header.name = said.get('path', header.name).rstrip('/')
    header.size = int(said.get('size', header.size))
    if any(key.startswith('GNU.sparse') for key in said):
      header.type = tarfile.GNUTYPE_SPARSE
    yield header
    said = {}
  raise _OverLimit(f'it has more than {MAX_HEADERS:,} members')


def _pax_records(content):
  """Yields the (key, value) of an extended header, records 'length key=value\\n'."""
  while content:
    length = int(content[:8].split(b' ')[0])
    if not 0 < length <= len(content) or content[length - 1 : length] != b'\n':
      raise ValueError('a record is cut')
    key, _, value = content[:length].decode('utf-8', 'surrogateescape').partition(' ')[2].partition('=')
    yield key, value[:-1]
    content = content[length:]


def _padded(size):
  return -(-size // BLOCK) * BLOCK


def _fault(header):
  """Returns what makes a member dangerous, whether it is read or not; else ''."""
  parts = re.split(r'[/\\]', header.name)
  if header.type not in (*_FILES, tarfile.DIRTYPE):
    return 'is a link, a device or sparse'
  if '..' in parts or parts[0] == '' or parts[0].endswith(':'):
    return 'points outside it'
  return '' if 0 <= header.size <= MAX_MEMBER_BYTES else f'has {header.size} bytes'
