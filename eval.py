"""Evaluates a checkpoint of train.py on CIFAR-100: accuracy, confusion, and time.

The checkpoint describes its network, so --checkpoint alone suffices. The branches of a split network are dealt to the
--devices of this machine, or to --workers (scripts/worker.sh) on this machine or others.
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import dataclasses
import os
import sys

from splitnet.common.flags import Parser, add, answer_early, boolean, integer, number, one_of, take

# --- flags --------------------------------------------------------------------------------------------------------


def make_parser():
  """Returns the parser of the flags: one line each."""
  parser = Parser(__doc__, usage='%(prog)s --checkpoint CHECKPOINT [--FLAG VALUE ...]')

  g = parser.add_argument_group('what')
  add(g, 'checkpoint', str, None, "a run's folder (its last checkpoint), its 'best' or DIR/ckpt-STEP", required=True)
  g.add_argument('--harden', action='store_true', help='split a grouping checkpoint by its present assignments first')
  add(g, 'dataset', one_of('cifar100', 'image_folder', 'imagenet'), None, "which data [the checkpoint's]")
  add(g, 'data_dir', str, None, "their folder [the checkpoint's, or of cifar100 cifar100/train_val_split]")
  add(g, 'skip_damaged', boolean, False, 'leave out image files that cannot be decoded')
  add(g, 'cache', boolean, False, 'decode image files once and keep them on the disk, for small data')
  g.add_argument('--crops', type=int, choices=(1, 10), default=1, help='of an image file, averaged [%(default)s]')
  add(g, 'split', one_of('test', 'val', 'train'), 'test', 'which images')
  add(g, 'output_file', str, None, 'JSON file for the results; the confusion matrix goes to a PNG beside it [none]')

  g = parser.add_argument_group('how')
  add(g, 'batch_size', integer(1), 100, 'images per batch')
  add(g, 'test_iter', integer(0), 0, 'batches; 0: all')
  add(g, 'precision', one_of('float32', 'bfloat16'), 'float32', 'of the convolutions')
  add(g, 'jit_compile', boolean, False, 'compile with XLA (not with --workers)')

  g = parser.add_argument_group('machine')
  add(g, 'devices', str, '', 'devices for the branches, such as /GPU:0,/GPU:1 [all GPUs, else the CPU]')
  # replicate: only images go out and logits come back; first: one device sends the others its features.
  text = 'what branches share: on each device, or on the first only'
  add(g, 'trunk', one_of('replicate', 'first'), 'replicate', text)
  add(g, 'in_flight', integer(1, 64), 2, 'batches on each device at any time; 1: one after the other')
  add(g, 'num_logical_devices', integer(1, 64), 1, 'cut the one CPU or GPU into so many devices, to try --devices')
  add(g, 'gpu_fraction', number('(0, 1]'), 1.0, "share of each GPU's memory to take, at most 1")
  add(g, 'log_device_placement', boolean, False, 'log where every operation runs')

  g = parser.add_argument_group('workers')
  add(g, 'workers', str, None, 'compute on these instead, host:port,host:port; on their GPUs, else their CPUs [none]')
  add(g, 'worker_timeout', number('(0, 86400]'), 30.0, 'seconds within which a worker has to answer')
  g.add_argument('--retry', action='store_true', help='when a worker is lost, go on with those that are left')
  return parser


if __name__ == '__main__':
  answer_early('eval.py', make_parser)

# If a worker dies, what TensorFlow logs comes as an exception, too. It reads this once, when it is imported.
if any(argument.startswith('--workers') for argument in sys.argv) and os.environ.get('TF_CPP_MIN_LOG_LEVEL') != '0':
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import tensorflow as tf
from scipy.special import softmax

import cifar100
import image_folder
import imagenet
import keras_split
from splitnet.common.errors import UserError, program
from splitnet.common.files import check_output_file, telling_of_output
from splitnet.data import images
from splitnet.data.batches import numbered_batches
from splitnet.data.dataset import DataSettings, find, of_run
from splitnet.network import counting, folding, hardening, layers
from splitnet.parallel import devices, executor, workers
from splitnet.reporting import metrics, result_table, results
from splitnet.reporting.names import evaluated_name
from splitnet.training import checkpoints

SAMPLES = 24  # images on the picture of them
datasets = {'cifar100': cifar100, 'image_folder': image_folder, 'imagenet': imagenet}


def parse_flags(argv):
  """Parses and checks the flags; UserError if one is out of range or contradicts."""
  flags = make_parser().parse_args(argv)
  if flags.workers is not None:
    flags.workers = workers.parse_addresses(flags.workers)
    if flags.jit_compile:
      raise UserError('--jit_compile True compiles for one device of this machine, not for --workers')
    for name, default in (('devices', ''), ('num_logical_devices', 1)):
      if getattr(flags, name) != default:
        raise UserError(f"--{name} is about this machine's devices, but --workers computes on those of the workers")
  elif flags.retry:
    raise UserError('--retry goes on when a worker is lost, but there is no --workers')
  if flags.output_file is not None:
    check_output_file('--output_file', flags.output_file)
  return flags


# --- evaluation ---------------------------------------------------------------------------------------------------


def run(flags):
  """Evaluates as the flags say; returns the result, a dict that JSON can hold."""
  # The devices of this machine, before anything runs on one.
  devices.configure(flags.gpu_fraction, flags.num_logical_devices, flags.log_device_placement)
  device_names = None if flags.workers else devices.parse(flags.devices)  # listing them starts them, see Workers
  if flags.jit_compile:
    devices.check_xla()

  # The images, and the checkpoint, which says what network it holds.
  stored = checkpoints.read(flags.checkpoint, keras_split.read_other)
  dataset = open_data(flags, stored)
  names, data = dataset.names, dataset.load(flags.split)
  checkpoints.check_classes(stored, names, flags.data_dir)
  print_notes(flags, stored, names)

  # The workers, if any, and the network, as stored or hardened; its batch normalisations are folded away.
  connected = workers.Workers(flags.workers, flags.worker_timeout, flags.retry) if flags.workers else None
  network = checkpoints.load_network(stored, flags.harden, dtype=tf.dtypes.as_dtype(flags.precision))
  groups = checkpoints.class_groups(stored)
  logits, speed = executor.predict(
    folding.folded(network), data, dataset.prepare, flags.batch_size, flags.test_iter, device_names, connected,
    crops=flags.crops, trunk=flags.trunk, in_flight=flags.in_flight, jit_compile=flags.jit_compile,
  )  # fmt: skip
  logits = images.average_crops(logits, flags.crops)

  # What was found.
  costs = counting.node_flops(network, everything=False)
  labels = [connected.label_of(part.device) if connected else part.device for part in speed.parts]
  parts = [result_table.describe_part(part, costs, label) for part, label in zip(speed.parts, labels)]
  parameters, flops = counting.total(counting.counts(network))
  result = {
    'checkpoint': stored.path,
    'split': flags.split,
    'devices': list(dict.fromkeys(labels)),
    'trunk': flags.trunk,
    'placement': parts,
    'network': stored.network,
    'network_text': evaluated_name(network, groups),
    'parameters': parameters,
    'flops': flops,
    'images_per_second': speed.images_per_second,
    'latency': speed.latency,
    'batch_size': flags.batch_size,
    'in_flight': flags.in_flight,
    'hardened': flags.harden,
    'precision': flags.precision,
  }
  if flags.harden:
    result['dropped'] = hardening.dropped_weights(network.graph, network.groups, stored.values)._asdict()
  result.update(metrics.measure(logits, data.labels[: len(logits)], names, groups))

  # The file first, as a console may fail; and what cannot be written is shown nevertheless.
  written = None
  try:
    if flags.output_file is not None:
      with telling_of_output('--output_file', flags.output_file):
        _, pixels, labels = next(numbered_batches(data, min(SAMPLES, len(logits)), 1))
        samples = pixels.numpy(), softmax(logits[: len(labels)], 1), labels.numpy()
        written = results.write(flags.output_file, result, names, groups, samples)
  finally:
    print(result_table.result_text(result, names))
  if written:
    print(f'\nwritten: {", ".join(written)}')
  return result


def open_data(flags, stored):
  """Opens the data that the flags name, or else those that the checkpoint was trained on: a DataSet."""
  trained_on = stored.configuration['settings'] if stored.configuration else {}
  flags.dataset, flags.data_dir = of_run(trained_on, flags.dataset, flags.data_dir)
  if flags.crops > 1 and flags.dataset == 'cifar100':
    raise UserError(f'--crops {flags.crops} is for image files; CIFAR-100 is evaluated whole: leave it out')
  settings = take(DataSettings, vars(flags), image_size=stored.graph.image_size)
  dataset = find(datasets, flags.dataset).open_dataset(settings)
  flags.data_dir = flags.data_dir or cifar100.DATA_DIR
  for note in dataset.notes:
    print(f'note: {note}', file=sys.stderr)
  return dataclasses.replace(dataset, prepare=layers.preparation(stored.graph, dataset.prepare))


def print_notes(flags, stored, names):
  """Points out other images than in training and a slow precision."""
  trained_on = stored.configuration['data'].get('source') if stored.configuration else names.source['source']
  if trained_on != names.source['source']:
    note = f"note: '{stored.path}' was trained on {trained_on} data, these images are {names.source['source']}"
    print(note, file=sys.stderr)
  note = '' if flags.workers else devices.precision_note(flags.precision, training=False)
  if note:
    print(note, file=sys.stderr)


@program('eval.py', lasting=True)
def main(argv):
  """Runs the program; returns its exit code."""
  run(parse_flags(argv))


if __name__ == '__main__':
  workers.exit_program(main())
