"""Imports TensorFlow without the start-up notices that no log level stops.

Programs import this first; a Python without TensorFlow ends here, with a sentence. What TensorFlow wrote is shown if
importing it fails, and always if TF_CPP_MIN_LOG_LEVEL is set to 0 or 1; later errors are not hidden.

TensorFlow imports Keras, which imports scikit-learn and matplotlib: a third of the time that a program takes to start.
Here it does not; `tf.keras` and `import keras` load it when they are first used.

Importing makes objects that stay; to look for garbage among them took a sixth of the time, so the collector waits,
and another fifth when the program ends, so they are taken from its view.
"""

import contextlib
import gc
import glob
import importlib.util
import os
import sys
import tempfile


def is_task_of_slurm(environment):
  """Tells whether `srun` started this program beside others."""
  return environment.get('SLURM_STEP_NUM_TASKS', '1') != '1' and 'SLURM_PROCID' in environment


def log_level(environment):
  """Returns the TF_CPP_MIN_LOG_LEVEL of a program whose environment sets none.

  If another worker is lost, or only ends first, TensorFlow logs many lines of what train.py says in one, or need not.
  """
  return '3' if environment.get('TF_CONFIG') or is_task_of_slurm(environment) else '2'


os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', log_level(os.environ))

if importlib.util.find_spec('tensorflow') is None:
  sys.exit(
    f'{os.path.basename(sys.argv[0])}: {sys.executable} has no TensorFlow: ./demo.sh or ./test.sh make .venv, '
    'which has it; then . .venv/bin/activate'
  )


def unused_gpu(usable, installed, environment):
  """Returns a sentence if TensorFlow cannot use a GPU that is installed, or ''."""
  if usable or not installed or environment.get('CUDA_VISIBLE_DEVICES', 'all').strip() in ('', '-1', 'none'):
    return ''
  return (
    "note: this machine has an NVIDIA GPU, but TensorFlow cannot use it: pip install 'tensorflow[and-cuda]==2.21.*'; "
    'TF_CPP_MIN_LOG_LEVEL=0 before the command shows what is missing'
  )


def _without_keras():
  """Imports TensorFlow, but not yet Keras; returns the module."""
  if 'keras' in sys.modules:
    import tensorflow as tf

    return tf
  keras = importlib.util.find_spec('keras')
  sys.modules['keras'] = None  # TensorFlow goes on without it
  try:
    import tensorflow as tf
  finally:
    del sys.modules['keras']
  if keras:  # for `from tensorflow.keras import layers`
    tf.__path__ = [os.path.join(path, '_tf_keras') for path in keras.submodule_search_locations] + list(tf.__path__)
  return tf


@contextlib.contextmanager
def without_notices():
  """Opens a context in which nothing that libraries write to stderr is shown, unless it ends with an error.

  With a TF_CPP_MIN_LOG_LEVEL of 0 or 1 all of it is.
  """
  if os.environ['TF_CPP_MIN_LOG_LEVEL'] in ('0', '1'):
    yield
    return
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as notices:
    os.dup2(notices.fileno(), 2)
    try:
      yield
    except BaseException:
      os.dup2(stderr, 2)
      notices.seek(0)
      sys.stderr.write(notices.read().decode(errors='replace'))
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)


def _import_tensorflow():
  collects = gc.isenabled()
  gc.disable()
  try:
    with without_notices():
      tf = _without_keras()
      gpus = tf.config.list_physical_devices('GPU')  # a machine without a GPU says so here, once
  finally:
    if collects:
      gc.enable()
  gc.freeze()
  note = unused_gpu(gpus, glob.glob('/dev/nvidia[0-9]*'), os.environ)
  if note:
    print(note, file=sys.stderr)


_import_tensorflow()
