"""A worker: waits for eval.py --workers on another machine, or on this one, and computes what it is sent.

TensorFlow's runtime has no password and no encryption, and runs whatever it is sent. So a worker listens on the
loopback address, where only this machine's own programs reach it, unless --host names another: do that only in a
network where you trust everyone.
"""

import argparse
import os
import signal
import socket
import sys
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import tensorflow as tf

from splitnet.common.errors import UserError, run_program
from splitnet.common.flags import Parser, add
from splitnet.parallel import devices
from splitnet.parallel import workers as hosts


def parse_flags(argv):
  """Parses and checks the flags.

  Raises:
    UserError: where a value is out of range.
  """
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add(parser, 'port', int, None, 'TCP port to listen on, such as 2222; 0: any free one', required=True)
  text = 'address of this machine to listen on, or its name; %s: all of them [%%(default)s]' % hosts.ANY
  add(parser, 'host', str, hosts.LOOPBACK, text)
  add(parser, 'threads', int, 0, 'threads for one operation; 0: one a core [%(default)s]')
  add(parser, 'gpu_fraction', float, 1.0, "share of each GPU's memory to take, (0, 1] [%(default)s]")
  flags = parser.parse_args(argv)
  for name, good, what in (
    ('port', 0 <= flags.port <= 65535, 'in 0 to 65535'),
    ('threads', 0 <= flags.threads <= 1024, 'in 0 to 1024'),
    ('gpu_fraction', 0 < flags.gpu_fraction <= 1, 'in (0, 1]'),
  ):
    if not good:
      raise UserError("--%s is '%s'; it must be %s" % (name, getattr(flags, name), what))
  return flags


def free_port(host, port):
  """The IPv4 address of a host name and a free port there, `port` unless that is 0.

  Raises:
    UserError: where this machine has no such address, or the port is taken.
  """
  try:
    address = socket.gethostbyname(host)
  except OSError as e:
    raise UserError("--host '%s' is not known (%s)" % (host, e.strerror)) from e
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind((address, port))
    except OSError as e:
      raise UserError('cannot listen on %s:%d (%s): give another --port or --host' % (host, port, e.strerror)) from e
    return address, probe.getsockname()[1]


def serve(flags):
  """Starts the server; returns (it, the 'host:port' where it listens)."""
  devices.configure(flags.gpu_fraction)
  address, port = free_port(flags.host, flags.port)
  where = '%s:%d' % (address, port)
  config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=flags.threads)
  config.gpu_options.allow_growth = flags.gpu_fraction == 1.0
  try:
    # It answers nobody before it is confined.
    server = tf.distribute.Server(
      tf.train.ClusterSpec({'worker': [where]}), job_name='worker', task_index=0, config=config, start=False
    )
  except tf.errors.OpError as e:
    raise UserError('TensorFlow cannot start a server on %s (%s)' % (where, e.message)) from e
  if address != hosts.ANY:
    try:
      hosts.confine(port, address)
    except OSError as e:
      raise UserError(
        'cannot keep the worker to %s here (%s): where everyone who can reach this machine may use it, give --host %s'
        % (address, e, hosts.ANY)
      ) from e
  server.start()
  return server, where


def run(flags):
  """Serves until a signal ends it."""
  for number in (signal.SIGINT, signal.SIGTERM):  # a script's background jobs ignore the first unless told
    signal.signal(number, signal.default_int_handler)
  try:
    server, where = serve(flags)
    print('worker: ready at %s' % where, flush=True)
    while server:
      time.sleep(0.5)  # signal.pause() would miss one that comes just before it
  except KeyboardInterrupt:
    os._exit(130)  # TensorFlow's server does not end otherwise


def main(argv=None):
  """Runs the program; returns its exit code."""
  return run_program('worker.py', lambda: run(parse_flags(argv)))


if __name__ == '__main__':
  sys.exit(main())
