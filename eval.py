"""Evaluates a checkpoint of train.py on CIFAR-100: accuracy, confusion, and time, on one device or one a branch.

The checkpoint knows its network, so --checkpoint alone suffices. The branches of a split network are dealt to --devices
of this machine, or to --workers (worker.sh) on this machine or others.
"""

import argparse
import collections
import os
import sys
import time

# What TensorFlow logs when a worker dies comes as an exception, too. It reads this once, when it is imported.
if any(argument.startswith('--workers') for argument in sys.argv) and os.environ.get('TF_CPP_MIN_LOG_LEVEL') != '0':
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import cifar100
import resnet_split
import utils
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import check_output_file, write_json
from splitnet.common.flags import Parser, add, boolean
from splitnet.network import architecture, inference
from splitnet.parallel import devices, executor, placement
from splitnet.parallel import workers as hosts
from splitnet.reporting import plots
from splitnet.training import checkpoints


def make_parser():
  """The flags."""
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

  g = parser.add_argument_group('what')
  add(
    g,
    'checkpoint',
    str,
    None,
    "folder that train.py wrote (its last checkpoint), its 'best' folder, or DIR/ckpt-STEP",
    required=True,
  )
  g.add_argument('--harden', action='store_true', help='split a grouping checkpoint by its present assignments first')
  add(g, 'data_dir', str, 'cifar100/train_val_split', 'folder that download_cifar100.py wrote [%(default)s]')
  add(g, 'split', str, 'test', 'which images: test, val or train [%(default)s]')
  add(g, 'output_file', str, None, 'JSON file for the results; the confusion matrix goes to a PNG beside it [none]')
  g = parser.add_argument_group('how')
  add(g, 'batch_size', int, 100, 'images per batch [%(default)s]')
  add(g, 'test_iter', int, 0, 'batches; 0: all [%(default)s]')
  add(g, 'precision', str, 'float32', 'float32 or bfloat16 for the convolutions [%(default)s]')
  add(g, 'jit_compile', boolean, False, 'compile with XLA (not with --workers) [%(default)s]')
  g = parser.add_argument_group('machine')
  text = 'devices for the branches, such as /GPU:0,/GPU:1 [all GPUs, else the CPU]'
  add(g, 'devices', str, '', text)
  text = 'what branches on several devices share: replicate: each device computes it itself, only images go out and '
  text += 'logits come back; first: one device computes it and sends the others its features [%(default)s]'
  add(g, 'trunk', str, 'replicate', text)
  text = 'batches that a device has been given at any time; 1: one after the other [%(default)s]'
  add(g, 'in_flight', int, executor.IN_FLIGHT, text)
  add(g, 'num_logical_devices', int, 1, 'cut the one CPU or GPU into this many devices, to try --devices [%(default)s]')
  add(g, 'gpu_fraction', float, 1.0, "share of each GPU's memory to take, (0, 1] [%(default)s]")
  add(g, 'log_device_placement', boolean, False, 'log where every operation runs [%(default)s]')
  g = parser.add_argument_group('workers')
  text = 'compute on these workers of worker.sh instead, host:port,host:port; their GPUs, else their CPUs [none]'
  add(g, 'workers', str, '', text)
  add(g, 'worker_timeout', float, 30.0, 'seconds within which a worker has to answer [%(default)s]')
  g.add_argument('--retry', action='store_true', help='when a worker is lost, go on with those that are left')
  return parser


def parse_flags(argv):
  """Parses and checks the flags.

  Raises:
    UserError: where a value is out of range.
  """
  flags = make_parser().parse_args(argv)
  for name, good, what in (
    ('split', flags.split in ('test', 'val', 'train'), 'test, val or train'),
    ('batch_size', flags.batch_size >= 1, 'at least 1'),
    ('test_iter', flags.test_iter >= 0, 'at least 0'),
    ('num_logical_devices', 1 <= flags.num_logical_devices <= 64, 'in 1 to 64'),
    ('precision', flags.precision in ('float32', 'bfloat16'), 'float32 or bfloat16'),
    ('gpu_fraction', 0 < flags.gpu_fraction <= 1, 'in (0, 1]'),
    ('trunk', flags.trunk in placement.TRUNKS, ' or '.join(placement.TRUNKS)),
    ('in_flight', 1 <= flags.in_flight <= 64, 'in 1 to 64'),
    ('worker_timeout', 0 < flags.worker_timeout <= 86400, 'above 0 and at most 86400'),
  ):
    if not good:
      raise UserError("--%s is '%s'; it must be %s" % (name, getattr(flags, name), what))
  if flags.workers:
    flags.workers = hosts.parse(flags.workers)
    if flags.jit_compile:
      raise UserError('--jit_compile True compiles for one device of this machine, not for --workers')
    for name, empty in (('devices', ''), ('num_logical_devices', 1)):
      if getattr(flags, name) != empty:
        raise UserError("--%s is about this machine's devices, but --workers computes on those of the workers" % name)
  elif flags.retry:
    raise UserError('--retry goes on when a worker is lost, but there is no --workers')
  if flags.output_file:
    check_output_file('--output_file', flags.output_file)
  return flags


def load_network(stored, harden, dtype):
  """The network to evaluate: as stored, or hardened.

  Args:
    stored: a checkpoints.Stored.
    harden: whether to split a grouping network first.
    dtype: of the convolutions.

  Raises:
    UserError: where there is nothing to harden, or a group is empty.
  """
  if not harden:
    return checkpoints.load_network(stored, dtype=dtype)
  groups = class_groups(stored, all_units=True)
  if groups is None or stored.groups is not None:
    raise UserError(
      "--harden: '%s' is a %s checkpoint; only a grouping one can be hardened" % (stored.path, stored.mode)
    )
  architecture.check_groups(architecture.wide_resnet(stored.config), groups)
  return resnet_split.split_by(stored.config, groups, stored.values, dtype=dtype)


def class_groups(stored, all_units=False):
  """The group of each class in a checkpoint (int array [classes]), or None for a dense network.

  With `all_units`, those of all units: a dict by units name.
  """
  if stored.groups is not None:
    groups = stored.groups
  else:
    plan = architecture.wide_resnet(stored.config)
    learned = any(name.startswith('group/') for name in stored.values)
    if not learned:
      return None
    groups = {
      name: utils.hard_groups(stored.values['group/%s/alpha' % name]) if units.groups > 1 else np.zeros(units.size, int)
      for name, units in plan.units.items()
    }
  return groups if all_units else groups['split_q1']


# How fast it went. `images_per_second`: with batches under way at once, and with what losing a worker cost; `latency`:
# seconds from handing in a batch, alone, to its logits; `parts`: list of placement.Part.
Speed = collections.namedtuple('Speed', 'images_per_second latency parts')


def predict(network, split, batch_size, test_iter=0, placed=None, workers=None, **how):
  """Runs a network over images once.

  Args:
    network: a resnet_split.Network that was built without devices; split: an Images.
    batch_size: images per batch; test_iter: batches, 0 for all.
    placed: names of the devices for its branches; None: the first that there is.
    workers: the hosts.Workers to compute on instead, or None.
    **how: of executor.Spread: trunk, in_flight, jit_compile.

  Returns:
    (logits float32 [images, classes], a Speed; the first batch, which also traces and warms up, is run once more).

  Raises:
    UserError: where a worker is lost, unless `workers` goes on without it.
  """
  total = -(-len(split.images) // batch_size)
  total = min(total, test_iter) if test_iter else total
  batches = [split.images[i * batch_size : (i + 1) * batch_size] for i in range(total)]
  done, started = {}, None
  with tqdm(total=total, unit='batch', disable=None, leave=False) as bar:
    while len(done) < total:
      try:
        placed = workers.devices if workers else placed or devices.names()[:1]
        computing = executor.Spread(network, placed, patience=workers and workers.patience, **how)
        latency = executor.latency(computing, batches[0])
        started = started or time.perf_counter()
        for i, logits in computing.run((i, images) for i, images in enumerate(batches) if i not in done):
          done[i] = logits
          bar.update()
        computing.close()
      except executor.DeviceError as e:
        if workers is None:
          raise e.reason from e
        workers.lose(e)
  seconds = time.perf_counter() - started
  logits = np.concatenate([done[i] for i in range(total)])
  return logits, Speed(len(logits) / seconds, latency, computing.parts)


def measure(logits, labels, names, groups):
  """What logits say.

  Args:
    logits: [images, classes]; labels: int [images].
    names: a ClassNames.
    groups: int array [classes], or None.

  Returns:
    A dict that JSON can hold: 'accuracy', 'top5_accuracy', 'cross_entropy', 'superclass_accuracy' (of the predicted
    class's superclass), 'class_accuracy' and 'accuracy_within_superclass' (by name; None without images),
    'superclass_of_class' (by name), 'confusion' ([true][predicted]), and with groups 'errors', 'errors_across_groups',
    'groups' (class names of each), 'agreement'.
  """
  classes = logits.shape[1]
  predicted = logits.argmax(1)
  right = predicted == labels
  own = np.take_along_axis(logits, labels[:, None], 1)
  shifted = logits - logits.max(1, keepdims=True)
  log_probability = np.take_along_axis(shifted, labels[:, None], 1)[:, 0] - np.log(np.exp(shifted).sum(1))
  confusion = np.zeros((classes, classes), np.int64)
  np.add.at(confusion, (labels, predicted), 1)
  coarse = names.fine_to_coarse

  def share(chosen):
    return float(right[chosen].mean()) if chosen.any() else None

  result = {
    'images': len(labels),
    'accuracy': float(right.mean()),
    # Ties count against the network, so that constant logits are not right five times in a hundred by their order.
    'top5_accuracy': float(((logits >= own).sum(1) <= 5).mean()),
    'cross_entropy': float(-log_probability.mean()),
    'superclass_accuracy': float((coarse[predicted] == coarse[labels]).mean()),
    'class_accuracy': {name: share(labels == i) for i, name in enumerate(names.fine)},
    'accuracy_within_superclass': {name: share(coarse[labels] == i) for i, name in enumerate(names.coarse)},
    'superclass_of_class': {name: names.coarse[c] for name, c in zip(names.fine, coarse)},
    'confusion': confusion.tolist(),
  }
  if groups is not None:
    wrong = ~right
    result.update(
      errors=int(wrong.sum()),
      errors_across_groups=int((groups[labels] != groups[predicted])[wrong].sum()),
      groups=[[names.fine[c] for c in np.flatnonzero(groups == g)] for g in range(groups.max() + 1)],
      agreement=utils.superclass_agreement(groups, coarse),
    )
  return result


def describe_part(part, network, workers):
  """What a device computes: a dict that JSON can hold.

  Args:
    part: a placement.Part; network: the resnet_split.Network it is of; workers: the hosts.Workers, or None.
  """
  device = part.device
  if workers:
    device = '%s/%s' % (workers.address_of(device), device.rsplit('/device:', 1)[-1])
  return {
    'device': device,
    'branches': part.nodes,
    'reads': part.source and list(part.source),
    'flops': placement.part_load(part, network.costs(everything=False)),
  }


def print_result(result, names):
  """Prints the table."""
  percent = '{:.2f} %'.format

  def row(name, value):
    print('%-26s %s' % (name, value))

  row('checkpoint', result['checkpoint'])
  row('network', result['network_text'])
  row('devices', ', '.join(result['devices']))
  row('images', '{:,} ({})'.format(result['images'], result['split']))
  row('accuracy, top 1', percent(100 * result['accuracy']))
  row('accuracy, top 5', percent(100 * result['top5_accuracy']))
  row('accuracy, superclass', percent(100 * result['superclass_accuracy']))
  row('cross-entropy', '%.4f' % result['cross_entropy'])
  row('parameters', '{:,}'.format(result['parameters']))
  row('FLOPs per image', '{:,}'.format(result['flops']))
  if result['hardened']:
    row('dropped by hardening', architecture.describe_dropped(architecture.Dropped(**result['dropped'])))
  if len(result['placement']) > 1:
    loads = collections.Counter()
    for part in result['placement']:
      loads[part['device']] += part['flops']
    row('FLOPs, busiest device', '{:,} (trunk: {})'.format(max(loads.values()), result['trunk']))
  row(
    'images per second',
    '%.0f, %d batches under way on each device' % (result['images_per_second'], result['in_flight']),
  )
  row('latency of one batch', '%.1f ms, %d images' % (1000 * result['latency'], result['batch_size']))
  if 'groups' in result:
    errors, across = result['errors'], result['errors_across_groups']
    row('errors across groups', '%d of %d (%.1f %%)' % (across, errors, 100 * across / max(errors, 1)))
    row('agreement of the groups', '%.2f of the classes are where most of their superclass is' % result['agreement'])
    for g, members in enumerate(result['groups']):
      print('\ngroup %d, %d classes: %s' % (g, len(members), ', '.join(members)))
  print('\naccuracy by superclass and class (%)')
  width = max(map(len, names.coarse))

  def number(value):
    return '   -' if value is None else '%4.0f' % (100 * value)

  for i, coarse in enumerate(names.coarse):
    members = [names.fine[c] for c in np.flatnonzero(names.fine_to_coarse == i)]
    inside = ', '.join('%s %s' % (m, number(result['class_accuracy'][m]).strip()) for m in members)
    print('%-*s %s   %s' % (width, coarse, number(result['accuracy_within_superclass'][coarse]), inside))


def run(flags):
  """Evaluates as the flags say; returns the result, a dict."""
  placed = devices.configure(flags.gpu_fraction, flags.num_logical_devices, flags.log_device_placement)
  placed = devices.parse(flags.devices, placed)
  if flags.jit_compile:
    devices.check_xla()
  names = cifar100.load_names(flags.data_dir)
  split = cifar100.load(flags.data_dir, flags.split)
  stored = checkpoints.read(flags.checkpoint)
  if stored.config.num_classes != len(names.fine):
    raise UserError(
      "'%s' has %d classes, but the data in '%s' has %d"
      % (stored.path, stored.config.num_classes, flags.data_dir, len(names.fine))
    )
  if stored.configuration and stored.configuration['data'].get('source') != names.source['source']:
    print(
      "note: '%s' was trained on %s data, these images are %s"
      % (stored.path, stored.configuration['data'].get('source'), names.source['source']),
      file=sys.stderr,
    )
  note = '' if flags.workers else devices.precision_note(flags.precision, training=False)
  if note:
    print(note, file=sys.stderr)
  workers = hosts.Workers(flags.workers, flags.worker_timeout, flags.retry) if flags.workers else None
  network = load_network(stored, flags.harden, tf.dtypes.as_dtype(flags.precision))
  groups = class_groups(stored)
  logits, speed = predict(
    inference.Folded(network),
    split,
    flags.batch_size,
    flags.test_iter,
    placed,
    workers,
    trunk=flags.trunk,
    in_flight=flags.in_flight,
    jit_compile=flags.jit_compile,
  )
  parts = [describe_part(part, network, workers) for part in speed.parts]
  parameters, flops = utils.total_count(network.counts)
  kind = 'split' if network.groups is not None else ('dense' if groups is None else 'grouping, not hardened')
  result = {
    'checkpoint': stored.path,
    'split': flags.split,
    'devices': list(dict.fromkeys(part['device'] for part in parts)),
    'trunk': flags.trunk,
    'placement': parts,
    'network': checkpoints.describe(stored.mode, network, {}, {})['network'],
    'network_text': 'WRN-%d-%d, %s%s'
    % (
      6 * stored.config.num_residual_units + 4,
      stored.config.k,
      kind,
      '' if groups is None else ' ' + stored.config.split,
    ),
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
    result['dropped'] = architecture.dropped_weights(network.plan, network.groups, stored.values)._asdict()
  result.update(measure(logits, split.labels[: len(logits)], names, groups))
  print_result(result, names)
  if flags.output_file:
    order = np.arange(len(names.fine)) if groups is None else np.lexsort((names.fine_to_coarse, groups))
    borders = [] if groups is None else np.cumsum(np.bincount(groups))[:-1]
    picture = os.path.splitext(flags.output_file)[0] + '-confusion.png'
    result['confusion_picture'] = picture
    title = '%s, %s: top-1 accuracy %.2f %%' % (result['network_text'], flags.split, 100 * result['accuracy'])
    plots.draw_confusion(np.array(result['confusion']), order, borders, title, picture)
    write_json(flags.output_file, result)
    print('\nwritten: %s, %s' % (flags.output_file, picture))
  return result


def main(argv=None):
  """Runs the program; returns its exit code."""
  return run_program('eval.py', lambda: run(parse_flags(argv)))


if __name__ == '__main__':
  hosts.leave(main())
