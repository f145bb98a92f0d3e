"""Unpacks official tars of images: verifies their MD5, goes on where it stopped."""

import hashlib
import io
import os
import shutil
import tarfile

from tqdm import tqdm

from splitnet.common.errors import UserError

BLOCK = 4096  # bytes that a file takes at least on most disks


class _Verified(io.RawIOBase):
  """Reads a file, computing its MD5 and moving a progress bar."""

  def __init__(self, path):
    self._file, self.md5 = open(path, 'rb', buffering=0), hashlib.md5(usedforsecurity=False)
    size, title = os.path.getsize(path), os.path.basename(path)
    self._bar = tqdm(total=size, unit='B', unit_scale=True, desc=title, disable=None)

  def readable(self):
    return True

  def readinto(self, buffer):
    count = self._file.readinto(buffer)
    self.md5.update(memoryview(buffer)[:count])
    self._bar.update(count)
    return count

  def close(self):
    self._file.close()
    self._bar.close()
    super().close()


def unpack(path, md5, folder, place):
  """Unpacks a tar into a folder, whole or not at all; goes on where it stopped.

  Args:
    path, md5: of the tar, which is read once.
    folder: that is made; until it is whole its name ends in '.part'.
    place: function from the name of a file in the tar ('inner.tar/file' in a tar that is in it) to its path below the
      folder; None: it does not belong there.

  Raises:
    UserError: the tar is another.
    OSError: the disk is full or cannot be written.
  """
  part = folder + '.part'
  os.makedirs(part, exist_ok=True)
  try:
    with _Verified(path) as verified, io.BufferedReader(verified, 1 << 20) as stream:
      try:
        for name, content, size in _files_in(stream):
          below = place(name)
          if below is None:
            raise UserError(f"'{path}' holds '{name}', which does not belong there: give the official archive")
          _save(content, size, os.path.join(part, below))
        while stream.read(1 << 20):
          pass
      except (tarfile.TarError, EOFError, ValueError, RecursionError) as e:
        raise UserError(f"'{path}' is no tar archive, or cut short or damaged ({e}): download it again") from e
      check_md5(f"'{path}'", verified.md5.hexdigest(), md5)
  except UserError:
    shutil.rmtree(part, ignore_errors=True)  # of a wrong archive nothing is to be resumed
    raise
  os.sync()
  os.replace(part, folder)


def check_md5(file, found, md5):
  """Raises UserError, which begins with `file`, if an MD5 is not what it must be."""
  if found != md5:
    raise UserError(f'{file} has the MD5 checksum {found} instead of {md5}: download it again')


def _files_in(stream, within=''):
  """Yields (name, file, size) of the files in a tar, and in the tars in it."""
  with tarfile.open(fileobj=stream, mode='r|', bufsize=1 << 20) as tar:
    for member in tar:
      if member.isfile():
        name, content = within + member.name, tar.extractfile(member)
        if name.endswith('.tar'):
          yield from _files_in(content, f'{name}/')
        else:
          yield name, content, member.size


def _save(content, size, path):
  """Writes a file; one that is there already is whole if it has its size."""
  if not os.path.exists(path) or os.path.getsize(path) != size:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f:
      shutil.copyfileobj(content, f, 1 << 20)


def bytes_needed(path, folder):
  """Returns about how many more bytes unpacking a tar into a folder takes."""
  size, there = os.path.getsize(path), os.walk(folder + '.part')
  return size + size // 100_000 * BLOCK // 2 - sum(
    os.path.getsize(os.path.join(parent, name)) for parent, _, names in there for name in names
  )
