"""Chooses the devices that TensorFlow uses, how much of them, and what suits them."""

import functools
import os
import subprocess
import sys
import time

import tensorflow as tf

from splitnet.common.errors import UserError, first_line


def configure(gpu_fraction=1.0, num_logical_devices=1, log_device_placement=False):
  """Sets how TensorFlow uses the devices; does not start them, so it comes first.

  Of each GPU's memory a share is taken; 1 grows as needed. The first GPU, or the CPU if there is none, is cut into so
  many logical devices. Raises UserError if TensorFlow has started its devices already.
  """
  tf.debugging.set_log_device_placement(log_device_placement)
  gpus = tf.config.get_visible_devices('GPU')
  try:
    for gpu in gpus:
      if tf.config.experimental.get_memory_growth(gpu) != (gpu_fraction == 1.0):
        tf.config.experimental.set_memory_growth(gpu, gpu_fraction == 1.0)
    if gpus and (gpu_fraction < 1.0 or num_logical_devices > 1):
      memory = _gpu_memory()
      for i, gpu in enumerate(gpus):
        count = num_logical_devices if i == 0 else 1
        # A tenth stays free for CUDA's own contexts even if the whole GPU is cut up.
        limit = int(memory[int(gpu.name.rsplit(':', 1)[1])] * min(gpu_fraction, 0.9) / count)
        tf.config.experimental.set_memory_growth(gpu, False)
        logical = [tf.config.LogicalDeviceConfiguration(memory_limit=limit)] * count
        tf.config.set_logical_device_configuration(gpu, logical)
    elif num_logical_devices > 1:
      cpu = tf.config.list_physical_devices('CPU')[0]
      tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_logical_devices)
  except RuntimeError as e:
    raise UserError(f'the devices are in use already, so they cannot be set up ({e})') from e


def names():
  """Returns all (logical) GPUs, else all (logical) CPUs: ['/GPU:0', '/GPU:1']."""
  kind = 'GPU' if tf.config.list_logical_devices('GPU') else 'CPU'
  return [f'/{kind}:{i}' for i in range(len(tf.config.list_logical_devices(kind)))]


def parse(text):
  """Returns the devices in --devices, `names` if empty; UserError if one is none."""
  if not text:
    return names()
  chosen = [name.strip() for name in text.split(',') if name.strip()]
  if not chosen:
    raise UserError(f"--devices '{text}' names no device")
  existing = {*names(), *(f'/CPU:{i}' for i in range(len(tf.config.list_logical_devices('CPU'))))}
  for name in chosen:
    if name not in existing:
      known = ', '.join(sorted(existing))
      raise UserError(f"there is no device '{name}' here; there are {known} (--num_logical_devices N cuts one into N)")
  return chosen


def gpu_name():
  """Returns the name of the first GPU, or None."""
  gpus = tf.config.list_physical_devices('GPU')
  return tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'GPU') if gpus else None


def description():
  """Returns the name of the first GPU, or else the number of the CPU's cores."""
  return gpu_name() or f'CPU, {os.cpu_count()} cores'


def precision_note(precision, training):
  """Returns a sentence if convolutions are slower in bfloat16 here, '' otherwise.

  They are on CPUs without units for it. Which ones these are is measured, not looked up: some have instructions for
  bfloat16 and are slower with them, and if TensorFlow has no kernels of its own for it the gradients, which training
  computes, take many times as long.
  """
  if precision != 'bfloat16' or gpu_name():
    return ''
  ratio = convolution_seconds(tf.bfloat16, training) / convolution_seconds(tf.float32, training)
  if ratio < 1.2:  # of the convolutions alone; the rest of a step moves half the bytes
    return ''
  return (
    f'note: on this CPU convolutions take {ratio:.1f} times as long in bfloat16 as in float32: --precision float32 is '
    'faster'
  )


def convolution_seconds(dtype, training):
  """Times a convolution of 0.6 GFLOPs on the default device; least of five, seconds.

  With its gradients, for training, it has three times the FLOPs.
  """
  x, kernel = tf.ones([32, 16, 16, 64], dtype), tf.ones([3, 3, 64, 64], dtype)
  seconds = []
  for _ in range(6):  # the first one chooses and prepares kernels
    started = time.perf_counter()
    with tf.GradientTape() as tape:
      tape.watch([x, kernel])
      results = [tf.nn.conv2d(x, kernel, 1, 'SAME')]
    if training:
      results += tape.gradient(results[0], [x, kernel])
    for result in results:
      tf.reshape(result, [-1])[0].numpy()
    seconds.append(time.perf_counter() - started)
  return min(seconds[1:])


def use_xla(choice, count=1):
  """Returns whether to compile with XLA: as chosen; for 'auto' on one GPU.

  XLA fuses what lies between the convolutions, which a GPU waits for; on CPUs its convolutions are slower than
  TensorFlow's own (benchmarks.speed --only baseline,xla: a step takes 1.6 times as long in float32, more in bfloat16).
  `count` devices compute together.
  """
  return count == 1 and bool(tf.config.get_visible_devices('GPU')) if choice == 'auto' else choice


@functools.cache
def check_xla():
  """Compiles and runs something small with XLA on the default device.

  It is what a residual block and its gradient have: XLA makes other calls of cuDNN out of them than TensorFlow does,
  which not every cuDNN has. Raises UserError if that fails: on GPUs XLA needs more of CUDA than TensorFlow itself,
  ptxas and libdevice (the mathematical functions), which TensorFlow's package does not bring.
  """

  def probe(x, kernel):
    with tf.GradientTape() as tape:
      tape.watch([x, kernel])
      y = tf.nn.relu(x + tf.nn.conv2d(x, kernel, 1, 'SAME'))
      loss = tf.reduce_mean(tf.math.log1p(tf.exp(tf.cast(y, tf.float32))))
    return tape.gradient(loss, [x, kernel])

  compiled = tf.function(probe, jit_compile=True)
  try:
    for dtype in (tf.float32, tf.bfloat16):
      compiled(tf.ones([8, 8, 8, 16], dtype), tf.ones([3, 3, 16, 16], dtype))[0].numpy()
  except tf.errors.OpError as e:
    raise UserError(
      f'XLA cannot compile here ({first_line(e)}): on a GPU it needs libdevice, ptxas and a recent cuDNN, which pip '
      'brings with tensorflow[and-cuda] (XLA_FLAGS=--xla_gpu_cuda_data_dir=FOLDER names the folder of the first two); '
      'with --jit_compile False it goes without'
    ) from e


def compile_with_xla(choice, count=1):
  """Returns `use_xla` if XLA works; if not, UserError if asked for, else a note."""
  wanted = use_xla(choice, count)
  if wanted:
    try:
      check_xla()
    except UserError as e:
      if choice != 'auto':
        raise
      print(f'without XLA, so slower: {e}', file=sys.stderr, flush=True)
      return False
  return wanted


def _gpu_memory():
  """Returns the memory of each GPU that CUDA shows, MiB, as the driver reports it.

  nvidia-smi also lists those that CUDA_VISIBLE_DEVICES (numbers or UUIDs, in any order) hides.
  """
  try:
    output = subprocess.run(
      ['nvidia-smi', '--query-gpu=index,uuid,memory.total', '--format=csv,noheader,nounits'],
      check=True,
      capture_output=True,
      text=True,
    ).stdout
    rows = [[cell.strip() for cell in line.split(',')] for line in output.splitlines() if line.strip()]
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    chosen = [index for index, _, _ in rows] if visible is None else [word.strip() for word in visible.split(',')]
    memory = [[int(size) for index, uuid, size in rows if index == word or uuid.startswith(word)] for word in chosen]
    return [sizes[0] for sizes in memory]
  except (OSError, ValueError, IndexError, subprocess.CalledProcessError) as e:
    raise UserError(f'nvidia-smi does not tell how much memory the GPU has ({e}): leave --gpu_fraction at 1') from e
