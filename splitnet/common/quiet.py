"""Imports TensorFlow without the start-up notices that it writes past its own log level.

Programs import this first; a Python without TensorFlow ends here, with a sentence. What TensorFlow wrote is shown where
importing it fails, and always where TF_CPP_MIN_LOG_LEVEL is set to 0 or 1; errors later on are not hidden.
"""

import glob
import importlib.util
import os
import sys
import tempfile

# Where another worker of TF_CONFIG is lost, its errors are many lines about what train.py says in one.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3' if os.environ.get('TF_CONFIG') else '2')

if importlib.util.find_spec('tensorflow') is None:
  sys.exit(
    '%s: %s has no TensorFlow: ./demo.sh or ./test.sh make .venv, which has it; then . .venv/bin/activate'
    % (os.path.basename(sys.argv[0]), sys.executable)
  )


def unused_gpu(found, present, environment):
  """A sentence for a user whose GPU TensorFlow cannot use, which it would pass over in silence; '' where all is well.

  Args:
    found: the GPUs that TensorFlow lists.
    present: the NVIDIA GPUs that the system has, a list.
    environment: os.environ.
  """
  if found or not present or environment.get('CUDA_VISIBLE_DEVICES', 'all').strip() in ('', '-1', 'none'):
    return ''
  return (
    "note: this machine has an NVIDIA GPU, but TensorFlow cannot use it: pip install 'tensorflow[and-cuda]==2.21.*'; "
    'TF_CPP_MIN_LOG_LEVEL=0 before the command shows what is missing'
  )


def _import_tensorflow():
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as notices:
    if os.environ['TF_CPP_MIN_LOG_LEVEL'] not in ('0', '1'):
      os.dup2(notices.fileno(), 2)
    try:
      import tensorflow as tf

      found = tf.config.list_physical_devices('GPU')  # a host without a GPU says so here, once
    except BaseException:
      os.dup2(stderr, 2)
      notices.seek(0)
      sys.stderr.write(notices.read().decode(errors='replace'))
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
  note = unused_gpu(found, glob.glob('/dev/nvidia[0-9]*'), os.environ)
  if note:
    print(note, file=sys.stderr)


_import_tensorflow()
