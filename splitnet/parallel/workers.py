"""Workers (worker.py) on this machine or others, TensorFlow's own: found, connected to, and missed when they are gone.

TensorFlow's runtime speaks unencrypted gRPC and runs whatever it is sent, and its servers listen on all addresses of a
machine, whatever address they are given. `confine` has the kernel drop what comes for any other address.
"""

import collections
import ctypes
import os
import queue
import re
import socket
import struct
import sys
import threading
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import grpc
import tensorflow as tf

from splitnet.common.errors import UserError

LOOPBACK = '127.0.0.1'
ANY = '0.0.0.0'
PATIENCE = 0.75  # of the time that a worker has to answer; in the rest it is found out which one does not
SO_ATTACH_FILTER = 26  # Linux; Python's socket module does not name it

# A worker: its number in the cluster, 'host:port' as the user gave it, the names of its devices.
Worker = collections.namedtuple('Worker', 'task address devices')


def parse(text):
  """The addresses in 'host:port,host:port': a list of text.

  Raises:
    UserError: where one is none, or is there twice.
  """
  addresses = [address.strip() for address in text.split(',') if address.strip()]
  if not addresses:
    raise UserError("--workers '%s' names no worker; it must be host:port,host:port" % text)
  for i, address in enumerate(addresses):
    match = re.fullmatch(r'([A-Za-z0-9_.-]+):(\d{1,5})', address)
    if not match or not 1 <= int(match.group(2)) <= 65535:
      raise UserError("--workers names '%s'; it must be host:port, such as 192.168.0.7:2222" % address)
    if address in addresses[:i]:
      raise UserError("--workers names '%s' twice" % address)
  return addresses


def missing(addresses, timeout):
  """At which of the addresses no gRPC server answers within `timeout` seconds: dict from address to why, None for late.

  A process that is stopped or hangs still has connections accepted by its kernel, so that its answer is waited for.
  """
  states, found = queue.SimpleQueue(), dict.fromkeys(addresses)
  waiting = set(addresses)
  channels = {address: grpc.insecure_channel(address, [('grpc.enable_http_proxy', 0)]) for address in addresses}
  for address, channel in channels.items():
    channel.subscribe(lambda state, address=address: states.put((address, state)), try_to_connect=True)
  end = time.monotonic() + timeout
  while waiting:
    try:
      address, state = states.get(timeout=max(0.0, end - time.monotonic()))
    except queue.Empty:
      break
    if address not in waiting:
      continue
    if state == grpc.ChannelConnectivity.READY:
      del found[address]
    elif state == grpc.ChannelConnectivity.TRANSIENT_FAILURE:
      found[address] = 'cannot be reached'
    else:
      continue
    waiting.discard(address)
  for channel in channels.values():
    channel.close()
  return found


class Workers:
  """The workers that are left."""

  any_lost = False  # in this process

  def __init__(self, addresses, timeout, retry=False):
    """Connects to workers; before anything else of the program runs on a device.

    Args:
      addresses: list of 'host:port'.
      timeout: seconds within which a worker has to answer.
      retry: go on without those that do not, as long as one is left.

    Raises:
      UserError: where one does not answer, or with `retry` none.
    """
    self._timeout, self._retry = timeout, retry
    self._left = [Worker(task, address, []) for task, address in enumerate(addresses)]
    self._lose_all(missing(addresses, timeout))
    self._left = [Worker(task, worker.address, []) for task, worker in enumerate(self._left)]
    self._connect()
    names = [device.name for kind in ('GPU', 'CPU') for device in tf.config.list_logical_devices(kind)]
    for worker in self._left:
      own = [name for name in names if name.startswith('/job:worker/replica:0/task:%d/' % worker.task)]
      worker.devices.extend([name for name in own if 'GPU' in name] or own[:1])

  def _connect(self):
    with socket.socket() as free:
      free.bind((LOOPBACK, 0))
      port = free.getsockname()[1]
    cluster = {'worker': [worker.address for worker in self._left], 'client': ['%s:%d' % (LOOPBACK, port)]}
    failed = []

    def connect():
      try:
        tf.config.experimental_connect_to_cluster(tf.train.ClusterSpec(cluster), job_name='client')
        tf.config.list_logical_devices()  # connects now rather than when first used
      except Exception as e:
        failed.append(_first_line(e))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(self._timeout)
    if failed or thread.is_alive():
      Workers.any_lost = True
      reason = failed[0] if failed else 'no answer within --worker_timeout, %g s' % self._timeout
      raise UserError(
        'cannot work with %s (%s): are these all workers of worker.sh?' % (' and '.join(cluster['worker']), reason)
      )
    # Only this process calls the workers; nobody calls it.
    try:
      confine(port, LOOPBACK)
    except OSError as e:
      print('note: port %d of this program is open to all addresses of this machine (%s)' % (port, e), file=sys.stderr)

  @property
  def patience(self):
    """Seconds that a call may take (spread.Spread's)."""
    return PATIENCE * self._timeout

  @property
  def devices(self):
    """The names of all devices of the workers that are left: their GPUs, a worker without one its CPU."""
    return [name for worker in self._left for name in worker.devices]

  def address_of(self, device):
    """The address of the worker that a device belongs to."""
    return next((worker.address for worker in self._left if device in worker.devices), device)

  def lose(self, error):
    """Gives up the worker, or the workers, that a spread.DeviceError comes from.

    When a worker dies TensorFlow ends the calls of others too, and a worker may be waiting for another one's features,
    so all are asked whether they are there.

    Raises:
      UserError: which worker it was. Where the others go on without it, a note on stderr says so instead.
    """
    gone = missing([worker.address for worker in self._left], (1 - PATIENCE) * self._timeout)
    reason = error.reason and 'failed (%s)' % _first_line(error.reason)
    self._lose_all(gone or {self.address_of(error.device): reason})

  def _lose_all(self, reasons):
    for worker in [worker for worker in self._left if worker.address in reasons]:
      self._lose(worker, reasons[worker.address] or 'did not answer within %g s' % self._timeout)

  def _lose(self, worker, why):
    self._left.remove(worker)
    Workers.any_lost = True
    if not self._retry:
      raise UserError(
        'worker %s %s: start it again with worker.sh, leave it out of --workers, or let --retry go on without it'
        % (worker.address, why)
      )
    if not self._left:
      raise UserError('worker %s %s, and no other is left: start them again with worker.sh' % (worker.address, why))
    left = ', '.join(worker.address for worker in self._left)
    print('note: worker %s %s; going on with %s' % (worker.address, why, left), file=sys.stderr, flush=True)


def _first_line(error):
  return str(error).strip().split('\n')[0]


def leave(code):
  """Ends the program; at once where a worker was lost, since TensorFlow's own end may wait for it."""
  if Workers.any_lost:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


# --- which address a TensorFlow server of this process can be reached at --------------------------------------------


def confine(port, host):
  """Has the kernel drop all that comes to a listening port of this process for another address than `host`.

  TensorFlow's servers bind to all addresses; this is what binding to one would have done. The filter is on the sockets
  themselves and needs no privilege. Connections that were made before have it too.

  Args:
    port: of a server of this process.
    host: an IPv4 address of this machine.

  Raises:
    OSError: where the system has no such filters (they are Linux's).
  """
  if not sys.platform.startswith('linux'):
    raise OSError('only Linux can filter a socket')
  (address,) = struct.unpack('!I', socket.inet_aton(host))
  network_header = 0xFFF00000
  # The kernel's classic packet filter: load, compare and skip, return. An IPv4 packet's destination is at byte 16.
  load_half, load_word, equal, give = 0x28, 0x20, 0x15, 0x06
  program = [
    (load_half, 0, 0, 0xFFFFF000),  # the protocol
    (equal, 0, 3, 0x0800),  # IPv4
    (load_word, 0, 0, network_header + 16),
    (equal, 0, 1, address),
    (give, 0, 0, 0xFFFFFFFF),  # all of it
    (give, 0, 0, 0),  # nothing of it
  ]
  code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *instruction) for instruction in program))
  listening, connected = [], []
  for fd in os.listdir('/proc/self/fd'):
    try:
      own = socket.socket(fileno=os.dup(int(fd)))
    except OSError:  # not a socket, or closed meanwhile
      continue
    try:
      if own.family in (socket.AF_INET, socket.AF_INET6) and own.getsockname()[1] == port:
        listens = own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        (listening if listens else connected).append(own)
        continue
    except OSError:
      pass
    own.close()
  if not listening:
    raise OSError('no socket listens on port %d' % port)
  for own in listening + connected:
    with own:
      own.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack('HL', len(program), ctypes.addressof(code)))
