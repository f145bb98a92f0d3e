"""Measures how fast image files are read, beside what decoding alone takes.

The rows are measured in turns on the same files in the same random order, so that whatever else the machine does hits
all alike; a ratio is the median of those of the turns, of images per second of processor time (one core's).

  decode         tf.io.read_file and tf.io.decode_jpeg, nothing else
  train          batches for training: a random part of each image, resized
  evaluate       batches for evaluation: shorter side resized, centre
  cached         batches for training with --cache, if --cache is given

python -m benchmarks.input --dataset imagenet --data_dir /data/imagenet
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import sys

from splitnet.common.flags import Parser, add, answer_early, integer, number, one_of, switch


def make_parser():
  """Returns the parser of the flags."""
  parser = Parser(__doc__)
  add(parser, 'dataset', one_of('image_folder', 'imagenet'), 'image_folder', 'what the folder is')
  add(parser, 'data_dir', str, None, 'its path', required=True)
  add(parser, 'image_size', integer(8, 4096), 224, 'pixels a side of the crops')
  add(parser, 'batch_size', integer(1, 10**6), 64, 'images per batch')
  add(parser, 'seconds', number('(0, 3600]'), 3.0, 'that each row is measured for in each turn')
  add(parser, 'repeats', integer(1, 1000), 5, 'turns')
  add(parser, 'memory_images', integer(0, 10**9), 10000, 'images of train over which the growth of memory is told')
  switch(parser, 'cache', 'measure the row cached too')
  switch(parser, 'skip_damaged', 'leave damaged images out')
  add(parser, 'output', str, '', 'JSON file for the results [none]')
  return parser


if __name__ == '__main__':
  answer_early('input.py', make_parser)

import dataclasses
import functools
import os
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import tensorflow as tf

import image_folder
import imagenet
from splitnet.common.errors import UserError, program
from splitnet.common.files import check_output_file, write_json
from splitnet.data.batches import index_batches
from splitnet.data.dataset import DataSettings
from splitnet.reporting import tables
from splitnet.reporting.timing import interleaved, median

DATASETS = {'image_folder': image_folder, 'imagenet': imagenet}
SEED = 0


def parse_flags(argv):
  """Parses and checks the flags."""
  flags = make_parser().parse_args(argv)
  if flags.output:
    check_output_file('--output', flags.output)
  return flags


def decoded_alone(data, batch_size):
  """Yields endless batches of the heights of images, decoded in training's order."""
  root, files = tf.constant(os.path.join(os.fsencode(data.root), b'')), tf.constant(data.files)

  def height(index):
    return tf.shape(tf.io.decode_jpeg(tf.io.read_file(root + files[index]), channels=3))[0]

  order = index_batches(len(data.labels), batch_size, SEED).flat_map(
    lambda chosen, _: tf.data.Dataset.from_tensor_slices(chosen)
  )
  return order.map(height, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size).prefetch(2)


def memory():
  """Returns the memory that this process has now, in bytes."""
  with open('/proc/self/statm', encoding='utf-8') as f:
    return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def take(batches, batch_size, seconds=0.0, images=0):
  """Takes batches for about so many seconds, and so many images at least.

  Returns:
    (images per second, images per second of processor time).
  """
  wall, processor, count = time.perf_counter(), time.process_time(), 0
  # The processor's clock may be a coarse one.
  while count < images or time.perf_counter() - wall < seconds or time.process_time() == processor:
    next(batches)
    count += batch_size
  return count / (time.perf_counter() - wall), count / (time.process_time() - processor)


def measure(flags):
  """Measures every row; returns the results, a dict."""
  started, batch_size = time.perf_counter(), flags.batch_size
  settings = DataSettings(flags.data_dir, flags.image_size, flags.skip_damaged)
  data = DATASETS[flags.dataset].open_dataset(settings).load('train')
  if data.places is not None:
    raise UserError(f"'{flags.data_dir}' holds TFRecords: name a folder of image files")
  training = data.training_batches(batch_size, SEED)
  next(iter(training))
  first_batch = time.perf_counter() - started
  datasets = {
    'decode': decoded_alone(data, batch_size), 'train': training,
    'evaluate': data.evaluation_batches(batch_size).repeat(),
  }  # fmt: skip
  if flags.cache:
    cached = DATASETS[flags.dataset].open_dataset(dataclasses.replace(settings, cache=True)).load('train')
    datasets['cached'] = cached.training_batches(batch_size, SEED)
  rows = {name: iter(batches) for name, batches in datasets.items()}
  for row in rows.values():
    take(row, batch_size, images=3 * batch_size)  # warms up
  timers = {name: functools.partial(take, row, batch_size, flags.seconds) for name, row in rows.items()}
  *_, turns = interleaved(timers, flags.repeats)
  bytes_of = [os.path.getsize(os.path.join(os.fsencode(data.root), file)) for file in data.files[:1000]]
  before = memory()
  take(rows['train'], batch_size, images=flags.memory_images)
  return {
    'dataset': flags.dataset, 'images': len(data.labels), 'bytes_per_image': sum(bytes_of) / len(bytes_of),
    'cores': os.cpu_count(), 'seconds_to_first_batch': first_batch, 'memory_growth': memory() - before, 'turns': turns,
  }  # fmt: skip


@program('benchmarks.input')
def main(argv):
  """Measures, prints the table and writes --output."""
  flags = parse_flags(argv)
  result = measure(flags)
  print(
    f'{result["images"]:,} images of {result["bytes_per_image"] / 1000:.0f} kB; '
    f'{result["seconds_to_first_batch"]:.1f} s to the first batch; memory grew by {result["memory_growth"] / 1e6:.0f} '
    f'MB over {flags.memory_images:,} images\n'
  )
  lines = []
  for name, measured in result['turns'].items():
    ratios = sorted(own[1] / alone[1] for own, alone in zip(measured, result['turns']['decode']))
    rates = [f'{median([values[i] for values in measured]):,.0f}' for i in (0, 1)]
    lines.append([name, *rates, f'{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})'])
  print(tables.markdown(['row', 'images/s', 'images/s per core', 'against decode (turns)'], lines))
  if flags.output:
    write_json(flags.output, result)


if __name__ == '__main__':
  sys.exit(main())
