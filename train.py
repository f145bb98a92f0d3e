"""Trains one stage of SplitNet on CIFAR-100.

  --mode baseline   the dense wide residual network
  --mode group      the same network with its class-to-group and feature-to-group assignments, which are learned
                    together with the weights
  --mode split      hardens a grouping checkpoint (--basemodel) into a tree of branches and fine-tunes it

The same command again goes on from the last checkpoint in --train_dir. baseline.sh, group.sh --paper and split.sh hold
the paper's settings. Flags that the authors' released code has keep their names.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
from splitnet.common.errors import UserError, run_program
from splitnet.common.flags import Parser, add, automatic, boolean
from splitnet.network import architecture
from splitnet.parallel import devices
from splitnet.training import checkpoints, initialize
from splitnet.training import log as summaries
from splitnet.training import replicas as strategy
from splitnet.training.loop import Loop
from splitnet.training.step import Stage, lr_boundaries

# The released settings where they depend on the stage (group.sh --paper, split.sh; the baseline trains as the split).
STAGE_DEFAULTS = {
  'baseline': dict(l2_weight=0.0005, lr_step_epoch='100.0,140.0', max_steps=120000, dropout_keep_prob=1.0),
  'group': dict(l2_weight=0.0001, lr_step_epoch='240.0,300.0', max_steps=200000, dropout_keep_prob=0.5),
  'split': dict(l2_weight=0.0005, lr_step_epoch='100.0,140.0', max_steps=120000, dropout_keep_prob=1.0),
}


# --- flags ------------------------------------------------------------------------------------------------------


def make_parser():
  """The flags, grouped; None stands for what the stage, the basemodel or architecture.Config decides."""
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  parser.add_argument('--mode', required=True, choices=sorted(STAGE_DEFAULTS), help='which stage to train')

  def stage(name):
    return '%s for group, %s otherwise' % (STAGE_DEFAULTS['group'][name], STAGE_DEFAULTS['split'][name])

  g = parser.add_argument_group('folders')
  add(g, 'data_dir', str, 'cifar100/train_val_split', 'folder that download_cifar100.py wrote [%(default)s]')
  add(g, 'train_dir', str, None, 'folder for checkpoints, summaries and the log [runs/<mode>]')
  add(
    g,
    'basemodel',
    str,
    None,
    'folder or checkpoint to start from: a grouping checkpoint for split (needed), a '
    "baseline or grouping one for group, a baseline for baseline; the released code's checkpoints are read too",
  )
  g = parser.add_argument_group("network (default: the basemodel's, else the value in brackets)")
  config = architecture.Config()
  add(g, 'k', int, None, 'width multiplier [%d]' % config.k)
  add(g, 'num_residual_units', int, None, 'residual blocks per stage [%d]' % config.num_residual_units)
  add(g, 'num_classes', int, None, 'classes [%d]' % config.num_classes)
  add(g, 'ngroups1', int, None, 'groups at the logits [%d]' % config.ngroups1)
  add(g, 'ngroups2', int, None, 'groups in unit_3_*, at most ngroups1 [%d]' % config.ngroups2)
  add(g, 'ngroups3', int, None, 'groups in unit_2_*, at most ngroups2 [%d]' % config.ngroups3)
  add(
    g,
    'branch_input',
    str,
    None,
    "group: where the tree branches, a child reads its own group of its parent's "
    "channels (released code); all: it reads all of them (the paper's counts) [%s]" % config.branch_input,
  )
  add(g, 'bn_no_scale', boolean, None, "keep the blocks' batch norm scales at 1 [%s]" % config.bn_no_scale)
  g = parser.add_argument_group('groups')
  add(
    g,
    'assignment_start',
    str,
    'noise',
    'group: where the assignments start. noise: undecided (released code); spectral: near a spectral clustering of the '
    "trained basemodel's weights, carried down level by level [%(default)s]",
  )
  add(
    g,
    'grouping',
    str,
    'learned',
    'split: learned (the basemodel is hardened), or train a split network from scratch with the features divided '
    "evenly and the classes by semantic (whole superclasses), clustering (spectral, of a baseline basemodel's last "
    'weights), random, or as in a JSON file: a list of lists of class names, nested as the tree [%(default)s]',
  )
  add(
    g,
    'grouping_start',
    str,
    'scratch',
    'split with a grouping that is not learned: scratch, or basemodel: from the weights of a baseline, features in the '
    'groups of classes that take most of their squared weight [%(default)s]',
  )
  g = parser.add_argument_group('objective')
  add(g, 'l2_weight', float, None, 'weight decay: times half the sum of squares [%s]' % stage('l2_weight'))
  add(g, 'gamma1', float, 1.0, 'weight of the overlap (disjoint assignments) [%(default)s]')
  add(g, 'gamma2', float, 1.0, 'weight of the weight split (no weights between groups) [%(default)s]')
  add(g, 'gamma2_ramp_epoch', float, 0.0, 'epochs over which gamma2 rises from 0 to its value [%(default)s]')
  add(g, 'gamma3', float, 10.0, 'weight of the balance (groups of even size) [%(default)s]')
  add(g, 'label_smoothing', float, 0.0, 'share of the target that is spread over all classes [%(default)s]')
  add(
    g,
    'teacher',
    str,
    None,
    'split: folder or checkpoint of a network to distil from, as a rule your own baseline (a grouping checkpoint '
    'counts as the dense network that it is): it sees the same augmented images, with its moving averages [none]',
  )
  add(g, 'distill_weight', float, None, 'share of the distillation; the rest is the cross-entropy [0.5]')
  add(g, 'distill_temperature', float, None, "by which the teacher's and the own logits are divided there [4.0]")
  add(g, 'weighted_group_loss', boolean, True, "weigh the layers' weight splits by their size [%(default)s]")
  add(
    g,
    'dropout_keep_prob',
    float,
    None,
    'probability of keeping an input of a split layer; in baseline it acts '
    'where ngroups1/2/3 would split [%s]' % stage('dropout_keep_prob'),
  )
  g = parser.add_argument_group('optimisation')
  add(g, 'batch_size', int, 90, 'images per step [%(default)s]')
  add(g, 'max_steps', int, None, 'steps in all [%s]' % stage('max_steps'))
  add(g, 'initial_lr', float, 0.1, 'learning rate at the start [%(default)s]')
  add(
    g,
    'lr_schedule',
    str,
    'step',
    'step: drops at lr_step_epoch (released code); cosine: falls to 0 over max_steps along half a cosine, which '
    'gives more in short runs; with lr_warmup_epoch one cycle [%(default)s]',
  )
  add(g, 'lr_warmup_epoch', float, 0.0, 'epochs over which it rises linearly from 0 at first [%(default)s]')
  add(
    g,
    'lr_step_epoch',
    str,
    None,
    'step: epochs after which it is multiplied by lr_decay, separated by commas; '
    "'' for never [%s]" % stage('lr_step_epoch'),
  )
  add(g, 'lr_decay', float, 0.1, 'factor [%(default)s]')
  add(g, 'momentum', float, 0.9, 'of the gradient descent [%(default)s]')
  add(g, 'finetune', boolean, False, "multiply the gradients of the split layers' weights by 10 [%(default)s]")
  add(g, 'assignment_lr_scale', float, 1.0, "factor of the assignments' learning rate [%(default)s]")
  add(
    g,
    'stop_when_converged',
    float,
    0.0,
    "group: stop when every assignment's mean confidence is at least this probability; 0: never [%(default)s]",
  )
  add(g, 'patience', int, 0, 'stop after this many validations without a better accuracy; 0: never [%(default)s]')
  add(g, 'seed', int, 0, 'of initial values, shuffling, augmentation and dropout [%(default)s]')
  g = parser.add_argument_group('data')
  add(
    g,
    'train_split',
    str,
    'train',
    'train, or train_val for all 50,000 images: then there are none left to validate on, and best is the last '
    'validation [%(default)s]',
  )
  add(g, 'num_train_instance', int, None, 'take only the first images of it [all]')
  add(g, 'num_val_instance', int, None, 'take only the first validation images [all]')
  g = parser.add_argument_group('watching and keeping')
  add(g, 'display', int, 100, 'steps between log lines [%(default)s]')
  add(g, 'val_interval', int, 1000, 'steps between validations [%(default)s]')
  add(g, 'val_iter', int, 0, 'batches per validation; 0: all [%(default)s]')
  add(g, 'checkpoint_interval', int, 5000, 'steps between checkpoints [%(default)s]')
  add(g, 'group_summary_interval', int, 5000, 'steps between pictures and histograms of the groups [%(default)s]')
  add(g, 'max_to_keep', int, 2, 'last checkpoints to keep, beside the best [%(default)s]')
  g = parser.add_argument_group(
    'machine', 'Every GPU takes its share of each batch; where TF_CONFIG names several hosts, the GPUs of all of them.'
  )
  add(g, 'num_replicas', int, 0, 'devices that share each batch; 0: all GPUs, or all parts of the CPU [%(default)s]')
  add(
    g,
    'devices',
    str,
    None,
    'split: devices for the branches instead, such as /GPU:0,/GPU:1: the trunk is on the first, the '
    'branches are dealt so that the busiest device has the fewest FLOPs [the branches stay together]',
  )
  add(
    g,
    'num_logical_devices',
    int,
    1,
    'cut the one CPU or GPU into this many devices, to try the two above [%(default)s]',
  )
  add(
    g,
    'precision',
    str,
    'float32',
    'float32 or, faster on GPUs and on CPUs with AMX, bfloat16 for the convolutions; weights are float32 [%(default)s]',
  )
  add(
    g,
    'jit_compile',
    automatic,
    'auto',
    'compile the step with XLA, which draws other dropout masks; auto: on one GPU where XLA works [%(default)s]',
  )
  add(g, 'gpu_fraction', float, 1.0, "share of each GPU's memory to take, (0, 1] [%(default)s]")
  add(g, 'log_device_placement', boolean, False, 'log where every operation runs [%(default)s]')
  return parser


def parse_flags(argv):
  """Parses and checks what can be checked without reading anything.

  Raises:
    UserError: where a value is out of range.
  """
  flags = make_parser().parse_args(argv)
  for name, value in STAGE_DEFAULTS[flags.mode].items():
    if getattr(flags, name) is None:
      setattr(flags, name, value)
  if flags.train_dir is None:
    flags.train_dir = os.path.join('runs', flags.mode)

  def need(names, good, what):
    for name in names.split():
      value = getattr(flags, name)
      if value is not None and not good(value):
        raise UserError("--%s is '%s'; it must be %s" % (name, value, what))

  need(
    'batch_size display val_interval checkpoint_interval group_summary_interval max_to_keep',
    lambda v: v >= 1,
    'at least 1',
  )
  need('num_train_instance num_val_instance', lambda v: v >= 1, 'at least 1')
  need(
    'max_steps val_iter patience num_replicas seed l2_weight gamma1 gamma2 gamma2_ramp_epoch gamma3 lr_warmup_epoch',
    lambda v: 0 <= v < 2**31 - 1,
    'from 0 to %d' % (2**31 - 2),
  )
  need('initial_lr assignment_lr_scale', lambda v: 0 <= v < float('inf'), 'at least 0')
  need('momentum', lambda v: 0 <= v < 1, 'in [0, 1)')
  need('lr_decay dropout_keep_prob gpu_fraction', lambda v: 0 < v <= 1, 'in (0, 1]')
  need('label_smoothing', lambda v: 0 <= v < 1, 'in [0, 1)')
  need('distill_weight', lambda v: 0 <= v <= 1, 'in [0, 1]')
  need('distill_temperature', lambda v: 0 < v < float('inf'), 'above 0')
  need('stop_when_converged', lambda v: 0 <= v < 1, 'in [0, 1), such as 0.99')
  need('precision', lambda v: v in ('float32', 'bfloat16'), 'float32 or bfloat16')
  need('assignment_start', lambda v: v in ('noise', 'spectral'), 'noise or spectral')
  need('lr_schedule', lambda v: v in ('step', 'cosine'), 'step or cosine')
  need('train_split', lambda v: v in ('train', 'train_val'), 'train or train_val')
  need('num_logical_devices', lambda v: 1 <= v <= 64, 'in 1 to 64')
  lr_boundaries(flags.lr_step_epoch)
  given = {name: getattr(flags, name) for name in initialize.NETWORK_FLAGS if getattr(flags, name) is not None}
  architecture.Config(**{**_widest(given), **given})
  need('grouping_start', lambda v: v in ('scratch', 'basemodel'), 'scratch or basemodel')
  if flags.grouping_start == 'basemodel' and flags.grouping == 'learned':
    raise UserError(
      '--grouping_start basemodel is for a grouping that is not learned; learned groups start there anyway'
    )
  if flags.mode == 'split' and not flags.basemodel and not os.path.isdir(flags.train_dir):
    initialize.need_basemodel(flags)
  if flags.grouping != 'learned' and flags.mode != 'split':
    raise UserError("--grouping '%s' is for --mode split" % flags.grouping)
  if flags.grouping not in ('learned', 'clustering') and flags.basemodel and flags.grouping_start == 'scratch':
    raise UserError(
      "--grouping '%s' trains from scratch, so it takes no --basemodel (here '%s'; with split.sh give --basemodel ''); "
      'to start from the weights of a baseline add --grouping_start basemodel' % (flags.grouping, flags.basemodel)
    )
  if flags.assignment_start == 'spectral' and flags.mode != 'group':
    raise UserError('--assignment_start spectral is for --mode group')
  check_distillation(flags)
  if flags.patience and flags.train_split == 'train_val':
    raise UserError(
      '--patience %d stops by images that --train_split train_val trains on: leave one of the two out' % flags.patience
    )
  if flags.stop_when_converged and flags.mode != 'group':
    raise UserError('--stop_when_converged is for --mode group: only there are assignments learned')
  if flags.devices is not None and flags.mode != 'split':
    raise UserError(
      "--devices '%s' places the branches of --mode split; --mode %s has none: leave it out, and every GPU takes its "
      'share of each batch' % (flags.devices, flags.mode)
    )
  if flags.devices is not None and flags.num_replicas > 1:
    raise UserError(
      "--devices '%s' places the branches of one network and --num_replicas %d copies it: give one of the two"
      % (flags.devices, flags.num_replicas)
    )
  return flags


def check_distillation(flags):
  """Sets the defaults of distillation; raises UserError where its flags do not go together."""
  if flags.teacher and flags.mode != 'split':
    raise UserError("--teacher '%s' is for --mode split" % flags.teacher)
  for name, value in (('distill_weight', 0.5), ('distill_temperature', 4.0)):
    if getattr(flags, name) is None:
      setattr(flags, name, value if flags.teacher else None)
    elif not flags.teacher:
      raise UserError('--%s needs --teacher, the folder or checkpoint to distil from' % name)


def _widest(given):
  """Groups that contradict nothing given: what was not given may still come from the basemodel."""
  names = ('ngroups1', 'ngroups2', 'ngroups3')
  bounds = [given[n] for n in names if n in given]
  filled, last = {}, max(bounds) if bounds else 2
  for name in names:
    last = given.get(name, last)
    filled[name] = last
  return {n: v for n, v in filled.items() if bounds and n not in given and v <= max(bounds)}


# --- setting up ---------------------------------------------------------------------------------------------------


def choose_devices(flags):
  """The strategy.Replicas of a run, and the devices for its branches (list of names, or None).

  Raises:
    UserError: where the flags or TF_CONFIG ask for what cannot be.
  """
  workers, worker = strategy.cluster()
  if workers:
    for name in ('devices', 'num_replicas', 'num_logical_devices'):
      if getattr(flags, name) != make_parser().get_default(name):
        raise UserError(
          '--%s %s is for one process, but TF_CONFIG names %d workers: leave it out; a worker takes all GPUs that its '
          'CUDA_VISIBLE_DEVICES shows' % (name, getattr(flags, name), len(workers))
        )
    devices.prepare(flags.gpu_fraction, log_device_placement=flags.log_device_placement)
    replicas, placed = strategy.on_hosts(workers, worker), None
  else:
    available = devices.configure(flags.gpu_fraction, flags.num_logical_devices, flags.log_device_placement)
    placed = None if flags.devices is None else devices.parse(flags.devices, available)
    replicas = strategy.Replicas() if placed else strategy.on_devices(available, flags.num_replicas)
  count = max(replicas.count, len(placed or []))
  if flags.jit_compile is True and count > 1:
    raise UserError('--jit_compile True compiles for one device, but there are %d: leave it out' % count)
  flags.jit_compile = devices.compile_with_xla(flags.jit_compile, count)
  if flags.batch_size < replicas.count:
    raise UserError(
      '--batch_size is %d, but there are %d devices to share it: give at least one image to each, or --num_replicas'
      % (flags.batch_size, replicas.count)
    )
  return replicas, placed


def print_settings(flags, config, data):
  """Prints every setting as a table."""
  rows = {**vars(flags), **dataclasses.asdict(config), 'split (ngroups3-2-1)': config.split}
  rows['computes on'] = devices.description()
  rows.update({'data ' + name: value for name, value in data.items()})
  width = max(len(name) for name in rows)
  print('\n'.join('%-*s  %s' % (width, name, value) for name, value in sorted(rows.items())), flush=True)


# --- a run --------------------------------------------------------------------------------------------------------


def run(flags, replicas, placed, held):
  """Trains the stage that the flags describe on what `choose_devices` chose.

  Args:
    flags, replicas, placed: from `parse_flags` and `choose_devices`.
    held: a contextlib.ExitStack, which keeps other runs out of the folder.

  Returns:
    (last step, best validation accuracy).
  """
  np.random.seed(flags.seed)
  tf.random.set_seed(flags.seed)
  # Data.
  names = cifar100.load_names(flags.data_dir)
  train = cifar100.load(flags.data_dir, flags.train_split, flags.num_train_instance)
  val = cifar100.load(flags.data_dir, 'val', flags.num_val_instance)
  data = dict(names.source, classes=len(names.fine), train_images=len(train.images), split=flags.train_split)
  if flags.batch_size > len(train.images):
    raise UserError('--batch_size is %d, but there are only %d training images' % (flags.batch_size, len(train.images)))

  # Network: a run that was begun says what it is; else the basemodel and the flags do.
  before = initialize.begun(flags)
  base, config = initialize.read_network(flags, before)
  if config.num_classes != len(names.fine):
    raise UserError('--num_classes is %d, but the data has %d classes' % (config.num_classes, len(names.fine)))
  changed = initialize.note_digests(flags, before)
  if replicas.chief:
    print_settings(flags, config, data)
  with replicas.scope():
    teacher = initialize.load_teacher(flags, config)
    network = initialize.build_network(flags, config, base, names, placed, before)
  settings = {n: value for n, value in vars(flags).items() if n not in initialize.NETWORK_FLAGS and n != 'mode'}
  configuration = checkpoints.describe(flags.mode, network, data, settings)
  if before:
    initialize.check_resume(configuration, before, flags.train_dir, make_parser().get_default)
  free = {'data_dir', 'train_dir', *initialize.CHECKPOINT_FLAGS}  # paths, which may be other ones on every host
  shared = {name: value for name, value in settings.items() if name not in free}
  alike = [configuration['mode'], configuration['network'], configuration['groups'], shared]
  replicas.must_agree('their flags', json.dumps(alike, sort_keys=True).encode())
  replicas.must_agree('their data', train.images, train.labels, val.images, val.labels)
  if replicas.chief:
    print('\n'.join(summaries.size_lines(network)), flush=True)

  # Training.
  stage = Stage(flags, network, len(train.images) / flags.batch_size, replicas, teacher)
  if replicas.chief:
    held.enter_context(checkpoints.locked(flags.train_dir))
  current = Loop(flags, stage, val, replicas, configuration)
  slow = '' if before else devices.precision_note(flags.precision, training=True)  # once begun it is decided
  for note in filter(None, (changed, slow)):
    current.line(note)
  if flags.train_split == 'train_val':
    current.line('the validation images are trained on, so their accuracy chooses nothing: best is the last validation')
  return current.train(train)


def main(argv=None):
  """Runs the program; returns its exit code."""

  def program():
    flags = parse_flags(argv)
    replicas, placed = choose_devices(flags)
    with replicas.watched(), contextlib.ExitStack() as held:
      run(flags, replicas, placed, held)

  return run_program('train.py', program)


if __name__ == '__main__':
  sys.exit(main())
