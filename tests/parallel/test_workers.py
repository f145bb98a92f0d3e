"""hosts.py, worker.py: real workers on loopback compute what one process does; lost ones are named, or gone without."""

import json
import os
import signal
import socket
import subprocess
import sys

import helpers
import pytest

from splitnet.common.errors import UserError
from splitnet.parallel import worker
from splitnet.parallel import workers as hosts

TIMEOUT = 20  # seconds that a test's workers have to answer: long for a busy machine, short for the tests of silence


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


def unused_port():
  with socket.socket() as free:
    free.bind((hosts.LOOPBACK, 0))
    return free.getsockname()[1]


def assert_same_result(path, alone):
  """Asserts that a result is that of one process; which of both is nearer a tie is not told to the last digit."""
  with open(path) as f:
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
  process = helpers.start('eval.py', arguments + more)
  stdout, stderr = process.communicate()
  assert (process.returncode, stderr) == (0, '')
  result = assert_same_result(path, helpers.evaluated(tmp_path_factory, 'split'))
  assert result['devices'] == [worker.address + '/CPU:0' for worker in pair]
  assert ', '.join(result['devices']) in stdout
  assert result['latency'] > 0 and result['images_per_second'] > 0


# eval.py, but after four batches a process gets a signal. Prints which batches each run over them was asked for.
SIGNALLED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import eval as evaluation
from splitnet.parallel import executor, workers as hosts
run, asked = executor.Spread.run, []
def signalling(self, batches):
  batches = list(batches)
  asked.append([key for key, _ in batches])
  for i, computed in enumerate(run(self, batches)):
    yield computed
    if i == 3 and len(asked[-1]) == 14:
      os.kill(int(sys.argv[2]), getattr(signal, sys.argv[3]))
executor.Spread.run = signalling
code = evaluation.main(sys.argv[4:])
print(json.dumps([keys for keys in asked if len(keys) > 1]))
hosts.leave(code)
"""


def signalled(victim, name, arguments):
  """Runs eval.py while a worker gets a signal: (exit code, the last line of stdout, stderr)."""
  command = [sys.executable, '-c', SIGNALLED, helpers.PROJECT, victim.process.pid, name, *arguments]
  environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1'}
  done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment)
  return done.returncode, (done.stdout.splitlines() or [''])[-1], done.stderr


@pytest.mark.parametrize('trunk', ['replicate', 'first'])
def test_a_worker_killed_in_the_middle_is_named(pair, start, arguments, trunk):
  (victim,) = start(1)
  more = ['--workers', addresses([pair[0], victim]), '--trunk', trunk]
  code, _, stderr = signalled(victim, 'SIGKILL', arguments + more)
  assert code == 1
  assert stderr.startswith('eval.py: worker %s cannot be reached: ' % victim.address), stderr
  assert '--retry' in stderr and stderr.count('\n') == 1


def test_with_retry_the_others_go_on(tmp_path_factory, pair, start, arguments, tmp_path):
  (victim,) = start(1)
  path = str(tmp_path / 'result.json')
  more = ['--workers', addresses([victim, pair[1]]), '--retry', '--output_file', path]
  code, last, stderr = signalled(victim, 'SIGKILL', arguments + more)
  assert code == 0, stderr
  note = 'note: worker %s cannot be reached; going on with %s\n' % (victim.address, pair[1].address)
  assert stderr == note
  result = assert_same_result(path, helpers.evaluated(tmp_path_factory, 'split'))
  assert result['devices'] == [pair[1].address + '/CPU:0']
  first, second = json.loads(last)
  assert first == list(range(14)) and set(second) < set(first) and len(second) <= 10  # four were done


@pytest.mark.parametrize('retry', [False, True])
def test_a_late_worker_is_named_and_with_retry_gone_without(tmp_path_factory, pair, arguments, tmp_path, retry):
  path, (other, victim) = str(tmp_path / 'result.json'), pair
  more = ['--workers', addresses(pair), '--output_file', path] + (['--retry'] if retry else [])
  try:
    code, _, stderr = signalled(victim, 'SIGSTOP', arguments + more)
  finally:
    victim.process.send_signal(signal.SIGCONT)
  assert stderr.count('\n') == 1 and 'worker %s did not answer within %d s' % (victim.address, TIMEOUT) in stderr
  assert code == (0 if retry else 1)
  if retry:
    assert assert_same_result(path, helpers.evaluated(tmp_path_factory, 'split'))['devices'] == [
      other.address + '/CPU:0'
    ]


def test_a_wrong_port_is_told_and_with_retry_gone_without(tmp_path_factory, pair, arguments, tmp_path):
  wrong, path = '127.0.0.1:%d' % unused_port(), str(tmp_path / 'result.json')
  more = ['--workers', '%s,%s' % (wrong, pair[0].address), '--output_file', path]
  for retry, expected in (([], 1), (['--retry'], 0)):
    process = helpers.start('eval.py', arguments + more + retry)
    _, stderr = process.communicate()
    assert process.returncode == expected
    assert 'worker %s cannot be reached' % wrong in stderr and stderr.count('\n') == 1
    assert os.path.exists(path) == bool(retry)
  assert_same_result(path, helpers.evaluated(tmp_path_factory, 'split'))


# --- who is there -----------------------------------------------------------------------------------------------------


def test_missing_tells_refused_from_silent_from_there(pair):
  with socket.socket() as silent:
    silent.bind((hosts.LOOPBACK, 0))
    silent.listen()  # its kernel accepts connections, but nobody answers
    silent_address, refused = '127.0.0.1:%d' % silent.getsockname()[1], '127.0.0.1:%d' % unused_port()
    found = hosts.missing([pair[0].address, silent_address, refused], 5)
  assert found == {silent_address: None, refused: 'cannot be reached'}
  assert hosts.missing([process.address for process in pair], TIMEOUT) == {}


def test_no_worker_at_all_is_told_with_and_without_retry():
  address = '127.0.0.1:%d' % unused_port()
  for retry, words in ((False, 'cannot be reached: start it again'), (True, 'no other is left')):
    with pytest.raises(UserError, match='worker %s .*%s' % (address, words)):
      hosts.Workers([address], 5, retry)


def test_addresses_are_parsed():
  assert hosts.parse('a-b.c:1, 192.168.0.7:65535,') == ['a-b.c:1', '192.168.0.7:65535']
  for text, words in (
    ('', 'no worker'), ('a', "'a'"), ('a:b', "'a:b'"), (':1', "':1'"), ('a:0', "'a:0'"), ('a:1,a:1', 'twice')
  ):  # fmt: skip
    with pytest.raises(UserError, match=words):
      hosts.parse(text)


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


def test_a_confined_socket_drops_what_comes_for_other_addresses():
  with socket.socket() as server:
    server.bind((hosts.ANY, 0))
    server.listen()
    port = server.getsockname()[1]
    assert answers('127.0.0.1', port) and answers('127.0.0.2', port)
    hosts.confine(port, '127.0.0.2')
    assert answers('127.0.0.2', port) and not answers('127.0.0.1', port)
  with pytest.raises(OSError, match='no socket listens'):
    hosts.confine(unused_port(), hosts.LOOPBACK)


def test_connections_made_before_are_confined_too():
  with socket.socket() as server:
    server.bind((hosts.ANY, 0))
    server.listen()
    port = server.getsockname()[1]
    with socket.create_connection(('127.0.0.2', port)) as before, server.accept()[0] as accepted:
      hosts.confine(port, hosts.LOOPBACK)
      accepted.settimeout(0.5)
      before.sendall(b'x')
      with pytest.raises(TimeoutError):
        accepted.recv(1)


# --- worker.py's flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'arguments, code, words',
  [
    ([], 2, ['--port']),
    (['--port', 'x'], 2, ["'x'"]),
    (['--port', '65536'], 1, ["'65536'"]),
    (['--port', '0', '--host', '198.51.100.1'], 1, ['198.51.100.1', '--host']),
    (['--port', '0', '--host', 'no.such.host.invalid'], 1, ["'no.such.host.invalid'"]),
    (['--port', '0', '--threads', '-1'], 1, ['--threads', "'-1'"]),
    (['--port', '0', '--gpu_fraction', '0'], 1, ['--gpu_fraction']),
    (['--port', 'TAKEN'], 1, ['in use', '--port']),
  ],
)
def test_a_workers_mistakes_are_one_sentence(pair, capsys, arguments, code, words):
  arguments = [pair[0].address.split(':')[1] if a == 'TAKEN' else a for a in arguments]
  found, stdout, stderr = helpers.call(worker, arguments, capsys)
  assert found == code and stdout == '' and stderr.count('\n') == 1
  assert all(word in stderr for word in words), stderr


def test_a_worker_ends_with_a_signal_and_without_a_traceback(start):
  for number in (signal.SIGINT, signal.SIGTERM):
    (process,) = start(1)
    process.process.send_signal(number)
    _, stderr = process.process.communicate(timeout=60)
    assert process.process.returncode == 130 and stderr == ''
