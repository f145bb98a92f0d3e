"""devices.py: how much memory of which GPU is taken, and the note on a slow precision.

There need be no GPU: what the driver says is made up.
"""

import types

import pytest
import tensorflow as tf

from splitnet.common.errors import UserError
from splitnet.parallel import devices

GPUS = '0, GPU-aaaa, 81920\n1, GPU-bbbb, 24576\n2, GPU-cccc, 40960\n'


@pytest.fixture
def driver(tmp_path, monkeypatch):
  """Puts an nvidia-smi on the path that says the given text; None: there is none."""

  def put(text):
    program = tmp_path / 'nvidia-smi'
    if text is not None:
      program.write_text(f'#!/bin/sh\ncat <<END\n{text}END\n')
      program.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path) + (':/usr/bin:/bin' if text is not None else ''))

  return put


@pytest.fixture
def limits(monkeypatch):
  """The memory limits (MiB) that TensorFlow is given, by physical device; set `gpus` to what it sees."""
  found = types.SimpleNamespace(gpus=[], limits={})

  def configure(device, configurations):
    found.limits[device.name] = [c.memory_limit for c in configurations]

  monkeypatch.setattr(tf.config, 'get_visible_devices', lambda kind: found.gpus)
  monkeypatch.setattr(tf.config, 'set_logical_device_configuration', configure)
  monkeypatch.setattr(tf.config.experimental, 'get_memory_growth', lambda gpu: False)
  monkeypatch.setattr(tf.config.experimental, 'set_memory_growth', lambda gpu, grows: None)
  return found


def gpu(number):
  return types.SimpleNamespace(name=f'/physical_device:GPU:{number}')


@pytest.mark.parametrize('shown, memory', [
  (None, [81920, 24576, 40960]), ('2,0', [40960, 81920]), ('GPU-bb', [24576]), (' 1 ', [24576]),
])  # fmt: skip
def test_a_share_is_one_of_the_memory_of_that_gpu(driver, limits, monkeypatch, shown, memory):
  driver(GPUS)
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  if shown is not None:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', shown)
  limits.gpus = [gpu(i) for i in range(len(memory))]
  devices.configure(gpu_fraction=0.5)
  assert limits.limits == {gpu(i).name: [m // 2] for i, m in enumerate(memory)}


def test_only_the_first_gpu_is_cut_up_and_a_hidden_one_does_not_count(driver, limits, monkeypatch):
  driver(GPUS)
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  limits.gpus = [gpu(1), gpu(2)]  # set_visible_devices has taken the first away
  devices.configure(gpu_fraction=0.5, num_logical_devices=2)
  assert limits.limits == {gpu(1).name: [24576 // 4] * 2, gpu(2).name: [40960 // 2]}


@pytest.mark.parametrize('says', [None, 'nonsense\n', '0, GPU-aaaa, [N/A]\n', ''])
def test_a_driver_that_does_not_tell_is_one_sentence(driver, limits, monkeypatch, says):
  driver(says)
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
  limits.gpus = [gpu(0)]
  with pytest.raises(
    UserError, match=r'nvidia-smi does not tell how much memory the GPU has .* leave --gpu_fraction at 1'
  ):
    devices.configure(gpu_fraction=0.5)
  assert not limits.limits


# --- the note on bfloat16 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('ratio, told', [(0.3, ''), (1.1, ''), (1.6, '1.6 times as long'), (20, '20.0 times as long')])
def test_bfloat16_on_a_cpu_that_is_slower_with_it_is_told(monkeypatch, ratio, told):
  monkeypatch.setattr(devices, 'convolution_seconds', lambda dtype, training: ratio if dtype == tf.bfloat16 else 1.0)
  monkeypatch.setattr(devices, 'gpu_name', lambda: None)
  note = devices.precision_note('bfloat16', training=True)
  assert told in note and bool(note) == bool(told)
  assert devices.precision_note('float32', training=True) == '', 'the default is never told of'
  monkeypatch.setattr(devices, 'gpu_name', lambda: 'a GPU')
  assert devices.precision_note('bfloat16', training=True) == ''


@pytest.mark.parametrize('training', [False, True])
def test_what_is_timed_is_a_convolution_in_that_precision_with_its_gradients_in_training(monkeypatch, training):
  computed, gradients = [], []
  conv2d, gradient = tf.nn.conv2d, tf.GradientTape.gradient
  monkeypatch.setattr(tf.nn, 'conv2d', lambda x, *rest: computed.append(x.dtype) or conv2d(x, *rest))

  def differentiate(tape, *arguments):
    found = gradient(tape, *arguments)
    gradients.extend(g.dtype for g in found)
    return found

  monkeypatch.setattr(tf.GradientTape, 'gradient', differentiate)
  times = [devices.convolution_seconds(dtype, training) for dtype in (tf.float32, tf.bfloat16)]
  assert min(times) > 0 and set(computed) == {tf.float32, tf.bfloat16}
  assert set(gradients) == (set(computed) if training else set())
