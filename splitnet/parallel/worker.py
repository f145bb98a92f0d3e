"""Runs a worker, which waits for eval.py --workers and computes what it is sent.

TensorFlow's runtime has no password and no encryption, and runs whatever it is sent. So a worker listens on the
loopback address, which only programs on this machine can reach (those of all its users), unless --host names another:
do that only in a network in which you trust everyone. It answers at no other address, and nobody before it is ready.
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import errno
import os
import signal
import socket
import sys
import time

from splitnet.common.flags import Parser, add, answer_early, integer, number
from splitnet.parallel import port_filter


def make_parser():
  """Returns the parser of the flags."""
  parser = Parser(__doc__)
  add(parser, 'port', integer(0, 65535), None, 'TCP port to listen on, such as 2222; 0: any free one', required=True)
  text = f'address of this machine to listen on, or its name; {port_filter.ANY[0]}: all of them'
  add(parser, 'host', str, port_filter.LOOPBACK, text)
  add(parser, 'threads', integer(0, 1024), 0, 'threads for one operation; 0: one per core')
  add(parser, 'gpu_fraction', number('(0, 1]'), 1.0, "share of each GPU's memory to take")
  return parser


if __name__ == '__main__':
  answer_early('worker.py', make_parser)

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import tensorflow as tf

from splitnet.common.errors import UserError, handling, program
from splitnet.parallel import connections, devices


def find_address(host):
  """Returns a host's IPv4 address, port_filter.ANY[0] only if asked for in words.

  Raises UserError if this machine has no such address.
  """
  if host in port_filter.ANY:
    return port_filter.ANY[0]
  try:
    address = socket.gethostbyname(host)
  except (OSError, UnicodeError) as e:
    raise UserError(f"--host '{host}' is not known ({getattr(e, 'strerror', None) or 'not a name'})") from e
  if not host.strip() or address in port_filter.ANY:  # '' and '0' mean all addresses to the system
    raise UserError(
      f"--host is '{host}', which names no address: leave it out for {port_filter.LOOPBACK}, or give "
      f'{port_filter.ANY[0]} if everyone who can reach this machine may use the worker'
    )
  with socket.socket() as probe:
    try:
      probe.bind((address, 0))
    except OSError as e:
      raise UserError(f'cannot listen on {host} ({e.strerror}): give another --host') from e
  return address


def serve(host, port, threads, gpu_fraction):
  """Starts the server; returns (the server, the 'host:port' at which it listens)."""
  address = find_address(host)
  devices.configure(gpu_fraction)
  devices.names()  # starts them, so that the server has the share of memory that is left to it
  if address in port_filter.ANY:
    with socket.socket() as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        probe.bind((address, port))
      except OSError as e:
        raise _port_error(host, port, e) from e
      port = probe.getsockname()[1]
    print('note: everyone who can reach this machine can use this worker, and with it this account', file=sys.stderr)
    return start_server(address, port, threads, gpu_fraction)
  try:
    guard = port_filter.Guard(port)
  except OSError as e:
    raise _port_error(host, port, e) from e
  try:
    with guard.open_for(address):
      return start_server(address, guard.port, threads, gpu_fraction)
  except OSError as e:
    raise _port_error(host, port, e) from e


def _port_error(host, port, error):
  if error.errno in (errno.EADDRINUSE, errno.EACCES):
    return UserError(f'cannot listen on {host}:{port} ({error.strerror}): give another --port or --host')
  return UserError(
    f'cannot keep the worker to {host} here ({error}): if everyone who can reach this machine may use it, give --host '
    f'{port_filter.ANY[0]}'
  )


def start_server(address, port, threads, gpu_fraction):
  """Starts TensorFlow's server; returns (it, the 'host:port' at which it listens)."""
  listens_at = f'{address}:{port}'
  config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads)
  config.gpu_options.allow_growth = gpu_fraction == 1.0
  try:
    cluster = tf.train.ClusterSpec({'worker': [listens_at]})
    return tf.distribute.Server(cluster, job_name='worker', task_index=0, config=config), listens_at
  except tf.errors.OpError as e:
    raise UserError(f'TensorFlow cannot start a server on {listens_at} ({e.message})') from e


@program('worker.py')
def main(argv):
  """Serves until a signal ends it."""
  flags = make_parser().parse_args(argv)
  connections.ignore_proxies()  # with --trunk first, workers call each other
  signals = (signal.SIGINT, signal.SIGTERM)  # a shell's background jobs ignore the first by default
  with handling(signal.default_int_handler, signals):
    try:
      server, listens_at = serve(flags.host, flags.port, flags.threads, flags.gpu_fraction)
      print(f'worker: ready at {listens_at}', flush=True)
      while server:
        time.sleep(0.5)  # signal.pause() would miss one that comes just before it
    except KeyboardInterrupt:
      os._exit(130)  # TensorFlow's server does not end otherwise


if __name__ == '__main__':
  sys.exit(main())
