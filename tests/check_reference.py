"""Checks this network against recorded outputs of the authors' released code (TensorFlow 1.15).

  python tests/check_reference.py FILE.npz [FILE.npz ...]

prints the largest relative difference of every quantity in each file, and exits with 1 where one is above the
tolerance. A file holds the network's input (x, y), every variable before a training step (var/NAME), what the
released code computed from them (logits, ce, total, overlap, weight_split, uniform, train_logits, train_ce), some
variables and Momentum slots after one step at learning rate 0.1 (after/NAME), and its counters (weights, flops).
Width, blocks, classes and groups are read off the variables' shapes.
"""

import argparse
import os
import sys

# The released code ran on Eigen's kernels. Where an activation is within rounding of zero (as one is in 2-4-4), other
# kernels may put it on the other side of the ReLU, and its gradient comes or goes.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import numpy as np
import tensorflow as tf

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

import checkpoints
import resnet_split
import train
import utils

L2_WEIGHT, GAMMAS, LEARNING_RATE, MOMENTUM = 1e-4, (1.0, 1.0, 10.0), 0.1, 0.9


def relative_difference(ours, theirs):
  """Largest difference of two arrays, relative to the largest magnitude of the second."""
  theirs = np.asarray(theirs, np.float64)
  return float(np.max(np.abs(np.asarray(ours, np.float64) - theirs)) / max(np.max(np.abs(theirs)), 1e-30))


def build(variables, config):
  """The grouping network with every one of the given variables in it; a name it does not have is an error."""
  network = resnet_split.Network(config, with_assignments=True)
  checkpoints.assign(network.weights, variables, 'the reference file')
  return network


def compare(path, weighted_group_loss):
  """Dict from quantity to its largest relative difference; see the module's docstring."""
  with np.load(path) as archive:
    reference = {name: archive[name] for name in archive.files}
  variables = {n[len('var/') :]: v for n, v in reference.items() if n.startswith('var/') and n != 'var/global_step'}
  config = checkpoints.config_from_shapes(variables, path)
  x, y = tf.constant(reference['x']), tf.constant(reference['y'])
  settings = train.Objective(L2_WEIGHT, *GAMMAS, weighted_group_loss)
  differences = {}

  network = build(variables, config)
  logits = network(x)
  terms = train.objective(network, logits, y, settings)
  differences['logits'] = relative_difference(logits, reference['logits'])
  differences['ce'] = relative_difference(terms['cross_entropy'], reference['ce'])
  differences['total'] = relative_difference(terms['total'], reference['total'])
  for name in ('overlap', 'weight_split', 'uniform'):
    ours = np.array([t.numpy() for t in terms[name + '_terms'].values()])
    theirs = reference[name]
    if ours.shape != theirs.shape:
      raise SystemExit('%s: %d terms of %s here, %d there' % (path, len(ours), name, len(theirs)))
    differences[name] = float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
  counted = utils.total_count(network.counts)
  differences['weights'] = relative_difference(counted[0], reference['weights'])
  differences['flops'] = relative_difference(counted[1], reference['flops'])

  optimizer = train.Momentum(network.trained, MOMENTUM)
  with tf.GradientTape() as tape:
    logits = network(x, training=True)
    terms = train.objective(network, logits, y, settings)
  optimizer.apply(tape.gradient(terms['total'], list(network.trained.values())), LEARNING_RATE)
  differences['train_logits'] = relative_difference(logits, reference['train_logits'])
  differences['train_ce'] = relative_difference(terms['cross_entropy'], reference['train_ce'])
  for name, value in reference.items():
    if name.startswith('after/'):
      variable = name[len('after/') :]
      slot = variable.endswith('/Momentum')
      ours = optimizer.slots[variable[: -len('/Momentum')]] if slot else network.weights[variable]
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
  worst = 0.0
  for path in args.files:
    print(path)
    for name, difference in check(path).items():
      print('  %-40s %.1e%s' % (name, difference, '' if difference <= args.tolerance else '   TOO LARGE'))
      worst = max(worst, difference)
  print('largest: %.1e (tolerance %.0e)' % (worst, args.tolerance))
  return int(not worst <= args.tolerance)


if __name__ == '__main__':
  sys.exit(main())
