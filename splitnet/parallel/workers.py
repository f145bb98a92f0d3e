"""Connects to workers, and goes on without those that are lost.

They run worker.py, on this machine or others. Workers are TensorFlow's own servers, which speak unencrypted gRPC and
run whatever they are sent.
"""

import collections
import os
import queue
import re
import socket
import sys
import threading
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import grpc
import tensorflow as tf

from splitnet.common.errors import UserError
from splitnet.parallel import port_filter

CALL_SHARE = 0.75  # of the time that a worker has to answer; in the rest it is found out which one does not

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


def unreachable(addresses, timeout):
  """Returns the addresses at which no gRPC server answers, with the reason.

  A process that is stopped or hangs still has connections accepted by its kernel, so its answer is waited for, at most
  `timeout` seconds for all of them. Returns a dict from 'host:port' to a text, None for no answer in time.
  """
  states, reasons = queue.SimpleQueue(), dict.fromkeys(addresses)
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
      del reasons[address]
    elif state == grpc.ChannelConnectivity.TRANSIENT_FAILURE:
      reasons[address] = 'cannot be reached'
    else:
      continue
    waiting.discard(address)
  for channel in channels.values():
    channel.close()
  return reasons


class Workers:
  """Connected workers; those that are lost are dropped."""

  any_lost = False  # in this process

  def __init__(self, addresses, timeout, retry=False):
    """Connects to workers; before anything else of the program runs on a device.

    Raises UserError if one does not answer, or with `retry` none.

    Args:
      addresses: list of 'host:port'.
      timeout: seconds within which a worker has to answer.
      retry: go on without those that do not, as long as one remains.
    """
    self._timeout, self._retry = timeout, retry
    self._workers = [Worker(task, address, []) for task, address in enumerate(addresses)]
    self._drop(unreachable(addresses, timeout))
    self._workers = [Worker(task, worker.address, []) for task, worker in enumerate(self._workers)]
    self._connect()
    names = [device.name for kind in ('GPU', 'CPU') for device in tf.config.list_logical_devices(kind)]
    for worker in self._workers:
      own = [name for name in names if name.startswith(f'/job:worker/replica:0/task:{worker.task}/')]
      worker.devices.extend([name for name in own if 'GPU' in name] or own[:1])

  def _connect(self):
    with socket.socket() as probe:
      probe.bind((port_filter.LOOPBACK, 0))
      port = probe.getsockname()[1]
    addresses = [worker.address for worker in self._workers]
    cluster = {'worker': addresses, 'client': [f'{port_filter.LOOPBACK}:{port}']}
    errors = []

    def connect():
      try:
        tf.config.experimental_connect_to_cluster(tf.train.ClusterSpec(cluster), job_name='client')
        tf.config.list_logical_devices()  # connects now rather than at the first operation
      except Exception as e:
        errors.append(_first_line(e))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(self._timeout)
    if errors or thread.is_alive():
      Workers.any_lost = True
      reason = errors[0] if errors else f'no answer within --worker_timeout, {self._timeout:g} s'
      raise UserError(f'cannot work with {" and ".join(addresses)} ({reason}): are these all workers of worker.sh?')
    # Only this process calls the workers; nobody calls it.
    try:
      port_filter.restrict(port, port_filter.LOOPBACK)
    except OSError as e:
      print(f'note: port {port} of this program is open to all addresses of this machine ({e})', file=sys.stderr)

  @property
  def call_time_limit(self):
    """Seconds that a call to a worker may take (BranchExecutor's time limit)."""
    return CALL_SHARE * self._timeout

  @property
  def devices(self):
    """The names of all workers' devices: their GPUs, or CPU if they have none."""
    return [name for worker in self._workers for name in worker.devices]

  def label_of(self, device):
    """Returns a device's name for a user: 'host:port/GPU:0'."""
    address = next((worker.address for worker in self._workers if device in worker.devices), device)
    return f'{address}/{device.rsplit("/device:", 1)[-1]}'

  def drop_failed(self, error):
    """Drops the worker, or the workers, that a DeviceError comes from.

    When a worker dies TensorFlow ends the calls of others too, and a worker may be waiting for another one's features,
    so all are asked whether they are there. Raises UserError, which says which worker it was; if the others go on
    without it, a note on stderr says so instead.
    """
    reasons = unreachable([worker.address for worker in self._workers], (1 - CALL_SHARE) * self._timeout)
    if not reasons:
      failed = next(worker.address for worker in self._workers if error.device in worker.devices)
      reasons = {failed: error.reason and f'failed ({_first_line(error.reason)})'}
    self._drop(reasons)

  def _drop(self, reasons):
    """Drops workers; reasons: dict from address to why, None for no answer in time."""
    for worker in [worker for worker in self._workers if worker.address in reasons]:
      self._workers.remove(worker)
      Workers.any_lost = True
      why = f'worker {worker.address} {reasons[worker.address] or f"did not answer within {self._timeout:g} s"}'
      if not self._retry:
        raise UserError(
          f'{why}: start it again with worker.sh, leave it out of --workers, or let --retry go on without it'
        )
      if not self._workers:
        raise UserError(f'{why}, and no other is left: start them again with worker.sh')
      remaining = ', '.join(worker.address for worker in self._workers)
      print(f'note: {why}; going on with {remaining}', file=sys.stderr, flush=True)


def _first_line(error):
  return str(error).strip().split('\n')[0]


def exit_program(code):
  """Ends the program; at once if a worker was lost, for which TensorFlow may wait."""
  if Workers.any_lost:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)
