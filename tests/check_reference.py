"""Checks this network against recorded outputs of the authors' released code (TensorFlow 1.15).

  python tests/check_reference.py FILE.npz [FILE.npz ...]

prints the largest relative difference of every quantity in each file, and exits with 1 where one is above the
tolerance or not a number, or a file is missing or damaged. A file holds the network's input (x, y), every variable
before a training step (var/NAME), what the released code computed from them (logits, ce, total, overlap,
weight_split, uniform, train_logits, train_ce), some variables and Momentum slots after one step at learning rate 0.1
(after/NAME), and its counters (weights, flops). Width, blocks, classes and groups are read off the variables' shapes.
"""

import argparse
import os
import sys
import zipfile
import zlib

# The released code ran on Eigen's kernels. Where an activation is within rounding of zero (as one is in 2-4-4), other
# kernels may put it on the other side of the ReLU, and its gradient comes or goes.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

import splitnet.common.quiet  # noqa: F401, I001 - before TensorFlow
import numpy as np
import tensorflow as tf

import resnet_split
from splitnet.network import counting
from splitnet.network.network import create
from splitnet.training import checkpoints
from splitnet.training import objective
from splitnet.common.errors import UserError

QUANTITIES = ['x', 'y', 'logits', 'ce', 'total', 'overlap', 'weight_split', 'uniform', 'train_logits', 'train_ce']
L2_WEIGHT, GAMMAS, LEARNING_RATE, MOMENTUM = 1e-4, (1.0, 1.0, 10.0), 0.1, 0.9


def read(path):
  """A reference file's arrays: dict from key to array.

  Raises:
    UserError: where it is missing, damaged or no such file.
  """
  try:
    with np.load(path) as archive:
      reference = {name: archive[name] for name in archive.files}
  except OSError as e:
    raise UserError(f"'{path}' cannot be read ({e.strerror or e})") from e
  # What numpy raises for bytes that are no archive, a lone array, an empty file, a cut one and flipped bits.
  except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
    raise UserError(f"'{path}' is no reference file, or it is damaged ({e})") from e
  missing = [name for name in QUANTITIES + ['weights', 'flops'] if name not in reference]
  if missing:
    raise UserError(f"'{path}' is no reference file: it has no '{missing[0]}'")
  return reference


def relative_difference(ours, theirs):
  """Largest difference of two arrays, relative to the largest magnitude of the second; they must have one shape."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  if ours.shape != theirs.shape:
    raise UserError(f'a quantity has shape {ours.shape} here and {theirs.shape} in the file')
  return float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-30))


def build(variables, config):
  """The grouping network with every one of the given variables in it; a name it does not have is an error."""
  network = create(config.graph(), with_assignments=True)
  unknown = sorted(set(variables) - set(network.weights))
  if unknown:
    raise UserError(f"the network has no variable '{unknown[0]}'")
  checkpoints.assign(network.weights, variables, 'the reference file')
  return network


def compare(path, weighted_group_loss):
  """Dict from quantity to its largest relative difference; see the module's docstring."""
  reference = read(path)
  variables = {n[len('var/') :]: v for n, v in reference.items() if n.startswith('var/') and n != 'var/global_step'}
  config = resnet_split.config_from_shapes(variables, path)
  x, y = tf.constant(reference['x']), tf.constant(reference['y'])
  settings = objective.Objective(L2_WEIGHT, *GAMMAS, weighted_group_loss)
  differences = {}

  network = build(variables, config)
  logits = network(x)
  terms = objective.objective(network, logits, y, settings)
  differences['logits'] = relative_difference(logits, reference['logits'])
  differences['ce'] = relative_difference(terms['cross_entropy'], reference['ce'])
  differences['total'] = relative_difference(terms['total'], reference['total'])
  for name in ('overlap', 'weight_split', 'uniform'):
    ours = np.array([t.numpy() for t in terms[name + '_terms'].values()])
    theirs = reference[name]
    if ours.shape != theirs.shape:
      raise UserError(f'{path}: {len(ours)} terms of {name} here, {len(theirs)} there')
    differences[name] = float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
  counted = counting.total(counting.counts(network))
  differences['weights'] = relative_difference(counted[0], reference['weights'])
  differences['flops'] = relative_difference(counted[1], reference['flops'])

  optimizer = objective.Momentum(network.trained, MOMENTUM)
  with tf.GradientTape() as tape:
    logits = network(x, training=True)
    terms = objective.objective(network, logits, y, settings)
  optimizer.apply(tape.gradient(terms['total'], list(network.trained.values())), LEARNING_RATE)
  differences['train_logits'] = relative_difference(logits, reference['train_logits'])
  differences['train_ce'] = relative_difference(terms['cross_entropy'], reference['train_ce'])
  for name, value in reference.items():
    if name.startswith('after/'):
      variable = name[len('after/') :]
      slot = variable.endswith('/Momentum')
      of = optimizer.slots if slot else network.weights
      variable = variable.removesuffix('/Momentum')
      if variable not in of:
        raise UserError(f"the network has no variable '{variable}'")
      ours = of[variable]
      differences[name] = relative_difference(ours, value)
  return differences


def check(path):
  """As `compare`, for whichever kind of weight-split mean gives the file's total: the files do not say which."""
  both = [compare(path, weighted) for weighted in (True, False)]
  return min(both, key=lambda differences: differences['total'])


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('files', nargs='+', metavar='FILE.npz')
  parser.add_argument('--tolerance', type=float, default=1e-4, help='largest relative difference that passes')
  args = parser.parse_args(argv)
  found = []
  try:
    for path in args.files:
      print(path)
      for name, difference in check(path).items():
        # `not <=`, because a difference may be NaN.
        print(f"  {name:40} {difference:.1e}{'   TOO LARGE' if not difference <= args.tolerance else ''}")
        found.append(difference)
  except UserError as e:
    print(f'check_reference.py: {e}', file=sys.stderr)
    return 1
  print(f'largest: {np.max(found):.1e} (tolerance {args.tolerance:.0e})')  # numpy's max of a NaN is NaN
  return int(not all(difference <= args.tolerance for difference in found))


if __name__ == '__main__':
  sys.exit(main())
