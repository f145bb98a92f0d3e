"""Imports TensorFlow without the start-up notices that it writes past its own log level.

Programs import this first; a Python without TensorFlow ends here, with a sentence. What TensorFlow wrote is shown where
importing it fails; errors later on are not hidden.
"""

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


def _import_tensorflow():
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as notices:
    os.dup2(notices.fileno(), 2)
    try:
      import tensorflow as tf

      tf.config.list_physical_devices('GPU')  # a host without a GPU says so here, once
    except BaseException:
      os.dup2(stderr, 2)
      notices.seek(0)
      sys.stderr.write(notices.read().decode(errors='replace'))
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)


_import_tensorflow()
