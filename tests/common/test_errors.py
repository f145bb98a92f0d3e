"""Tests exit codes, which mistakes are told in one sentence, and what becomes of output that nobody reads."""

import errno
import os
import signal
import socket
import subprocess
import sys

import helpers
import numpy as np
import pytest
import tensorflow as tf

from splitnet.common.errors import UserError, outside_cause, run_program, terminable


def fail(error):
  raise error


def test_a_users_mistake_is_told_in_one_sentence(capsys):
  assert run_program('train.py', lambda: fail(UserError('--k is 0; it must be at least 1'))) == 1
  assert capsys.readouterr() == ('', 'train.py: --k is 0; it must be at least 1\n')


def test_exit_codes(capsys):
  assert run_program('train.py', lambda: fail(KeyboardInterrupt())) == 130
  assert run_program('train.py', lambda: sys.stdout.write('done\n')) == 0
  assert capsys.readouterr() == ('done\n', '')


# --- what a user, a disk or a machine does ----------------------------------------------------------------------


def file_error(number):
  return OSError(number, os.strerror(number), '/there/file')


CAUSES = {
  'full': (file_error(errno.ENOSPC), ["No space left on device: '/there/file'", 'free some space']),
  'quota': (file_error(errno.EDQUOT), ["'/there/file'", 'free some space']),
  'folder': (file_error(errno.EISDIR), ["Is a directory: '/there/file'"]),
  'long': (file_error(errno.ENAMETOOLONG), ["File name too long: '/there/file'"]),
  'bytes': (OSError(errno.EACCES, 'Permission denied', b'/there/\xff'), [r'/there/\udcff']),
  'two': (OSError(errno.EXDEV, 'Invalid cross-device link', 'a', None, 'b'), ["'a' and 'b'"]),
  'port': (file_error(errno.EADDRINUSE), ['Address already in use']),
  'host': (socket.gaierror(socket.EAI_NONAME, 'Name or service not known'), ['Name or service not known']),
  'memory': (MemoryError(), ['memory']),
  'array': (np._core._exceptions._ArrayMemoryError((10**9, 10**9), np.dtype('f4')), ['memory']),
  'tensor': (tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor\nwith'), ['memory', 'OOM']),
  'TensorFlow file': (
    tf.errors.ResourceExhaustedError(None, None, '/there/ckpt-1_temp/part; No space left on device [Op:SaveV2]'),
    ["No space left on device: '/there/ckpt-1_temp/part'"],
  ),
  'TensorFlow node': (
    tf.errors.ResourceExhaustedError(
      None, None, '{{function_node __wrapped__SaveV2_device_/job:localhost/task:0/device:CPU:0}} /a b/part; No space '
      'left on device [Op:SaveV2]',
    ),
    ["No space left on device: '/a b/part' ("],
  ),
  'TensorFlow folder': (tf.errors.FailedPreconditionError(None, None, '/a/b; Not a directory'), ["directory: '/a/b'"]),
}


@pytest.mark.parametrize('case', CAUSES)
def test_what_is_not_the_programs_own_is_one_sentence(case, capsys):
  error, words = CAUSES[case]
  assert run_program('train.py', lambda: fail(error)) == 1
  out, err = capsys.readouterr()
  assert not out and err.startswith('train.py: ') and err.count('\n') == 1, err
  assert all(word in err for word in words), err


@pytest.mark.parametrize('function', [
  lambda: 'a..b'.encode('idna'), lambda: '\udcff'.encode(), lambda: b'\xff'.decode(),
  lambda: open('n' * 300, encoding='utf-8'), lambda: open('/', encoding='utf-8'),
  lambda: open('/dev/full', 'w', encoding='utf-8').write('a' * 100000),
])  # fmt: skip
def test_what_python_raises_of_names_and_disks_is_one_sentence(function, capsys):
  assert run_program('train.py', function) == 1
  assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize('error', [
  ZeroDivisionError(), ValueError('a'), KeyError('a'), TypeError(), RecursionError(), RuntimeError('a'), OSError('a'),
  OSError(errno.EBADF, 'Bad file descriptor'), OSError(errno.EINVAL, 'Invalid argument'),
  tf.errors.InvalidArgumentError(None, None, 'shapes differ'), tf.errors.InternalError(None, None, 'a/b; what'),
], ids=repr)  # fmt: skip
def test_a_bug_is_not_hidden(error):
  assert outside_cause(error) is None
  with pytest.raises(type(error)):
    run_program('train.py', lambda: fail(error))


# --- output that nobody reads -----------------------------------------------------------------------------------

PROGRAM = '''
import sys
from splitnet.common.errors import run_program

def run():
  print('first', flush=True)
  print('second', flush=True)
  open(sys.argv[1], 'w').close()
  if 'interrupted' in sys.argv:
    raise KeyboardInterrupt

sys.exit(run_program('x', run, lasting='lasting' in sys.argv))
'''


def run_without_reader(arguments, output=None):
  """Runs PROGRAM with a pipe that nobody reads, or a file, for its output: (exit code, stderr)."""
  if output is None:
    reading, output = os.pipe()
    os.close(reading)
  with os.fdopen(output, 'wb') as closed:
    done = subprocess.run(
      [sys.executable, '-c', PROGRAM, *map(str, arguments)], cwd=helpers.PROJECT, stdout=closed,
      stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
  return done.returncode, done.stderr


def test_output_that_nobody_reads_is_no_error(tmp_path):
  assert run_without_reader([tmp_path / 'file']) == (0, '')
  assert not os.listdir(tmp_path)


def test_a_program_that_writes_files_goes_on_without_a_reader(tmp_path):
  assert run_without_reader([tmp_path / 'file', 'lasting']) == (0, '')
  assert os.listdir(tmp_path) == ['file']


def test_an_interrupt_without_a_reader_has_its_exit_code(tmp_path):
  assert run_without_reader([tmp_path / 'file', 'lasting', 'interrupted']) == (130, '')


@pytest.mark.parametrize('lasting', [True, False])
def test_output_on_a_full_disk_is_one_sentence(tmp_path, lasting):
  arguments = [tmp_path / 'file'] + ['lasting'] * lasting
  code, err = run_without_reader(arguments, os.open('/dev/full', os.O_WRONLY))
  assert code == 1 and err.startswith('x: ') and 'No space left' in err and err.count('\n') == 1
  assert bool(os.listdir(tmp_path)) == lasting


# --- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_an_interrupt_with_its_exit_code(number):
  before = signal.signal(number, signal.SIG_DFL)
  saved = []

  def run():
    with terminable():
      try:
        os.kill(os.getpid(), number)
      except KeyboardInterrupt:
        saved.append(True)
        raise

  try:
    assert run_program('x', run) == 128 + number and saved
    assert signal.getsignal(number) == signal.SIG_DFL
    signal.signal(number, signal.SIG_IGN)  # nohup
    with terminable():
      os.kill(os.getpid(), number)
  finally:
    signal.signal(number, before)
