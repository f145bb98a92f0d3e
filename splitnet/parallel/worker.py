"""Runs a worker, which waits for eval.py --workers and computes what it is sent.

TensorFlow's runtime has no password and no encryption, and runs whatever it is sent. So a worker listens on the
loopback address, which only this machine's own programs can reach, unless --host names another: do that only in a
network in which you trust everyone.
"""

import os
import signal
import socket
import sys
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import tensorflow as tf

from splitnet.common.errors import UserError, run_program
from splitnet.common.flags import Parser, add, integer, number
from splitnet.parallel import devices, port_filter


def parse_flags(argv):
  """Parses and checks the flags; a UserError says which value is out of range."""
  parser = Parser(__doc__)
  add(parser, 'port', integer(0, 65535), None, 'TCP port to listen on, such as 2222; 0: any free one', required=True)
  text = f'address of this machine to listen on, or its name; {port_filter.ANY}: all of them'
  add(parser, 'host', str, port_filter.LOOPBACK, text)
  add(parser, 'threads', integer(0, 1024), 0, 'threads for one operation; 0: one per core')
  add(parser, 'gpu_fraction', number('(0, 1]'), 1.0, "share of each GPU's memory to take")
  return parser.parse_args(argv)


def free_port(host, port):
  """Returns the IPv4 address of a host and a free port there: `port` unless it is 0.

  Raises UserError if this machine has no such address, or the port is in use.
  """
  try:
    address = socket.gethostbyname(host)
  except OSError as e:
    raise UserError(f"--host '{host}' is not known ({e.strerror})") from e
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind((address, port))
    except OSError as e:
      raise UserError(f'cannot listen on {host}:{port} ({e.strerror}): give another --port or --host') from e
    return address, probe.getsockname()[1]


def serve(host, port, threads, gpu_fraction):
  """Starts the server; returns (the server, the 'host:port' at which it listens)."""
  devices.configure(gpu_fraction)
  devices.names()  # starts them, so that the server has the share of memory that is left to it
  address, port = free_port(host, port)
  listens_at = f'{address}:{port}'
  config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads)
  config.gpu_options.allow_growth = gpu_fraction == 1.0
  try:
    # It answers nobody before its port is restricted.
    cluster = tf.train.ClusterSpec({'worker': [listens_at]})
    server = tf.distribute.Server(cluster, job_name='worker', task_index=0, config=config, start=False)
  except tf.errors.OpError as e:
    raise UserError(f'TensorFlow cannot start a server on {listens_at} ({e.message})') from e
  if address != port_filter.ANY:
    try:
      port_filter.restrict(port, address)
    except OSError as e:
      raise UserError(
        f'cannot keep the worker to {address} here ({e}): if everyone who can reach this machine may use it, give '
        f'--host {port_filter.ANY}'
      ) from e
  server.start()
  return server, listens_at


def run(flags):
  """Serves until a signal ends it."""
  for caught in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first by default
    signal.signal(caught, signal.default_int_handler)
  try:
    server, listens_at = serve(flags.host, flags.port, flags.threads, flags.gpu_fraction)
    print(f'worker: ready at {listens_at}', flush=True)
    while server:
      time.sleep(0.5)  # signal.pause() would miss one that comes just before it
  except KeyboardInterrupt:
    os._exit(130)  # TensorFlow's server does not end otherwise


def main(argv=None):
  """Runs the program; returns its exit code."""
  return run_program('worker.py', lambda: run(parse_flags(argv)))


if __name__ == '__main__':
  sys.exit(main())
