"""Which devices TensorFlow uses and how much of them; called before anything runs on one."""

import functools
import os
import subprocess
import sys
import time

import tensorflow as tf

from splitnet.common.errors import UserError


def configure(gpu_fraction=1.0, num_logical_devices=1, log_device_placement=False):
  """Sets up the devices as `prepare` does.

  Returns:
    The names of the devices to compute on: all GPUs, else all (logical) CPUs; a list such as ['/GPU:0', '/GPU:1'].
  """
  prepare(gpu_fraction, num_logical_devices, log_device_placement)
  return names()


def prepare(gpu_fraction=1.0, num_logical_devices=1, log_device_placement=False):
  """Says how the devices are to be set up when they are first used.

  Args:
    gpu_fraction: share of each GPU's memory to take, in (0, 1]; 1 grows as needed.
    num_logical_devices: cut the first GPU, or the CPU where there is none, into this many logical devices.
    log_device_placement: log on which device every operation runs.

  Raises:
    UserError: where TensorFlow has initialised its devices already.
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
        parts = num_logical_devices if i == 0 else 1
        # A tenth stays free for CUDA's own contexts where the whole GPU is cut up.
        limit = int(memory[int(gpu.name.rsplit(':', 1)[1])] * min(gpu_fraction, 0.9) / parts)
        tf.config.experimental.set_memory_growth(gpu, False)
        tf.config.set_logical_device_configuration(
          gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=limit)] * parts
        )
    elif num_logical_devices > 1:
      cpu = tf.config.list_physical_devices('CPU')[0]
      tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_logical_devices)
  except RuntimeError as e:
    raise UserError('the devices are in use already, so they cannot be set up (%s)' % e) from e


def names():
  """The devices to compute on: all (logical) GPUs, else all (logical) CPUs."""
  for kind in ('GPU', 'CPU'):
    found = tf.config.list_logical_devices(kind)
    if found:
      return ['/%s:%d' % (kind, i) for i in range(len(found))]
  return ['/CPU:0']


def gpu_name():
  """The name of the first GPU, None where there is none."""
  gpus = tf.config.list_physical_devices('GPU')
  return tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'GPU') if gpus else None


def description():
  """The name of what is computed on by default: the first GPU's, else the CPU's number of cores."""
  return gpu_name() or 'CPU, %d cores' % os.cpu_count()


def precision_note(precision, training):
  """A sentence where --precision bfloat16 makes the convolutions slower, on a CPU without units for it; '' elsewhere.

  Which CPUs these are is measured, not looked up: some have instructions for bfloat16 and are slower with them, and
  where TensorFlow has no kernels of its own for it the gradients take many times as long.

  Args:
    precision: 'float32' or 'bfloat16'.
    training: whether gradients are computed, too.
  """
  if precision != 'bfloat16' or gpu_name():
    return ''
  ratio = convolution_seconds(tf.bfloat16, training) / convolution_seconds(tf.float32, training)
  if ratio < 1.2:  # of the convolutions alone; the rest of a step moves half the bytes
    return ''
  return (
    'note: on this CPU convolutions take %.1f times as long in bfloat16 as in float32: --precision float32 is faster'
    % ratio
  )


def convolution_seconds(dtype, training):
  """What a convolution of 0.6 GFLOPs takes where tensors are when nothing is said: seconds, the least of five.

  Args:
    dtype: tf.float32 or tf.bfloat16.
    training: with its gradients, three times the FLOPs.
  """
  x, kernel = tf.ones([32, 16, 16, 64], dtype), tf.ones([3, 3, 64, 64], dtype)
  times = []
  for _ in range(6):  # the first one chooses and prepares kernels
    started = time.perf_counter()
    with tf.GradientTape() as tape:
      tape.watch([x, kernel])
      results = [tf.nn.conv2d(x, kernel, 1, 'SAME')]
    if training:
      results += tape.gradient(results[0], [x, kernel])
    for result in results:
      tf.reshape(result, [-1])[0].numpy()
    times.append(time.perf_counter() - started)
  return min(times[1:])


def use_xla(choice, count=1):
  """Whether to compile with XLA: as chosen, or where 'auto' was, on one GPU.

  Args:
    choice: True, False or 'auto'.
    count: how many devices compute together.

  XLA fuses what lies between the convolutions, which a GPU waits for; on CPUs its convolutions are slower than
  TensorFlow's own (benchmark.py --only baseline,xla: a step takes 1.6 times as long in float32, more in bfloat16).
  """
  return count == 1 and bool(tf.config.get_visible_devices('GPU')) if choice == 'auto' else choice


@functools.cache
def check_xla():
  """Compiles and runs something small with XLA, where tensors are when nothing is said: on the first GPU, else the CPU.

  It is what a residual block and its gradient have: XLA makes other calls of cuDNN out of them than TensorFlow does,
  which not every cuDNN has.

  Raises:
    UserError: where that fails. On GPUs XLA needs more of CUDA than TensorFlow itself: ptxas and libdevice, the
      mathematical functions, which TensorFlow's package does not bring.
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
      'XLA cannot compile here (%s): on a GPU it needs libdevice, ptxas and a recent cuDNN, which pip brings with '
      'tensorflow[and-cuda] (XLA_FLAGS=--xla_gpu_cuda_data_dir=FOLDER names the folder of the first two); with '
      '--jit_compile False it goes without' % (str(e).strip().split('\n')[0] or type(e).__name__)
    ) from e


def compile_with_xla(choice, count=1):
  """`use_xla`, once it is known to work; where 'auto' was chosen and it does not, says so and does without.

  Raises:
    UserError: where it was asked for and does not work.
  """
  wanted = use_xla(choice, count)
  if wanted:
    try:
      check_xla()
    except UserError as e:
      if choice != 'auto':
        raise
      print('without XLA, so slower: %s' % e, file=sys.stderr, flush=True)
      return False
  return wanted


def parse(text, available):
  """The devices in a comma-separated flag, or all `available` where it is empty.

  Raises:
    UserError: where one is not there.
  """
  if not text:
    return available
  wanted = [name.strip() for name in text.split(',') if name.strip()]
  if not wanted:
    raise UserError("--devices '%s' names no device" % text)
  present = names() + ['/CPU:%d' % i for i in range(len(tf.config.list_logical_devices('CPU')))]
  for name in wanted:
    if name not in present:
      raise UserError(
        "there is no device '%s' here; there are %s (--num_logical_devices N cuts one into N)"
        % (name, ', '.join(sorted(set(present))))
      )
  return wanted


def _gpu_memory():
  """Memory of each GPU that CUDA shows, MiB, as the driver reports it.

  nvidia-smi lists those too that CUDA_VISIBLE_DEVICES (numbers or UUIDs, in any order) hides.
  """
  try:
    output = subprocess.run(
      ['nvidia-smi', '--query-gpu=index,uuid,memory.total', '--format=csv,noheader,nounits'],
      check=True,
      capture_output=True,
      text=True,
    ).stdout
    rows = [[cell.strip() for cell in line.split(',')] for line in output.splitlines() if line.strip()]
    shown = os.environ.get('CUDA_VISIBLE_DEVICES')
    chosen = [index for index, _, _ in rows] if shown is None else [word.strip() for word in shown.split(',')]
    found = [[int(memory) for index, uuid, memory in rows if index == word or uuid.startswith(word)] for word in chosen]
    return [memory[0] for memory in found]
  except (OSError, ValueError, IndexError, subprocess.CalledProcessError) as e:
    raise UserError('nvidia-smi does not tell how much memory the GPU has (%s): leave --gpu_fraction at 1' % e) from e
