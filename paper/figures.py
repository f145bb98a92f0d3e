"""Draws figures 3, 4 and 5 of the paper from runs of train.py.

python figures.py 3 --run runs/group                       weights become block-diagonal while grouping
python figures.py 4 --basemodel runs/baseline --out DIR    class counts per group against the balance weight
python figures.py 5 --checkpoint runs/group                groups against superclasses
"""

import argparse
import functools
import glob
import os
import re
import subprocess
import sys
import tempfile

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np

import cifar100
import eval as evaluation
import train
import utils
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import PROJECT, check_output_file
from splitnet.network import architecture
from splitnet.reporting import compare, plots
from splitnet.training import checkpoints, initialize


def make_parser():
  """The flags of each figure."""
  parser = train.Parser(
    prog='figures.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  figures = parser.add_subparsers(dest='figure', required=True, metavar='{3,4,5}')

  def figure(number, text, description):
    return figures.add_parser(
      number, help=text, description=description, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip

  f = figure(
    '3',
    'weights ordered by group, from start to end of grouping',
    'Figure 3: the weights of split layers at the checkpoints of a grouping run, rows and columns ordered by the\n'
    'groups of the last one, so that one sees the blocks emerge. Written below each panel: how much of the squared\n'
    'weight lies within the groups.\n\n'
    'A run keeps its last two checkpoints; to keep the moments between, group with\n'
    '  ./group.sh --max_to_keep 100 --checkpoint_interval N',
  )
  f.add_argument('--run', required=True, metavar='DIR', help='folder of a grouping run')
  f.add_argument(
    '--layers',
    metavar='NAMES',
    help='split layers, separated by commas [one a depth: the first convolution of its last block, and the logits]',
  )
  f.add_argument(
    '--moments',
    type=int,
    default=6,
    metavar='INT',
    help='draw at most this many checkpoints, the first, the last and some evenly between [%(default)s]',
  )
  f.add_argument('--output', default='fig3.png', metavar='FILE', help='the picture, PNG [%(default)s]')

  f = figure(
    '4',
    'class counts per group against the balance weight',
    'Figure 4: class counts per group against the weight of the balance (gamma3) in the FC split, 1-1-G. Trains a\n'
    'grouping run for each weight in a folder of its own, OUT/balance-<weight>, with train.py; what is done is not\n'
    'repeated, and what was interrupted goes on. The picture is OUT/fig4.png.\n\n'
    "Further arguments are train.py's, such as --gamma2 5; here they begin with --gamma1 1.5 --gamma2 1\n"
    '--assignment_lr_scale 100 --dropout_keep_prob 1, with which 300 steps decided all assignments of a WRN-16-1\n'
    '(the confidence that train.py tells); faster ones lose a group where the balance weighs 30.',
  )
  f.add_argument('--basemodel', metavar='DIR', help='folder or checkpoint of a baseline (needed unless --print)')
  f.add_argument(
    '--data_dir',
    default='cifar100/train_val_split',
    metavar='DIR',
    help='folder that download_cifar100.py wrote [%(default)s]',
  )
  f.add_argument(
    '--balances', default='0,1,3,10,30', metavar='LIST', help='the weights, separated by commas [%(default)s]'
  )
  f.add_argument('--steps', type=int, default=300, metavar='INT', help='steps for each weight [%(default)s]')
  f.add_argument('--ngroups', type=int, default=3, metavar='INT', help='groups, G [%(default)s]')
  f.add_argument('--out', required=True, metavar='DIR', help='folder for the runs and the picture')
  f.add_argument(
    '--print', action='store_true', dest='print_only', help='train nothing: print and draw all runs that OUT holds'
  )

  f = figure(
    '5',
    'groups against superclasses',
    'Figure 5: how many classes of each superclass are in each group. Groups keep their numbers, so that groups which\n'
    'part last in the tree are neighbours; superclasses stand below the group that holds most of them.',
  )
  f.add_argument(
    '--checkpoint', required=True, metavar='DIR', help='grouping or split run, its folder or DIR/ckpt-STEP'
  )
  f.add_argument(
    '--data_dir',
    default='cifar100/train_val_split',
    metavar='DIR',
    help='folder that download_cifar100.py wrote; only its names are read [%(default)s]',
  )
  f.add_argument('--output', default='fig5.png', metavar='FILE', help='the picture, PNG [%(default)s]')
  return parser


# --- figure 3 -----------------------------------------------------------------------------------------------------


def saved_steps(folder):
  """The steps of which a folder holds a checkpoint: list of ints, rising."""
  found = glob.glob(os.path.join(glob.escape(folder), 'ckpt-*.index'))
  return sorted(int(m.group(1)) for m in (re.search(r'ckpt-(\d+)\.index$', path) for path in found) if m)


def evenly(steps, count):
  """At most `count` of the rising `steps`: the first, the last, and those nearest to even distances between."""
  steps = np.array(steps)
  if len(steps) <= count:
    return steps.tolist()
  wanted = np.linspace(steps[0], steps[-1], count)
  return sorted({int(steps[np.abs(steps - w).argmin()]) for w in wanted})


def representative_layers(plan):
  """One split layer a depth: the first convolution of its last block, the linear layer where it has no block."""
  shortcuts = {block.shortcut for block in plan.blocks}
  chosen = {}
  for layer in plan.layers:
    # A layer that keeps all its weights has no blocks to show.
    if layer.kind == 'batch_norm' or layer.cut == 1 or layer.name in shortcuts:
      continue
    before = chosen.get(layer.depth)
    if before is None or before.name.split('/')[0] != layer.name.split('/')[0]:
      chosen[layer.depth] = layer
  return list(chosen.values())


def chosen_layers(plan, text):
  """The layers that --layers names, or the representative ones."""
  if text is None:
    return representative_layers(plan)
  split = {layer.name: layer for layer in plan.layers if layer.kind != 'batch_norm' and layer.branches > 1}
  names = [name.strip() for name in text.split(',')]
  for name in names:
    if name not in split:
      raise UserError("--layers: '%s' is no split layer; there are: %s" % (name, ', '.join(split)))
  return [split[name] for name in names]


def share_within(plan, layer, kernel, groups):
  """How much of a layer's squared weight hardening keeps: number in [0, 1]."""
  squares = np.square(kernel).sum(tuple(range(kernel.ndim - 2)))
  return float(squares[architecture.kept_weights(plan, layer, groups)].sum() / max(squares.sum(), 1e-20))


def figure_3(flags):
  """Draws figure 3; returns {layer name: [share of the squared weight within the groups, one a moment]}."""
  if flags.moments < 2:
    raise UserError('--moments is %d; it must be at least 2, start and end' % flags.moments)
  check_output_file('--output', flags.output)
  configuration = checkpoints.read_configuration(flags.run)
  if configuration is None:
    raise UserError("--run '%s' is no folder that train.py wrote" % flags.run)
  if configuration['mode'] != 'group':
    raise UserError(
      "--run '%s' is a %s run; figure 3 shows a grouping run (train.py --mode group)"
      % (flags.run, configuration['mode'])
    )
  steps = saved_steps(flags.run)
  if len(steps) < 2:
    raise UserError(
      "'%s' holds %s, but figure 3 needs the start and the end of grouping: './group.sh --max_to_keep 100 "
      "--checkpoint_interval N' keeps a checkpoint every N steps"
      % (flags.run, 'only the checkpoint of step %d' % steps[0] if steps else 'no checkpoint')
    )
  steps = evenly(steps, flags.moments)
  moments = [checkpoints.read(os.path.join(flags.run, 'ckpt-%d' % step)) for step in steps]
  plan = architecture.wide_resnet(moments[-1].config)
  groups = evaluation.class_groups(moments[-1], all_units=True)
  rows, shares = [], {}
  for layer in chosen_layers(plan, flags.layers):
    kernels = [stored.values[architecture.layer_weights(layer)] for stored in moments]
    shares[layer.name] = [share_within(plan, layer, kernel, groups) for kernel in kernels]
    rows.append(
      (
        '%s\n%d inputs, %d outputs' % (layer.name, layer.input.size, layer.output.size),
        [plots.order_weights(layer, kernel, groups) for kernel in kernels],
        ['%.0f %% within groups' % (100 * share) for share in shares[layer.name]],
      )
    )
  title = 'Weights of the %s split\nordered by the groups of step %d' % (moments[-1].config.split, steps[-1])
  plots.draw_moments(rows, ['step %d' % step for step in steps], title, flags.output)
  print(
    '%s: squared weight within the groups, step %d to %d: %s'
    % (
      flags.output,
      steps[0],
      steps[-1],
      ', '.join('%s %.0f to %.0f %%' % (name, 100 * s[0], 100 * s[-1]) for name, s in shares.items()),
    )
  )
  return shares


# --- figure 4 -----------------------------------------------------------------------------------------------------


def parse_balances(text):
  """The weights in --balances: list of numbers, rising.

  Raises:
    UserError: where it is none.
  """
  try:
    values = [float(part) for part in text.split(',')]
  except ValueError:
    values = []
  if not values or not all(0 <= v < float('inf') for v in values) or len(set(values)) < len(values):
    raise UserError("--balances is '%s'; it must be different numbers from 0 up, such as 0,1,10,100" % text)
  return sorted(values)


def run_folder(out, balance):
  """The folder of the run with one balance weight."""
  return os.path.join(out, 'balance-%g' % balance)


def train_arguments(flags, more, balance):
  """train.py's command line for one balance weight: list of texts; what makes the figure wins over `more`."""
  arguments = ['--gamma1', '1.5', '--gamma2', '1', '--assignment_lr_scale', '100', '--dropout_keep_prob', '1']
  arguments += ['--max_to_keep', '1', '--val_iter', '10', *more]
  arguments += ['--mode', 'group', '--basemodel', flags.basemodel, '--data_dir', flags.data_dir]
  arguments += ['--train_dir', run_folder(flags.out, balance), '--max_steps', str(flags.steps)]
  arguments += ['--ngroups1', str(flags.ngroups), '--ngroups2', '1', '--ngroups3', '1', '--gamma3', '%g' % balance]
  return arguments


def is_done(folder, arguments):
  """Whether a run has all its steps.

  Raises:
    UserError: where the folder holds another run, or one that went on for longer.
  """
  wanted, steps, before = train.parse_flags(arguments), saved_steps(folder), checkpoints.read_configuration(folder)
  if before is None or not steps:
    return False
  asked = {name: value for name, value in vars(wanted).items() if value is not None and name != 'mode'}
  network = {name: asked.pop(name) for name in initialize.NETWORK_FLAGS if name in asked}
  try:
    initialize.check_resume(
      {'network': network, 'settings': asked, 'data': {}}, before, folder, train.make_parser().get_default
    )
  except UserError as e:
    raise UserError(str(e).replace('--train_dir', '--out')) from e
  if steps[-1] > wanted.max_steps:
    raise UserError(
      "the run in '%s' is at step %d already: give --steps %d, or another --out" % (folder, steps[-1], steps[-1])
    )
  return steps[-1] == wanted.max_steps


def train_run(arguments, name):
  """Runs train.py and prints its log lines after the run's name.

  Raises:
    UserError: with train.py's own sentence where it fails.
  """
  command = [sys.executable, os.path.join(PROJECT, 'train.py'), *arguments]
  with (
    tempfile.TemporaryFile('w+') as errors,
    subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
  ):
    try:
      for line in process.stdout:
        if line.startswith(('step', 'going on')):
          print('%s: %s' % (name, line.rstrip()), flush=True)
      code = process.wait()
    except KeyboardInterrupt:
      process.wait()  # the terminal interrupts it too, and it saves
      raise
    errors.seek(0)
    said = [line.strip() for line in errors if line.strip()]
  if code:
    raise UserError('%s: %s' % (name, said[-1] if said else 'train.py ended with exit code %d' % code))


def group_counts(stored):
  """How many classes each group of a checkpoint has: int array [groups], empty groups too; None without groups."""
  groups = evaluation.class_groups(stored)
  return None if groups is None else utils.group_sizes(groups, stored.config.ngroups1)


def finished_runs(out):
  """The balance weights of the runs that a folder holds: list of numbers, rising."""
  names = [os.path.basename(path) for path in glob.glob(os.path.join(glob.escape(out), 'balance-*'))]
  found = [re.fullmatch(r'balance-([\d.]+(e[+-]\d+)?)', name) for name in names]
  return sorted(float(m.group(1)) for m in found if m and saved_steps(os.path.join(out, m.group(0))))


def figure_4(flags, more):
  """Trains what is missing and draws figure 4; returns {balance weight: classes per group, the largest first}."""
  picture = os.path.join(flags.out, 'fig4.png')
  if flags.print_only:
    balances = finished_runs(flags.out)
    if not balances:
      raise UserError("--print: '%s' holds no run yet: leave --print out to train them" % flags.out)
    check_output_file('--out', picture)
  else:
    if not flags.basemodel:
      raise UserError('--basemodel is missing: name the folder or checkpoint of a baseline, or give --print')
    if flags.ngroups < 2 or flags.steps < 1:
      raise UserError('--ngroups must be at least 2 and --steps at least 1')
    balances = parse_balances(flags.balances)
    arguments = {balance: train_arguments(flags, more, balance) for balance in balances}
    missing = [b for b in balances if not is_done(run_folder(flags.out, b), arguments[b])]
    check_output_file('--out', picture)
    for balance in missing:
      train_run(arguments[balance], 'balance %g' % balance)
  counts, steps = {}, []
  for balance in balances:
    steps.append(saved_steps(run_folder(flags.out, balance))[-1])
    stored = checkpoints.read(os.path.join(run_folder(flags.out, balance), 'ckpt-%d' % steps[-1]))
    sizes = group_counts(stored)
    if sizes is None:
      raise UserError("'%s' is a %s checkpoint, without groups" % (stored.path, stored.mode))
    counts[balance] = sorted(sizes.tolist(), reverse=True)
    print('balance %-6g  classes per group %s  (step %d)' % (balance, counts[balance], steps[-1]))
  if len({len(sizes) for sizes in counts.values()}) > 1:
    raise UserError("the runs in '%s' have different numbers of groups: use one --out for each" % flags.out)
  steps = '%d' % steps[0] if len(set(steps)) == 1 else '%d to %d' % (min(steps), max(steps))
  title = 'Classes per group of the FC split %s after %s steps' % (stored.config.split, steps)
  plots.draw_sizes({'%g' % b: sizes for b, sizes in counts.items()}, stored.config.num_classes, title, picture)
  print('%s: largest group %s classes' % (picture, ', '.join('%d at %g' % (s[0], b) for b, s in counts.items())))
  return counts


# --- figure 5 -----------------------------------------------------------------------------------------------------


def superclass_order(table):
  """The superclasses in an order that shows the blocks: by the group that holds most, then by where the rest is.

  Args:
    table: int array [groups, superclasses].
  """
  centre = np.arange(len(table)) @ table / np.maximum(table.sum(0), 1)
  return np.lexsort((centre, table.argmax(0)))


def figure_5(flags):
  """Draws figure 5; returns (table [groups, superclasses] as drawn, agreement)."""
  check_output_file('--output', flags.output)
  names = cifar100.load_names(flags.data_dir)
  stored = checkpoints.read(flags.checkpoint)
  groups = evaluation.class_groups(stored)
  if groups is None:
    raise UserError(
      "'%s' is a %s checkpoint, without groups: name a grouping or a split one" % (stored.path, stored.mode)
    )
  if len(groups) != len(names.fine):
    raise UserError(
      "'%s' has %d classes, but the data in '%s' has %d" % (stored.path, len(groups), flags.data_dir, len(names.fine))
    )
  sizes = group_counts(stored)
  table = np.zeros((len(sizes), len(names.coarse)), np.int64)
  found = utils.superclass_table(groups, names.fine_to_coarse)
  table[: found.shape[0], : found.shape[1]] = found  # the last groups may be empty
  order = superclass_order(table)
  agreement = utils.superclass_agreement(groups, names.fine_to_coarse)
  mean, deviation = compare.random_agreement(sizes, names.fine_to_coarse)
  compared = 'agreement %.2f, random groups of the same sizes %.2f +- %.2f' % (agreement, mean, deviation)
  plots.draw_superclasses(
    table[:, order],
    ['group %d (%d classes)' % item for item in enumerate(sizes)],
    [names.coarse[i].replace('_', ' ') for i in order],
    'Classes of each superclass in each group, split %s: %s' % (stored.config.split, compared.replace('+-', '±')),
    flags.output,
  )
  print('%s: %s' % (flags.output, compared))
  return table[:, order], agreement


def main(argv=None):
  """Runs the program; returns its exit code."""
  parser = make_parser()
  flags, more = parser.parse_known_args(argv)
  if more and (flags.figure != '4' or flags.print_only):
    parser.error('unrecognized arguments: %s' % ' '.join(more))
  run = {'3': figure_3, '4': functools.partial(figure_4, more=more), '5': figure_5}[flags.figure]
  return run_program('figures.py', lambda: run(flags))


if __name__ == '__main__':
  sys.exit(main())
