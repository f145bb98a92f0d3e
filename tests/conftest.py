"""Shared by all tests: where the programs are, TensorFlow without its start-up notices, three tiny runs."""

import os
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
sys.path.insert(0, os.path.normpath(ROOT))

import quiet  # noqa: E402, F401 - before any test imports TensorFlow

import pytest  # noqa: E402
import tiny_data  # noqa: E402


@pytest.fixture(scope='session')
def runs(tmp_path_factory):
  """The folders of tiny runs of the three stages, by mode."""
  return tiny_data.stages(tmp_path_factory)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
  """The folder of the tiny data that they were trained on."""
  return tiny_data.data(tmp_path_factory)
