"""Reads files in a tar archive that may be damaged or hostile; extracts nothing."""

import lzma
import os
import posixpath
import re
import tarfile
import zlib

from splitnet.common.errors import UserError

MAX_MEMBER_BYTES = 1 << 29


def read_members(path, folder, names, alternative):
  """Reads files of one folder of a tar, plain or compressed: dict from name to bytes.

  Raises:
    UserError: the archive is missing, not a whole tar, dangerous, or lacks a file; it ends with `alternative`.
  """
  if not os.path.isfile(path):
    raise UserError(f'there is no file {path}: {alternative}')
  contents = {}
  try:
    with tarfile.open(path, 'r:*') as tar:
      for member in tar:  # in the file's order: going back in a compressed file would start it anew
        fault = _fault(member)
        if fault:
          raise UserError(f'{path} is refused because its member {member.name!r} {fault}: {alternative}')
        parent, _, name = posixpath.normpath(member.name).rpartition('/')
        if parent == folder and name in names and member.isfile():
          contents[name] = tar.extractfile(member).read()
  except PermissionError:
    raise UserError(f'{path} may not be read: change its mode, or {alternative}') from None
  except (tarfile.TarError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error):
    raise UserError(f'{path} is no tar archive, or cut short or damaged: {alternative}') from None
  missing = [f'{folder}/{name}' for name in names if name not in contents]
  if missing:
    raise UserError(f'{path} lacks {" and ".join(missing)}, or is cut short: {alternative}')
  return contents


def _fault(member):
  """Returns what makes a member dangerous, whether it is read or not; else ''."""
  parts = re.split(r'[/\\]', member.name)
  if not (member.isdir() or (member.isfile() and not member.issparse())):
    return 'is a link, a device or sparse'
  if '..' in parts or parts[0] == '' or parts[0].endswith(':'):
    return 'points outside it'
  return f'has {member.size} bytes' if member.size > MAX_MEMBER_BYTES else ''
