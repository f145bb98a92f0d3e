"""What the paper's Tables 1 and 2 would take, before anyone spends an hour: paper.sh --plan.

Each stage is measured at its width on the machine at hand, in a process of its own on generated images: the time of a
step, the memory, the size of a checkpoint. From these, the FLOPs of the built networks (three times those of a forward
pass for training) and the recipes of tables.py follow the hours of every run, here and on a GPU of a given rate.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
import train
import utils
from paper import runs as experiments
from paper import tables
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import PROJECT
from splitnet.common.flags import Parser, add
from splitnet.data.batches import Images, training_batches
from splitnet.data.synthetic import random_images
from splitnet.parallel import devices
from splitnet.training import checkpoints, initialize

BUDGETS = ['paper', 'short', 'better']  # paper.sh's, each a recipe of tables.py
# What is measured of each stage: a run of tables.py. Fine-tuning computes what training from scratch does.
MEASURED = {'baseline': 'baseline', 'group': 'group-2-2-2', 'split': 'scratch-2-2-2-random'}
CPU_BATCH = 8  # images per step of a measurement on a CPU; a single image gives the part that does not grow with them
FORWARD_AND_BACKWARD = 3  # FLOPs of a training step in forward passes
VAL_IMAGES = 5000


def parse_flags(argv):
  """Parses and checks the flags.

  Raises:
    UserError: where a value is out of range.
  """
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add(parser, 'k', int, 8, 'width multiplier; the paper has 8 [%(default)s]')
  add(parser, 'branch_input', str, 'all', "train.py's, group or all [%(default)s]")
  parser.add_argument(
    '--precision', choices=['float32', 'bfloat16'], help="of the convolutions [the budgets': short and better bfloat16]"
  )
  add(parser, 'measure_steps', int, 20, 'steps to measure, after two that are not counted [%(default)s]')
  add(
    parser,
    'measure_batch',
    int,
    None,
    "images per measured step [on a GPU the budget's, which a CPU would take minutes for; there %d]" % CPU_BATCH,
  )
  add(
    parser,
    'tflops',
    float,
    312.0,
    "the GPU's peak rate in bfloat16, 10^12 FLOPs a second; float32 counts at half of it, as TF32 has; "
    "the default is an A100's [%(default)s]",
  )
  add(parser, 'utilisation', float, 0.2, 'share of that rate which is reached, (0, 1]: an assumption [%(default)s]')
  flags = parser.parse_args(argv)
  tables.split_config(tables.DENSE, flags.k, flags.branch_input)
  for name in ('measure_steps', 'measure_batch'):
    value = getattr(flags, name)
    if value is not None and not 1 <= value <= 10**4:
      raise UserError('--%s is %d; it must be from 1 to 10000' % (name, value))
  if not 0 < flags.tflops < float('inf'):
    raise UserError('--tflops is %g; it must be above 0' % flags.tflops)
  if not 0 < flags.utilisation <= 1:
    raise UserError('--utilisation is %g; it must be in (0, 1]' % flags.utilisation)
  return flags


# --- measuring --------------------------------------------------------------------------------------------------


def step_arguments(run):
  """train.py's arguments for a step of a run, without what needs another run or more than one step."""
  given = {name: value for name, value in run.train.items() if name not in experiments.SHARES}
  for name in ('assignment_start', 'lr_schedule', 'distill_weight', 'distill_temperature'):
    given.pop(name, None)
  given.update(run.machine, train_dir='none')
  return experiments.command('train.py', given)[2:]


def measure(arguments, batch_size, steps):
  """Trains a few steps on generated images, in this process; see `measured_apart`."""
  flags = train.parse_flags([*arguments, '--batch_size', str(batch_size)])
  devices.configure()
  config = initialize.resolve_network(flags, {}, 'the flags')
  network = initialize.build_network(flags, config, None, None)
  stage = train.Stage(flags, network, tables.TRAIN_IMAGES / batch_size)
  data = Images(*random_images(max(256, batch_size), cifar100.IMAGE_SIZE, config.num_classes))

  def steps_of(batch_size, steps):
    batches = iter(training_batches(data, batch_size, 0))
    taken = []
    for _ in range(2 + steps):  # the first two compile and settle
      started = time.perf_counter()
      float(stage.train(batches, tf.constant(1))['total'])
      taken.append(time.perf_counter() - started)
    return taken[2:]

  taken = steps_of(batch_size, steps)
  result = dict(seconds=float(np.median(taken)), fastest=min(taken), batch_size=batch_size, **peak_memory())
  result['per_image'], result['per_step'] = result['fastest'] / batch_size, 0.0
  if batch_size > 1:
    # A line through the fastest steps, which other work on the machine disturbs least; still it may make a single image
    # look as slow as a batch.
    single = min(*steps_of(1, max(1, steps // 4)), result['fastest'] / 2)
    result['per_image'] = (result['fastest'] - single) / (batch_size - 1)
    result['per_step'] = single - result['per_image']
  result['flops'] = utils.total_count(network.counts, everything=True)[1]
  result.update(checkpoint_sizes(stage, flags.mode))
  return result


def peak_memory():
  """The most memory that this process has held: dict of 'memory' and 'gpu_memory' (None without a GPU), bytes."""
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  try:
    with open('/proc/self/status') as f:  # the other one may be the parent's
      memory = next(int(line.split()[1]) * 1024 for line in f if line.startswith('VmHWM'))
  except (OSError, StopIteration):
    pass
  gpu = tf.config.list_logical_devices('GPU')
  return {'memory': memory, 'gpu_memory': tf.config.experimental.get_memory_info('GPU:0')['peak'] if gpu else None}


def checkpoint_sizes(stage, mode):
  """The sizes of a stage's checkpoints as train.py writes them: dict of 'checkpoint' and 'best', bytes."""
  with tempfile.TemporaryDirectory() as folder:
    configuration = checkpoints.describe(mode, stage.network, {}, {})
    saver = checkpoints.Saver(
      folder, configuration, 1, weights=stage.network.weights, momentum=stage.optimizer.slots, step=stage.step
    )
    prefixes = {'checkpoint': saver.save(0), 'best': saver.save_best(0)}
    return {name: sum(os.path.getsize(prefix + end) for end in ('.index', '.data-00000-of-00001'))
            for name, prefix in prefixes.items()}  # fmt: skip


def measured_apart(arguments, batch_size, steps):
  """Measures a stage in a process of its own, so that its peak of memory is its own.

  Args:
    arguments: of train.py, without --batch_size.
    batch_size: images per step; steps: how many to measure.

  Returns:
    A dict: 'seconds' and 'fastest' (the median and the fastest step's), 'batch_size', 'memory' and 'gpu_memory'
    (bytes), 'per_image' and 'per_step' (seconds; a fast step of n images takes per_step + n per_image), 'flops' (of a
    forward pass of one image), 'checkpoint' and 'best' (bytes).

  Raises:
    UserError: where it fails, as for want of memory.
  """
  call = [sys.executable, '-m', 'paper.estimate', '--child', json.dumps([arguments, batch_size, steps])]
  done = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=PROJECT)
  if done.returncode:
    last = ([line.strip() for line in done.stderr.splitlines() if line.strip()] or ['no output'])[-1]
    raise UserError(
      'measuring %d images a step failed (exit code %d: %s): try a smaller --measure_batch'
      % (batch_size, done.returncode, last)
    )
  return json.loads(done.stdout.splitlines()[-1])


def measure_all(flags, budgets):
  """Measures every stage in every precision that the budgets need: dict from (budget, stage) to `measured_apart`'s."""
  on_gpu = bool(tf.config.list_physical_devices('GPU'))
  found, results = {}, {}
  for budget, runs in budgets.items():
    for stage, name in MEASURED.items():
      settings = runs[name].train
      batch_size = flags.measure_batch or (settings['batch_size'] if on_gpu else CPU_BATCH)
      key = (stage, settings['precision'], batch_size)
      if key not in found:
        print('measuring %s in %s, %d images a step' % key, file=sys.stderr, flush=True)
        found[key] = measured_apart(step_arguments(runs[name]), batch_size, flags.measure_steps)
      results[budget, stage] = found[key]
  return results


# --- estimating -------------------------------------------------------------------------------------------------


def forward_flops(run):
  """FLOPs of a forward pass of one image through a run's network, everything counted: int."""
  given = run.train
  split = tables.DENSE
  if given['mode'] == 'split':
    split = '%d-%d-%d' % (given['ngroups3'], given['ngroups2'], given['ngroups1'])
  return utils.total_count(tables.built_counts(split, given['k'], given.get('branch_input', 'group')), True)[1]


def flops_of(run, forward, teacher):
  """All FLOPs of a run: (training, validation).

  Args:
    run: an experiments.Run; forward: its network's FLOPs for one image; teacher: those of its teacher's, or 0.
  """
  images = run.train['max_steps'] * run.train['batch_size']
  validations = 2 + run.train['max_steps'] // run.train['val_interval']
  return images * (FORWARD_AND_BACKWARD * forward + teacher), validations * VAL_IMAGES * forward


def seconds_here(run, forward, teacher, measured):
  """How long a run takes on this machine, from the measured steps of its stage."""
  training, validation = flops_of(run, forward, teacher)
  rate = FORWARD_AND_BACKWARD * measured['flops'] / measured['per_image']
  return run.train['max_steps'] * measured['per_step'] + (training + validation) / rate


def seconds_on_gpu(run, forward, teacher, tflops, utilisation):
  """How long a run takes on a GPU of a peak rate (in bfloat16) of which it reaches a share."""
  peak = tflops * 1e12 * (1.0 if run.train['precision'] == 'bfloat16' else 0.5)
  return sum(flops_of(run, forward, teacher)) / (peak * utilisation)


def rows_of(runs):
  """The table's rows: dict from text to the names of the runs that it stands for."""
  rows = {}
  names = {run.folder: name for name, run in runs.items()}
  wanted = [runs[name] for name in dict.fromkeys(tables.cells('all').values())]
  for run in tables.with_needs(wanted):
    name = names[run.folder]
    text = 'S, C, R of %s' % name.split('-', 1)[1].rsplit('-', 1)[0] if name.startswith('scratch') else name
    rows.setdefault(text, []).append(name)
  return rows


def hours_table(flags, budgets, measured):
  """The hours of every run: (header, rows) of text."""
  header = ['run', 'GFLOPs per image']
  for budget, runs in budgets.items():
    batch_size = runs['baseline'].train['batch_size']
    header += ['%s: steps of %d' % (budget, batch_size), '%s: hours here' % budget, '%s: hours, GPU' % budget]
  one = next(iter(budgets.values()))  # which runs there are is the same in all
  forward = {text: forward_flops(one[names[0]]) for text, names in rows_of(one).items()}

  def numbers(text, names):
    for budget, runs in budgets.items():
      run, mode = runs[names[0]], runs[names[0]].train['mode']
      teacher = forward['baseline'] if run.teacher else 0
      here = seconds_here(run, forward[text], teacher, measured[budget, mode])
      gpu = seconds_on_gpu(run, forward[text], teacher, flags.tflops, flags.utilisation)
      yield from (len(names) * value for value in (run.train['max_steps'], here / 3600, gpu / 3600))

  in_table_2 = {run.folder for run in tables.with_needs([one[name] for name in tables.cells('2').values()])}
  found = {text: (names, list(numbers(text, names))) for text, names in rows_of(one).items()}
  rows = [
    ['3 runs: ' * (len(names) > 1) + text, '%.3f' % (forward[text] / 1e9), *as_text(values)]
    for text, (names, values) in found.items()
  ]
  for total, wanted in (('Table 2', in_table_2), ('Tables 1 and 2', {run.folder for run in one.values()})):
    chosen = [values for names, values in found.values() if one[names[0]].folder in wanted]
    rows.append(['**%s**' % total, '', *as_text(np.sum(chosen, 0))])
  return header, rows


def as_text(values):
  """Steps, hours here and hours on the GPU, of each budget: list of texts."""
  return ['{:,.0f}'.format(v) if i % 3 == 0 else '%.*f' % (2 if v < 10 else 1, v) for i, v in enumerate(values)]


def measured_table(budgets, measured):
  """What was measured: (header, rows) of text."""
  header = ['stage', 'precision', 'images per step', 'median step (s)', 'fastest (s)', 'of it fixed (s)']
  header += ['images/s', 'GFLOP/s', 'memory (MB)', 'GPU memory (MB)', 'checkpoint (MB)', 'best (MB)']
  rows = {}
  for (budget, stage), m in measured.items():
    precision = budgets[budget][MEASURED[stage]].train['precision']
    gpu = '' if m['gpu_memory'] is None else '%.0f' % (m['gpu_memory'] / 1e6)
    row = [MEASURED[stage].replace('scratch-2-2-2-random', 'split-2-2-2'), precision, '%d' % m['batch_size']]
    rate = m['batch_size'] / m['fastest']
    row += ['%.3g' % m['seconds'], '%.3g' % m['fastest'], '%.2g' % m['per_step'], '%.3g' % rate]
    row += ['%.0f' % (FORWARD_AND_BACKWARD * m['flops'] * rate / 1e9)]
    row += ['%.0f' % (m['memory'] / 1e6), gpu, '%.1f' % (m['checkpoint'] / 1e6), '%.1f' % (m['best'] / 1e6)]
    rows[stage, precision, m['batch_size']] = row
  return header, list(rows.values())


def run(flags):
  """Measures, estimates, and prints both tables."""
  budgets = {}
  for budget in BUDGETS:
    arguments = ['all', '--recipe', budget, '--k', str(flags.k), '--branch_input', flags.branch_input]
    arguments += ['--precision', flags.precision] if flags.precision else []
    budgets[budget] = tables.make_runs(tables.parse_flags(arguments), 0)
  note = devices.precision_note(flags.precision or 'bfloat16', training=True)
  if note:
    print(note, file=sys.stderr)
  measured = measure_all(flags, budgets)
  print(
    'WRN-16-%d, branch_input %s, measured on %s, %d steps of each stage. FLOPs: 2 per multiply-add, everything '
    'counted, training %d forward passes.\n'
    % (flags.k, flags.branch_input, devices.description(), flags.measure_steps, FORWARD_AND_BACKWARD)
  )
  print(tables.markdown(*measured_table(budgets, measured)))
  print(
    'Hours, validation included: here from the fastest steps, on the GPU from the FLOPs at %g %% of %g TFLOP/s '
    '(float32: half of that).\n' % (100 * flags.utilisation, flags.tflops)
  )
  print(tables.markdown(*hours_table(flags, budgets, measured)), end='')


def main(argv=None):
  """Runs the program; returns its exit code."""
  return run_program('estimate.py', lambda: run(parse_flags(argv)))


if __name__ == '__main__':
  if sys.argv[1:2] == ['--child']:
    print(json.dumps(measure(*json.loads(sys.argv[2]))))
    sys.exit()
  tf.config.set_visible_devices([], 'GPU')  # what is measured needs its memory
  sys.exit(main())
