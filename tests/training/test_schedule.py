"""Schedules: learning rates of both kinds and the rise of gamma2, step by step."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

import train
from splitnet.common.flags import parse_epochs
from splitnet.training.loop import LoopSettings
from splitnet.training.objective import Objective
from splitnet.training.replicas import Machine
from splitnet.training.schedule import Schedule, of_settings
from splitnet.training.step import StepSettings


def rates(schedule, steps):
  return [float(schedule.learning_rate(tf.constant(step))) for step in steps]


def test_the_learning_rate_falls_at_its_epochs():
  schedule = Schedule(4.0, initial_lr=0.4, lr_decay=0.5, lr_step_epoch=(1.5, 3))
  assert rates(schedule, range(15)) == pytest.approx([0.4] * 6 + [0.2] * 6 + [0.1] * 3)


@pytest.mark.parametrize('epochs', ['', '1e9', '100,1e30'])
def test_the_learning_rate_stays_if_no_epoch_comes(epochs):
  schedule = Schedule(500.0, initial_lr=0.4, lr_step_epoch=tuple(parse_epochs(epochs)))
  assert rates(schedule, [40000]) == pytest.approx([0.4])


def test_one_cycle_rises_linearly_and_falls_along_half_a_cosine():
  schedule = Schedule(4.0, max_steps=12, initial_lr=0.4, lr_schedule='cosine', lr_warmup_epoch=1)
  expected = [0.2 * (1 + np.cos(np.pi * i / 8)) for i in range(9)]
  assert rates(schedule, range(4)) == pytest.approx([0.1, 0.2, 0.3, 0.4])
  assert rates(schedule, range(4, 13)) == pytest.approx(expected, abs=1e-6)


def test_the_default_rates_fall_at_the_released_steps():
  epochs = parse_epochs(train.parse_flags(['--mode', 'group']).lr_step_epoch)
  around = [49999, 119999, 120000, 149999, 150000, 199999]
  schedule = Schedule(45000 / 90, lr_step_epoch=tuple(epochs))
  assert rates(schedule, around) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_gamma2_rises_over_its_epochs():
  schedule, objective = Schedule(10.0, gamma2_ramp_epoch=2.0), Objective(gamma2=8.0, gamma3=5.0)
  assert [float(schedule.objective_at(objective, step).gamma2) for step in (0, 5, 10, 20, 1000)] == [0, 2, 4, 8, 8]
  assert schedule.objective_at(objective, 0).gamma3 == 5.0
  assert Schedule(10.0).objective_at(objective, 0) is objective


def test_shares_of_the_run_are_the_same_as_epochs():
  shares = of_settings({'max_steps': 120, 'lr_step': '0.25,3/4', 'lr_warmup': 0.1, 'gamma2_ramp': 0.5}, 10.0)
  epochs = of_settings(
    {'max_steps': 120, 'lr_step_epoch': '3,9', 'lr_warmup_epoch': 1.2, 'gamma2_ramp_epoch': 6.0}, 10.0
  )
  assert (shares.drops, shares.warmup, shares.ramp) == (epochs.drops, epochs.warmup, epochs.ramp) == ([30, 90], 12, 60)
  steps = [0, 5, 11, 12, 29, 30, 89, 90, 119]
  assert rates(shares, steps) == rates(epochs, steps)
  objective = Objective(gamma2=8.0)
  assert float(shares.objective_at(objective, 30).gamma2) == float(epochs.objective_at(objective, 30).gamma2) == 4


@pytest.mark.parametrize('kind', [Objective, Schedule, StepSettings, LoopSettings, Machine, train.initialize.Start])
def test_the_flags_and_the_settings_have_the_same_defaults(kind):
  """What a benchmark does not set is what train.py does."""
  flags = vars(train.parse_flags(['--mode', 'baseline']))
  of_stage = {'lr_step_epoch', 'train_dir'}
  for name, parameter in inspect.signature(kind).parameters.items():
    if parameter.default is not parameter.empty and name in flags.keys() - of_stage and flags[name] is not None:
      assert flags[name] == parameter.default, name
