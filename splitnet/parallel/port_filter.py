"""Keeps a port of this process to one address of the machine.

A program of Linux' kernel does it, which needs no privilege.

TensorFlow's servers listen on all addresses of a machine, whichever address they are given, and answer from the moment
they are made. So the port is occupied first, by a socket of our own whose queue is full, so that the kernel drops
whoever wants to connect. TensorFlow's socket joins it (SO_REUSEPORT), and a program says which of the two a connection
is for (SO_ATTACH_REUSEPORT_CBPF): ours at first, and once the server is there, TensorFlow's for those who come to the
one address. Nobody is let in before; who tries meanwhile tries again a second later, as TCP does.

(A filter on TensorFlow's socket, SO_ATTACH_FILTER, would come too late, and newer kernels want a privilege for it.)

It guards against other machines, and other addresses of this one. Whoever can send to the one address is let in: at the
loopback address, that is every user of this machine.
"""

import contextlib
import ctypes
import os
import socket
import struct
import sys

LOOPBACK = '127.0.0.1'
ANY = ('0.0.0.0', '::')  # in words, all addresses of this machine
REUSE_PORT = 'TF_GRPC_REUSE_PORT'  # TensorFlow's servers read it when they are made
SO_ATTACH_REUSEPORT_CBPF = 51  # Linux; Python's socket module does not name it
BACKLOG = 1  # of our own socket, which takes one connection more than that; one of none is a flood to the kernel
FILLING = 0.5  # seconds that connecting to it may take; others may have filled it, which will do

# The kernel's classic packet filter: operations, and where the network header begins.
LOAD_HALF_WORD, LOAD_WORD, SKIP_UNLESS_EQUAL, RETURN = 0x28, 0x20, 0x15, 0x06
PROTOCOL, NETWORK_HEADER = 0xFFFFF000, 0xFFF00000
IPV4 = 0x0800
DESTINATION = NETWORK_HEADER + 16  # of an IPv4 packet
OURS, SERVERS = 0, 1  # the sockets of the port, in the order in which they came

_kept = []  # the sockets that keep a port for as long as this process lives


class Guard:
  """Occupies a port; then lets in who comes to one address of TensorFlow's server."""

  def __init__(self, port=0):
    """Occupies a port (0: a free one) on all addresses; OSError if it cannot."""
    if not sys.platform.startswith('linux'):
      raise OSError('only Linux can filter a socket')
    self._own = _wildcard_socket(port)
    try:
      # Only now: who else is bound to the port was told by the line above, and who comes later, of this user's
      # programs alone, has to ask for sharing it.
      self._own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
      self._choose([(RETURN, 0, 0, OURS)])
      self._own.listen(BACKLOG)
      self.port = self._own.getsockname()[1]
      self._fill()
    except BaseException:
      self._own.close()
      raise

  def _choose(self, instructions):
    """Gives the kernel the program that chooses among the sockets of the port."""
    code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *instruction) for instruction in instructions))
    program = struct.pack('HL', len(instructions), ctypes.addressof(code))
    self._own.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)

  def _fill(self):
    """Fills the queue of our own socket, which nobody ever takes connections from."""
    for _ in range(BACKLOG + 1):
      with contextlib.suppress(OSError):
        socket.create_connection((LOOPBACK, self.port), FILLING).close()

  @contextlib.contextmanager
  def open_for(self, host):
    """Opens a context in which TensorFlow's server is made, then lets it be reached.

    That is at `host`, an IPv4 address of this machine; None: at none. Raises OSError if no server has come, or one that
    listens in another way, which must not be used.
    """
    before = os.environ.get(REUSE_PORT)
    os.environ[REUSE_PORT] = '1'
    _kept.append(self._own)
    try:
      yield
    finally:
      os.environ.pop(REUSE_PORT)
      if before is not None:
        os.environ[REUSE_PORT] = before
    self._check_server()
    if host is not None:
      self._choose(_servers_if_sent_to(host))

  def _check_server(self):
    listening = [own for own in _sockets_of_port(self.port) if _listens(own)]
    try:
      others = [own for own in listening if not _same(own, self._own)]
      if not others:
        raise OSError(f'no server listens on port {self.port}')
      # Of another kind, or one that does not share, it would not be among those that the kernel chooses from.
      shares = all(own.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for own in others)
      if not shares or any(_kind(own) != _kind(self._own) for own in others):
        raise OSError(f'the server on port {self.port} listens in an unexpected way')
    finally:
      for own in listening:
        own.close()


def _servers_if_sent_to(host):
  """Returns the program that chooses the server's socket for an IPv4 address only."""
  (address,) = struct.unpack('!I', socket.inet_aton(host))
  return [  # operation, instructions to skip if equal and if not, value
    (LOAD_HALF_WORD, 0, 0, PROTOCOL),
    (SKIP_UNLESS_EQUAL, 0, 3, IPV4),
    (LOAD_WORD, 0, 0, DESTINATION),
    (SKIP_UNLESS_EQUAL, 0, 1, address),
    (RETURN, 0, 0, SERVERS),
    (RETURN, 0, 0, OURS),
  ]


def _wildcard_socket(port):
  """Returns a socket bound to a port on all addresses, as gRPC's (IPv6 if there is)."""
  if socket.has_dualstack_ipv6() and _has_ipv6_loopback():
    own, address = socket.socket(socket.AF_INET6), ANY[1]
    own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
  else:
    own, address = socket.socket(), ANY[0]
  try:
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
    own.bind((address, port))
  except BaseException:
    own.close()
    raise
  return own


def _has_ipv6_loopback():
  try:
    with socket.socket(socket.AF_INET6) as probe:
      probe.bind(('::1', 0))
    return True
  except OSError:
    return False


def _listens(own):
  return bool(own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _kind(own):
  """Returns what decides to which group a socket of a port belongs."""
  only_ipv6 = own.family == socket.AF_INET6 and own.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
  return own.family, bool(only_ipv6), own.getsockname()[0]


def _same(one, other):
  return os.fstat(one.fileno()).st_ino == os.fstat(other.fileno()).st_ino


def own_sockets():
  """Yields duplicates of this process's IP sockets; whoever takes one closes it."""
  for descriptor in os.listdir('/proc/self/fd'):
    try:
      own = socket.socket(fileno=os.dup(int(descriptor)))
    except OSError:  # not a socket, or closed meanwhile
      continue
    if own.family in (socket.AF_INET, socket.AF_INET6):
      yield own
    else:
      own.close()


def _sockets_of_port(port):
  """Returns duplicates of this process's sockets that have a local port."""
  sockets = []
  for own in own_sockets():
    try:
      if own.getsockname()[1] == port:
        sockets.append(own)
        continue
    except OSError:
      pass
    own.close()
  return sockets
