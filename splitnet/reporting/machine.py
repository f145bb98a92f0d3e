"""What measurements depend on: the machine's description, and the most memory that this process has held."""

import os
import resource
import sys

import tensorflow as tf

from splitnet.parallel import devices

# What a CPU's rates depend on, bfloat16's above all, by Linux' names.
INSTRUCTIONS = {'avx2': 'AVX2', 'avx512f': 'AVX-512', 'avx512_bf16': 'AVX-512 BF16', 'amx_bf16': 'AMX'}


def describe_machine():
  """Returns the hardware: dict of 'cpu', 'cores', 'gpu' (or None), 'tensorflow'."""
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as f:
      lines = (line.partition(':') for line in f)
      facts = {name.strip(): value.strip() for name, _, value in lines}  # the last core's; all are alike
  except OSError:
    facts = {}
  cpu, flags = facts.get('model name', 'unknown processor'), facts.get('flags', '').split()
  vectors = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
  cpu += f' ({", ".join(vectors)})' if vectors else ''
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return {'cpu': cpu, 'cores': cores, 'gpu': devices.gpu_name(), 'tensorflow': tf.__version__}


def peak_memory():
  """Returns the most bytes this process has held: 'host' and, if there is one, 'GPU'."""
  try:
    with open('/proc/self/status', encoding='utf-8') as f:
      host = next(1024 * int(line.split()[1]) for line in f if line.startswith('VmHWM'))
  except (OSError, StopIteration):  # no Linux; there, a process may also inherit its parent's peak
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
  peak = {'host': host}
  if tf.config.list_logical_devices('GPU'):
    peak['GPU'] = tf.config.experimental.get_memory_info('GPU:0')['peak']
  return peak
