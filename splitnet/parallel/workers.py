"""Connects to workers, and goes on without those that are lost.

They run worker.py, on this machine or others. Workers are TensorFlow's own servers, which speak unencrypted gRPC and
run whatever they are sent.
"""

import collections
import contextlib
import os
import re
import socket
import sys
import threading

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import tensorflow as tf

from splitnet.common.errors import UserError, first_line
from splitnet.parallel import connections, port_filter

CALL_SHARE = 0.75  # of the time that a worker has to answer; in the rest it is found out which one does not
GIVING_UP = 5  # seconds that TensorFlow has to see that its connections are gone

# A worker: its number in the cluster, 'host:port' as the user gave it, the names of its devices.
Worker = collections.namedtuple('Worker', 'task address devices')


def parse_addresses(text):
  """Parses 'host:port,host:port': a list of text.

  Raises UserError if there is none, one is no address, or one is there twice.
  """
  addresses = [address.strip() for address in text.split(',') if address.strip()]
  if not addresses:
    raise UserError(f"--workers '{text}' names no worker; it must be host:port,host:port")
  for i, address in enumerate(addresses):
    match = re.fullmatch(r'([A-Za-z0-9_.-]+):(\d{1,5})', address)
    if not match or not 1 <= int(match.group(2)) <= 65535:
      raise UserError(f"--workers names '{address}'; it must be host:port, such as 192.168.0.7:2222")
    if address in addresses[:i]:
      raise UserError(f"--workers names '{address}' twice")
  return addresses


class _ConnectionError(Exception):
  """Tells that the workers could not be connected to; there may be others."""


class Workers:
  """Holds connected workers, and drops those that are lost."""

  any_connected = False  # in this process, or being connected to

  def __init__(self, addresses, timeout, retry=False):
    """Connects to workers, before anything runs on a device or lists the devices.

    Once TensorFlow has begun to use devices, connecting keeps Python from running, and no time limit can end it. Raises
    UserError if one of the addresses does not answer within `timeout` seconds, or with `retry` none.
    """
    connections.ignore_proxies()
    self._timeout, self._retry = timeout, retry
    self._workers = [Worker(task, address, []) for task, address in enumerate(addresses)]
    self._drop(connections.unreachable(addresses, timeout))
    Workers.any_connected = True
    while (reason := self._try_to_connect()) is not None:
      left = [worker.address for worker in self._workers]
      lost = connections.unreachable(left, (1 - CALL_SHARE) * self._timeout)
      if not lost:
        raise UserError(f'cannot work with {" and ".join(left)} ({reason}): are these all workers of worker.sh?')
      self._drop(lost)
    names = [device.name for kind in ('GPU', 'CPU') for device in tf.config.list_logical_devices(kind)]
    for worker in self._workers:
      own = [name for name in names if name.startswith(f'/job:worker/replica:0/task:{worker.task}/')]
      worker.devices.extend([name for name in own if 'GPU' in name] or own[:1])

  def _try_to_connect(self):
    """Connects to all workers at once; returns None, or why it failed."""
    self._workers = [Worker(task, worker.address, []) for task, worker in enumerate(self._workers)]
    try:
      with _unreachable_port() as port:  # only this process calls the workers; nobody calls it
        self._connect([worker.address for worker in self._workers], port)
    except _ConnectionError as e:
      return str(e)
    return None

  def _connect(self, addresses, port):
    cluster, errors = {'worker': addresses, 'client': [f'{port_filter.LOOPBACK}:{port}']}, []

    def connect():
      try:
        tf.config.experimental_connect_to_cluster(tf.train.ClusterSpec(cluster), job_name='client')
        tf.config.list_logical_devices()  # connects now rather than at the first operation
      except Exception as e:
        errors.append(first_line(e))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(self.call_time_limit)
    if thread.is_alive():
      errors.append(f'no answer within --worker_timeout, {self._timeout:g} s')
      for address in addresses:
        connections.give_up(address)
      thread.join(GIVING_UP)
      if thread.is_alive():
        raise UserError(f'cannot work with {" and ".join(addresses)} ({errors[0]}): start them again with worker.sh')
    if errors:
      raise _ConnectionError(errors[0])

  @property
  def call_time_limit(self):
    """Seconds that a call to a worker may take (BranchExecutor's time limit)."""
    return CALL_SHARE * self._timeout

  @property
  def devices(self):
    """Lists all workers' devices: their GPUs, or CPU if they have none."""
    return [name for worker in self._workers for name in worker.devices]

  def label_of(self, device):
    """Returns a device's name for a user: 'host:port/GPU:0'."""
    address = next((worker.address for worker in self._workers if device in worker.devices), device)
    return f'{address}/{device.rsplit("/device:", 1)[-1]}'

  def drop_failed(self, error):
    """Drops the workers that a DeviceError comes from.

    When a worker dies TensorFlow ends the calls of others too, and a worker may be waiting for another one's features,
    so all are asked whether they are there. Raises UserError, which says which worker it was; if the others go on
    without it, a note on stderr says so instead.
    """
    reasons = connections.unreachable([worker.address for worker in self._workers], (1 - CALL_SHARE) * self._timeout)
    if not reasons:
      failed = next(worker.address for worker in self._workers if error.device in worker.devices)
      reasons = {failed: error.reason and f'failed ({first_line(error.reason)})'}
    self._drop(reasons)

  def _drop(self, reasons):
    """Drops workers; reasons: dict from address to why, None for no answer in time."""
    for worker in [worker for worker in self._workers if worker.address in reasons]:
      self._workers.remove(worker)
      why = f'worker {worker.address} {reasons[worker.address] or f"did not answer within {self._timeout:g} s"}'
      if not self._retry:
        raise UserError(
          f'{why}: start it again with worker.sh, leave it out of --workers, or let --retry go on without it'
        )
      if not self._workers:
        raise UserError(f'{why}, and no other is left: start them again with worker.sh')
      remaining = ', '.join(worker.address for worker in self._workers)
      print(f'note: {why}; going on with {remaining}', file=sys.stderr, flush=True)


@contextlib.contextmanager
def _unreachable_port():
  """Opens a context, with a port, in which TensorFlow's server cannot be reached."""
  try:
    guard = port_filter.Guard()
  except OSError as e:
    print(f'note: a port of this program is open to all addresses of this machine ({e})', file=sys.stderr)
    with socket.socket() as probe:
      probe.bind((port_filter.LOOPBACK, 0))
      port = probe.getsockname()[1]
    yield port
    return
  try:
    with guard.open_for(None):
      yield guard.port
  except OSError as e:
    raise UserError(f'cannot keep the port {guard.port} of this program shut ({e})') from e


def exit_program(code):
  """Ends the program, at once if connected to workers, for which TensorFlow waits."""
  if Workers.any_connected:
    for stream in filter(None, (sys.stdout, sys.stderr)):
      with contextlib.suppress(OSError):
        stream.flush()
    os._exit(code)
  sys.exit(code)
