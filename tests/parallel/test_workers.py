"""Real workers compute what one process does; lost ones are named or dropped; who can reach them."""

import concurrent.futures
import contextlib
import errno
import json
import os
import signal
import socket
import threading
import time

import forking
import grpc
import helpers
import pytest

from splitnet.common.errors import UserError
from splitnet.parallel import connections, port_filter, worker, workers

pytestmark = pytest.mark.slow

TIMEOUT = 600  # seconds that a test's workers have to answer; nothing waits for it if all is well
SILENCE = 45  # the same in the test of one that does not answer, which takes that long


class Process:
  """A worker of worker.py."""

  def __init__(self, *arguments):
    self.process = helpers.start('splitnet.parallel.worker', ['--port', 0, *arguments])
    self.address = None

  def wait_until_ready(self):
    (line,) = helpers.read_until(self.process, 'worker: ready at ')
    self.address = line.split()[-1]
    return self

  def end(self):
    self.process.kill()  # also when it is stopped
    self.process.communicate()


@pytest.fixture(scope='module')
def start():
  """Starts workers; all end with the tests."""
  started = []

  def several(count):
    new = [Process() for _ in range(count)]
    started.extend(new)
    return [process.wait_until_ready() for process in new]

  yield several
  for process in started:
    process.end()


@pytest.fixture(scope='module')
def pair(start):
  """Two workers that no test kills."""
  return start(2)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return helpers.data(tmp_path_factory)


@pytest.fixture(scope='module')
def arguments(tmp_path_factory, data):
  """eval.py's for the tiny split network, 1-2-3, in 14 batches."""
  split = helpers.stages(tmp_path_factory)['split']
  return ['--checkpoint', split, '--data_dir', data, '--batch_size', 5, '--worker_timeout', TIMEOUT]


def addresses(processes):
  return ','.join(process.address for process in processes)


def start_quiet(command):
  """Starts eval.py where TensorFlow was imported with the log level that eval.py sets for --workers."""
  return forking.Program(command, TF_CPP_MIN_LOG_LEVEL='3')


def unused_port():
  with socket.socket() as free:
    free.bind((port_filter.LOOPBACK, 0))
    return free.getsockname()[1]


def assert_same_result(path, alone):
  """Asserts that a result is that of one process, to rounding."""
  with open(path, encoding='utf-8') as f:
    result = json.load(f)
  assert result['cross_entropy'] == pytest.approx(alone['cross_entropy'], rel=1e-6)
  for name in ('images', 'accuracy', 'top5_accuracy', 'confusion', 'groups', 'parameters', 'flops'):
    assert result[name] == alone[name], name
  return result


# --- the whole program ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('trunk', ['replicate', 'first'])
def test_two_workers_compute_what_one_process_does(tmp_path_factory, pair, arguments, tmp_path, trunk):
  path = str(tmp_path / 'result.json')
  more = ['--workers', addresses(pair), '--trunk', trunk, '--output_file', path]
  process = helpers.start_anew(['eval.py', *arguments, *more])
  stdout, stderr = process.communicate()
  assert (process.returncode, stderr) == (0, '')
  result = assert_same_result(path, helpers.evaluated(tmp_path_factory, 'split'))
  assert result['devices'] == [process.address + '/CPU:0' for process in pair]
  assert ', '.join(result['devices']) in stdout
  assert result['latency'] > 0 and result['images_per_second'] > 0


OTHER_NETWORKS = """
import sys
import helpers
import numpy as np
from graphs import AlexNet, ResNet18, images, make_tree
from splitnet.network import folding
from splitnet.parallel import executor, workers

connected = workers.Workers(sys.argv[1].split(','), float(sys.argv[2]))
for case, trunk in ((AlexNet, '2-3-3'), 'replicate'), ((ResNet18, '1-2-3', 'all'), 'first'):
  tree = make_tree(*case)
  x = images(tree.graph)
  expected = tree(x).numpy()
  logits, speed = executor.predict(folding.folded(tree), x, lambda images: images, 2, workers=connected, trunk=trunk)
  assert {part.device for part in speed.parts} == set(connected.devices) and len(connected.devices) == 2
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
"""


def test_two_workers_compute_the_logits_of_other_networks(pair):
  done = forking.run(['-c', OTHER_NETWORKS, addresses(pair), TIMEOUT])
  assert done.returncode == 0, done.stderr


# eval.py, but after four batches a process gets a signal. Prints which batches each run over them was asked for.
SIGNALLED = """
import json, os, signal, sys
import eval as evaluation
from splitnet.parallel import executor, workers
run, asked = executor.BranchExecutor.run, []
def signalling(self, batches):
  batches = list(batches)
  asked.append([key for key, _ in batches])
  for i, computed in enumerate(run(self, batches)):
    yield computed
    if i == 3 and len(asked[-1]) == 14:
      os.kill(int(sys.argv[1]), getattr(signal, sys.argv[2]))
executor.BranchExecutor.run = signalling
code = evaluation.main(sys.argv[3:])
print(json.dumps([keys for keys in asked if len(keys) > 1]))
workers.exit_program(code)
"""


def begin_signalled(victim, name, arguments, begin=start_quiet):
  """Starts eval.py, during which a worker gets a signal."""
  return begin(['-c', SIGNALLED, victim.process.pid, name, *arguments])


def signalled(*arguments):
  """Runs it: (exit code, the last line of stdout, stderr)."""
  process = begin_signalled(*arguments)
  stdout, stderr = process.communicate()
  return process.returncode, (stdout.splitlines() or [''])[-1], stderr


@pytest.fixture(scope='module', autouse=True)
def with_a_silent_one(start, pair, arguments, tmp_path_factory):
  """A run of which one worker falls silent, while the other tests run: process, workers, path of the result."""
  path = str(tmp_path_factory.mktemp('silent') / 'result.json')
  (victim,) = start(1)
  workers = [pair[0], victim]
  more = ['--workers', addresses(workers), '--output_file', path, '--retry', '--worker_timeout', SILENCE]
  process = begin_signalled(victim, 'SIGSTOP', arguments + more)
  yield process, workers, path
  process.kill()
  process.communicate()


@pytest.mark.parametrize('trunk', ['replicate', 'first'])
def test_a_worker_killed_in_the_middle_is_named(pair, start, arguments, trunk):
  (victim,) = start(1)
  more = ['--workers', addresses([pair[0], victim]), '--trunk', trunk]
  code, _, stderr = signalled(victim, 'SIGKILL', arguments + more, helpers.start_anew)
  assert code == 1
  assert stderr.startswith(f'eval.py: worker {victim.address} cannot be reached: '), stderr
  assert '--retry' in stderr and stderr.count('\n') == 1


def test_with_retry_the_others_go_on(tmp_path_factory, pair, start, arguments, tmp_path):
  (victim,) = start(1)
  path = str(tmp_path / 'result.json')
  more = ['--workers', addresses([victim, pair[1]]), '--retry', '--output_file', path]
  code, last, stderr = signalled(victim, 'SIGKILL', arguments + more)
  assert code == 0, stderr
  note = f'note: worker {victim.address} cannot be reached; going on with {pair[1].address}\n'
  assert stderr == note
  result = assert_same_result(path, helpers.evaluated(tmp_path_factory, 'split'))
  assert result['devices'] == [pair[1].address + '/CPU:0']
  first, second = json.loads(last)
  assert first == list(range(14)) and set(second) < set(first) and len(second) <= 10  # four were done


def test_a_wrong_port_is_named_and_with_retry_left_out(tmp_path_factory, pair, arguments, tmp_path):
  wrong, path = f'127.0.0.1:{unused_port()}', str(tmp_path / 'result.json')
  more = ['--workers', f'{wrong},{pair[0].address}', '--output_file', path]
  for retry, expected in (([], 1), (['--retry'], 0)):
    process = start_quiet(['eval.py', *arguments, *more, *retry])
    _, stderr = process.communicate()
    assert process.returncode == expected
    assert f'worker {wrong} cannot be reached' in stderr and stderr.count('\n') == 1
    assert os.path.exists(path) == bool(retry)
  assert_same_result(path, helpers.evaluated(tmp_path_factory, 'split'))


# --- who is there -----------------------------------------------------------------------------------------------------


def test_refused_silent_and_answering_addresses_are_told_apart(pair):
  with socket.socket() as silent:
    silent.bind((port_filter.LOOPBACK, 0))
    silent.listen()  # its kernel accepts connections, but nobody answers
    silent_address, refused = f'127.0.0.1:{silent.getsockname()[1]}', f'127.0.0.1:{unused_port()}'
    found = connections.unreachable([pair[0].address, silent_address, refused], 10)
  assert found == {silent_address: None, refused: 'cannot be reached'}
  assert connections.unreachable([process.address for process in pair], TIMEOUT) == {}


def test_no_worker_at_all_is_told_with_and_without_retry():
  address = f'127.0.0.1:{unused_port()}'
  for retry, words in ((False, 'cannot be reached: start it again'), (True, 'no other is left')):
    with pytest.raises(UserError, match=f'worker {address} .*{words}'):
      workers.Workers([address], TIMEOUT, retry)


def test_addresses_are_parsed():
  assert workers.parse_addresses('a-b.c:1, 192.168.0.7:65535,') == ['a-b.c:1', '192.168.0.7:65535']
  for text, words in (
    ('', 'no worker'), ('a', "'a'"), ('a:b', "'a:b'"), (':1', "':1'"), ('a:0', "'a:0'"), ('a:1,a:1', 'twice')
  ):  # fmt: skip
    with pytest.raises(UserError, match=words):
      workers.parse_addresses(text)


# --- who can reach a worker -------------------------------------------------------------------------------------------


def answers(host, port):
  try:
    socket.create_connection((host, port), 0.5).close()
    return True
  except OSError:
    return False


def test_a_worker_is_reached_at_its_own_address_only(pair):
  host, port = pair[0].address.split(':')
  assert host == '127.0.0.1' and answers(host, int(port))
  # All of 127.0.0.0/8 is this machine, so what listens everywhere, as TensorFlow's servers do, answers there too.
  others = [('127.0.0.2', int(port)), ('::1', int(port))]
  assert not any(answers(*other) for other in others)


def listening(port, family=socket.AF_INET6, address='::'):
  """A socket as gRPC makes it: on all addresses, sharing its port."""
  server = socket.socket(family)
  if family == socket.AF_INET6:
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
  server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
  server.bind((address, port))
  server.listen()
  return server


def test_a_guarded_port_lets_nobody_in_and_then_those_who_come_to_one_address():
  guard = port_filter.Guard()
  hosts = ('127.0.0.1', '127.0.0.2', '::1')
  assert not any(answers(host, guard.port) for host in hosts)
  with guard.open_for('127.0.0.2'):
    assert os.environ[port_filter.REUSE_PORT] == '1'
    server = listening(guard.port)
    assert not any(answers(host, guard.port) for host in hosts)  # it listens, but nobody gets there
  with server:
    assert [answers(host, guard.port) for host in hosts] == [False, True, False]
    server.settimeout(5)
    server.accept()[0].close()
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):  # that was the only one, from the beginning
      server.accept()
  assert port_filter.REUSE_PORT not in os.environ


def test_who_knocks_at_a_guarded_port_gets_in_later():
  guard = port_filter.Guard()
  with socket.socket() as early:
    early.setblocking(False)
    assert early.connect_ex(('127.0.0.1', guard.port)) == errno.EINPROGRESS
    with guard.open_for('127.0.0.1'):
      server = listening(guard.port)
    with server:
      server.settimeout(30)  # TCP tries again after a second, and then after two more
      connection, address = server.accept()
      connection.close()
      assert address[1] == early.getsockname()[1]


def test_a_port_for_nobody_stays_shut():
  guard = port_filter.Guard()
  with guard.open_for(None):
    server = listening(guard.port)
  with server:
    assert not any(answers(host, guard.port) for host in ('127.0.0.1', '127.0.0.2', '::1'))


@pytest.mark.parametrize('case', ['no server', 'in another way'])
def test_a_server_that_the_guard_cannot_keep_is_not_used(case):
  guard = port_filter.Guard()
  words = 'no server listens' if case == 'no server' else 'unexpected way'
  with contextlib.ExitStack() as stack, pytest.raises(OSError, match=words), guard.open_for('127.0.0.1'):
    if case != 'no server':
      stack.enter_context(listening(guard.port, socket.AF_INET, '127.0.0.3'))


def test_a_guard_takes_no_port_that_is_taken():
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    with pytest.raises(OSError, match='in use'):
      port_filter.Guard(taken.getsockname()[1])
  guard = port_filter.Guard()
  with pytest.raises(OSError, match='in use'):  # and takes the one that it has from the next
    port_filter.Guard(guard.port)


def test_nobody_is_answered_before_a_worker_is_ready():
  """Who connects all the time while a worker starts is answered at its own address only, and only at the end."""
  port, stop, answered = unused_port(), threading.Event(), []

  def knock(host):
    while not stop.is_set():
      with contextlib.suppress(OSError), socket.create_connection((host, port), 0.05) as connection:
        connection.settimeout(0.2)
        if connection.recv(9):  # gRPC speaks first
          answered.append(host)

  threads = [threading.Thread(target=knock, args=(host,)) for host in ('127.0.0.2', '127.0.0.3', '127.0.0.1') * 2]
  for thread in threads:
    thread.start()
  process = helpers.start('splitnet.parallel.worker', ['--port', port])
  try:
    helpers.read_until(process, 'worker: ready at ')
    end = time.monotonic() + 60
    while '127.0.0.1' not in answered and time.monotonic() < end:
      time.sleep(0.05)
  finally:
    stop.set()
    for thread in threads:
      thread.join()
    process.kill()
    process.communicate()
  assert set(answered) == {'127.0.0.1'}


# --- workers that fall silent, proxies --------------------------------------------------------------------------------


class Silent(grpc.GenericRpcHandler):
  """Passes calls on to a worker up to one of a given method, and answers none from then on."""

  def __init__(self, address, method):
    self._channel, self._method = grpc.insecure_channel(address, [('grpc.enable_http_proxy', 0)]), method
    self.silent, self.end = threading.Event(), threading.Event()

  def service(self, details):
    """Returns how a call is answered."""
    if details.method.endswith('/' + self._method):
      self.silent.set()
    if self.silent.is_set():
      return grpc.unary_unary_rpc_method_handler(lambda request, context: self.end.wait())
    passed_on = self._channel.unary_unary(details.method)
    return grpc.unary_unary_rpc_method_handler(lambda request, context: passed_on(request))


@contextlib.contextmanager
def silent_at(address, method):
  """A server before a worker that falls silent at a method: yields (its address, the Silent)."""
  handler = Silent(address, method)
  server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), handlers=[handler])
  port = server.add_insecure_port('127.0.0.1:0')
  server.start()
  try:
    yield f'127.0.0.1:{port}', handler
  finally:
    handler.end.set()
    server.stop(0)


@pytest.mark.parametrize('method', ['GetStatus', 'CreateContext'])
def test_a_worker_that_is_silent_when_connected_to_ends_within_the_time_limit(pair, arguments, method):
  with silent_at(pair[0].address, method) as (address, handler):
    process = start_quiet(['eval.py', *arguments, '--workers', address, '--worker_timeout', 8])
    try:
      assert handler.silent.wait(TIMEOUT)
      stdout, stderr = process.communicate(timeout=300)
    finally:
      process.kill()
  assert process.returncode == 1 and stdout == ''
  assert stderr.startswith(f'eval.py: cannot work with {address} (no answer within') and stderr.count('\n') == 1, stderr


def test_an_interrupt_ends_connecting(pair, arguments):
  with silent_at(pair[0].address, 'CreateContext') as (address, handler):
    process = start_quiet(['eval.py', *arguments, '--workers', address])
    try:
      assert handler.silent.wait(TIMEOUT)
      process.send_signal(signal.SIGINT)
      stdout, stderr = process.communicate(timeout=300)
    finally:
      process.kill()
  assert (process.returncode, stdout, stderr) == (130, '', '')


def test_a_connection_that_is_given_up_is_ended():
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    server.listen()
    address = f'127.0.0.1:{server.getsockname()[1]}'
    with socket.create_connection(server.getsockname()) as own, server.accept()[0]:
      own.settimeout(5)
      connections.give_up(f'127.0.0.1:{unused_port()}')
      own.sendall(b'x')
      connections.give_up(address)
      assert own.recv(1) == b''
  connections.give_up('a..b:1')


def test_a_proxy_is_not_asked_for_workers(tmp_path_factory, pair, arguments, tmp_path, monkeypatch):
  """It is one that takes a connection and stays silent."""
  path = str(tmp_path / 'result.json')
  with socket.socket() as proxy:
    proxy.bind(('127.0.0.1', 0))
    proxy.listen()
    for name in ('http_proxy', 'https_proxy', 'grpc_proxy', 'ALL_PROXY'):
      monkeypatch.setenv(name, f'http://127.0.0.1:{proxy.getsockname()[1]}')
    process = start_quiet(['eval.py', *arguments, '--workers', pair[0].address, '--output_file', path])
    _, stderr = process.communicate(timeout=TIMEOUT)
  assert (process.returncode, stderr) == (0, '')
  assert_same_result(path, helpers.evaluated(tmp_path_factory, 'split'))


# --- worker.py's flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'flags, code, words',
  [
    ([], 2, ['--port']),
    (['--port', 'x'], 2, ["'x'"]),
    (['--port', '65536'], 1, ["'65536'"]),
    (['--port', '0', '--host', '198.51.100.1'], 1, ['198.51.100.1', '--host']),
    (['--port', '0', '--host', ''], 1, ["--host is ''", '127.0.0.1']),
    (['--port', '0', '--host', ' '], 1, ["' '"]),
    (['--port', '0', '--host', '0'], 1, ["'0'", '0.0.0.0']),
    (['--port', '0', '--host', '0x0'], 1, ["'0x0'"]),
    (['--port', '0', '--host', '00.0'], 1, ["'00.0'"]),
    (['--port', '0', '--host', 'a..b'], 1, ["'a..b'"]),
    (['--port', '0', '--host', 'x' * 300], 1, ["xx'"]),
    (['--port', '0', '--host', 'no.such.host.invalid'], 1, ["'no.such.host.invalid'"]),
    (['--port', '0', '--threads', '-1'], 1, ['--threads', "'-1'"]),
    (['--port', '0', '--gpu_fraction', '0'], 1, ['--gpu_fraction']),
    (['--port', 'TAKEN'], 1, ['in use', '--port']),
  ],
)
def test_a_workers_mistakes_are_one_sentence(pair, capsys, flags, code, words):
  flags = [pair[0].address.split(':')[1] if a == 'TAKEN' else a for a in flags]
  found, stdout, stderr = helpers.call(worker, flags, capsys)
  assert found == code and stdout == '' and stderr.count('\n') == 1
  assert all(word in stderr for word in words), stderr


@pytest.mark.parametrize('host', port_filter.ANY)
def test_all_addresses_are_listened_on_if_asked_for_in_so_many_words(host):
  process = helpers.start('splitnet.parallel.worker', ['--port', 0, '--host', host])
  try:
    (line,) = helpers.read_until(process, 'worker: ready at 0.0.0.0:')
    assert answers('127.0.0.2', int(line.rsplit(':', 1)[1]))
  finally:
    process.kill()
    _, stderr = process.communicate()
  assert stderr.startswith('note: everyone who can reach this machine can use this worker') and stderr.count('\n') == 1


def test_a_worker_ends_with_a_signal_and_without_a_traceback(start):
  for number, process in zip((signal.SIGINT, signal.SIGTERM), start(2)):
    process.process.send_signal(number)
    _, stderr = process.process.communicate(timeout=TIMEOUT)
    assert process.process.returncode == 130 and stderr == ''


# --- at last, when the time of the silent one is over -----------------------------------------------------------------


def test_a_worker_that_does_not_answer_is_named_and_with_retry_left_out(tmp_path_factory, with_a_silent_one):
  process, (other, victim), path = with_a_silent_one
  _, stderr = process.communicate()
  note = f'note: worker {victim.address} did not answer within {SILENCE} s; going on with {other.address}\n'
  assert (process.returncode, stderr) == (0, note)
  result = assert_same_result(path, helpers.evaluated(tmp_path_factory, 'split'))
  assert result['devices'] == [other.address + '/CPU:0']
