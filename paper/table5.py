"""The paper's Table 5: the time of evaluating on several devices, split networks against ways to spread a dense one.

  python table5.py                              the paper's networks, fewer images
  python table5.py --images 50000 --output table5.csv
  python table5.py --rows baseline,deep --devices /GPU:0,/GPU:1

The images are random and the weights untrained: the time does not depend on the values. Every row is run once, then
every row again, --repeats times, so that whatever else the machine does hits all rows alike. Tracing a row and its
first batches, which warm up, are not in its time. With one batch after the other a vertical partition would leave all
devices but one idle, so --in_flight batches are being computed at any time, of every row equally many; --in_flight 1
gives the times of one batch after the other.
"""

import argparse
import collections
import concurrent.futures
import csv
import io
import json
import os
import sys
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
import resnet_split
from paper import partition, tables
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import check_output_file, write_text
from splitnet.common.flags import Parser
from splitnet.data.synthetic import random_images
from splitnet.network import architecture, grouping
from splitnet.parallel import devices

# A row: the name for --rows, the network as the paper calls it, its split, on how many devices, how a dense network is
# spread over them (a function of partition.py; None: it is on one, or a tree, which has its branches), the paper's
# seconds for 50,000 images in batches of 100 on TITAN X Pascal, and the paper's speed-up.
Row = collections.namedtuple('Row', 'name network split devices spread paper_seconds paper_speed_up')
ROWS = [
  Row('baseline', 'baseline', tables.DENSE, 1, None, 24.27, 1.00),
  Row('horizontal', 'baseline, horizontal', tables.DENSE, 2, partition.horizontal, 46.70, 0.52),
  Row('vertical-2', 'baseline, vertical', tables.DENSE, 2, partition.vertical, 20.15, 1.20),
  Row('vertical-3', 'baseline, vertical', tables.DENSE, 3, partition.vertical, 22.45, 1.08),
  Row('shallow', 'shallow', '1-2-2', 2, None, 17.78, 1.37),
  Row('deep', 'deep', '2-2-2', 2, None, 14.03, 1.73),
  Row('hierarchical', 'hierarchical', '2-4-4', 2, None, 14.22, 1.71),
  Row('deep-3', 'deep, 3-way', '3-3-3', 3, None, 10.92, 2.22),
]
MOST_DEVICES = max(row.devices for row in ROWS)

# Of logical devices. TensorFlow hands a tensor from one logical CPU to another without copying it.
SHARED = {
  'CPU': 'These are logical devices that share the same cores: the table shows that placement works, what partitioning '
  'costs (concatenations, more and smaller operations; between them nothing is copied) and what fewer FLOPs save, not '
  'the speed-up of separate devices.',
  'GPU': 'These are logical devices that share a GPU: the table shows that placement works, what partitioning costs '
  '(copies, concatenations) and what fewer FLOPs save, not the speed-up of separate devices.',
}


# --- flags ------------------------------------------------------------------------------------------------------


def parse_flags(argv):
  """Parses and checks the flags.

  Raises:
    UserError: where a value is out of range.
  """
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add = parser.add_argument
  add('--k', type=int, default=8, help='width multiplier; the paper has 8 [%(default)s]')
  add('--branch_input', default='group', help="group or all, as train.py's [%(default)s]")
  add('--images', type=int, default=2000, help='how many; the paper has 50,000 [%(default)s]')
  add('--batch_size', type=int, default=100, help='images per batch [%(default)s]')
  add('--repeats', type=int, default=5, help='how often each row is timed [%(default)s]')
  text = 'batches computed at any time, of every row [%(default)s: one more than a row has devices at most]'
  add('--in_flight', type=int, default=MOST_DEVICES + 1, help=text)
  add('--precision', default='float32', choices=['float32', 'bfloat16'], help='of the convolutions [%(default)s]')
  known = [row.name for row in ROWS]
  text = 'only these: %s; speed-ups are against the first of them [all]' % ', '.join(known)
  add('--rows', default='', metavar='NAME,...', help=text)
  add('--devices', default='', help='such as /GPU:0,/GPU:1,/GPU:2; a row takes the first ones [all GPUs, else CPUs]')
  text = 'cut the CPU, or the first GPU, into this many devices [%d; 1 where there are several GPUs]' % MOST_DEVICES
  add('--num_logical_devices', type=int, help=text)
  add('--output', default='', help='file for the table, its ending .csv or .json, written after every repeat [none]')
  flags = parser.parse_args(argv)
  tables.split_config(tables.DENSE, flags.k, flags.branch_input)
  for name, highest in (
    ('images', 10**6),
    ('batch_size', 10**5),
    ('repeats', 10**4),
    ('in_flight', 64),
    ('num_logical_devices', 64),
  ):
    value = getattr(flags, name)
    if value is not None and not 1 <= value <= highest:
      raise UserError('--%s is %d; it must be from 1 to %d' % (name, value, highest))
  wanted = [name.strip() for name in flags.rows.split(',') if name.strip()]
  for name in wanted:
    if name not in known:
      raise UserError("--rows names '%s'; there are %s" % (name, ', '.join(known)))
  flags.rows = [row for row in ROWS if row.name in wanted or not wanted]
  if flags.output:
    flags.output = os.path.abspath(flags.output)
    if not flags.output.endswith(('.csv', '.json')):
      raise UserError("--output is '%s'; its ending must be .csv or .json" % flags.output)
    check_output_file('--output', flags.output)
  return flags


# --- devices ----------------------------------------------------------------------------------------------------


def set_up_devices(flags):
  """Sets up the devices and returns the names of those to use, first the first."""
  parts = flags.num_logical_devices
  if parts is None:  # with several GPUs the two-device rows get a GPU each rather than two parts of the first
    parts = MOST_DEVICES if len(tf.config.list_physical_devices('GPU')) < 2 else 1
  placed = devices.parse(flags.devices, devices.configure(num_logical_devices=parts))
  for i, name in enumerate(placed):
    if name in placed[:i]:
      raise UserError("--devices names '%s' twice; a device can stand for itself only" % name)
  return placed


def physical(name):
  """The hardware of a logical device: (kind, index), such as ('CPU', 0) for '/CPU:2'."""
  kind, index = name.strip('/').split(':')
  owners = []
  for i, device in enumerate(tf.config.list_physical_devices(kind)):
    owners += [i] * len(tf.config.get_logical_device_configuration(device) or [None])
  return kind, owners[int(index)]


def shared_note(placed):
  """The sentence that says that devices share their hardware, or '' where each has its own."""
  owners = [physical(name) for name in placed]
  kinds = sorted({kind for (kind, _), parts in collections.Counter(owners).items() if parts > 1})
  return ' '.join(SHARED[kind] for kind in kinds)


# --- timing -----------------------------------------------------------------------------------------------------


def build(row, config, dense, placed, dtype):
  """A row's network on the devices: a function from whitened images to logits.

  Args:
    row: a Row; config: its architecture.Config; dense: the dense resnet_split.Network.
    placed: names of the devices, as many as the row has.
    dtype: of the convolutions.
  """
  if row.spread:
    return row.spread(dense, placed)
  if row.split == tables.DENSE:
    return dense
  # The classes of a learned group are in no order, so that the logits have to be put in order, as they are here.
  plan = architecture.wide_resnet(config)
  groups = grouping.even_features(plan, grouping.random(config.num_classes, config.ngroups1, seed=0))
  return resnet_split.Network(config, groups=groups, dtype=dtype, devices=placed)


def compiled(compute, device):
  """A program from raw images to logits; `compute` places its layers itself, what is around it goes to `device`."""

  @tf.function(input_signature=[tf.TensorSpec([None, cifar100.IMAGE_SIZE, cifar100.IMAGE_SIZE, 3], tf.uint8)])
  def step(images):
    with tf.device(device):
      return compute(cifar100.whiten(images))

  return step.get_concrete_function()


def random_batches(images, batch_size):
  """Random images in batches, in the CPU's memory: a list of tensors uint8 [batch, 32, 32, 3]."""
  pixels, _ = random_images(images, cifar100.IMAGE_SIZE)
  with tf.device('/CPU:0'):
    return [tf.constant(pixels[i : i + batch_size]) for i in range(0, images, batch_size)]


def time_once(step, batches, in_flight):
  """Seconds until the logits of all batches have arrived, with so many batches being computed at any time."""
  with concurrent.futures.ThreadPoolExecutor(in_flight) as pool:
    started = time.perf_counter()
    for _ in pool.map(lambda images: step(images).numpy(), batches):
      pass
    return time.perf_counter() - started


def measure(timers, repeats):
  """Times every row once, then every row again, and so on; yields the seconds so far after each round.

  Args:
    timers: dict from row name to a function that runs the row once and returns its seconds.
    repeats: how many rounds.

  Yields:
    Dict from row name to the list of its seconds.
  """
  seconds = {name: [] for name in timers}
  for repeat in range(repeats):
    for name, timer in timers.items():
      seconds[name].append(timer())
      print('repeat %d of %d: %s %.3f s' % (repeat + 1, repeats, name, seconds[name][-1]), file=sys.stderr, flush=True)
    yield seconds


# --- the table --------------------------------------------------------------------------------------------------


def summarise(rows, seconds, available):
  """What was measured of each row, a list of dicts that JSON can hold.

  Args:
    rows: list of Row; seconds: dict from row name to a list, missing where the row was not run.
    available: number of devices that there are.

  Returns:
    Dicts with 'row', 'network', 'split', 'devices', 'seconds' (a list), 'mean', 'deviation' (of the sample; None with
    one repeat), 'speed_up' (of the mean, against the first row that was run), 'paper_seconds', 'paper_speed_up',
    'remark'.
  """
  means = {name: float(np.mean(found)) for name, found in seconds.items()}
  first = next((means[row.name] for row in rows if row.name in means), None)
  result = []
  for row in rows:
    found, mean = seconds.get(row.name, []), means.get(row.name)
    missing = 'needs %d devices, there %s %d' % (row.devices, 'is' if available == 1 else 'are', available)
    result.append({
      'row': row.name,
      'network': row.network,
      'split': row.split,
      'devices': row.devices,
      'seconds': found,
      'mean': mean,
      'deviation': float(np.std(found, ddof=1)) if len(found) > 1 else None,
      'speed_up': None if mean is None else first / mean,
      'paper_seconds': row.paper_seconds,
      'paper_speed_up': row.paper_speed_up,
      'remark': missing if row.devices > available else '',
    })  # fmt: skip
  return result


def table(summary):
  """The table of `summarise`'s dicts: (header, rows) of text."""
  header = ['network', 'split', 'devices', 'time (s)', 'deviation (s)', 'speed-up']
  header += ['time (paper, s)', 'speed-up (paper)', 'remark']

  def number(value, form):
    return '' if value is None else form % value

  rows = []
  for line in summary:
    row = [line['network'], '' if line['split'] == tables.DENSE else line['split'], '%d' % line['devices']]
    row += [number(line['mean'], '%.3f'), number(line['deviation'], '%.3f'), number(line['speed_up'], '%.2f')]
    row += ['%.2f' % line['paper_seconds'], '%.2f' % line['paper_speed_up'], line['remark']]
    rows.append(row)
  return header, rows


def caption(flags, summary, placed, note):
  """What the numbers are, in one paragraph or two."""
  first = next((line['network'] for line in summary if line['seconds']), 'the first row')
  repeats = max(len(line['seconds']) for line in summary)
  text = (
    'Table 5: time to evaluate {:,} images (paper: 50,000) in batches of {}, {} in flight; random images and untrained '
    'weights, as the time does not depend on the values; WRN-16-{} (paper: WRN-16-8), {}, branch_input {}; {}; '
    'speed-up against {}. Devices: {} (paper: TITAN X Pascal).\n\n'
  ).format(
    flags.images,
    flags.batch_size,
    flags.in_flight,
    flags.k,
    flags.precision,
    flags.branch_input,
    'one repeat' if repeats == 1 else 'mean and standard deviation of %d interleaved repeats' % repeats,
    first,
    ', '.join(placed),
  )
  return text + (note + '\n\n' if note else '')


def write(flags, summary, placed, note):
  """Writes the file of --output."""
  if flags.output.endswith('.csv'):
    values = io.StringIO()
    header, rows = table(summary)
    csv.writer(values, lineterminator='\n').writerows([header, *rows])
    content = values.getvalue()
  else:
    names = ('k', 'branch_input', 'images', 'batch_size', 'in_flight', 'precision')
    settings = {name: getattr(flags, name) for name in names}
    content = json.dumps({**settings, 'devices': placed, 'note': note, 'rows': summary}, indent=2) + '\n'
  try:
    write_text(flags.output, content)
  except OSError as e:
    raise UserError("cannot write '%s' (%s): give another --output" % (flags.output, e.strerror)) from e


def run(flags):
  """Times the rows and prints the table."""
  placed = set_up_devices(flags)
  dtype = tf.dtypes.as_dtype(flags.precision)
  runnable = [row for row in flags.rows if row.devices <= len(placed)]
  configs = {row.name: tables.split_config(row.split, flags.k, flags.branch_input) for row in runnable}
  dense = None
  if any(row.split == tables.DENSE for row in runnable):
    config = tables.split_config(tables.DENSE, flags.k, flags.branch_input)
    dense = resnet_split.Network(config, dtype=dtype, devices=placed[:1])
  batches = random_batches(flags.images, flags.batch_size)
  timers = {}
  for row in runnable:
    step = compiled(build(row, configs[row.name], dense, placed[: row.devices], dtype), placed[0])
    # As many at once as later on, for the memory; the last is among them, as it may be smaller.
    time_once(step, [batches[0], *batches[-flags.in_flight :]], flags.in_flight)
    timers[row.name] = lambda step=step: time_once(step, batches, flags.in_flight)
  note = shared_note(placed)
  summary = summarise(flags.rows, {}, len(placed))
  for seconds in measure(timers, flags.repeats):
    summary = summarise(flags.rows, seconds, len(placed))
    if flags.output:
      write(flags, summary, placed, note)
  print(caption(flags, summary, placed, note) + tables.markdown(*table(summary)), end='')


def main(argv=None):
  """Runs the program; returns its exit code."""
  return run_program('table5.py', lambda: run(parse_flags(argv)))


if __name__ == '__main__':
  sys.exit(main())
