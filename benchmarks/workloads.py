"""Measures what speed.py asks for, each in a process of its own.

Started by speed.py with one argument, the arguments of `serve` in JSON; a line of seconds on stdin is answered by a
line of JSON on stdout, the end of stdin by a last one with the memory that the process needed at most. Images are
random and weights untrained: the time does not depend on them, but for `spread_batch_norms`.
"""

import functools
import json
import sys
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
import resnet_split
from benchmarks import keras_wrn
from splitnet.data.batches import Images
from splitnet.data.synthetic import random_images
from splitnet.network import counting, folding, grouping
from splitnet.network.graph import Tree
from splitnet.network.network import create
from splitnet.parallel import devices, executor
from splitnet.reporting.machine import describe_machine, peak_memory
from splitnet.training.step import make_step

TRAINING_IMAGES, EVALUATION_IMAGES = 45000, 10000  # as CIFAR-100 has


def batches_for(config, batch_size):
  """Returns training batches of as many random images as CIFAR-100 has."""
  images = random_images(max(TRAINING_IMAGES, batch_size), cifar100.IMAGE_SIZE, config.num_classes)
  return Images(*images).training_batches(batch_size, seed=0)


def groups_of(graph, uneven=False):
  """Returns even hard groups of an untrained split network.

  With `uneven` an odd number of the features of each first group, about a twentieth, is in the last instead, as the
  sizes of learned groups are odd.
  """
  groups = grouping.even_groups(graph)
  if uneven:
    for name, units in graph.units.items():
      first = np.flatnonzero(groups[name] == 0)
      if units.groups > 1 and units != graph.classes and len(first) > 1:
        groups[name][first[: len(first) // 20 | 1]] = units.groups - 1
  return groups


def build(config, mode, precision, uneven=False):
  """Builds the untrained network of a mode of train.py, in split mode the tree."""
  graph, dtype = config.graph(), tf.dtypes.as_dtype(precision)
  return create(graph, groups_of(graph, uneven) if mode == 'split' else None, mode == 'group', dtype)


def spread_batch_norms(network):
  """Gives the batch normalisations of a network values as training does.

  What an untrained network would fold into its convolutions is zero, and TensorFlow would leave that out.
  """
  rng = np.random.default_rng(0)
  for name, value in network.weights.items():
    if name.endswith(('/beta', '/mu')):
      value.assign(0.1 * rng.standard_normal(value.shape))
    elif name.endswith('/sigma'):
      value.assign(rng.uniform(0.5, 1.5, value.shape))


def flops(tree):
  """Returns the FLOPs of an image in a Tree, 2 per multiply-add, no batch norms."""
  return sum(count.flops for count in counting.counts(tree) if count.op != 'batch_norm')


def dense_flops(config):
  """Returns the FLOPs for one image of the dense network, as `flops`."""
  return flops(Tree(config.graph()))


def steps_in(seconds, step_seconds):
  """Returns how many steps of a known time fill so many seconds: from 1 to 1000."""
  return min(1000, max(1, round(seconds / step_seconds)))


class Steps:
  """Takes equal steps and measures their rate.

  Attributes:
    flops: of evaluating an image, None without network.
    trained: the TrainStep or Keras model whose steps these are; None of the input pipeline.
  """

  def __init__(self, batch_size, flops, take, trained=None):
    """Keeps what it measures; take(count) waits for a GPU until the steps are done."""
    self.flops, self.trained, self._batch_size, self._take, self._seconds = flops, trained, batch_size, take, 0.0

  def step(self, count=1):
    """Takes steps; the first also traces, another's time says how many fill a turn."""
    started = time.perf_counter()
    self._take(count)
    self._seconds = (time.perf_counter() - started) / count

  def measure(self, seconds):
    """Measures images per second over about so many seconds."""
    self.step(steps_in(seconds, self._seconds))
    return {'rate': self._batch_size / self._seconds}


def training(config, mode, batch_size, precision, keep_prob=1.0, jit_compile='auto', uneven=False):
  """Makes the Steps of a stage of train.py, several per call as in its loop.

  A `jit_compile` of 'other' is the one that train.py's 'auto' does not choose here.
  """
  if jit_compile == 'other':
    jit_compile = not devices.use_xla('auto')
  network = build(config, mode, precision, uneven)
  settings = dict(batch_size=batch_size, max_steps=10**6, dropout_keep_prob=keep_prob, jit_compile=jit_compile)
  train_step = make_step(network, cifar100, settings, max(TRAINING_IMAGES, batch_size) / batch_size)
  batches = iter(batches_for(config, batch_size))
  return Steps(
    batch_size, flops(network), lambda count: float(train_step.train(batches, tf.constant(count))['total']), train_step
  )


def prepare(images, labels, step):
  """Augments and whitens a batch of `training_batches`: (images, labels)."""
  return cifar100.whiten(cifar100.augment(images, tf.stack([0, tf.cast(step, tf.int32)]))), labels


def keras_training(config, batch_size, precision):
  """Makes the Steps of the Keras network under `model.fit`, augmented alike."""
  model = keras_wrn.compile_model(keras_wrn.build(config, precision))
  data = batches_for(config, batch_size).map(prepare).prefetch(2)
  return Steps(batch_size, dense_flops(config), lambda count: model.fit(data, steps_per_epoch=count, verbose=0), model)


def pipeline(config, batch_size):
  """Makes the Steps of the input pipeline alone, augmented and whitened."""
  batches = iter(batches_for(config, batch_size))

  @tf.function
  def consume(count):
    total = tf.zeros([])
    for _ in tf.range(count):
      total += prepare(*next(batches))[0][0, 0, 0, 0]
    return total

  return Steps(batch_size, None, lambda count: float(consume(tf.constant(count))))


class Evaluation:
  """Goes eval.py's way through images, in batches and one alone."""

  def __init__(self, config, mode, batch_size, precision, uneven=False):
    network = build(config, mode, precision, uneven)
    spread_batch_norms(network)
    self.flops, self._batch_size = flops(network), batch_size
    self._network = folding.folded(network)
    self._images, _ = random_images(max(EVALUATION_IMAGES, 4 * batch_size), cifar100.IMAGE_SIZE)
    self._rates = {batch_size: 0.0, 1: 0.0}

  def step(self):
    """Evaluates the first batches, which also trace."""
    for batch_size in self._rates:
      self._run(batch_size, 2)

  def _run(self, batch_size, batches):
    _, speed = executor.predict(self._network, self._images, cifar100.whiten, batch_size, batches)
    self._rates[batch_size] = speed.images_per_second

  def measure(self, seconds):
    """Measures images per second, and for a quarter of the time ms of one image."""
    for batch_size, share in ((self._batch_size, 1.0), (1, 0.25)):
      most = len(self._images) // batch_size
      self._run(batch_size, min(most, steps_in(seconds * share, batch_size / self._rates[batch_size])))
    return {'rate': self._rates[self._batch_size], 'latency': 1000.0 / self._rates[1]}


class Ceiling:
  """Computes 3x3 convolutions, products of their shapes, and a large product."""

  def __init__(self, config, batch_size, precision):
    self._dtype = tf.dtypes.as_dtype(precision)
    self.programs, self.flops = {}, dense_flops(config)
    graph = config.graph()
    layers = [layer for layer in graph.weighted if layer.kernel == 3]
    shapes = {(graph.read(layer).size, layer.units.size, layer.size, layer.stride) for layer in layers}
    for inputs, outputs, size, stride in sorted(shapes):
      images, window = [batch_size, size * stride, size * stride, inputs], [3, 3, inputs, outputs]
      name = f'3x3 convolution, {inputs} to {outputs} channels at {size} pixels'
      convolve = functools.partial(tf.nn.conv2d, strides=stride, padding='SAME')
      self._add(name, convolve, images, window, batch_size * size**2 * 9 * inputs * outputs)
      # More rows are no faster, and the matrix would be nine times the images.
      self._add_product(min(batch_size * size**2, 16384), 9 * inputs, outputs)
    self._add_product(*[8192 if tf.config.list_physical_devices('GPU') else 2048] * 3)

  def _add_product(self, rows, inputs, outputs):
    name = f'matrix product, {rows} x {inputs} x {outputs}'
    self._add(name, tf.matmul, [rows, inputs], [inputs, outputs], rows * inputs * outputs)

  def _add(self, name, compute, left, right, multiply_adds):
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
    times = int(min(64, max(1, 0.03 / seconds)))  # without what calling costs
    self.programs[name] = (repeat(times) if times > 1 else once, x, w, times * 2 * multiply_adds)

  @staticmethod
  def _time(program, x, w):
    started = time.perf_counter()
    program(x, w).numpy()
    return time.perf_counter() - started

  def step(self):
    """Runs one round, to warm up."""
    self.measure(0)

  def measure(self, seconds):
    """Measures the best rate of any shape (FLOPs per second) and which it is."""
    best, until = {}, time.perf_counter() + seconds
    while not best or time.perf_counter() < until:
      for name, (program, x, w, flops) in self.programs.items():
        best[name] = max(best.get(name, 0.0), flops / self._time(program, x, w))
    name = max(best, key=best.get)
    return {'rate': best[name], 'shape': name}


WORKLOADS = {
  'training': training, 'keras': keras_training, 'evaluation': Evaluation, 'pipeline': pipeline, 'ceiling': Ceiling,
}  # fmt: skip


def serve(name, config, arguments, started):
  """Makes a workload, then measures it as often as stdin asks for; yields the answers."""
  devices.configure()
  config = resnet_split.WideResNet(**config)
  workload = WORKLOADS[name](config, **arguments)
  workload.step()
  first = time.time() - started
  workload.step()
  start = {'first_step': first, 'flops': workload.flops, 'dense_flops': dense_flops(config)}
  yield {**start, 'machine': describe_machine()}
  for line in sys.stdin:
    yield workload.measure(float(line))
  yield {'memory': peak_memory()}


if __name__ == '__main__':
  for answer in serve(*json.loads(sys.argv[1])):
    print(json.dumps(answer), flush=True)
