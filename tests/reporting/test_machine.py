"""machine.py: the description of the hardware, and the peak of memory."""

import io
import json
import os

import forking
import pytest

from splitnet.reporting import machine


def test_the_machine_is_described_with_what_decides_its_rates(monkeypatch):
  cores = 2 * 'model name\t: A CPU\nflags\t\t: fpu avx2 avx512f amx_bf16 amx_tile\n\n'
  monkeypatch.setattr(machine, 'open', lambda path, **given: io.StringIO(cores), raising=False)
  assert machine.describe_machine()['cpu'] == 'A CPU (AVX2, AVX-512, AMX)'
  monkeypatch.setattr(machine, 'open', lambda path, **given: io.StringIO('processor : 0\n'), raising=False)  # an ARM's
  assert machine.describe_machine()['cpu'] == 'unknown processor'
  monkeypatch.setattr(machine, 'open', lambda path, **given: open(os.devnull + '/none', **given), raising=False)
  assert machine.describe_machine()['cpu'] == 'unknown processor'


GROWING = """
import json
import numpy as np
from splitnet.reporting import machine
before = machine.peak_memory()
held = np.ones(before['host'], np.uint8)
print(json.dumps([before, machine.peak_memory()]))
"""


@pytest.mark.slow
def test_the_peak_of_memory_grows_with_what_is_held():
  done = forking.run(['-c', GROWING])
  assert done.returncode == 0, done.stderr
  before, after = json.loads(done.stdout)
  assert before.keys() == after.keys() == {'host'} and after['host'] > 1.5 * before['host']
