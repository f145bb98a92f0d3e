"""Times evaluation on several devices: the paper's Table 5.

Split networks stand against partitions of a dense one.

  ./tables.sh 5                              the paper's networks, fewer images
  ./tables.sh 5 --images 50000 --output table5.csv
  ./tables.sh 5 --rows baseline,deep --devices /GPU:0,/GPU:1

The images are random and the weights untrained: the time does not depend on the values. Every row is run once, then
every row again, --repeats times, so that other load hits all rows alike; tracing and the first batches do not count.
One batch after the other would leave all devices of a vertical partition but one idle, so --in_flight batches are being
computed at any time, of every row equally many.
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import sys

from paper.published import DENSE, TABLE_5
from splitnet.common.flags import Parser, add, answer_early, integer, one_of, some_of

MOST_DEVICES = max(row.devices for row in TABLE_5)


def make_parser():
  """Returns the parser of the flags."""
  names = [row.name for row in TABLE_5]
  parser = Parser(prog='table5.py', description=__doc__)
  add(parser, 'k', int, 8, 'width multiplier; the paper has 8')
  add(parser, 'branch_input', str, 'group', "group or all, as train.py's")
  add(parser, 'images', integer(1, 10**6), 2000, 'how many; the paper has 50,000')
  add(parser, 'batch_size', integer(1, 10**5), 100, 'images per batch')
  add(parser, 'repeats', integer(1, 10**4), 5, 'how often each row is timed')
  text = 'batches computed at any time, of every row [%(default)s: one more than a row has devices at most]'
  add(parser, 'in_flight', integer(1, 64), MOST_DEVICES + 1, text)
  add(parser, 'precision', one_of('float32', 'bfloat16'), 'float32', 'of the convolutions')
  add(parser, 'rows', some_of(*names), names, f'some of {", ".join(names)}; speed-ups are against the first [all]')
  add(parser, 'devices', str, '', 'such as /GPU:0,/GPU:1,/GPU:2; a row takes the first ones [all GPUs, else CPUs]')
  text = f'cut the CPU, or the first GPU, into this many devices [{MOST_DEVICES}; 1 if there are several GPUs]'
  add(parser, 'num_logical_devices', integer(1, 64), None, text)
  add(parser, 'output', str, None, 'file for the table, its ending .csv or .json, written after every repeat [none]')
  return parser


if __name__ == '__main__':
  answer_early('table5.py', make_parser)

import collections
import concurrent.futures
import functools
import os
import statistics
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import tensorflow as tf

import cifar100
from paper import partition
from paper.experiments import Experiment
from splitnet.common.errors import UserError, program
from splitnet.common.files import check_output_file, telling_of_output, write_json, write_text
from splitnet.data.synthetic import random_images
from splitnet.network import grouping, network
from splitnet.parallel import devices, placement
from splitnet.reporting import timing
from splitnet.reporting.tables import csv_text, markdown, of_dicts

COLUMNS = {
  'network': ('network', ''), 'split': ('split', ''), 'devices': ('devices', 'd'), 'time (s)': ('mean', '.3f'),
  'deviation (s)': ('deviation', '.3f'), 'speed-up': ('speed_up', '.2f'), 'time (paper, s)': ('paper_seconds', '.2f'),
  'speed-up (paper)': ('paper_speed_up', '.2f'), 'remark': ('remark', ''),
}  # fmt: skip

# Of logical devices. TensorFlow hands a tensor from one logical CPU to another without copying it.
SHARED = {
  'CPU': 'These are logical devices that share the same cores: the table shows that placement works, what partitioning '
  'costs (concatenations, more and smaller operations; between them nothing is copied) and what fewer FLOPs save, not '
  'the speed-up of separate devices.',
  'GPU': 'These are logical devices that share a GPU: the table shows that placement works, what partitioning costs '
  '(copies, concatenations) and what fewer FLOPs save, not the speed-up of separate devices.',
}


def parse_flags(argv):
  """Parses and checks the flags."""
  flags = make_parser().parse_args(argv)
  flags.experiment = Experiment(k=flags.k, branch_input=flags.branch_input)
  flags.experiment.config(DENSE)  # checks --k and --branch_input
  flags.rows = [row for row in TABLE_5 if row.name in flags.rows]
  if flags.output is not None:
    flags.output = os.path.abspath(flags.output)
    if not flags.output.endswith(('.csv', '.json')):
      raise UserError(f"--output is '{flags.output}'; its ending must be .csv or .json")
    check_output_file('--output', flags.output)
  return flags


def set_up_devices(flags):
  """Sets up the devices and returns the names of those to use, in order."""
  parts = flags.num_logical_devices
  if parts is None:  # with several GPUs the two-device rows get a GPU each rather than two parts of the first
    parts = MOST_DEVICES if len(tf.config.list_physical_devices('GPU')) < 2 else 1
  devices.configure(num_logical_devices=parts)
  names = devices.parse(flags.devices)
  for name in names:
    if names.count(name) > 1:
      raise UserError(f"--devices names '{name}' twice; a device can stand for itself only")
  return names


def physical(name):
  """Returns a device's hardware: (kind, index), ('CPU', 0) for '/CPU:2'."""
  kind, index = name.strip('/').split(':')
  owners = []
  for i, device in enumerate(tf.config.list_physical_devices(kind)):
    owners += [i] * len(tf.config.get_logical_device_configuration(device) or [None])
  return kind, owners[int(index)]


def shared_note(names):
  """Returns the sentence that devices share their hardware, or ''."""
  owners = collections.Counter(physical(name) for name in names)
  return ' '.join(SHARED[kind] for kind in sorted({kind for (kind, _), parts in owners.items() if parts > 1}))


def build(row, experiment, names, dtype):
  """Places a row's network on its devices: a function from images to logits."""
  graph = experiment.config(row.split).graph()
  if row.split == DENSE:
    dense = network.create(graph, dtype=dtype, place=placement.placer(names[:1]))
    return getattr(partition, row.partition)(dense, names) if row.partition else dense
  # The classes of a learned group are in no order, so that the logits have to be put in order, as they are here.
  return network.create(graph, grouping.even_groups(graph), dtype=dtype, place=placement.placer(names))


def compiled(compute, device):
  """Compiles a function from raw images to logits, what is around it on `device`."""

  @tf.function(input_signature=[tf.TensorSpec([None, cifar100.IMAGE_SIZE, cifar100.IMAGE_SIZE, 3], tf.uint8)])
  def step(images):
    with tf.device(device):
      return compute(cifar100.whiten(images))

  return step.get_concrete_function()


def random_batches(images, batch_size):
  """Returns random images in batches, tensors uint8 in the CPU's memory."""
  pixels, _ = random_images(images, cifar100.IMAGE_SIZE)
  with tf.device('/CPU:0'):
    return [tf.constant(pixels[i : i + batch_size]) for i in range(0, images, batch_size)]


def time_once(step, batches, in_flight):
  """Measures the seconds until all logits have arrived, `in_flight` batches at once."""
  with concurrent.futures.ThreadPoolExecutor(in_flight) as pool:
    started = time.perf_counter()
    list(pool.map(lambda images: step(images).numpy(), batches))
    return time.perf_counter() - started


def summarise(rows, seconds, available):
  """Sums up what was measured of each row.

  Returns:
    Dicts with 'row', 'network', 'split', 'devices', 'seconds' (a list), 'mean', 'deviation' (of the sample; None with
    one repeat), 'speed_up' (of the mean, against the first row that was run), 'paper_seconds', 'paper_speed_up',
    'remark'.
  """
  means = {name: statistics.fmean(times) for name, times in seconds.items()}
  first = next((means[row.name] for row in rows if row.name in means), None)
  result = []
  for row in rows:
    times, mean = seconds.get(row.name, []), means.get(row.name)
    missing = f'needs {row.devices} devices, there {"is" if available == 1 else "are"} {available}'
    result.append(dict(
      row=row.name, network=row.network, split=row.split, devices=row.devices, seconds=times, mean=mean,
      deviation=statistics.stdev(times) if len(times) > 1 else None, speed_up=mean and first / mean,
      paper_seconds=row.seconds, paper_speed_up=row.speed_up, remark=missing if row.devices > available else '',
    ))  # fmt: skip
  return result


def table(summary):
  """Makes the table of `summarise`'s dicts: (header, rows) of text."""
  return of_dicts(COLUMNS, [{**line, 'split': line['split'].replace(DENSE, '')} for line in summary])


def caption(flags, summary, names, note):
  """Returns what the numbers are, in one paragraph or two."""
  first = next((line['network'] for line in summary if line['seconds']), 'the first row')
  repeats = max(len(line['seconds']) for line in summary)
  several = f'mean and standard deviation of {repeats} interleaved repeats'
  text = (
    f'Table 5: time to evaluate {flags.images:,} images (paper: 50,000) in batches of {flags.batch_size}, '
    f'{flags.in_flight} in flight; random images and untrained weights, as the time does not depend on the values; '
    f'WRN-16-{flags.k} (paper: WRN-16-8), {flags.precision}, branch_input {flags.branch_input}; '
    f'{"one repeat" if repeats == 1 else several}; speed-up against {first}. Devices: {", ".join(names)} (paper: '
    'TITAN X Pascal).\n\n'
  )
  return text + (f'{note}\n\n' if note else '')


def write(flags, summary, names, note):
  """Writes the file of --output; a UserError if that fails."""
  with telling_of_output('--output', flags.output):
    if flags.output.endswith('.csv'):
      write_text(flags.output, csv_text(*table(summary)))
    else:
      shown = ('k', 'branch_input', 'images', 'batch_size', 'in_flight', 'precision')
      settings = {name: getattr(flags, name) for name in shown}
      write_json(flags.output, {**settings, 'devices': names, 'note': note, 'rows': summary})


@program('table5.py')
def main(argv):
  """Times the rows and prints the table."""
  flags = parse_flags(argv)
  names = set_up_devices(flags)
  note, dtype = shared_note(names), tf.dtypes.as_dtype(flags.precision)
  batches = random_batches(flags.images, flags.batch_size)
  timers = {}
  for row in (row for row in flags.rows if row.devices <= len(names)):
    step = compiled(build(row, flags.experiment, names[: row.devices], dtype), names[0])
    # As many at once as later on, for the memory; the last is among them, as it may be smaller.
    time_once(step, [batches[0], *batches[-flags.in_flight :]], flags.in_flight)
    timers[row.name] = functools.partial(time_once, step, batches, flags.in_flight)
  summary = summarise(flags.rows, {}, len(names))
  try:
    for seconds in timing.interleaved(timers, flags.repeats, timing.show_seconds):
      summary = summarise(flags.rows, seconds, len(names))
      if flags.output is not None:
        write(flags, summary, names, note)
  finally:  # what cannot be written is shown nevertheless
    print(caption(flags, summary, names, note) + markdown(*table(summary)), end='')


if __name__ == '__main__':
  sys.exit(main())
