"""Evaluates a checkpoint of train.py on CIFAR-100: accuracy, confusion, and time.

The checkpoint describes its network, so --checkpoint alone suffices. The branches of a split network are dealt to the
--devices of this machine, or to --workers (scripts/worker.sh) on this machine or others.
"""

import os
import sys

# If a worker dies, what TensorFlow logs comes as an exception, too. It reads this once, when it is imported.
if any(argument.startswith('--workers') for argument in sys.argv) and os.environ.get('TF_CPP_MIN_LOG_LEVEL') != '0':
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
import image_folder
import imagenet
import resnet_split
from splitnet.common.errors import UserError, program
from splitnet.common.files import check_output_file, is_stream, telling_of_output, write_json
from splitnet.common.flags import Parser, add, boolean, integer, number, one_of, take
from splitnet.data import images
from splitnet.data.dataset import DataSettings
from splitnet.network import counting, folding, hardening
from splitnet.parallel import devices, executor, placement, workers
from splitnet.reporting import metrics, plots, result_table
from splitnet.training import checkpoints

datasets = {'cifar100': cifar100, 'image_folder': image_folder, 'imagenet': imagenet}

# --- flags --------------------------------------------------------------------------------------------------------


def make_parser():
  """Returns the parser of the flags: one line each."""
  parser = Parser(__doc__)

  g = parser.add_argument_group('what')
  add(g, 'checkpoint', str, None, "a run's folder (its last checkpoint), its 'best' or DIR/ckpt-STEP", required=True)
  g.add_argument('--harden', action='store_true', help='split a grouping checkpoint by its present assignments first')
  add(g, 'dataset', one_of(*datasets), None, "which data [the checkpoint's]")
  add(g, 'data_dir', str, None, f"their folder [the checkpoint's; of cifar100 {cifar100.DATA_DIR}]")
  add(g, 'skip_damaged', boolean, False, 'leave out image files that cannot be decoded')
  add(g, 'cache', boolean, False, 'decode image files once and keep them on the disk, for small data')
  g.add_argument('--crops', type=int, choices=images.CROPS, default=1, help='of an image file, averaged [%(default)s]')
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
  add(g, 'trunk', one_of(*placement.TRUNKS), 'replicate', 'what branches share: on each device, or on the first only')
  add(g, 'in_flight', integer(1, 64), executor.IN_FLIGHT, 'batches on each device at any time; 1: one after the other')
  add(g, 'num_logical_devices', integer(1, 64), 1, 'cut the one CPU or GPU into so many devices, to try --devices')
  add(g, 'gpu_fraction', number('(0, 1]'), 1.0, "share of each GPU's memory to take, at most 1")
  add(g, 'log_device_placement', boolean, False, 'log where every operation runs')

  g = parser.add_argument_group('workers')
  add(g, 'workers', str, None, 'compute on these instead, host:port,host:port; on their GPUs, else their CPUs [none]')
  add(g, 'worker_timeout', number('(0, 86400]'), 30.0, 'seconds within which a worker has to answer')
  g.add_argument('--retry', action='store_true', help='when a worker is lost, go on with those that are left')
  return parser


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
  stored = checkpoints.read(flags.checkpoint, resnet_split.read_older)
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
    'network_text': network_text(network, groups),
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
        written = write_result(flags.output_file, result, names, groups)
  finally:
    print(result_table.result_text(result, names))
  if written:
    print(f'\nwritten: {", ".join(written)}')
  return result


def open_data(flags, stored):
  """Opens the data that the flags name, or else those that the checkpoint was trained on: a DataSet."""
  trained_on = stored.configuration['settings'] if stored.configuration else {}
  was = trained_on.get('dataset', 'cifar100')
  flags.dataset = flags.dataset or was
  if flags.data_dir is None and flags.dataset != 'cifar100' and flags.dataset == was:
    flags.data_dir = trained_on.get('data_dir')
  if flags.crops > 1 and flags.dataset == 'cifar100':
    raise UserError(f'--crops {flags.crops} is for image files; CIFAR-100 is evaluated whole: leave it out')
  settings = take(DataSettings, vars(flags), image_size=stored.graph.image_size)
  dataset = datasets[flags.dataset].open_dataset(settings)
  flags.data_dir = flags.data_dir or cifar100.DATA_DIR
  for note in dataset.notes:
    print(f'note: {note}', file=sys.stderr)
  return dataset


def print_notes(flags, stored, names):
  """Points out other images than in training and a slow precision."""
  trained_on = stored.configuration['data'].get('source') if stored.configuration else names.source['source']
  if trained_on != names.source['source']:
    note = f"note: '{stored.path}' was trained on {trained_on} data, these images are {names.source['source']}"
    print(note, file=sys.stderr)
  note = '' if flags.workers else devices.precision_note(flags.precision, training=False)
  if note:
    print(note, file=sys.stderr)


def network_text(network, groups):
  """Returns a network's name and state, such as 'WRN-16-8, split 2-2-2'."""
  name, split = network.graph.name, network.graph.split
  if groups is None:
    return f'{name}, dense'
  return f'{name}, {"split" if network.groups is not None else "grouping, not hardened"} {split}'


def write_result(path, result, names, groups):
  """Writes the JSON file and, beside it, a picture of the confusion matrix by group; returns their paths.

  A device or a pipe has nothing beside it.
  """
  if is_stream(path):
    write_json(path, result)
    return [path]
  picture = f'{os.path.splitext(path)[0]}-confusion.png'
  result['confusion_picture'] = picture
  write_json(path, result)
  keys = [key for key in (names.fine_to_coarse, groups) if key is not None]  # by group, and inside by superclass
  order = np.arange(len(names.fine)) if groups is None else np.lexsort(keys)
  borders = [] if groups is None else np.cumsum(np.bincount(groups))[:-1]
  title = f'{result["network_text"]}, {result["split"]}: top-1 accuracy {100 * result["accuracy"]:.2f} %'
  plots.draw_confusion(np.array(result['confusion']), order, borders, title, picture)
  return [path, picture]


@program('eval.py', lasting=True)
def main(argv):
  """Runs the program; returns its exit code."""
  run(parse_flags(argv))


if __name__ == '__main__':
  workers.exit_program(main())
