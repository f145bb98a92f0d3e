"""Tests estimate.py: what it measures, hours by hand, every run in the table."""

import os

import networks
import numpy as np
import pytest
from made_runs import make_runs

import cifar100
import resnet_split
from paper import estimate
from paper import runs as runs_module
from splitnet.common.errors import UserError
from splitnet.network import counting
from splitnet.parallel import devices
from splitnet.training.step import make_step


def test_a_real_checkpoint_of_the_papers_width_is_small_enough_to_move(tmp_path, capsys):
  """Checks the largest state: weights, assignments and momentum of grouping."""
  config = resnet_split.WideResNet(k=8, ngroups1=4, ngroups2=4, ngroups3=2)
  network = networks.build(config, with_assignments=True)
  train_step = make_step(network, cifar100, {'batch_size': 90, 'max_steps': 1}, 500.0)
  sizes = estimate.checkpoint_sizes(train_step, 'group')
  with capsys.disabled():
    print('\nk = 8: checkpoint {:.2f} MB, best {:.2f} MB'.format(sizes['checkpoint'] / 1e6, sizes['best'] / 1e6))
  trained = sum(v.shape.num_elements() for v in network.trained.values())
  everything = sum(v.shape.num_elements() for v in network.weights.values())
  assert sizes['best'] == pytest.approx(4 * everything, rel=0.001) and sizes['best'] < 45e6
  assert sizes['checkpoint'] == pytest.approx(4 * (everything + trained), rel=0.001) and sizes['checkpoint'] < 100e6


@pytest.mark.slow
def test_a_stage_is_measured_in_a_process_of_its_own(tmp_path):
  settings = estimate.step_settings(make_runs(tmp_path, '--recipe', 'better', '--k', 1)['group-2-2-2'])
  before = set(os.listdir('.'))
  found = estimate.measure_apart(settings, 3, 2)
  assert set(os.listdir('.')) == before
  config = resnet_split.WideResNet.of_split('2-2-2', k=1, branch_input='all')
  network = networks.build(config, with_assignments=True)
  assert found['flops'] == counting.total(counting.counts(network), everything=True)[1]
  assert found['fastest'] == pytest.approx(found['per_step'] + 3 * found['per_image'])
  assert 0 < found['fastest'] <= found['seconds'] < 60 and found['per_image'] > 0
  assert 200e6 < found['memory'] < 5e9 and found['gpu_memory'] is None
  trained, everything = (sum(v.shape.num_elements() for v in d.values()) for d in (network.trained, network.weights))
  assert found['best'] == pytest.approx(4 * everything, rel=0.05)
  assert found['checkpoint'] == pytest.approx(4 * (trained + everything), rel=0.05)
  with pytest.raises(UserError, match=r'exit code 1: .*float99.*: try a smaller --measure_batch'):
    estimate.measure_apart({**settings, 'precision': 'float99'}, 3, 2)


@pytest.mark.slow
def test_the_fit_stays_sane_where_a_single_image_looks_as_slow_as_a_batch(monkeypatch, tmp_path):
  ticks = iter(np.arange(0.0, 1e6))
  monkeypatch.setattr(estimate.time, 'perf_counter', lambda: next(ticks))  # every step takes one second
  run = make_runs(tmp_path, '--recipe', 'paper', '--k', 1)['scratch-1-1-4-random']
  found = estimate.measure(estimate.step_settings(run), 3, 1)
  assert (found['seconds'], found['fastest'], found['per_image'], found['per_step']) == (1.0, 1.0, 0.25, 0.25)


MEASURED = dict(
  seconds=1.2, fastest=0.9, batch_size=8, memory=10**9, gpu_memory=None, per_image=0.1, per_step=0.1, flops=3 * 10**9,
  checkpoint=88 * 10**6, best=44 * 10**6,
)  # fmt: skip


def test_the_hours_of_a_run_by_hand():
  settings = dict(max_steps=1000, batch_size=90, val_interval=400, precision='float32')
  run = runs_module.Run('folder', None, settings)
  flags = estimate.parse_flags(['--tflops', '100', '--utilisation', '0.5'])
  # 90,000 training images of 3 x 2 + 1 GFLOP, 4 validations of 5,000 images of 2 GFLOP.
  flops = 90000 * 7e9 + 4 * 5000 * 2e9
  # An image of 9 GFLOP was measured to take 0.1 s, so 90 GFLOP/s; and 0.1 s a step. In float32 half of the GPU's peak.
  steps, here, gpu = estimate.time_of(run, 2e9, 1e9, MEASURED, flags)
  assert (steps, 3600 * here, 3600 * gpu) == pytest.approx((1000, 100 + flops / 90e9, flops / 25e12))
  run = runs_module.Run('folder', None, dict(settings, precision='bfloat16'))
  assert 3600 * estimate.time_of(run, 2e9, 1e9, MEASURED, flags)[2] == pytest.approx(flops / 50e12)


def test_the_plan_has_every_run_and_adds_up(monkeypatch, capsys):
  called = []

  def measure_apart(settings, batch_size, steps):
    called.append((settings['mode'], settings['precision'], batch_size, steps))
    return dict(MEASURED, batch_size=batch_size)

  monkeypatch.setattr(estimate, 'measure_apart', measure_apart)
  monkeypatch.setattr(devices, 'precision_note', lambda precision, training: f'note: {precision}, {training}')
  assert estimate.main(['--k', '1', '--measure_batch', '5', '--precision', 'float32']) == 0
  assert called == [(m, 'float32', 5, 20) for m in ('baseline', 'group', 'split')]
  called.clear()
  assert capsys.readouterr().err.startswith('note: float32, True\n')
  assert estimate.main(['--k', '1', '--measure_batch', '5']) == 0
  # Short and better compute alike, so they are measured once.
  assert called == [(m, p, 5, 20) for p in ('float32', 'bfloat16') for m in ('baseline', 'group', 'split')]
  out, err = capsys.readouterr()
  assert err.startswith('note: bfloat16, True\n'), 'told before minutes are spent on it'
  first, second = out.split('Hours, validation included')
  rows = [[cell.strip() for cell in t.strip('|').split('|')] for t in second.splitlines() if t.startswith('|')]
  header, rows = rows[0], rows[2:]
  assert [row[0] for row in rows[:3]] == ['baseline', 'group-2-2-2', 'split-2-2-2'] and len(rows) == 2 + 4 * 3 + 2
  numbers = np.array([[float(cell.replace(',', '')) for cell in row[2:]] for row in rows])
  assert len(header) == 2 + 3 * 3 and header[2] == 'paper: steps of 90' and header[5] == 'short: steps of 360'
  np.testing.assert_allclose(numbers[:-2].sum(0), numbers[-1], rtol=0.02, atol=0.1)
  table_2 = [i for i, row in enumerate(rows) if row[0].startswith(('group-', 'split-')) or row[0] == 'baseline']
  np.testing.assert_allclose(numbers[table_2].sum(0), numbers[-2], rtol=0.02, atol=0.05)
  assert numbers[-1][0] == 6 * 120000 + 4 * 200000 + 12 * 120000
  assert len([t for t in first.splitlines() if t.startswith('|')]) == 2 + 6 and '88.0' in first and '44.0' in first


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--tflops', '0'], ["--tflops is '0'", 'above 0']),
    (['--utilisation', '1.5'], ["--utilisation is '1.5'", '(0, 1]']),
    (['--measure_steps', '0'], ["--measure_steps is '0'"]),
    (['--measure_batch', '0'], ["--measure_batch is '0'"]),
    (['--k', '0'], ['--k is 0']),
    (['--branch_input', 'both'], ["'both'"]),
  ],
)
def test_the_plans_mistakes_are_one_sentence(arguments, words, capsys):
  assert estimate.main(arguments) == 1
  err = capsys.readouterr().err
  assert err.startswith('estimate.py: ') and err.count('\n') == 1 and all(word in err for word in words)
