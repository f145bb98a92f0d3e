"""Times two workers with a core each against one, all of them on this machine.

  python -m benchmarks.workers
  python -m benchmarks.workers --images 1000 --repeats 5 --rows dense,deep

It starts the workers itself, each pinned to a core of its own with one thread per operation. Rows are timed in turns,
on random images and untrained weights. Beside each speed-up stands what the FLOPs allow: those of the dense network
over those of the busiest worker, where what branches share counts on each that computes it.
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import collections
import sys

from splitnet.common.flags import Parser, add, answer_early, integer, some_of

# A row: the name for --rows, the network as the paper calls it, its split, how many workers, and the trunk.
Row = collections.namedtuple('Row', 'name network split workers trunk')
ROWS = [
  Row('dense', 'dense', '1-1-1', 1, 'replicate'),
  Row('deep', 'deep', '2-2-2', 2, 'replicate'),
  Row('deep-first', 'deep', '2-2-2', 2, 'first'),
  Row('shallow', 'shallow', '1-2-2', 2, 'replicate'),
  Row('hierarchical', 'hierarchical', '2-4-4', 2, 'replicate'),
]


def make_parser():
  """Returns the parser of the flags."""
  names = [row.name for row in ROWS]
  parser = Parser(prog='workers.py', description=__doc__)
  add(parser, 'k', int, 8, 'width multiplier; the paper has 8')
  add(parser, 'branch_input', str, 'group', "group or all, as train.py's")
  add(parser, 'images', integer(1), 200, 'how many in a repeat')
  add(parser, 'batch_size', integer(1), 100, 'images per batch')
  add(parser, 'repeats', integer(1), 3, 'how often each row is timed')
  add(parser, 'in_flight', integer(1), None, "batches that a worker has been given at any time [eval.py's]")
  add(parser, 'rows', some_of(*names), names, f'some of {", ".join(names)}; speed-ups are against the first [all]')
  return parser


if __name__ == '__main__':
  answer_early('workers.py', make_parser)

import contextlib
import os
import subprocess
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
import resnet_split
from splitnet.common.errors import UserError, program
from splitnet.common.files import PROJECT
from splitnet.data.synthetic import random_images
from splitnet.network import counting, grouping
from splitnet.network.network import create
from splitnet.parallel import executor, placement, workers
from splitnet.reporting import timing
from splitnet.reporting.tables import markdown

WORKERS = 2


def parse_flags(argv):
  """Parses and checks the flags."""
  flags = make_parser().parse_args(argv)
  flags.in_flight = flags.in_flight or executor.IN_FLIGHT
  flags.rows = [row for row in ROWS if row.name in flags.rows]
  config_of(flags.rows[0], flags)
  return flags


def config_of(row, flags):
  """Returns a row's WideResNet."""
  return resnet_split.WideResNet.of_split(row.split, k=flags.k, branch_input=flags.branch_input)


def start_worker(core):
  """Starts a worker on a core; its first line of output says where it is."""
  command = [sys.executable, '-m', 'splitnet.parallel.worker', '--port', '0', '--threads', '1']
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, cwd=PROJECT, preexec_fn=lambda: os.sched_setaffinity(0, {core})
  )


def busiest(network, parts):
  """Returns the busiest device's FLOPs per image, as the paper counts."""
  flops, costs = collections.Counter(), counting.node_flops(network, everything=False)
  for part in parts:
    flops[part.device] += placement.part_load(part, costs)
  return max(flops.values())


def time_once(computing, batches):
  """Measures the seconds until the logits of all batches have come."""
  started = time.perf_counter()
  collections.deque(computing.run(enumerate(batches)), maxlen=0)
  return time.perf_counter() - started


def table(rows, seconds, flops):
  """Makes the table, (header, rows) of text, of times and busiest FLOPs."""
  header = ['network', 'split', 'workers', 'trunk', 'time (s)', 'lowest to highest', 'speed-up', 'FLOPs allow', 'ratio']
  first, lines = rows[0].name, []
  for row in rows:
    times = seconds[row.name]
    speed_up, allowed = np.median(seconds[first]) / np.median(times), flops[first] / flops[row.name]
    several = row.workers > 1
    line = [row.network, row.split if several else '', str(row.workers), row.trunk if several else '']
    line += [f'{np.median(times):.2f}', f'{min(times):.2f} to {max(times):.2f}']
    lines.append(line + [f'{value:.2f}' for value in (speed_up, allowed, speed_up / allowed)])
  return header, lines


@program('workers.py')
def main(argv):
  """Starts the workers, times the rows and prints the table."""
  flags = parse_flags(argv)
  if not hasattr(os, 'sched_setaffinity'):
    raise UserError('this system cannot pin a process to a core; Linux can')
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < WORKERS:
    raise UserError(f'two workers need a core each, but there is only {len(cores)}')
  processes = []
  with contextlib.ExitStack() as stack:
    for core in cores[:WORKERS]:
      processes.append(stack.enter_context(start_worker(core)))
      stack.callback(processes[-1].kill)
    lines = [process.stdout.readline() for process in processes]
    if not all(lines):
      raise UserError('a worker could not be started (its reason is above)')
    measure(flags, workers.Workers([line.split()[-1] for line in lines], timeout=120).devices)


def measure(flags, devices):
  """Times the rows on the workers' devices and prints the table."""
  pixels, _ = random_images(flags.images, cifar100.IMAGE_SIZE)
  batches = [pixels[i : i + flags.batch_size] for i in range(0, flags.images, flags.batch_size)]
  image_spec = tf.TensorSpec([None, *pixels.shape[1:]], tf.uint8)
  timers, flops = {}, {}
  for row in flags.rows:
    graph = config_of(row, flags).graph()
    network = create(graph, grouping.even_groups(graph))
    computing = executor.BranchExecutor(
      network, devices[: row.workers], image_spec, cifar100.whiten, row.trunk, flags.in_flight
    )
    time_once(computing, batches[:1])  # warms up
    flops[row.name] = busiest(network, computing.parts)
    timers[row.name] = lambda computing=computing: time_once(computing, batches)
  *_, seconds = timing.interleaved(timers, flags.repeats, timing.show_seconds)
  print(
    f'WRN-16-{flags.k}, branch_input {flags.branch_input}, {flags.images} images in batches of {flags.batch_size}, '
    f'{flags.in_flight} in flight on each worker; median of {flags.repeats} interleaved repeats; each worker has one '
    'core.\n'
  )
  print(markdown(*table(flags.rows, seconds, flops)), end='')


if __name__ == '__main__':
  workers.exit_program(main())
