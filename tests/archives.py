"""Makes small archives as Python 2 wrote CIFAR-100's, and serves files; for tests."""

import contextlib
import gzip
import http.server
import io
import struct
import sys
import tarfile
import threading

import numpy as np

TRAIN, TEST = 200, 100  # images of an archive


def py2(value):
  """Pickles plain values and uint8 arrays as Python 2 does, without the last byte."""
  if isinstance(value, dict):
    return b'}(' + b''.join(py2(k) + py2(v) for k, v in value.items()) + b'u'
  if isinstance(value, list):
    return b'](' + b''.join(map(py2, value)) + b'e'
  if isinstance(value, tuple):
    return b'(' + b''.join(map(py2, value)) + b't'
  if isinstance(value, str):
    value = value.encode('latin-1')
  if isinstance(value, bytes):
    return (b'U' + bytes([len(value)]) if len(value) < 256 else b'T' + struct.pack('<i', len(value))) + value
  if isinstance(value, (int, np.integer)):
    return b'J' + struct.pack('<i', value)
  assert value.dtype == np.uint8
  dtype = b'cnumpy\ndtype\n' + py2(('u1', 0, 1)) + b'R(' + py2(3) + py2('|') + b'NNN' + py2(-1) * 2 + py2(0) + b'tb'
  array = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n' + py2((0,)) + py2('b') + b'tR'
  return array + b'(' + py2(1) + py2(value.shape) + dtype + b'\x89' + py2(value.tobytes()) + b'tb'


def content():
  """Makes a small archive's dicts: 2 training images and 1 test image per class."""
  rng = np.random.RandomState(1)
  superclass = rng.permutation(100) // 5

  def batch(rows, name):
    fine = rng.permutation(rows) % 100
    return {
      'filenames': [f'{name}_s_{i:06d}.png' for i in range(rows)],
      'batch_label': f'{name} batch 1 of 1',
      'fine_labels': fine.tolist(),
      'coarse_labels': superclass[fine].tolist(),
      'data': rng.randint(0, 256, (rows, 3072)).astype(np.uint8),
    }

  meta = {
    'fine_label_names': [f'class_{i}' for i in range(100)],
    'coarse_label_names': [f'super_{i}' for i in range(20)],
  }
  return {'train': batch(TRAIN, 'training'), 'test': batch(TEST, 'testing'), 'meta': meta}


def pack(path, members, mode='w'):
  """Writes a tar of {name: bytes or TarInfo}."""
  with tarfile.open(str(path), mode) as tar:
    for name, data in members.items():
      if isinstance(data, tarfile.TarInfo):
        tar.addfile(data)
      else:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  return str(path)


def compress(content):
  """Compresses bytes for .gz, fast."""
  return gzip.compress(content, 1, mtime=0)


def pickled(parts):
  """Pickles the dicts of an archive: bytes by the member's name."""
  return {'cifar-100-python/' + name: b'\x80\x02' + py2(part) + b'.' for name, part in parts.items()}


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves server.payload as server.mode says; notes the Range of each request."""

  def do_GET(self):
    server, payload = self.server, self.server.payload
    asked = self.headers.get('Range')
    server.asked.append(asked)
    mode = server.mode.pop(0) if len(server.mode) > 1 else server.mode[0]
    begin = int(asked[len('bytes=') : -1]) if asked and mode not in ('ignore', 'page') else 0
    if mode in ('404', '416'):
      return self.send_error(int(mode))
    body = b'<html>please log in</html>' if mode == 'page' else payload[begin:]
    self.send_response(206 if begin else 200)
    if begin:
      shown = begin + 1 if mode == 'shifted' else begin
      self.send_header('Content-Range', f'bytes {shown}-{len(payload) - 1}/{len(payload)}')
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body[: len(body) // 2] if mode == 'cut' else b'' if mode == 'drop' else body)

  def log_message(self, *args):
    pass


class Server(http.server.ThreadingHTTPServer):
  """Serves a file, and closes when its last answer has ended.

  `payload` is the file; `mode` lists the next answers, the last for ever; `asked` gets the ranges of the requests.
  """

  daemon_threads = False

  def handle_error(self, request, client_address):
    """Ignores a client that hung up, as it does if the answer displeases it."""
    if not isinstance(sys.exc_info()[1], ConnectionError):
      super().handle_error(request, client_address)


@contextlib.contextmanager
def serve(payload):
  """Serves bytes on this computer; yields the Server and the file's URL."""
  with Server(('127.0.0.1', 0), Handler) as server:
    server.payload, server.mode, server.asked = payload, ['range'], []
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield server, f'http://127.0.0.1:{server.server_port}/cifar-100-python.tar.gz'
    server.shutdown()
    thread.join()
