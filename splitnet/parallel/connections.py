"""Tells who answers at other machines, and gives up connections that are silent.

gRPC in TensorFlow sends its own connections, too, through an http_proxy of the environment. A proxy knows nothing of
workers, and may take a connection that then stays silent.
"""

import contextlib
import os
import queue
import socket
import time

import grpc

from splitnet.parallel import port_filter


def ignore_proxies():
  """Takes the proxies out of the environment, before gRPC makes a connection."""
  for name in ('grpc_proxy', 'http_proxy', 'https_proxy', 'all_proxy'):
    for variable in (name, name.upper()):
      os.environ.pop(variable, None)


def unreachable(addresses, timeout):
  """Returns the addresses at which no gRPC server answers, with the reason.

  A process that is stopped or hangs still has connections accepted by its kernel, so its answer is waited for,
  `timeout` seconds for all of them together. Returns a dict from 'host:port' to a text; None for no answer in time.
  """
  states, reasons = queue.SimpleQueue(), dict.fromkeys(addresses)
  waiting = set(addresses)
  # Of its own: gRPC would share a connection that was ready when the server was alive.
  options = [('grpc.enable_http_proxy', 0), ('grpc.use_local_subchannel_pool', 1)]
  with contextlib.ExitStack() as stack:  # closed after an interrupt, too: gRPC would write a traceback at the end
    for address in addresses:
      channel = stack.enter_context(grpc.insecure_channel(address, options))
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
  return reasons


def give_up(address):
  """Ends this process's connections to 'host:port': whatever waits gets an error."""
  host, port = address.rsplit(':', 1)
  with contextlib.suppress(OSError, UnicodeError):
    peers = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    for own in port_filter.own_sockets():
      with own, contextlib.suppress(OSError):
        peer = own.getpeername()
        if peer[1] == int(port) and peer[0].removeprefix('::ffff:') in peers:
          own.shutdown(socket.SHUT_RDWR)
