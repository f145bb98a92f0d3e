"""Tests exit codes, and which mistakes are told in one sentence."""

import os
import subprocess
import sys

import helpers
import pytest

from splitnet.common.errors import UserError, run_program


def fail(error):
  raise error


def test_a_users_mistake_is_told_in_one_sentence(capsys):
  assert run_program('train.py', lambda: fail(UserError('--k is 0; it must be at least 1'))) == 1
  assert capsys.readouterr() == ('', 'train.py: --k is 0; it must be at least 1\n')


def test_exit_codes(capsys):
  assert run_program('train.py', lambda: fail(KeyboardInterrupt())) == 130
  assert run_program('train.py', lambda: sys.stdout.write('done\n')) == 0
  assert capsys.readouterr() == ('done\n', '')


def test_a_bug_is_not_hidden():
  with pytest.raises(ZeroDivisionError):
    run_program('train.py', lambda: 1 // 0)


def test_output_that_nobody_reads_is_no_error():
  program = "import sys; from splitnet.common.errors import run_program; sys.exit(run_program('x', lambda: print('a')))"
  reading, writing = os.pipe()
  os.close(reading)
  with os.fdopen(writing, 'wb') as closed:
    done = subprocess.run(
      [sys.executable, '-c', program], cwd=helpers.PROJECT, stdout=closed, stderr=subprocess.PIPE, text=True
    )
  assert (done.returncode, done.stderr) == (0, '')
