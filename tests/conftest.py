"""Shared by all tests: where the programs are, TensorFlow without its start-up notices, three tiny runs."""

import os
import signal
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
sys.path[:0] = [os.path.normpath(ROOT), os.path.dirname(os.path.abspath(__file__))]

import splitnet.common.quiet  # noqa: E402, F401 - before any test imports TensorFlow

import helpers  # noqa: E402
import pytest  # noqa: E402
import script_calls  # noqa: E402
import tensorflow as tf  # noqa: E402

# The processes that test fill the cores, so threads of their own would only wait for each other. The programs that
# tests start have theirs.
tf.config.threading.set_intra_op_parallelism_threads(1)

# A shell's background jobs ignore interrupts, and so would every program that is started here to be interrupted.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest come first, so that none of them is left for the end, when the others have nothing.
FIRST = ['test_whole_way.py', 'test_replicas.py', 'test_resume.py']


def pytest_configure(config):
  """Registers the marker of what ./test.sh --fast leaves out."""
  config.addinivalue_line('markers', 'slow: takes seconds of both cores; ./test.sh --fast leaves it out')


def pytest_collection_modifyitems(items):
  """Sorts the tests by file, those of FIRST before all others."""
  items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope='session')
def runs(tmp_path_factory):
  """The folders of tiny runs of the three stages, by mode."""
  return helpers.stages(tmp_path_factory)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
  """The folder of the tiny data that they were trained on."""
  return helpers.data(tmp_path_factory)


@pytest.fixture
def project(tmp_path):
  """A copy of the scripts whose Python only prints what it is called with; see script_calls.run."""
  folder = tmp_path / 'a project'  # with a space, as users' folders have
  script_calls.copy(folder)
  return folder
