"""Tests workers.py: its table by hand, and the whole program with two workers."""

import os
import re

import forking
import pytest

from benchmarks import workers

pytestmark = pytest.mark.slow

ROWS = {row.name: row for row in workers.ROWS}


def test_speed_ups_are_of_medians_and_beside_what_the_flops_allow():
  seconds = {'dense': [6.0, 4.0, 9.0], 'deep': [3.0, 3.0, 30.0]}
  _, lines = workers.table([ROWS['dense'], ROWS['deep']], seconds, {'dense': 10, 'deep': 4})
  assert lines[0] == ['dense', '', '1', '', '6.00', '4.00 to 9.00', '1.00', '1.00', '1.00']
  assert lines[1] == ['deep', '2-2-2', '2', 'replicate', '3.00', '3.00 to 30.00', '2.00', '2.50', '0.80']


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--k', '0'], ['--k is 0']),
    (['--images', '0'], ["--images is '0'"]),
    (['--repeats', '-1'], ["--repeats is '-1'"]),
    (['--rows', 'dense,deeper'], ["'dense,deeper'", 'hierarchical']),
  ],
)
def test_bad_flags_are_one_sentence(arguments, words, capsys):
  assert workers.main(arguments) == 1
  error = capsys.readouterr().err
  assert error.startswith('workers.py: ') and error.count('\n') == 1
  assert all(word in error for word in words), error


def test_the_program_times_workers_and_leaves_none_behind():
  arguments = ['--k', '1', '--images', '20', '--batch_size', '10', '--repeats', '1', '--rows', 'dense,deep,deep-first']
  done = forking.run(['-m', 'benchmarks.workers', *arguments])
  if len(os.sched_getaffinity(0)) < 2:
    assert done.returncode == 1 and 'a core each' in done.stderr
    return
  assert done.returncode == 0, done.stderr
  # The workers write there, too, should TensorFlow have something to say.
  told = re.findall(r'^repeat 1 of 1: (\S+) [\d.]+ s$', done.stderr, re.M)
  assert told == ['dense', 'deep', 'deep-first'], done.stderr
  lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in done.stdout.splitlines()[4:]]
  assert [line[0] for line in lines] == ['dense', 'deep', 'deep']
  assert [line[1] for line in lines] == ['', '2-2-2', '2-2-2']
  # At k = 1 the busiest device has 27,266,276 of the dense network's 52,441,800 FLOPs.
  assert [line[7] for line in lines] == ['1.00', '1.92', '1.92'] and all(float(line[4]) >= 0 for line in lines)
