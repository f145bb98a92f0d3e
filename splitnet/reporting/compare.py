"""Compares results of eval.py: accuracy, size, and the groups by class name.

python -m splitnet.reporting.compare dense=runs/baseline/eval.json fine-tuned=runs/split/eval.json
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import sys
import textwrap

from splitnet.common.flags import Parser, answer_early


def make_parser():
  """Makes the parser of the arguments."""
  parser = Parser(__doc__)
  parser.add_argument('results', nargs='+', metavar='NAME=FILE', help='a name to print and a file of eval.py')
  return parser


if __name__ == '__main__':
  answer_early('compare.py', make_parser)

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

from splitnet.common import schema
from splitnet.common.errors import UserError, program
from splitnet.reporting import metrics, results


def read(argument):
  """Reads one NAME=FILE argument: (name, result of eval.py)."""
  name, _, path = argument.partition('=')
  advice = 'give NAME=FILE, a file that eval.py --output_file wrote'
  result = schema.read_json(path, results.Result, advice)
  known = result.get('superclass_of_class') or {}
  for name in sorted({name for members in result.get('groups', []) for name in members} - known.keys()):
    raise UserError(f"'{path}' is damaged ('groups' has {schema.show(name)}, which has no superclass): {advice}")
  return name, result


def stages_text(results):
  """Returns the stages as lines of text, sizes relative to the first."""
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
  """Returns the groups and their agreement, as lines.

  A superclass that is whole in a group stands by its name alone, another with those of its classes that are there.
  """
  superclass_of, lines = result['superclass_of_class'], []
  for g, members in enumerate(result['groups']):
    parts = results.by_superclass(members, superclass_of)
    whole = [superclass for superclass, names, size in parts if len(names) == size]
    lines += ['', f'group {g}: {len(members)} classes, {len(whole)} whole superclasses']
    if whole:
      lines.append(textwrap.fill(', '.join(whole), 98, initial_indent='  ', subsequent_indent='  '))
    for superclass, names, size in parts:
      if len(names) < size:
        lines.append(f'  {len(names)} of {size} {superclass}: {", ".join(names)}')
  superclasses = sorted(set(superclass_of.values()))
  indices = [superclasses.index(superclass_of[name]) for members in result['groups'] for name in members]
  mean, deviation = metrics.random_agreement([len(members) for members in result['groups']], indices)
  text = f'agreement with the superclasses: {result["agreement"]:.2f}'
  return [*lines, '', f'{text} (random groups of the same sizes: {mean:.2f} +- {deviation:.2f})']


@program('compare.py')
def main(argv):
  """Compares the results that the arguments name."""
  show(make_parser().parse_args(argv).results)


def show(arguments):
  """Prints the comparison of a list of NAME=FILE arguments."""
  read_results = [read(argument) for argument in arguments]
  if pictures := [result['confusion_picture'] for _, result in read_results if 'confusion_picture' in result]:
    print('confusion matrices:', *pictures, sep='\n  ')
  if pictures := [result['samples_picture'] for _, result in read_results if 'samples_picture' in result]:
    print(f'images, and what the last network says of them:\n  {pictures[-1]}')
  if grouped := [result for _, result in read_results if any(result.get('groups', []))]:
    print('\n'.join(groups_text(grouped[-1])))
  print('\n'.join(['', *stages_text(read_results)]))


if __name__ == '__main__':
  sys.exit(main())
