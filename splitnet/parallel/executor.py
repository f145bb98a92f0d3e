"""Evaluates a network on several devices, each of which computes part of the tree.

The devices are this machine's, or those of workers. Every device has a queue of its own, from which `in_flight` threads
take calls, so that the next batch is there when one is done, and no device waits for another's branch. A part's weights
go to its device once; for a batch only its inputs go out and its outputs come back.
"""

import collections
import queue
import threading
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from splitnet.data.batches import numbered_batches
from splitnet.network import counting
from splitnet.parallel import devices, placement

IN_FLIGHT = 2  # batches that a device has been given at any time: one that it computes, one on its way

# How fast a network was evaluated. `images_per_second`: with several batches at once, and with what losing a worker
# cost; `latency`: seconds from handing in a batch, alone, to its logits; `parts`: list of placement.Part.
Speed = collections.namedtuple('Speed', 'images_per_second latency parts')


class DeviceError(Exception):
  """Tells that a device failed, its name and exception, or did not answer in time."""

  def __init__(self, device, reason=None):
    super().__init__(f'{device}: {"no answer" if reason is None else reason}')
    self.device, self.reason = device, reason


class DeviceQueues:
  """Holds a queue of calls for each device, and one of their results.

  The threads are daemons: a call that never returns (its worker hangs) does not keep the program from ending.
  """

  def __init__(self, device_names, in_flight, time_limit=None):
    """Starts the threads; each device computes `in_flight` calls at once.

    A device with calls may take `time_limit` seconds until it returns the next one; None: any time.
    """
    self._calls = {device: queue.SimpleQueue() for device in device_names}
    self._results, self._in_flight, self._time_limit = queue.SimpleQueue(), in_flight, time_limit
    self._pending = dict.fromkeys(device_names, 0)  # calls that have not returned
    self._last_active = {}  # when a device was last idle or returned something
    for device in device_names:
      for _ in range(in_flight):
        threading.Thread(target=self._work, args=(device,), daemon=True).start()

  def _work(self, device):
    while (call := self._calls[device].get()) is not None:
      key, function, arguments = call
      try:
        self._results.put((device, key, function(*arguments), None))
      except Exception as e:
        self._results.put((device, key, None, e))

  def call(self, device, key, function, *arguments):
    """Has a device call a function; `next_result` returns the key with the result."""
    if not self._pending[device]:
      self._last_active[device] = time.monotonic()
    self._pending[device] += 1
    self._calls[device].put((key, function, arguments))

  def next_result(self):
    """Waits for the next call to return: (its key, its result).

    Raises DeviceError if the call raised an exception, or a device exceeds its time limit.
    """
    timeout, slowest = None, None
    if self._time_limit is not None:
      slowest = min((device for device, count in self._pending.items() if count), key=self._last_active.get)
      timeout = max(0.0, self._last_active[slowest] + self._time_limit - time.monotonic())
    try:
      device, key, value, error = self._results.get(timeout=timeout)
    except queue.Empty:
      raise DeviceError(slowest) from None
    self._pending[device] -= 1
    self._last_active[device] = time.monotonic()
    if error is not None:
      raise DeviceError(device, error)
    return key, value

  def close(self):
    """Ends the threads, once they have nothing to compute."""
    for calls in self._calls.values():
      for _ in range(self._in_flight):
        calls.put(None)


class PartProgram:
  """Computes one placement.Part on its device, compiled.

  `function` is the tf.types.experimental.ConcreteFunction, `classes` are those of its logits, in their order, int
  array; None if its output is features.
  """

  def __init__(self, network, part, image_spec, prepare, jit_compile):
    """Sends the device its weights and compiles; arguments as BranchExecutor's."""
    spec = image_spec if part.source is None else network.output_spec(*part.source)
    with tf.device(part.device):
      own = network.part(part.nodes, copied=True)

    @tf.function(input_signature=[spec], jit_compile=jit_compile)
    def compute(x):
      with tf.device(part.device):
        return own(prepare(x) if part.source is None else x)

    self.part, self.function = part, compute.get_concrete_function()
    classes = own.leaf_classes()
    self.classes = classes if classes.size else None

  def __call__(self, x):
    """Returns the part's output: logits as NumPy array, features as tensor."""
    with tf.device(self.part.device):
      y = self.function(x)
    return y if self.classes is None else y.numpy()


class BranchExecutor:
  """Computes batches of raw images by `parts` and `programs` on `devices`."""

  def __init__(self, network, device_names, image_spec, prepare, trunk='replicate', in_flight=IN_FLIGHT,
               jit_compile=False, time_limit=None):  # fmt: skip
    """Places the parts, and sends the devices their weights.

    Raises DeviceError if a device fails or does not answer.

    Args:
      network: a Network that was built without devices.
      image_spec: tf.TensorSpec of a batch of raw images.
      prepare: function from a batch of raw images to what the network reads (whitening); runs on the devices.
      trunk: 'replicate' or 'first', see placement.py.
      in_flight: batches that a device has been given at any time.
      time_limit: seconds that a device may take to answer; None: any time.
    """
    self.parts = placement.parts(network.depths, counting.node_flops(network), device_names, trunk)
    self.devices = list(dict.fromkeys(part.device for part in self.parts))
    # If a part waits for another's features, more batches are begun, so that it has some to compute meanwhile.
    self._most_batches = in_flight * len({part.source for part in self.parts})
    self._queues = DeviceQueues(self.devices, in_flight, time_limit)
    self._readers = collections.defaultdict(list)  # the numbers of the parts that read a node's output
    for i, part in enumerate(self.parts):
      self._readers[part.source].append(i)
      self._queues.call(part.device, i, PartProgram, network, part, image_spec, prepare, jit_compile)
    programs = dict(self._queues.next_result() for _ in self.parts)
    self.programs = [programs[i] for i in range(len(self.parts))]

  def run(self, batches):
    """Computes the logits of batches, several at once.

    Batches are (key, raw images [batch, ...]). Yields (key, logits float32 [batch, classes]) in the order in which they
    are done. Raises DeviceError if a device fails or does not answer; the batches that were not yielded are lost.
    """
    batches, logits = iter(batches), {}  # by the key of a batch that has begun, by part
    answers = sum(program.classes is not None for program in self.programs)
    while True:
      while len(logits) < self._most_batches and (batch := next(batches, None)) is not None:
        key, images = batch
        logits[key] = {}
        with tf.device('/CPU:0'):
          images = tf.constant(images)
        self._call_readers(None, key, images)
      if not logits:
        return
      (i, key), output = self._queues.next_result()
      if self.programs[i].classes is None:
        depth, branches = list(self.parts[i].nodes.items())[-1]
        self._call_readers((depth, branches[0]), key, output)
        continue
      logits[key][i] = output
      if len(logits[key]) == answers:
        yield key, self._in_label_order(logits.pop(key))

  def _call_readers(self, source, key, output):
    for i in self._readers[source]:
      self._queues.call(self.parts[i].device, (i, key), self.programs[i], output)

  def _in_label_order(self, outputs):
    order = np.concatenate([self.programs[i].classes for i in outputs])
    return np.concatenate(list(outputs.values()), 1)[:, np.argsort(order)]

  def close(self):
    """Ends the devices' threads."""
    self._queues.close()


def latency(executor, images, repeats=3):
  """Returns the median seconds from handing in a batch, alone, to its logits."""
  seconds = []
  for _ in range(repeats + 1):  # the first one warms up
    started = time.perf_counter()
    for _ in executor.run([(0, images)]):
      seconds.append(time.perf_counter() - started)
  return float(np.median(seconds[1:]))


def predict(
  network, images, prepare, batch_size, max_batches=0, device_names=None, workers=None, crops=1, **options
):
  """Runs a network over images once.

  Returns (logits float32 [images, classes], a Speed, whose latency is that of the first batch). Raises UserError if a
  worker is lost, unless `workers` goes on without it.

  Args:
    network: a Network that was built without devices.
    images: array of raw images [images, ...], or an Images or ImageFiles.
    prepare: function from a batch of raw images to what the network reads.
    max_batches: 0 for all.
    device_names: of the devices for its branches; None: the first device of this machine.
    workers: the workers.Workers to compute on instead, or None.
    crops: how many crops of an image of files; the logits of an image's crops then follow each other.
    **options: of BranchExecutor: trunk, in_flight, jit_compile.
  """
  if hasattr(images, 'crops'):  # files, which are decoded when their batch is due

    def batches():
      return ((i, pixels) for i, pixels, _ in numbered_batches(images, batch_size, max_batches, crops=crops))

    total, shape, dtype = len(images.labels), [images.crops.size, images.crops.size, 3], tf.uint8
  else:
    pixels = getattr(images, 'images', images)

    def batches():
      return ((i, pixels[i * batch_size : (i + 1) * batch_size]) for i in range(count))

    total, shape, dtype = len(pixels), pixels.shape[1:], pixels.dtype
  count = -(-total // batch_size)
  count = min(count, max_batches) if max_batches else count
  image_spec = tf.TensorSpec([None, *shape], dtype)
  logits, started = {}, None
  with tqdm(total=count, unit='batch', disable=None, leave=False) as bar:
    while len(logits) < count:
      try:
        if workers:
          device_names, options['time_limit'] = workers.devices, workers.call_time_limit
        executor = BranchExecutor(network, device_names or devices.names()[:1], image_spec, prepare, **options)
        seconds_alone = latency(executor, next(batches())[1])
        started = started or time.perf_counter()
        for i, values in executor.run((i, batch) for i, batch in batches() if i not in logits):
          logits[i] = values
          bar.update()
        executor.close()
      except DeviceError as e:
        if workers is None:
          raise e.reason from e
        workers.drop_failed(e)
  seconds = time.perf_counter() - started
  logits = np.concatenate([logits[i] for i in range(count)])
  return logits, Speed(len(logits) / seconds, seconds_alone, executor.parts)
