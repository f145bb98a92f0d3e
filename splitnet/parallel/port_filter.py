"""Restricts a port of this process to one address, by a filter of Linux' kernel.

TensorFlow's servers listen on all addresses of a machine, whatever address they are given. The filter does what binding
to one address would have done: it is on the sockets themselves and needs no privilege.
"""

import ctypes
import os
import socket
import struct
import sys

LOOPBACK = '127.0.0.1'
ANY = '0.0.0.0'
SO_ATTACH_FILTER = 26  # Linux; Python's socket module does not name it

# The kernel's classic packet filter: operations, and where the network header begins.
LOAD_HALF_WORD, LOAD_WORD, SKIP_UNLESS_EQUAL, RETURN = 0x28, 0x20, 0x15, 0x06
PROTOCOL, NETWORK_HEADER = 0xFFFFF000, 0xFFF00000
IPV4 = 0x0800
DESTINATION = NETWORK_HEADER + 16  # of an IPv4 packet
ALL_BYTES, NO_BYTES = 0xFFFFFFFF, 0


def restrict(port, host):
  """Drops all that comes to a listening port of this process for other addresses.

  Connections that were made before are restricted, too. Raises OSError if the system has no such filters, or nothing
  listens on the port.

  Args:
    port: of a server of this process.
    host: an IPv4 address of this machine.
  """
  if not sys.platform.startswith('linux'):
    raise OSError('only Linux can filter a socket')
  (address,) = struct.unpack('!I', socket.inet_aton(host))
  instructions = [  # operation, instructions to skip if equal and if not, value
    (LOAD_HALF_WORD, 0, 0, PROTOCOL),
    (SKIP_UNLESS_EQUAL, 0, 3, IPV4),
    (LOAD_WORD, 0, 0, DESTINATION),
    (SKIP_UNLESS_EQUAL, 0, 1, address),
    (RETURN, 0, 0, ALL_BYTES),
    (RETURN, 0, 0, NO_BYTES),
  ]
  code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *instruction) for instruction in instructions))
  sockets = _sockets_of_port(port)
  if not any(_listens(own) for own in sockets):
    raise OSError(f'no socket listens on port {port}')
  # The listening ones first: what they accept afterwards inherits the filter.
  for own in sorted(sockets, key=_listens, reverse=True):
    own.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack('HL', len(instructions), ctypes.addressof(code)))
  for own in sockets:
    own.close()


def _listens(own):
  return bool(own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _sockets_of_port(port):
  """Returns duplicates of this process's sockets that have a local port."""
  sockets = []
  for descriptor in os.listdir('/proc/self/fd'):
    try:
      own = socket.socket(fileno=os.dup(int(descriptor)))
    except OSError:  # not a socket, or closed meanwhile
      continue
    try:
      if own.family in (socket.AF_INET, socket.AF_INET6) and own.getsockname()[1] == port:
        sockets.append(own)
        continue
    except OSError:
      pass
    own.close()
  return sockets
