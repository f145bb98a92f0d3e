"""executor.py: a tree on several devices computes what it computes on one, and no device waits without need."""

import json
import threading

import forking
import helpers
import numpy as np
import pytest
import tensorflow as tf

import cifar100
from splitnet.parallel import executor, placement
from splitnet.training import checkpoints

TIMEOUT = 300  # of what must happen; nothing waits for it if all is well
IMAGES = tf.TensorSpec([None, 32, 32, 3], tf.uint8)

# --- queues ---------------------------------------------------------------------------------------------------------


def test_queues_return_what_was_computed_with_its_key():
  queues = executor.DeviceQueues(['a', 'b'], 2)
  for i in range(6):
    queues.call('ab'[i % 2], i, lambda x, y: x + y, i, 10)
  assert dict(queues.next_result() for _ in range(6)) == {i: i + 10 for i in range(6)}
  queues.close()


def test_a_device_computes_while_another_waits():
  queues, released = executor.DeviceQueues(['a', 'b'], 1), threading.Event()
  queues.call('a', 'slow', released.wait, TIMEOUT)
  for i in range(3):
    queues.call('b', i, lambda i=i: i)
  assert [queues.next_result()[0] for _ in range(3)] == [0, 1, 2]
  released.set()
  assert queues.next_result() == ('slow', True)
  queues.close()


def test_a_silent_device_is_named_and_an_idle_one_is_not():
  queues, released = executor.DeviceQueues(['a', 'b', 'c'], 1, time_limit=3), threading.Event()
  queues.call('c', 'done', lambda: None)
  assert queues.next_result() == ('done', None)
  queues.call('b', 'late', released.wait, TIMEOUT)
  with pytest.raises(executor.DeviceError) as caught:
    queues.next_result()
  assert caught.value.device == 'b' and caught.value.reason is None
  released.set()
  queues.close()


def test_an_exception_comes_with_its_device():
  queues = executor.DeviceQueues(['a', 'b'], 1)
  queues.call('b', 'key', lambda: 1 / 0)
  with pytest.raises(executor.DeviceError, match='b: division by zero') as caught:
    queues.next_result()
  assert caught.value.device == 'b' and isinstance(caught.value.reason, ZeroDivisionError)
  queues.close()


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def network(tmp_path_factory):
  """The split network, 1-2-3, of the tiny runs."""
  return checkpoints.load_network(helpers.read_checkpoint(helpers.stages(tmp_path_factory)['split']))


def images(count, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.fixture
def executor_of(network):
  """Makes executors of the network on the CPU; they are closed with the test."""
  made = []

  def make(**keywords):
    made.append(executor.BranchExecutor(network, ['/CPU:0'], IMAGES, cifar100.whiten, **keywords))
    return made[-1]

  yield make
  for one in made:
    one.close()


@pytest.mark.slow
def test_batches_of_any_size_come_with_their_keys_and_several_at_once(network, executor_of, monkeypatch):
  one = executor_of(in_flight=3)
  expected = network(cifar100.whiten(images(40))).numpy()
  batches = [(i, images(40)[i : i + 7]) for i in range(0, 40, 7)]
  together = threading.Barrier(3, timeout=TIMEOUT)  # opens only to as many at once
  (program,) = one.programs
  function = program.function

  def waiting(x):
    together.wait()
    return function(x)

  monkeypatch.setattr(program, 'function', waiting)
  logits = dict(one.run(batches))
  assert sorted(logits) == [0, 7, 14, 21, 28, 35]
  np.testing.assert_allclose(np.concatenate([logits[i] for i in sorted(logits)]), expected, atol=1e-5)


def test_an_endless_supply_of_batches_is_read_as_it_is_needed(executor_of):
  supplied = []

  def supply():
    while True:
      supplied.append(len(supplied))
      yield supplied[-1], images(2)

  for done, _ in zip(range(5), executor_of(in_flight=2).run(supply())):
    assert len(supplied) <= done + 1 + 2


def test_latency_is_of_one_batch_alone(executor_of):
  assert 0 < executor.latency(executor_of(), images(3)) < TIMEOUT


# --- trees on logical devices ---------------------------------------------------------------------------------------

TREES = """
import json, threading
import splitnet.common.quiet, numpy as np, tensorflow as tf
spec = tf.TensorSpec([None, 32, 32, 3], tf.uint8)
devices = ['/CPU:%d' % i for i in range(3)]
cpu = tf.config.list_physical_devices('CPU')[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
import cifar100, resnet_split, networks as t
from splitnet.network import hardening
from splitnet.parallel import executor, placement
images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
found = []
for split, branch_input, dtype in (
  ('2-2-2', 'all', 'float32'), ('2-4-4', 'group', 'float32'), ('1-1-4', 'all', 'float32'),
  ('1-2-3', 'group', 'bfloat16'), ('1-1-1', 'group', 'float32'),
):
  config = t.config_of(split, num_residual_units=1, branch_input=branch_input)
  network = t.grouping(config)
  if split != '1-1-1':
    network = hardening.harden(network, dtype=tf.dtypes.as_dtype(dtype))
  expected = network(cifar100.whiten(images)).numpy()
  for trunk in placement.TRUNKS:
    one = executor.BranchExecutor(network, devices, spec, cifar100.whiten, trunk)
    logits = dict(one.run([(0, images[:5]), (1, images[5:])]))
    difference = float(np.abs(np.concatenate([logits[0], logits[1]]) - expected).max())
    # The first calls of all devices go on only once each device has its own.
    overlap = threading.Barrier(len(one.devices), timeout=300)
    if trunk == 'replicate':
      functions = [program.function for program in one.programs]
      for program, function in zip(one.programs, functions):
        program.function = lambda x, function=function: overlap.wait() * 0 or function(x)
      dict(one.run([(0, images[:5])]))
      for program, function in zip(one.programs, functions):
        program.function = function
    used = [sorted({op.device[-1] for op in program.function.graph.get_operations()
                    if op.type in ('Conv2D', 'MatMul', 'RealDiv', 'Sub')}) for program in one.programs]
    found.append([split, branch_input, dtype, trunk, difference, [
      [p.device, p.source, p.nodes, on] for p, on in zip(one.parts, used)]])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_both_trunks_compute_the_networks_logits_on_their_devices():
  done = forking.run(['-c', TREES])
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert len(found) == 10
  for split, branch_input, dtype, trunk, difference, parts in found:
    case = (split, branch_input, dtype, trunk)
    assert difference <= (1e-5 if dtype == 'float32' else 0.05), case
    devices = [device for device, *_ in parts]
    assert sorted(set(devices)) == [f'/CPU:{i}' for i in range(min(3, int(split[-1])))], case
    if trunk == 'replicate':
      assert len(devices) == len(set(devices)) and all(source is None for _, source, *_ in parts), case
    elif split != '1-1-1':
      assert [source for _, source, *_ in parts].count(None) == 1 and len(parts) > len(set(devices)), case
    for device, _, nodes, used in parts:
      assert used == [device[-1]], (case, nodes)
  assert {trunk for *_, trunk, _, _ in found} == set(placement.TRUNKS)
