"""What benchmark.py measures, each in a process of its own: training, evaluation, the input pipeline, the ceiling.

Started by benchmark.py with one argument, a JSON object; a line 'measure SECONDS' on stdin is answered by a line of
JSON on stdout, the end of stdin by a last one with the memory that the process needed at most. Images are random and
weights untrained: the time does not depend on them, but for `scatter`.
"""

import json
import os
import resource
import sys
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
import eval as evaluation
import resnet_split
import train
import utils
from benchmarks import keras_wrn
from splitnet.data.batches import Images, training_batches
from splitnet.data.synthetic import random_images
from splitnet.network import architecture, grouping, inference
from splitnet.parallel import devices

TRAINING_IMAGES, EVALUATION_IMAGES = 45000, 10000  # as CIFAR-100 has


def groups_of(config, uneven=False):
  """Hard groups of a split network that was not trained: features divided evenly, classes at random.

  `uneven`: then an odd number of the features of each first group, about a twentieth, go to the last, as the sizes of
  learned groups are odd.
  """
  plan = architecture.wide_resnet(config)
  groups = grouping.even_features(plan, grouping.random(config.num_classes, config.ngroups1, seed=0))
  if uneven:
    for name, units in plan.units.items():
      first = np.flatnonzero(groups[name] == 0)
      if units.groups > 1 and name != 'split_q1' and len(first) > 1:
        groups[name][first[: len(first) // 20 | 1]] = units.groups - 1
  return groups


def scatter(network):
  """Gives the batch normalisations of a network values as training does.

  What an untrained network would fold into its convolutions is zero, and TensorFlow would leave that out.
  """
  rng = np.random.default_rng(0)
  for name, value in network.weights.items():
    if name.endswith(('/beta', '/mu')):
      value.assign(0.1 * rng.standard_normal(value.shape))
    elif name.endswith('/sigma'):
      value.assign(rng.uniform(0.5, 1.5, value.shape))


def dense_flops(config):
  """FLOPs for one image of the dense network, at 2 per multiply-add."""
  total = 0
  for layer in architecture.wide_resnet(config).layers:
    if layer.kind == 'conv':
      sizes = layer.kernel_size, layer.input.size, layer.output.size, layer.output_size
      total += utils.count_convolution(layer.name, *sizes).flops
    elif layer.kind == 'linear':
      total += utils.count_linear(layer.name, layer.input.size, layer.output.size).flops
  return total


def flops(network):
  """FLOPs for one image of a resnet_split.Network, batch normalisations left aside."""
  return sum(count.flops for count in network.counts if '/bn' not in count.name)


def steps_in(seconds, step_seconds):
  """How many steps of a known time fill so many seconds: from 1 to 1000."""
  return int(min(1000, max(1, round(seconds / step_seconds))))


# --- workloads: made once, each then measured again and again ------------------------------------------------------


class Training:
  """One of train.py's stages: several steps a call, as its loop runs them."""

  def __init__(self, config, mode, batch_size, precision, more=(), uneven=False):
    arguments = ['--mode', mode, '--batch_size', str(batch_size), '--precision', precision, *more]
    settings = train.parse_flags(arguments + (['--grouping', 'random'] if mode == 'split' else []))
    split = Images(*random_images(max(TRAINING_IMAGES, batch_size), cifar100.IMAGE_SIZE, config.num_classes))
    network = resnet_split.Network(
      config, groups=groups_of(config, uneven) if mode == 'split' else None, with_assignments=mode == 'group',
      dtype=tf.dtypes.as_dtype(precision),
    )  # fmt: skip
    self._batch_size, self.flops = batch_size, flops(network)
    self._stage = train.Stage(settings, network, len(split.images) / batch_size)
    self._batches = iter(training_batches(split, batch_size, seed=0))
    self._seconds = 0.0

  def step(self):
    """The first steps, which also trace."""
    self._run(1)

  def _run(self, count):
    started = time.perf_counter()
    float(self._stage.train(self._batches, tf.constant(count))['total'])  # waits for a GPU, as train.py does
    self._seconds = (time.perf_counter() - started) / count

  def measure(self, seconds):
    """Images a second over about so many seconds."""
    self._run(steps_in(seconds, self._seconds))
    return {'rate': self._batch_size / self._seconds}


class KerasTraining:
  """The plain Keras network under `model.fit`, with the same augmentation in its input pipeline."""

  def __init__(self, config, batch_size, precision):
    def prepare(images, labels, step):
      seed = tf.stack([0, tf.cast(step, tf.int32)])
      return cifar100.whiten(cifar100.augment(images, seed)), labels

    split = Images(*random_images(max(TRAINING_IMAGES, batch_size), cifar100.IMAGE_SIZE, config.num_classes))
    self._batch_size, self.flops = batch_size, dense_flops(config)
    self._model = keras_wrn.compile_model(keras_wrn.build(config, precision))
    self._data = training_batches(split, batch_size, seed=0).map(prepare).prefetch(2)
    self._seconds = 0.0

  def step(self):
    """The first steps, which also trace."""
    self._run(1)

  def _run(self, count):
    started = time.perf_counter()
    self._model.fit(self._data, steps_per_epoch=count, verbose=0)
    self._seconds = (time.perf_counter() - started) / count

  def measure(self, seconds):
    """Images a second over about so many seconds."""
    self._run(steps_in(seconds, self._seconds))
    return {'rate': self._batch_size / self._seconds}


class Evaluation:
  """eval.py's way through images: images a second in batches, and the time of one image alone."""

  def __init__(self, config, mode, batch_size, precision, uneven=False):
    network = resnet_split.Network(
      config, groups=groups_of(config, uneven) if mode == 'split' else None, dtype=tf.dtypes.as_dtype(precision)
    )
    scatter(network)
    self._network = inference.Folded(network)
    self._batch_size, self.flops = batch_size, flops(network)
    self._images = Images(*random_images(max(EVALUATION_IMAGES, 4 * batch_size), cifar100.IMAGE_SIZE))
    self._rates = {batch_size: 0.0, 1: 0.0}

  def step(self):
    """The first batches, which also trace."""
    for batch_size in self._rates:
      self._run(batch_size, 2)

  def _run(self, batch_size, batches):
    self._rates[batch_size] = evaluation.predict(self._network, self._images, batch_size, batches)[1].images_per_second

  def measure(self, seconds):
    """Images a second over about so many seconds, and milliseconds of one image over a quarter of them."""
    for batch_size, share in ((self._batch_size, 1.0), (1, 0.25)):
      most = len(self._images.images) // batch_size
      self._run(batch_size, min(most, steps_in(seconds * share, batch_size / self._rates[batch_size])))
    return {'rate': self._rates[self._batch_size], 'latency': 1000.0 / self._rates[1]}


class Pipeline:
  """The input pipeline of training alone: batches from memory, augmented and whitened."""

  def __init__(self, config, batch_size):
    split = Images(*random_images(max(TRAINING_IMAGES, batch_size), cifar100.IMAGE_SIZE, config.num_classes))
    self._batch_size, self._seconds, self.flops = batch_size, 0.0, None
    self._batches = iter(training_batches(split, batch_size, seed=0))

  @tf.function
  def _consume(self, count):
    total = tf.zeros([])
    for _ in tf.range(count):
      images, _, step = next(self._batches)
      images = cifar100.whiten(cifar100.augment(images, tf.stack([0, tf.cast(step, tf.int32)])))
      total += images[0, 0, 0, 0]
    return total

  def step(self):
    """The first batches, which also trace."""
    self._run(5)

  def _run(self, count):
    started = time.perf_counter()
    float(self._consume(tf.constant(count)))
    self._seconds = (time.perf_counter() - started) / count

  def measure(self, seconds):
    """Images a second over about so many seconds."""
    self._run(steps_in(seconds, self._seconds))
    return {'rate': self._batch_size / self._seconds}


class Ceiling:
  """What the machine does at best: plain 3x3 convolutions, matrix products of a network's shapes and a large one."""

  def __init__(self, config, batch_size, precision):
    self._dtype = tf.dtypes.as_dtype(precision)
    self._programs, self.flops = {}, dense_flops(config)
    shapes = {
      (layer.input.size, layer.output.size, layer.output_size, layer.stride)
      for layer in architecture.wide_resnet(config).layers
      if layer.kernel_size == 3
    }
    for inputs, outputs, size, stride in sorted(shapes):
      images, window = [batch_size, size * stride, size * stride, inputs], [3, 3, inputs, outputs]
      flops = 2 * batch_size * size**2 * 9 * inputs * outputs
      name = '3x3 convolution, %d to %d channels at %d pixels' % (inputs, outputs, size)
      self._add(name, lambda x, w, s=stride: tf.nn.conv2d(x, w, s, 'SAME'), images, window, flops)
      rows = min(batch_size * size**2, 16384)  # more are no faster, and the matrix would be nine times the images
      flops = 2 * rows * 9 * inputs * outputs
      name = 'matrix product, %d x %d x %d' % (rows, 9 * inputs, outputs)
      self._add(name, tf.matmul, [rows, 9 * inputs], [9 * inputs, outputs], flops)
    side = 8192 if tf.config.list_physical_devices('GPU') else 2048
    self._add('matrix product, %d x %d x %d' % (side, side, side), tf.matmul, [side, side], [side, side], 2 * side**3)

  def _add(self, name, compute, left, right, flops):
    x, w = (tf.cast(tf.random.stateless_normal(shape, [0, 1]), self._dtype) for shape in (left, right))

    def repeat(times):
      def program(x, w):
        total = tf.zeros([], self._dtype)
        for _ in range(times):
          # Each waits for the one before, so that none is taken for the same and computed once.
          with tf.control_dependencies([total]):
            y = compute(x, w)
          total += tf.reshape(y, [-1])[0]
        return total

      return tf.function(program, autograph=False).get_concrete_function(x, w)

    once = repeat(1)
    seconds = min(self._time(once, x, w) for _ in range(3))
    times = int(min(64, max(1, 0.03 / seconds)))  # what calling costs shall not count
    self._programs[name] = (repeat(times) if times > 1 else once, x, w, times * flops)

  @staticmethod
  def _time(program, x, w):
    started = time.perf_counter()
    program(x, w).numpy()
    return time.perf_counter() - started

  def step(self):
    """One round, to warm up."""
    for program, x, w, _ in self._programs.values():
      self._time(program, x, w)

  def measure(self, seconds):
    """The best rate, FLOPs a second, at 2 per multiply-add, of any shape, and which; every shape once at least."""
    best, until = {}, time.perf_counter() + seconds
    while not best or time.perf_counter() < until:
      for name, (program, x, w, flops) in self._programs.items():
        best[name] = max(best.get(name, 0.0), flops / self._time(program, x, w))
    name = max(best, key=best.get)
    return {'rate': best[name], 'shape': name}


WORKLOADS = {
  'training': Training, 'keras': KerasTraining, 'evaluation': Evaluation, 'pipeline': Pipeline, 'ceiling': Ceiling,
}  # fmt: skip


# --- the process --------------------------------------------------------------------------------------------------


def peak_memory():
  """The most memory that this process has held so far, bytes: dict by kind, 'host' and where there is one 'GPU'."""
  try:
    with open('/proc/self/status') as f:
      host = next(1024 * int(line.split()[1]) for line in f if line.startswith('VmHWM'))
  except (OSError, StopIteration):  # no Linux; there, a process may also inherit its parent's peak
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
  peak = {'host': host}
  if tf.config.list_physical_devices('GPU'):
    peak['GPU'] = tf.config.experimental.get_memory_info('GPU:0')['peak']
  return peak


# What a CPU's rates hang on, bfloat16's above all, by Linux' names.
INSTRUCTIONS = {'avx2': 'AVX2', 'avx512f': 'AVX-512', 'avx512_bf16': 'AVX-512 BF16', 'amx_bf16': 'AMX'}


def machine():
  """Which hardware this is: dict of 'cpu' (with what it has for vectors), 'cores', 'gpu' (or None), 'tensorflow'."""
  try:
    with open('/proc/cpuinfo') as f:
      lines = (line.partition(':') for line in f)
      facts = {name.strip(): value.strip() for name, _, value in lines}  # the last core's; all are alike
  except OSError:
    facts = {}
  cpu, flags = facts.get('model name', 'unknown processor'), facts.get('flags', '').split()
  found = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
  cpu += ' (%s)' % ', '.join(found) if found else ''
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return {'cpu': cpu, 'cores': cores, 'gpu': devices.gpu_name(), 'tensorflow': tf.__version__}


def answer(values):
  """Writes one line of JSON to who started this process."""
  print(json.dumps(values), flush=True)


def serve(request):
  """Makes the workload that a request names, then measures it as often as it is asked to."""
  devices.configure()
  config = architecture.Config(**request['config'])
  workload = WORKLOADS[request['workload']](config, **request['arguments'])
  workload.step()
  first = time.time() - request['started']
  workload.step()
  answer({'first_step': first, 'flops': workload.flops, 'dense_flops': dense_flops(config), 'machine': machine()})
  for line in sys.stdin:
    answer(workload.measure(float(line.split()[1])))
  answer({'memory': peak_memory()})


if __name__ == '__main__':
  serve(json.loads(sys.argv[1]))
