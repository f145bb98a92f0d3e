"""spread.py: a tree on several devices computes what it computes on one, and no device waits without need."""

import json
import os
import subprocess
import sys
import threading

import helpers
import numpy as np
import pytest
from helpers import PROJECT as ROOT

import cifar100
from splitnet.parallel import executor, placement
from splitnet.training import checkpoints

TIMEOUT = 120  # of what must happen; nothing waits for it where all is well

# --- lanes ----------------------------------------------------------------------------------------------------------


def test_lanes_return_what_was_computed_with_its_key():
  lanes = executor.Lanes(['a', 'b'], 2)
  for i in range(6):
    lanes.call('ab'[i % 2], i, lambda x, y: x + y, i, 10)
  assert dict(lanes.next() for _ in range(6)) == {i: i + 10 for i in range(6)}
  lanes.close()


def test_a_lane_computes_while_another_is_held_up():
  lanes, held = executor.Lanes(['a', 'b'], 1), threading.Event()
  lanes.call('a', 'slow', held.wait, TIMEOUT)
  for i in range(3):
    lanes.call('b', i, lambda i=i: i)
  assert [lanes.next()[0] for _ in range(3)] == [0, 1, 2]
  held.set()
  assert lanes.next() == ('slow', True)
  lanes.close()


def test_a_silent_device_is_named_and_an_idle_one_is_not():
  lanes, held = executor.Lanes(['a', 'b', 'c'], 1, patience=3), threading.Event()
  lanes.call('c', 'done', lambda: None)
  assert lanes.next() == ('done', None)
  lanes.call('b', 'late', held.wait, TIMEOUT)
  with pytest.raises(executor.DeviceError) as caught:
    lanes.next()
  assert caught.value.device == 'b' and caught.value.reason is None
  held.set()
  lanes.close()


def test_an_exception_comes_with_its_device():
  lanes = executor.Lanes(['a', 'b'], 1)
  lanes.call('b', 'key', lambda: 1 / 0)
  with pytest.raises(executor.DeviceError, match='b: division by zero') as caught:
    lanes.next()
  assert caught.value.device == 'b' and isinstance(caught.value.reason, ZeroDivisionError)
  lanes.close()


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def network(tmp_path_factory):
  """The split network, 1-2-3, of the tiny runs."""
  return checkpoints.load_network(checkpoints.read(helpers.stages(tmp_path_factory)['split']))


def images(count, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_batches_of_any_size_come_with_their_keys_and_several_at_once(network):
  computing = executor.Spread(network, ['/CPU:0'], in_flight=3)
  expected = network(cifar100.whiten(images(40))).numpy()
  batches = [(i, images(40)[i : i + 7]) for i in range(0, 40, 7)]
  together = threading.Barrier(3, timeout=TIMEOUT)  # opens only to as many at once
  step = computing._steps[0]

  def waiting(x):
    together.wait()
    return step(x)

  computing._steps[0] = waiting
  found = dict(computing.run(batches))
  computing.close()
  assert sorted(found) == [0, 7, 14, 21, 28, 35]
  np.testing.assert_allclose(np.concatenate([found[i] for i in sorted(found)]), expected, atol=1e-5)


def test_an_endless_supply_of_batches_is_taken_as_it_is_needed(network):
  computing, taken = executor.Spread(network, ['/CPU:0'], in_flight=2), []

  def supply():
    while True:
      taken.append(len(taken))
      yield taken[-1], images(2)

  for got, _ in zip(range(5), computing.run(supply())):
    assert len(taken) <= got + 1 + 2
  computing.close()


def test_latency_is_of_one_batch_alone(network):
  computing = executor.Spread(network, ['/CPU:0'])
  assert 0 < executor.latency(computing, images(3)) < TIMEOUT
  computing.close()


# --- trees on logical devices ---------------------------------------------------------------------------------------

SPREAD = """
import json, sys, threading
sys.path[:0] = sys.argv[1:]
import splitnet.common.quiet, numpy as np, tensorflow as tf
devices = ['/CPU:%d' % i for i in range(3)]
cpu = tf.config.list_physical_devices('CPU')[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
import cifar100, resnet_split, networks as t
from splitnet.parallel import executor, placement
images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
found = []
for split, branch_input, dtype in (
  ('2-2-2', 'group', 'float32'), ('2-2-2', 'all', 'float32'), ('2-4-4', 'group', 'float32'),
  ('2-4-4', 'all', 'float32'), ('1-1-4', 'group', 'float32'), ('1-1-4', 'all', 'float32'),
  ('1-2-3', 'group', 'bfloat16'), ('1-1-1', 'group', 'float32'),
):
  config = t.config_of(split, num_residual_units=1, branch_input=branch_input)
  network = t.grouping(config)
  if split != '1-1-1':
    network = resnet_split.harden(network, dtype=tf.dtypes.as_dtype(dtype))
  expected = network(cifar100.whiten(images)).numpy()
  for trunk in placement.TRUNKS:
    computing = executor.Spread(network, devices, trunk)
    logits = dict(computing.run([(0, images[:5]), (1, images[5:])]))
    difference = float(np.abs(np.concatenate([logits[0], logits[1]]) - expected).max())
    # The first calls of all devices go on only once each device has its own.
    overlap = threading.Barrier(len(computing.devices), timeout=100)
    if trunk == 'replicate':
      for i, step in list(computing._steps.items()):
        computing._steps[i] = lambda x, step=step: overlap.wait() * 0 or step(x)
      dict(computing.run([(0, images[:5])]))
    where = [sorted({op.device[-1] for op in computing._functions[i].graph.get_operations()
                     if op.type in ('Conv2D', 'MatMul', 'RealDiv', 'Sub')}) for i in range(len(computing.parts))]
    found.append([split, branch_input, dtype, trunk, difference, [
      [p.device, p.source, p.nodes, on] for p, on in zip(computing.parts, where)]])
print(json.dumps(found))
"""


def test_both_trunks_compute_the_networks_logits_on_their_devices():
  here = os.path.join(ROOT, 'tests')
  environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1'}
  done = subprocess.run([sys.executable, '-c', SPREAD, ROOT, here], capture_output=True, text=True, env=environment)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert len(found) == 16
  for split, branch_input, dtype, trunk, difference, parts in found:
    case = (split, branch_input, dtype, trunk)
    assert difference <= (1e-5 if dtype == 'float32' else 0.05), case
    devices = [device for device, *_ in parts]
    assert sorted(set(devices)) == ['/CPU:%d' % i for i in range(min(3, int(split[-1])))], case
    if trunk == 'replicate':
      assert len(devices) == len(set(devices)) and all(source is None for _, source, *_ in parts), case
    elif split != '1-1-1':
      assert [source for _, source, *_ in parts].count(None) == 1 and len(parts) > len(set(devices)), case
    for device, _, nodes, where in parts:
      assert where == [device[-1]], (case, nodes)
  assert {trunk for *_, trunk, _, _ in found} == set(placement.TRUNKS)
