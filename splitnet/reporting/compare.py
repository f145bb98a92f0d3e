"""Compares results of eval.py: accuracy, size, and the groups by class name.

python -m splitnet.reporting.compare dense=runs/baseline/eval.json fine-tuned=runs/split/eval.json
"""

import argparse
import json
import sys

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

from splitnet.common.errors import UserError, run_program
from splitnet.reporting import metrics

REQUIRED = ('accuracy', 'top5_accuracy', 'parameters', 'flops', 'images', 'split')


def read(argument):
  """Reads one NAME=FILE argument: (name, result of eval.py).

  Raises:
    UserError: if the file is missing or something else.
  """
  name, _, path = argument.partition('=')
  try:
    with open(path) as f:
      result = json.load(f)
    for key in REQUIRED:
      result[key]
    return name, result
  except OSError as e:
    raise UserError(f"'{argument}': {e.strerror}; give NAME=FILE, a file that eval.py --output_file wrote") from e
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f"'{path}' is not a file that eval.py --output_file wrote ({e})") from e


def stages_text(results):
  """Returns the stages as lines of text, sizes relative to the first.

  Args:
    results: list of (name, result of eval.py).
  """
  first = results[0][1]
  lines = [f'{"":14} {"top 1":>9} {"top 5":>9} {"parameters":>18} {"FLOPs per image":>24}']
  for name, result in results:
    parameters, flops = (100 * result[key] / first[key] for key in ('parameters', 'flops'))
    line = f'{name:14} {100 * result["accuracy"]:7.2f} % {100 * result["top5_accuracy"]:7.2f} %'
    line += f' {result["parameters"]:10,} ({parameters:3.0f} %) {result["flops"]:16,} ({flops:3.0f} %)'
    if (result['images'], result['split']) != (first['images'], first['split']):
      line += f'  of {result["images"]:,} images ({result["split"]})'
    lines.append(line)
  return [*lines, f'{first["images"]:,} images ({first["split"]})']


def groups_text(result):
  """Returns groups by class name and their agreement with superclasses, as lines.

  Args:
    result: of eval.py, of a network with groups.
  """
  superclass_of, lines = result['superclass_of_class'], []
  for g, members in enumerate(result['groups']):
    lines += ['', f'group {g} ({len(members)} classes)']
    by_superclass = {}
    for name in members:
      by_superclass.setdefault(superclass_of[name], []).append(name)
    lines += [f'  {superclass:30} {", ".join(names)}' for superclass, names in sorted(by_superclass.items())]
  superclasses = sorted(set(superclass_of.values()))
  indices = [superclasses.index(superclass_of[name]) for members in result['groups'] for name in members]
  mean, deviation = metrics.random_agreement([len(members) for members in result['groups']], indices)
  text = f'agreement with the superclasses: {result["agreement"]:.2f}'
  return [*lines, '', f'{text} (random groups of the same sizes: {mean:.2f} +- {deviation:.2f})']


def run(arguments):
  """Prints the comparison of a list of NAME=FILE arguments."""
  results = [read(argument) for argument in arguments]
  print('\n'.join(stages_text(results)))
  grouped = [result for _, result in results if 'groups' in result]
  if grouped:
    print('\n'.join(groups_text(grouped[-1])))
  pictures = [result['confusion_picture'] for _, result in results if 'confusion_picture' in result]
  if pictures:
    print(f'\nconfusion matrices: {", ".join(pictures)}')


def main(argv=None):
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('results', nargs='+', metavar='NAME=FILE', help='a name to print and a file of eval.py')
  arguments = parser.parse_args(argv).results
  return run_program('compare.py', lambda: run(arguments))


if __name__ == '__main__':
  sys.exit(main())
