"""Evaluates a network on several devices, of this machine or of workers (hosts.py): each computes its part of the tree.

Every device has a queue of its own, from which `in_flight` threads take what it is to compute, so that the next batch
is there when one is done, and no device waits for another's branch. A part's weights go to its device once; for a batch
only its inputs go out and its outputs come back.
"""

import collections
import queue
import threading
import time

import numpy as np
import tensorflow as tf

import cifar100
from splitnet.parallel import placement

IN_FLIGHT = 2  # batches that a device has been given at any time: one that it computes, one on its way


class DeviceError(Exception):
  """A device failed, or was silent for too long.

  Attributes:
    device: its name.
    reason: the exception that it raised; None where it was silent.
  """

  def __init__(self, device, reason=None):
    super().__init__('%s: %s' % (device, 'no answer' if reason is None else reason))
    self.device, self.reason = device, reason


class Lanes:
  """A queue of calls for each device, and one of what they returned.

  The threads are daemons: a call that never returns (its worker hangs) does not keep the program from ending.
  """

  def __init__(self, devices, in_flight, patience=None):
    """Starts the threads.

    Args:
      devices: their names.
      in_flight: calls that each computes at once.
      patience: seconds after which a device that has calls and returned none is given up; None: never.
    """
    self._calls = {device: queue.SimpleQueue() for device in devices}
    self._returned, self._in_flight, self._patience = queue.SimpleQueue(), in_flight, patience
    self._waiting = dict.fromkeys(devices, 0)
    self._since = {}  # when a device was last idle or returned something
    for device in devices:
      for _ in range(in_flight):
        threading.Thread(target=self._work, args=(device,), daemon=True).start()

  def _work(self, device):
    while (call := self._calls[device].get()) is not None:
      key, function, arguments = call
      try:
        self._returned.put((device, key, function(*arguments), None))
      except Exception as e:
        self._returned.put((device, key, None, e))

  def call(self, device, key, function, *arguments):
    """Has a device call a function; `next` returns the key with the result."""
    if not self._waiting[device]:
      self._since[device] = time.monotonic()
    self._waiting[device] += 1
    self._calls[device].put((key, function, arguments))

  def next(self):
    """Waits for the next call to return: (its key, what it returned).

    Raises:
      DeviceError: where it raised, or a device is silent.
    """
    while True:
      timeout, slowest = None, None
      if self._patience is not None:
        slowest = min((d for d, n in self._waiting.items() if n), key=self._since.get)
        timeout = max(0.0, self._since[slowest] + self._patience - time.monotonic())
      try:
        device, key, value, error = self._returned.get(timeout=timeout)
      except queue.Empty:
        raise DeviceError(slowest) from None
      self._waiting[device] -= 1
      self._since[device] = time.monotonic()
      if error is not None:
        raise DeviceError(device, error)
      return key, value

  def close(self):
    """Ends the threads, once they have nothing to compute."""
    for calls in self._calls.values():
      for _ in range(self._in_flight):
        calls.put(None)


def part_of(network, nodes):
  """A copy of a network that computes some nodes of its tree only, with variables where the caller's tf.device says.

  Args:
    network: a resnet_split.Network that was built without devices.
    nodes: dict from depth to a list of branches, as placement.Part has it.
  """
  part = type(network).__new__(type(network))
  tf.Module.__init__(part, name='part')
  own = set(vars(part))
  for name, value in vars(network).items():
    if name not in own and not name.startswith('_self_'):  # those are TensorFlow's, each module its own
      setattr(part, name, value)
  part.held = {depth: list(nodes.get(depth, [])) for depth in network.depths}
  part._class_order = None
  wanted = [network.prefix(layer, b) + '/' for layer in network.plan.layers for b in part.held[layer.depth]]
  part.weights = {}
  for prefix in wanted:
    for name in [name for name in network.weights if name.startswith(prefix)]:
      value = network.weights[name]
      part.weights[name] = tf.Variable(value.numpy(), trainable=False) if isinstance(value, tf.Variable) else value
  return part


def output_spec(network, node):
  """The tf.TensorSpec of what a node hands to those above it (to the logits pooled features)."""
  depth, branch = node
  last = [block for block in network.plan.blocks if block.depth == depth][-1]
  layer = next(layer for layer in network.plan.layers if layer.name == last.conv_2)
  channels = network.written(depth, branch)
  if last is network.plan.blocks[-1]:
    return tf.TensorSpec([None, channels], tf.float32)
  return tf.TensorSpec([None, layer.output_size, layer.output_size, channels], network.dtype)


class Spread:
  """A network on devices: from batches of raw images to their logits.

  Attributes:
    parts: list of placement.Part.
    devices: names of the devices that have a part, each once.
  """

  def __init__(self, network, devices, trunk='replicate', in_flight=IN_FLIGHT, jit_compile=False, patience=None):
    """Places the parts and sends them their weights.

    Args:
      network: a resnet_split.Network that was built without devices.
      devices: list of device names.
      trunk: 'replicate' or 'first', see placement.py.
      in_flight: batches that a device has been given at any time.
      jit_compile: compile with XLA.
      patience: seconds without an answer after which a device is given up; None: never.

    Raises:
      DeviceError: where a device fails or does not answer.
    """
    self.parts = placement.parts(network.depths, network.costs(), devices, trunk)
    self.devices = list(dict.fromkeys(part.device for part in self.parts))
    self._network = network
    # Where a part waits for another's features, more batches are under way, so that it has some to compute meanwhile.
    self._batches = in_flight * len({part.source for part in self.parts})
    self._lanes = Lanes(self.devices, in_flight, patience)
    self._functions, self._steps, self._classes = {}, {}, {}  # by the part's number
    self._readers = collections.defaultdict(list)
    for i, part in enumerate(self.parts):
      self._readers[part.source].append(i)
      self._lanes.call(part.device, i, self._build, part, jit_compile)
    for _ in self.parts:
      i, (self._functions[i], self._steps[i], self._classes[i]) = self._lanes.next()

  def _build(self, part, jit_compile):
    """A part's function, how it is called, and the classes of its logits (None where it has none)."""
    spec = tf.TensorSpec([None, cifar100.IMAGE_SIZE, cifar100.IMAGE_SIZE, 3], tf.uint8)
    if part.source is not None:
      spec = output_spec(self._network, part.source)
    with tf.device(part.device):
      network = part_of(self._network, part.nodes)
    leaves = network.laid_classes() if network.held['logits'] else None

    @tf.function(input_signature=[spec], jit_compile=jit_compile)
    def step(x):
      with tf.device(part.device):
        return network(cifar100.whiten(x) if part.source is None else x)

    function = step.get_concrete_function()

    def call(x):
      with tf.device(part.device):
        y = function(x)
      return y if leaves is None else y.numpy()

    return function, call, leaves

  def run(self, batches):
    """Computes the logits of batches, several at once.

    Args:
      batches: iterable of (key, images uint8 [batch, 32, 32, 3]).

    Yields:
      (key, logits float32 [batch, classes]) as they come.

    Raises:
      DeviceError: where a device fails or does not answer. What has not come is lost.
    """
    batches, under_way = iter(batches), {}
    while True:
      while len(under_way) < self._batches and (batch := next(batches, None)) is not None:
        key, images = batch
        under_way[key] = {}
        with tf.device('/CPU:0'):
          images = tf.constant(images)
        self._call_readers(None, key, images)
      if not under_way:
        return
      (i, key), output = self._lanes.next()
      if self._classes[i] is None:
        depth, branches = list(self.parts[i].nodes.items())[-1]
        self._call_readers((depth, branches[0]), key, output)
        continue
      under_way[key][i] = output
      if len(under_way[key]) == sum(classes is not None for classes in self._classes.values()):
        yield key, self._in_label_order(under_way.pop(key))

  def _call_readers(self, source, key, output):
    for i in self._readers[source]:
      self._lanes.call(self.parts[i].device, (i, key), self._steps[i], output)

  def _in_label_order(self, outputs):
    order = np.concatenate([self._classes[i] for i in outputs])
    return np.concatenate(list(outputs.values()), 1)[:, np.argsort(order)]

  def close(self):
    """Ends the devices' threads."""
    self._lanes.close()


def latency(spread, images, repeats=3):
  """Median seconds from handing in a batch, alone, to its logits; the first time, which warms up, does not count."""
  seconds = []
  for _ in range(repeats + 1):
    started = time.perf_counter()
    for _ in spread.run([(0, images)]):
      seconds.append(time.perf_counter() - started)
  return float(np.median(seconds[1:]))
