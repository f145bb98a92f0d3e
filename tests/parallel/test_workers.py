"""workers.py, worker.py, port_filter.py: real workers compute what one process does; lost ones are named or dropped."""

import json
import os
import signal
import socket
import subprocess
import sys

import helpers
import pytest

from splitnet.common.errors import UserError
from splitnet.parallel import port_filter, worker, workers

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


def unused_port():
  with socket.socket() as free:
    free.bind((port_filter.LOOPBACK, 0))
    return free.getsockname()[1]


def assert_same_result(path, alone):
  """Asserts that a result is that of one process, to rounding."""
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
  assert result['devices'] == [process.address + '/CPU:0' for process in pair]
  assert ', '.join(result['devices']) in stdout
  assert result['latency'] > 0 and result['images_per_second'] > 0


OTHER_NETWORKS = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests']
import helpers
import numpy as np
from graphs import AlexNet, ResNet18, images, make_tree
from splitnet.network import folding
from splitnet.parallel import executor, workers

connected = workers.Workers(sys.argv[2].split(','), float(sys.argv[3]))
for case, trunk in ((AlexNet, '2-3-3'), 'replicate'), ((ResNet18, '1-2-3', 'all'), 'first'):
  tree = make_tree(*case)
  x = images(tree.graph)
  expected = tree(x).numpy()
  logits, speed = executor.predict(folding.folded(tree), x, lambda images: images, 2, workers=connected, trunk=trunk)
  assert {part.device for part in speed.parts} == set(connected.devices) and len(connected.devices) == 2
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
"""


def test_two_workers_compute_the_logits_of_other_networks(pair):
  command = [sys.executable, '-c', OTHER_NETWORKS, helpers.PROJECT, addresses(pair), str(TIMEOUT)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


# eval.py, but after four batches a process gets a signal. Prints which batches each run over them was asked for.
SIGNALLED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import eval as evaluation
from splitnet.parallel import executor, workers
run, asked = executor.BranchExecutor.run, []
def signalling(self, batches):
  batches = list(batches)
  asked.append([key for key, _ in batches])
  for i, computed in enumerate(run(self, batches)):
    yield computed
    if i == 3 and len(asked[-1]) == 14:
      os.kill(int(sys.argv[2]), getattr(signal, sys.argv[3]))
executor.BranchExecutor.run = signalling
code = evaluation.main(sys.argv[4:])
print(json.dumps([keys for keys in asked if len(keys) > 1]))
workers.exit_program(code)
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


def test_a_worker_that_does_not_answer_is_named_and_with_retry_left_out(tmp_path_factory, pair, arguments, tmp_path):
  path, (other, victim) = str(tmp_path / 'result.json'), pair
  more = ['--workers', addresses(pair), '--output_file', path, '--retry', '--worker_timeout', SILENCE]
  try:
    code, _, stderr = signalled(victim, 'SIGSTOP', arguments + more)
  finally:
    victim.process.send_signal(signal.SIGCONT)
  note = f'note: worker {victim.address} did not answer within {SILENCE} s; going on with {other.address}\n'
  assert (code, stderr) == (0, note)
  result = assert_same_result(path, helpers.evaluated(tmp_path_factory, 'split'))
  assert result['devices'] == [other.address + '/CPU:0']


def test_a_wrong_port_is_named_and_with_retry_left_out(tmp_path_factory, pair, arguments, tmp_path):
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


def test_refused_silent_and_answering_addresses_are_told_apart(pair):
  with socket.socket() as silent:
    silent.bind((port_filter.LOOPBACK, 0))
    silent.listen()  # its kernel accepts connections, but nobody answers
    silent_address, refused = '127.0.0.1:%d' % silent.getsockname()[1], '127.0.0.1:%d' % unused_port()
    found = workers.unreachable([pair[0].address, silent_address, refused], 10)
  assert found == {silent_address: None, refused: 'cannot be reached'}
  assert workers.unreachable([process.address for process in pair], TIMEOUT) == {}


def test_no_worker_at_all_is_told_with_and_without_retry():
  address = '127.0.0.1:%d' % unused_port()
  for retry, words in ((False, 'cannot be reached: start it again'), (True, 'no other is left')):
    with pytest.raises(UserError, match='worker %s .*%s' % (address, words)):
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


def test_a_restricted_socket_drops_what_comes_for_other_addresses():
  with socket.socket() as server:
    server.bind((port_filter.ANY, 0))
    server.listen()
    port = server.getsockname()[1]
    assert answers('127.0.0.1', port) and answers('127.0.0.2', port)
    port_filter.restrict(port, '127.0.0.2')
    assert answers('127.0.0.2', port) and not answers('127.0.0.1', port)
  with pytest.raises(OSError, match='no socket listens'):
    port_filter.restrict(unused_port(), port_filter.LOOPBACK)


def test_connections_made_before_are_restricted_too():
  with socket.socket() as server:
    server.bind((port_filter.ANY, 0))
    server.listen()
    port = server.getsockname()[1]
    with socket.create_connection(('127.0.0.2', port)) as before, server.accept()[0] as accepted:
      port_filter.restrict(port, port_filter.LOOPBACK)
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
    _, stderr = process.process.communicate(timeout=TIMEOUT)
    assert process.process.returncode == 130 and stderr == ''
