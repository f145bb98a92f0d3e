"""Downloads a large file, resuming broken connections, and verifies its checksum."""

import hashlib
import http.client
import os
import posixpath
import re
import urllib.error
import urllib.request

from tqdm import tqdm

from splitnet.common.errors import UserError

TIMEOUT = 30  # seconds without a byte
TRIES = 5  # connections in one call


def download(url, path, size, md5, alternative):
  """Downloads a file of `size` bytes, resuming `path`.part if there is one.

  The file gets its name only once its MD5 is right; one with a wrong MD5 is removed, lest it be resumed for ever.
  Raises UserError, which ends with `alternative`, if there is no connection, it keeps breaking, or the checksum is
  wrong; OSError if the disk is full or not writable.
  """
  part = path + '.part'
  reason = 'the connection closed'
  for _ in range(TRIES):
    received = _size_of_part(part, size)
    if received == size:
      break
    try:
      _receive(url, part, received, size)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as e:
      if getattr(e, 'filename', None) == part:
        raise  # the disk, not the network
      reason = ' '.join(str(e.reason if type(e) is urllib.error.URLError else e).split()) or type(e).__name__
      if _size_of_part(part, size) == received:
        break  # nothing came: trying again at once would not help
  received = _size_of_part(part, size)
  if received != size:
    kept = f'; the {received} of {size} bytes that came are kept for the next run' if received else ''
    raise UserError(f'could not download {url} ({reason}{kept}): {alternative}')
  actual = md5_of(part)
  if actual != md5:
    os.remove(part)
    raise UserError(
      f'{url} came with the MD5 checksum {actual} instead of {md5} and was removed: run again to download it anew, '
      f'or {alternative}'
    )
  os.replace(part, path)


def md5_of(path):
  """Computes the MD5 of a file: 32 hexadecimal digits."""
  with open(path, 'rb') as f:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in iter(lambda: f.read(1 << 20), b''):
      digest.update(chunk)
  return digest.hexdigest()


def _size_of_part(part, size):
  """Returns the bytes in `part`, 0 if there is none."""
  received = os.path.getsize(part) if os.path.exists(part) else 0
  if received > size:  # it is no beginning of the file
    os.remove(part)
    return 0
  return received


def _receive(url, part, received, size):
  """Adds what one connection gives to `part`, which has `received` bytes."""
  headers = {'Range': f'bytes={received}-'} if received else {}
  try:
    response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
  except urllib.error.HTTPError as e:
    if e.code == 416:
      os.remove(part)  # the server has no such range: the next connection begins anew
    raise
  with response:
    begin, total = 0, response.headers.get('Content-Length')  # 200: all of it, whatever was asked for
    if response.getcode() == 206:
      match = re.match(r'bytes (\d+)-\d+/(\d+)$', response.headers.get('Content-Range', ''))
      if not match or int(match.group(1)) != received:
        raise http.client.HTTPException('the server sent another range than asked for')
      begin, total = received, match.group(2)
    if total is not None and int(total) != size:
      # A login page, say: the .part must not begin with it.
      raise http.client.HTTPException(f'the server offers {total} bytes instead of {size}')
    with (
      open(part, 'ab' if begin else 'wb') as out,
      tqdm(total=size, initial=begin, unit='B', unit_scale=True, desc=posixpath.basename(url)) as bar,
    ):
      while begin < size:
        chunk = response.read(1 << 18)
        if not chunk:
          break
        try:
          out.write(chunk)
        except OSError as e:
          e.filename = part
          raise
        begin += len(chunk)
        bar.update(len(chunk))
