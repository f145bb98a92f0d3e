"""Shared by all tests: where the programs are, and TensorFlow without its start-up notices."""

import os
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
sys.path.insert(0, os.path.normpath(ROOT))

import quiet  # noqa: E402, F401 - before any test imports TensorFlow
