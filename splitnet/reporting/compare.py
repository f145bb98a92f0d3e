"""Puts results of eval.py side by side: accuracy and size of each stage, and the groups by class name.

python report.py dense=runs/baseline/eval.json fine-tuned=runs/split/eval.json
"""

import argparse
import json
import sys

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np

from splitnet.common.errors import UserError, run_program
from utils import superclass_agreement


def read(argument):
  """Reads one NAME=FILE argument: (name, result of eval.py).

  Raises:
    UserError: where it is none.
  """
  name, _, path = argument.partition('=')
  try:
    with open(path) as f:
      result = json.load(f)
    result['accuracy'], result['parameters'], result['flops'], result['images'], result['split']
    return name, result
  except OSError as e:
    raise UserError("'%s': %s; give NAME=FILE, a file that eval.py --output_file wrote" % (argument, e.strerror)) from e
  except (ValueError, KeyError, TypeError) as e:
    raise UserError("'%s' is not a file that eval.py --output_file wrote (%s)" % (path, e)) from e


def table(results):
  """The stages as lines of text, sizes relative to the first.

  Args:
    results: list of (name, result of eval.py).
  """
  first = results[0][1]
  lines = ['%-14s %9s %9s %18s %24s' % ('', 'top 1', 'top 5', 'parameters', 'FLOPs per image')]
  for name, result in results:
    lines.append(
      '%-14s %7.2f %% %7.2f %% %10s (%3.0f %%) %16s (%3.0f %%)'
      % (
        name,
        100 * result['accuracy'],
        100 * result['top5_accuracy'],
        '{:,}'.format(result['parameters']),
        100 * result['parameters'] / first['parameters'],
        '{:,}'.format(result['flops']),
        100 * result['flops'] / first['flops'],
      )
    )
    if (result['images'], result['split']) != (first['images'], first['split']):
      lines[-1] += '  of {:,} images ({})'.format(result['images'], result['split'])
  return [*lines, '{:,} images ({})'.format(first['images'], first['split'])]


def random_agreement(sizes, superclass_of_classes, draws=1000, seed=0):
  """The agreement of random groupings of the same sizes: (mean, standard deviation) over `draws` of them."""
  groups = np.repeat(np.arange(len(sizes)), sizes)
  generator = np.random.default_rng(seed)
  values = [superclass_agreement(generator.permutation(groups), superclass_of_classes) for _ in range(draws)]
  return float(np.mean(values)), float(np.std(values))


def groups_text(result, superclass_of):
  """The groups by class name, and their agreement with the superclasses, as lines of text.

  Args:
    result: of eval.py, of a network with groups.
    superclass_of: dict from class name to superclass name.
  """
  lines = []
  for g, members in enumerate(result['groups']):
    lines += ['', 'group %d (%d classes)' % (g, len(members))]
    by_superclass = {}
    for name in members:
      by_superclass.setdefault(superclass_of[name], []).append(name)
    lines += ['  %-30s %s' % (coarse, ', '.join(names)) for coarse, names in sorted(by_superclass.items())]
  coarse = sorted(set(superclass_of.values()))
  indices = [coarse.index(superclass_of[name]) for members in result['groups'] for name in members]
  mean, deviation = random_agreement([len(members) for members in result['groups']], indices)
  lines += [
    '',
    'agreement with the superclasses: %.2f (random groups of the same sizes: %.2f +- %.2f)'
    % (result['agreement'], mean, deviation),
  ]
  return lines


def report(arguments):
  """Prints the report for a list of NAME=FILE arguments."""
  results = [read(argument) for argument in arguments]
  print('\n'.join(table(results)))
  grouped = [result for _, result in results if 'groups' in result]
  if grouped:
    print('\n'.join(groups_text(grouped[-1], grouped[-1]['superclass_of_class'])))
  pictures = [result['confusion_picture'] for _, result in results if 'confusion_picture' in result]
  if pictures:
    print('\nconfusion matrices: %s' % ', '.join(pictures))


def main(argv=None):
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('results', nargs='+', metavar='NAME=FILE', help='a name to print and a file of eval.py')
  arguments = parser.parse_args(argv).results
  return run_program('compare.py', lambda: report(arguments))


if __name__ == '__main__':
  sys.exit(main())
