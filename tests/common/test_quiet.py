"""Tests what a program says if there is no TensorFlow, or it cannot use the GPU."""

import os
import subprocess
import sys

import helpers
import pytest

from splitnet.common import quiet


def test_a_python_without_tensorflow_says_where_one_is():
  command = [sys.executable, '-S', '-E', '-m', 'splitnet.reporting.compare', 'dense=eval.json']  # no site-packages
  done = subprocess.run(command, cwd=helpers.PROJECT, capture_output=True, text=True)
  assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
  assert done.stderr.startswith('compare.py: ') and '. .venv/bin/activate' in done.stderr


@pytest.mark.parametrize('usable, installed, visible, told', [
  ([], [], None, False), ([], ['/dev/nvidia0'], None, True), ([], ['/dev/nvidia0'], '0', True),
  (['GPU:0'], ['/dev/nvidia0'], None, False), ([], ['/dev/nvidia0'], '', False), ([], ['/dev/nvidia0'], '-1', False),
])  # fmt: skip
def test_a_gpu_that_tensorflow_cannot_use_is_not_passed_over_in_silence(usable, installed, visible, told):
  note = quiet.unused_gpu(usable, installed, {} if visible is None else {'CUDA_VISIBLE_DEVICES': visible})
  assert bool(note) == told and ('tensorflow[and-cuda]' in note) == told


def test_a_task_beside_others_leaves_it_to_train_py_to_tell_of_a_lost_one():
  cluster, slurm = {'TF_CONFIG': '{"cluster": {}}'}, {'SLURM_STEP_NUM_TASKS': '2', 'SLURM_PROCID': '1'}
  assert quiet.log_level(cluster) == quiet.log_level(slurm) == '3'
  assert quiet.log_level({}) == quiet.log_level({'SLURM_STEP_NUM_TASKS': '1'}) == '2'


def test_what_libraries_write_is_shown_only_with_an_error(capfd, monkeypatch):
  monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '2')
  with quiet.without_notices():
    os.write(2, b'a notice')
  assert capfd.readouterr().err == ''
  with pytest.raises(ValueError), quiet.without_notices():
    os.write(2, b'the reason')
    raise ValueError
  assert capfd.readouterr().err == 'the reason'
  monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '1')
  with quiet.without_notices():
    os.write(2, b'all')
  assert capfd.readouterr().err == 'all'


KERAS = """
import gc, sys
import train, eval
assert gc.isenabled()
import splitnet.common.quiet
import tensorflow as tf
assert not {'keras', 'sklearn', 'scipy.optimize', 'matplotlib.pyplot'} & set(sys.modules)
from tensorflow.keras import layers
import keras
assert keras.layers.Dense is layers.Dense is tf.keras.layers.Dense
print(layers.Dense(3)(tf.zeros((2, 5))).shape)
"""


@pytest.mark.slow
def test_keras_is_imported_when_it_is_used_and_not_before():
  done = subprocess.run([sys.executable, '-c', KERAS], cwd=helpers.PROJECT, capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (0, '(2, 3)\n', '')
