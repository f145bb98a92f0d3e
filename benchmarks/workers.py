"""Times two workers, a core each, against the dense network on one worker with one core; all of them on this machine.

  python hosts_benchmark.py
  python hosts_benchmark.py --images 1000 --repeats 5 --rows dense,deep

It starts the workers itself (worker.py on loopback), each pinned to a core of its own with one thread for an
operation. Every row is run once, then every row again, --repeats times, so that whatever else the machine does hits all
rows alike. The images are random and the weights untrained: the time does not depend on the values. Beside each
speed-up stands what the FLOPs allow: those of the dense network over those of the busiest worker, where what branches
share counts on each that computes it.
"""

import argparse
import collections
import os
import subprocess
import sys
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np

import cifar100
import resnet_split
from paper import table5, tables
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import PROJECT
from splitnet.common.flags import Parser, add
from splitnet.data.synthetic import random_images
from splitnet.network import architecture, grouping
from splitnet.parallel import executor, placement
from splitnet.parallel import workers as hosts

# A row: the name for --rows, the network as the paper calls it, its split, how many workers, and the trunk.
Row = collections.namedtuple('Row', 'name network split workers trunk')
ROWS = [
  Row('dense', 'dense', tables.DENSE, 1, 'replicate'),
  Row('deep', 'deep', '2-2-2', 2, 'replicate'),
  Row('deep-first', 'deep', '2-2-2', 2, 'first'),
  Row('shallow', 'shallow', '1-2-2', 2, 'replicate'),
  Row('hierarchical', 'hierarchical', '2-4-4', 2, 'replicate'),
]
WORKERS = 2


def parse_flags(argv):
  """Parses and checks the flags.

  Raises:
    UserError: where a value is out of range.
  """
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add(parser, 'k', int, 8, 'width multiplier; the paper has 8 [%(default)s]')
  add(parser, 'branch_input', str, 'group', "group or all, as train.py's [%(default)s]")
  add(parser, 'images', int, 200, 'how many in a repeat [%(default)s]')
  add(parser, 'batch_size', int, 100, 'images per batch [%(default)s]')
  add(parser, 'repeats', int, 3, 'how often each row is timed [%(default)s]')
  add(parser, 'in_flight', int, executor.IN_FLIGHT, 'batches that a worker has been given at any time [%(default)s]')
  known = [row.name for row in ROWS]
  add(parser, 'rows', str, '', 'only these: %s; speed-ups are against the first of them [all]' % ', '.join(known))
  flags = parser.parse_args(argv)
  for name in ('images', 'batch_size', 'repeats', 'in_flight'):
    if getattr(flags, name) < 1:
      raise UserError('--%s is %d; it must be at least 1' % (name, getattr(flags, name)))
  tables.split_config(tables.DENSE, flags.k, flags.branch_input)
  wanted = [name.strip() for name in flags.rows.split(',') if name.strip()]
  for name in wanted:
    if name not in known:
      raise UserError("--rows names '%s'; there are %s" % (name, ', '.join(known)))
  flags.rows = [row for row in ROWS if row.name in wanted or not wanted]
  return flags


def start_worker(core):
  """Starts a worker on a core; returns its process, whose first line of output says where it is."""
  command = [sys.executable, '-m', 'splitnet.parallel.worker', '--port', '0', '--threads', '1']
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, cwd=PROJECT, preexec_fn=lambda: os.sched_setaffinity(0, {core})
  )


def network_of(row, flags):
  """A row's network, with groups of even size in no order."""
  config = tables.split_config(row.split, flags.k, flags.branch_input)
  if row.split == tables.DENSE:
    return resnet_split.Network(config)
  classes = grouping.random(config.num_classes, config.ngroups1, seed=0)
  return resnet_split.Network(config, groups=grouping.even_features(architecture.wide_resnet(config), classes))


def busiest(network, parts):
  """FLOPs per image of the device that has most of them, as the paper counts."""
  flops, costs = collections.Counter(), network.costs(everything=False)
  for part in parts:
    flops[part.device] += placement.part_load(part, costs)
  return max(flops.values())


def timed_once(computing, batches):
  """Seconds until the logits of all batches have come."""
  started = time.perf_counter()
  for _ in computing.run(enumerate(batches)):
    pass
  return time.perf_counter() - started


def table(rows, seconds, flops):
  """The table: (header, rows) of text.

  Args:
    rows: list of Row; seconds: dict from row name to the list of its times.
    flops: dict from row name to the busiest device's.
  """
  header = ['network', 'split', 'workers', 'trunk', 'time (s)', 'lowest to highest', 'speed-up', 'FLOPs allow', 'ratio']
  first, lines = rows[0].name, []
  for row in rows:
    found = seconds[row.name]
    speed_up, allowed = np.median(seconds[first]) / np.median(found), flops[first] / flops[row.name]
    line = [row.network, '' if row.split == tables.DENSE else row.split, '%d' % row.workers]
    line += [row.trunk if row.workers > 1 else '', '%.2f' % np.median(found), '%.2f to %.2f' % (min(found), max(found))]
    lines.append(line + ['%.2f' % speed_up, '%.2f' % allowed, '%.2f' % (speed_up / allowed)])
  return header, lines


def run(flags):
  """Starts the workers, times the rows and prints the table."""
  if not hasattr(os, 'sched_setaffinity'):
    raise UserError('this system cannot pin a process to a core; Linux can')
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < WORKERS:
    raise UserError('two workers need a core each, but there is only %d' % len(cores))
  processes = []
  try:
    processes += [start_worker(core) for core in cores[:WORKERS]]
    lines = [process.stdout.readline() for process in processes]
    if not all(lines):
      raise UserError('a worker could not be started (its reason is above)')
    measure(flags, hosts.Workers([line.split()[-1] for line in lines], timeout=120).devices)
  finally:
    for process in processes:
      process.kill()
      process.wait()


def measure(flags, devices):
  """Times the rows on the workers' devices and prints the table."""
  pixels, _ = random_images(flags.images, cifar100.IMAGE_SIZE)
  batches = [pixels[i : i + flags.batch_size] for i in range(0, flags.images, flags.batch_size)]
  timers, flops = {}, {}
  for row in flags.rows:
    network = network_of(row, flags)
    computing = executor.Spread(network, devices[: row.workers], row.trunk, flags.in_flight)
    timed_once(computing, batches[:1])  # warms up
    flops[row.name] = busiest(network, computing.parts)
    timers[row.name] = lambda computing=computing: timed_once(computing, batches)
  *_, seconds = table5.measure(timers, flags.repeats)
  print(
    'WRN-16-%d, branch_input %s, %d images in batches of %d, %d under way on each worker; median of %d interleaved '
    'repeats; each worker has one core.\n'
    % (flags.k, flags.branch_input, flags.images, flags.batch_size, flags.in_flight, flags.repeats)
  )
  print(tables.markdown(*table(flags.rows, seconds, flops)), end='')


def main(argv=None):
  """Runs the program; returns its exit code."""
  return run_program('workers.py', lambda: run(parse_flags(argv)))


if __name__ == '__main__':
  hosts.leave(main())
