"""Estimates the hours that Tables 1 and 2 would take: ./tables.sh plan.

Each stage is measured at its width on the machine at hand: the time of a step, the memory, the size of a checkpoint.
From these, the FLOPs of the networks (three times those of a forward pass for training) and the recipes of tables.sh
follow the hours of every run, here and on a GPU of a given rate.
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import sys

from paper import recipes
from splitnet.common.flags import Parser, add, answer_early, integer, number, one_of, take

CPU_BATCH = 8  # images per step of a measurement on a CPU; a single image gives the part that does not grow with them


def make_parser():
  """Returns the parser of the flags."""
  parser = Parser(prog='estimate.py', description=__doc__)
  add(parser, 'recipe', one_of(*sorted(recipes.RECIPES)), None, 'only this one [paper, short and better]')
  add(parser, 'k', int, 8, 'width multiplier; the paper has 8')
  add(parser, 'branch_input', str, None, "train.py's, group or all [all; of recipe cpu group]")
  add(parser, 'precision', one_of('float32', 'bfloat16'), None, 'of the convolutions [short and better bfloat16]')
  add(parser, 'measure_steps', integer(1, 10**4), 20, 'steps to measure, after two that are not counted')
  text = f"images per measured step [on a GPU the recipe's, which a CPU would take minutes for; there {CPU_BATCH}]"
  add(parser, 'measure_batch', integer(1, 10**4), None, text)
  text = "the GPU's peak rate in bfloat16, 10^12 FLOPs per second, by default an A100's; float32 counts at half of it"
  add(parser, 'tflops', number('(0, inf)'), 312.0, text)
  add(parser, 'utilisation', number('(0, 1]'), 0.2, 'share of that rate which is reached: an assumption')
  return parser


if __name__ == '__main__' and sys.argv[1:2] != ['--child']:
  answer_early('estimate.py', make_parser)

import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
from paper import counts, experiments, runs
from paper.published import DENSE
from resnet_split import WideResNet
from splitnet.common.errors import UserError, last_line, program
from splitnet.common.files import PROJECT
from splitnet.data.batches import Images
from splitnet.data.synthetic import random_images
from splitnet.parallel import devices
from splitnet.reporting.machine import peak_memory
from splitnet.reporting.tables import markdown, of_dicts
from splitnet.reporting.timing import numbered
from splitnet.training import checkpoints, initialize
from splitnet.training.saver import Saver
from splitnet.training.step import make_step

# What is measured of each stage: a run of the tables. Fine-tuning computes what training from scratch does.
MEASURED = {'baseline': 'baseline', 'group': 'group-2-2-2', 'split': 'scratch-2-2-2-random'}
MEASURED_COLUMNS = {
  'stage': ('stage', ''), 'precision': ('precision', ''), 'images per step': ('batch_size', 'd'),
  'median step (s)': ('seconds', '.3g'), 'fastest (s)': ('fastest', '.3g'), 'of it fixed (s)': ('per_step', '.2g'),
  'images/s': ('rate', '.3g'), 'GFLOP/s': ('flop_rate', '.0f'), 'memory (MB)': ('memory MB', '.0f'),
  'GPU memory (MB)': ('gpu_memory MB', '.0f'), 'checkpoint (MB)': ('checkpoint MB', '.1f'),
  'best (MB)': ('best MB', '.1f'),
}  # fmt: skip
FORWARD_AND_BACKWARD = 3  # FLOPs of a training step in forward passes
VAL_IMAGES = 5000


def parse_flags(argv):
  """Parses the flags; `experiments` is a list of experiments.Experiment."""
  flags = make_parser().parse_args(argv)
  flags.experiments = [
    experiments.Experiment(recipe, k=flags.k, branch_input=flags.branch_input, precision=flags.precision)
    for recipe in ([flags.recipe] if flags.recipe else ['paper', 'short', 'better'])
  ]
  flags.experiments[0].config(DENSE)  # checks --k and --branch_input
  return flags


def step_settings(run):
  """Returns a run's settings for one step that needs no other run: a dict."""
  left_out = {*runs.SHARES, 'assignment_start', 'lr_schedule', 'distill_weight', 'distill_temperature'}
  return {name: value for name, value in {**run.train, **run.machine}.items() if name not in left_out}


def measure(settings, batch_size, steps):
  """Trains a few steps on generated images, in this process; see `measure_apart`."""
  devices.configure()
  start, config = take(initialize.Start, settings), take(WideResNet, settings)
  settings = dict(settings, batch_size=batch_size)
  network = initialize.build_network(start, config.graph())
  train_step = make_step(network, cifar100, settings, recipes.TRAIN_IMAGES / batch_size)
  images = Images(*random_images(max(256, batch_size), cifar100.IMAGE_SIZE, config.num_classes))

  def measured_steps(batch_size, steps):
    batches = iter(images.training_batches(batch_size, 0))
    seconds = []
    for _ in range(2 + steps):  # the first two compile and settle
      started = time.perf_counter()
      float(train_step.train(batches, tf.constant(1))['total'])
      seconds.append(time.perf_counter() - started)
    return seconds[2:]

  seconds, memory = measured_steps(batch_size, steps), peak_memory()
  fastest = min(seconds)
  flops = counts.total(config if settings['mode'] == 'split' else config.dense(), everything=True)[1]
  per_image, per_step = fastest / batch_size, 0.0
  if batch_size > 1:
    # A line through the fastest steps, which other work on the machine disturbs least; still it may make a single image
    # look as slow as a batch.
    single = min(*measured_steps(1, max(1, steps // 4)), fastest / 2)
    per_image = (fastest - single) / (batch_size - 1)
    per_step = single - per_image
  return dict(
    seconds=statistics.median(seconds), fastest=fastest, batch_size=batch_size, memory=memory['host'],
    gpu_memory=memory.get('GPU'), per_image=per_image, per_step=per_step, flops=flops,
    **checkpoint_sizes(train_step, settings['mode']),
  )  # fmt: skip


def checkpoint_sizes(train_step, mode):
  """Returns the bytes of a stage's checkpoints: dict of 'checkpoint' and 'best'."""
  with tempfile.TemporaryDirectory() as folder:
    configuration = checkpoints.describe(mode, {}, train_step.network, {}, {})
    state = dict(weights=train_step.network.weights, momentum=train_step.optimizer.slots, step=train_step.step)
    saver = Saver(folder, configuration, 1, **state)
    prefixes = {'checkpoint': saver.save(0), 'best': saver.save_best(0)}
    return {name: sum(os.path.getsize(prefix + end) for end in ('.index', '.data-00000-of-00001'))
            for name, prefix in prefixes.items()}  # fmt: skip


def measure_apart(settings, batch_size, steps):
  """Calls `measure` in a process of its own, whose peak of memory is its own.

  Returns:
    A dict: 'seconds' and 'fastest' (the median and the fastest step's), 'batch_size', 'memory' and 'gpu_memory'
    (bytes), 'per_image' and 'per_step' (seconds; a fast step of n images takes per_step + n per_image), 'flops' (of a
    forward pass of one image), 'checkpoint' and 'best' (bytes).
  """
  call = [sys.executable, '-m', 'paper.estimate', '--child', json.dumps([settings, batch_size, steps])]
  done = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=PROJECT)
  if done.returncode:
    raise UserError(
      f'measuring {batch_size} images per step failed (exit code {done.returncode}: {last_line(done.stderr)}): try a '
      'smaller --measure_batch'
    )
  return json.loads(done.stdout.splitlines()[-1])


def measure_all(flags, runs_of, results):
  """Measures every stage and precision into a dict by (recipe, stage)."""
  on_gpu, stages_of = bool(tf.config.list_physical_devices('GPU')), {}
  for (recipe, by_name), (stage, name) in itertools.product(runs_of.items(), MEASURED.items()):
    settings = step_settings(by_name[name])
    batch_size = flags.measure_batch or (settings['batch_size'] if on_gpu else CPU_BATCH)
    stages_of.setdefault((stage, settings['precision'], batch_size), (settings, []))[1].append((recipe, stage))
  for far, ((stage, precision, batch_size), (settings, stages)) in numbered(stages_of.items()):
    text = f'measuring {stage} in {precision}, {batch_size} images per step ({far})'
    print(text, file=sys.stderr, flush=True)
    results.update(dict.fromkeys(stages, measure_apart(settings, batch_size, flags.measure_steps)))


def forward_flops(experiment, run):
  """Returns the FLOPs of one image through a run's network, everything counted."""
  split = '-'.join(str(run.train[f'ngroups{i}']) for i in (3, 2, 1)) if run.train['mode'] == 'split' else DENSE
  return counts.total(experiment.config(split), everything=True)[1]


def time_of(run, forward, teacher, measured, flags):
  """Estimates a run by the FLOPs of an image: (steps, hours here, on the GPU).

  Here by the measured steps of its stage, on the GPU by the rate that the flags say.
  """
  steps = run.train['max_steps']
  images, validations = steps * run.train['batch_size'], 2 + steps // run.train['val_interval']
  flops = images * (FORWARD_AND_BACKWARD * forward + teacher) + validations * VAL_IMAGES * forward
  here = steps * measured['per_step'] + flops * measured['per_image'] / (FORWARD_AND_BACKWARD * measured['flops'])
  peak = flags.tflops * 1e12 * (1.0 if run.train['precision'] == 'bfloat16' else 0.5)
  return steps, here / 3600, flops / (peak * flags.utilisation) / 3600


def names_of_table(by_name, table):
  """Returns the names of the runs that a table needs, in order."""
  wanted = [by_name[name] for name in experiments.cells(table).values()]
  return [os.path.basename(run.folder) for run in runs.with_needs(wanted)]


def hours_table(flags, runs_of, measured):
  """Makes the table of the hours of every run: (header, rows) of text."""
  header = ['run', 'GFLOPs per image']
  for recipe, by_name in runs_of.items():
    batch_size = by_name['baseline'].train['batch_size']
    header += [f'{recipe}: steps of {batch_size}', f'{recipe}: hours here', f'{recipe}: hours, GPU']
  one = next(iter(runs_of.values()))  # which runs there are is the same in all
  names = names_of_table(one, 'all')
  forward = {name: forward_flops(flags.experiments[0], one[name]) for name in names}

  def numbers(name):
    for recipe, by_name in runs_of.items():
      run = by_name[name]
      teacher = forward['baseline'] if run.teacher else 0
      yield from time_of(run, forward[name], teacher, measured[recipe, run.train['mode']], flags)

  values = {name: np.array([*numbers(name)]) for name in names}

  def row(text, names, forward=''):
    steps_and_hours = enumerate(sum(values[name] for name in names))  # the first of three are steps
    return [text, forward, *(f'{v:.{2 if v < 10 else 1}f}' if i % 3 else f'{v:,.0f}' for i, v in steps_and_hours)]

  def text_of(name):
    return f'3 runs: S, C, R of {name[8:13]}' if name.startswith('scratch') else name

  alike = [(text, list(group)) for text, group in itertools.groupby(names, text_of)]
  rows = [row(text, group, f'{forward[group[0]] / 1e9:.3f}') for text, group in alike]
  return header, [*rows, row('**Table 2**', names_of_table(one, '2')), row('**Tables 1 and 2**', names)]


def measured_table(runs_of, measured):
  """Makes the table of what was measured: (header, rows) of text."""
  lines = {}
  for (recipe, stage), m in measured.items():
    name, rate = MEASURED[stage], m['batch_size'] / m['fastest']
    precision = runs_of[recipe][name].train['precision']
    megabytes = {f'{key} MB': m[key] and m[key] / 1e6 for key in ('memory', 'gpu_memory', 'checkpoint', 'best')}
    lines[stage, precision, m['batch_size']] = dict(
      m, stage=name.replace('scratch-2-2-2-random', 'split-2-2-2'), precision=precision, rate=rate,
      flop_rate=FORWARD_AND_BACKWARD * m['flops'] * rate / 1e9, **megabytes,
    )  # fmt: skip
  return of_dicts(MEASURED_COLUMNS, lines.values())


@program('estimate.py')
def main(argv):
  """Measures, estimates, and prints both tables."""
  flags = parse_flags(argv)
  runs_of = {experiment.recipe: experiments.make_runs(experiment, 0) for experiment in flags.experiments}
  if note := devices.precision_note(flags.precision or 'bfloat16', training=True):
    print(note, file=sys.stderr)
  measured = {}
  try:
    measure_all(flags, runs_of, measured)
  except KeyboardInterrupt:
    if measured:
      print(f'interrupted; measured so far:\n\n{markdown(*measured_table(runs_of, measured))}', end='')
    raise
  print(
    f'WRN-16-{flags.k}, branch_input {flags.experiments[0].branch_input}, measured on {devices.description()}, '
    f'{flags.measure_steps} steps of each stage. FLOPs: 2 per multiply-add, everything counted, training '
    f'{FORWARD_AND_BACKWARD} forward passes.\n'
  )
  print(markdown(*measured_table(runs_of, measured)))
  print(
    f'Hours, validation included: here from the fastest steps, on the GPU from the FLOPs at '
    f'{100 * flags.utilisation:g} % of {flags.tflops:g} TFLOP/s (float32: half of that).\n'
  )
  print(markdown(*hours_table(flags, runs_of, measured)), end='')


if __name__ == '__main__':
  if sys.argv[1:2] == ['--child']:
    print(json.dumps(measure(*json.loads(sys.argv[2]))))
    sys.exit()
  tf.config.set_visible_devices([], 'GPU')  # what is measured needs its memory
  sys.exit(main())
