"""Trains one stage of SplitNet on CIFAR-100.

  --mode baseline   the dense wide residual network
  --mode group      the same network with its class-to-group and feature-to-group assignments, which are learned
                    together with the weights
  --mode split      hardens a grouping checkpoint (--basemodel) into a tree of branches and fine-tunes it

The same command again goes on from the last checkpoint in --train_dir. The defaults are the paper's settings, as
baseline.sh, group.sh --paper and split.sh use them. Flags that the authors' released code has keep their names.
docs/training.md says more about each.
"""

# ruff: noqa: E402, I001 - what takes seconds to import comes after the flags

import sys

from splitnet.common.flags import Parser, add, answer_early, automatic, boolean, epochs, instead_of, integer, number
from splitnet.common.flags import one_of, shares, switch, take

# The released settings that depend on the stage: 240 or 400 epochs. lr_step, for --epochs, is lr_step_epoch as shares.
SETTINGS = ('l2_weight', 'max_steps', 'lr_step', 'lr_step_epoch', 'dropout_keep_prob')
TRAINED = dict(zip(SETTINGS, (0.0005, 120000, '5/12,7/12', '100.0,140.0', 1.0)))
GROUPED = dict(zip(SETTINGS, (0.0001, 200000, '0.6,0.75', '240.0,300.0', 0.5)))
STAGE_DEFAULTS = {'baseline': TRAINED, 'group': GROUPED, 'split': TRAINED}
NETWORKS = ['wrn', 'resnet18', 'alexnet']  # the names of `kinds` below
NETWORK_FLAGS = [
  'network', 'k', 'num_residual_units', 'width', 'num_classes', 'groups', 'ngroups1', 'ngroups2', 'ngroups3',
  'branch_input', 'bn_no_scale', 'lrn', 'split_at', 'preprocess',
]  # fmt: skip
# Flags that only one stage takes.
ONLY_FOR = {
  'assignment_start': 'group', 'stop_when_converged': 'group', 'grouping': 'split', 'teacher': 'split',
  'devices': 'split',
}  # fmt: skip

# --- flags: type with range or choices, default, meaning; [what decides] if the default is None ---------------------

count, steps, share = integer(1), integer(0, 2**31 - 2), number('(0, 1]')  # steps and seeds are 32 bits in TensorFlow
weight, part, below_1 = number('[0, inf)'), number('[0, 1]'), number('[0, 1)')


def make_parser():
  """Makes the parser of the flags, in groups."""
  parser = Parser(__doc__, usage='%(prog)s --mode {baseline,group,split} [--FLAG VALUE ...]')
  parser.add_argument('--mode', required=True, choices=sorted(STAGE_DEFAULTS), help='which stage to train')

  def stage(name, when=''):
    return f'[{when}{GROUPED[name]} for group, {TRAINED[name]} otherwise]'

  def instead(section, name, other, *what):  # two flags that say the same: the last one given counts
    add(section, name, *what, action=instead_of(other))

  g = parser.add_argument_group('folders')
  add(g, 'data_dir', str, None, 'folder of the data [of cifar100, by download_cifar100.py: cifar100/train_val_split]')
  add(g, 'train_dir', str, None, 'folder for checkpoints, metrics and the log [runs/<mode>]')
  add(g, 'basemodel', str, None, 'folder or checkpoint to start from; a grouping one for split [none]')
  g = parser.add_argument_group("network (default: the basemodel's, else the value in brackets)")
  add(g, 'network', one_of(*NETWORKS, file='.keras'), None, 'WRN, or your own Keras model [wrn]')
  add(g, 'k', count, None, 'wrn: width multiplier [8]')
  add(g, 'num_residual_units', count, None, 'wrn: residual blocks per stage [2]')
  add(g, 'width', number('(0, inf)'), None, 'resnet18, alexnet: width multiplier [1]')
  add(g, 'num_classes', count, None, 'classes [as many as the data has]')
  add(g, 'groups', str, None, 'groups of the last depths, as 2-4-8 [those of the flags below]')
  add(g, 'ngroups1', count, None, 'groups at the last depth, the logits [2]')
  add(g, 'ngroups2', count, None, 'groups at the one below (wrn: unit_3_*), at most ngroups1 [2]')
  add(g, 'ngroups3', count, None, 'groups at the one below that (wrn: unit_2_*), at most ngroups2 [2]')
  add(g, 'branch_input', one_of('group', 'all'), None, "what a branch reads of its parent's channels [group]")
  add(g, 'bn_no_scale', boolean, None, "wrn: keep the blocks' batch norm scales at 1 [True]")
  add(g, 'lrn', boolean, None, 'alexnet: local response normalisations after conv1 and conv2 [True]')
  add(g, 'split_at', str, None, 'MODEL.keras: layers above which it branches [two; python keras_split.py MODEL.keras]')
  ways = one_of('data', 'pixels', 'unit', 'tf', 'torch', 'caffe')
  add(g, 'preprocess', ways, None, 'MODEL.keras: how its images were prepared [by its own layers]')
  g = parser.add_argument_group('groups')
  add(g, 'assignment_start', one_of('noise', 'spectral'), 'noise', "spectral: near clusters of a baseline's weights")
  add(g, 'grouping', str, 'learned', 'split: or semantic, clustering, random, or a JSON file of nested class names')
  add(g, 'grouping_start', one_of('scratch', 'basemodel'), 'scratch', 'weights for a grouping that is not learned')
  g = parser.add_argument_group('objective')
  add(g, 'l2_weight', weight, None, f'weight decay: times half the sum of squares {stage("l2_weight")}')
  add(g, 'gamma1', weight, 1.0, 'weight of the overlap (disjoint assignments)')
  add(g, 'gamma2', weight, 1.0, 'weight of the weight split (no weights between groups)')
  instead(g, 'gamma2_ramp', 'gamma2_ramp_epoch', part, 0.0, 'share of the run over which gamma2 rises from 0')
  instead(g, 'gamma2_ramp_epoch', 'gamma2_ramp', weight, 0.0, 'or epochs')
  add(g, 'gamma3', weight, 10.0, 'weight of the balance (groups of even size)')
  add(g, 'label_smoothing', below_1, 0.0, 'share of the target that is spread over all classes')
  add(g, 'teacher', str, None, 'split: folder or checkpoint of a network to distil from, such as the baseline [none]')
  add(g, 'distill_weight', number('[0, 1]'), None, 'share of the distillation; the rest is the cross-entropy [0.5]')
  add(g, 'distill_temperature', number('(0, inf)'), None, 'by which both logits are divided for it [4.0]')
  add(g, 'weighted_group_loss', boolean, True, "weigh the layers' weight splits by their size")
  add(g, 'dropout_keep_prob', share, None, f"probability to keep a split layer's input {stage('dropout_keep_prob')}")
  g = parser.add_argument_group('optimisation')
  add(g, 'batch_size', count, 90, 'images per step')
  instead(g, 'epochs', 'max_steps', number('(0, inf)'), None, 'length of the run [that of max_steps]')
  instead(g, 'max_steps', 'epochs', steps, None, f'or its steps {stage("max_steps")}')
  add(g, 'initial_lr', weight, 0.1, 'learning rate at the start')
  add(g, 'lr_schedule', one_of('step', 'cosine'), 'step', 'drops at lr_step, or falls to 0 along half a cosine')
  instead(g, 'lr_warmup', 'lr_warmup_epoch', part, 0.0, 'share of the run over which it first rises from 0')
  instead(g, 'lr_warmup_epoch', 'lr_warmup', weight, 0.0, 'or epochs')
  text = "step: the shares of the run after which it is multiplied by lr_decay, such as 0.6,0.85; '': never"
  instead(g, 'lr_step', 'lr_step_epoch', shares, None, f'{text} {stage("lr_step", "with --epochs ")}')
  instead(g, 'lr_step_epoch', 'lr_step', epochs, None, f'or epochs {stage("lr_step_epoch")}')
  add(g, 'lr_decay', share, 0.1, 'factor')
  add(g, 'momentum', below_1, 0.9, 'of the gradient descent')
  add(g, 'finetune', boolean, False, "multiply the gradients of the split layers' weights by 10")
  add(g, 'assignment_lr_scale', weight, 1.0, "factor of the assignments' learning rate")
  add(g, 'stop_when_converged', below_1, 0.0, 'group: stop at this mean confidence of every assignment; 0: never')
  add(g, 'patience', steps, 0, 'stop after this many validations without a better accuracy; 0: never')
  add(g, 'seed', steps, 0, 'of initial values, shuffling, augmentation and dropout')
  g = parser.add_argument_group('data')
  text = 'CIFAR-100, your own images (a folder per class), or ILSVRC 2012'
  add(g, 'dataset', one_of('cifar100', 'image_folder', 'imagenet'), 'cifar100', text)
  add(g, 'image_size', integer(8, 4096), None, "pixels a side [the basemodel's, else 32, 64 or 224 by data set]")
  add(g, 'skip_damaged', boolean, False, 'leave out image files that cannot be decoded')
  add(g, 'cache', boolean, False, 'decode image files once and keep them on the disk, for small data')
  add(g, 'min_crop_area', share, 0.08, 'least share of an image file that a crop for training shows')
  add(g, 'flip', boolean, True, 'mirror half of the image files in training')
  add(g, 'train_split', one_of('train', 'train_val'), 'train', 'train_val: all images; best is then the last one')
  add(g, 'num_train_instance', count, None, 'take only the first images of it [all]')
  add(g, 'num_val_instance', count, None, 'take only the first validation images [all]')
  g = parser.add_argument_group('watching and keeping')
  switch(g, 'verbose', 'print all settings and layers first, which train.log has anyway')
  switch(g, 'brief', 'print short lines only')
  add(g, 'display', count, 100, 'steps between log lines')
  add(g, 'val_interval', count, 1000, 'steps between validations')
  add(g, 'val_iter', steps, 0, 'batches per validation; 0: all')
  add(g, 'checkpoint_interval', count, 5000, 'steps between checkpoints')
  add(g, 'group_summary_interval', count, 5000, 'steps between pictures and histograms of the groups')
  add(g, 'max_to_keep', count, 2, 'last checkpoints to keep, beside the best')
  g = parser.add_argument_group('machine', 'Every GPU, on every host that TF_CONFIG names, takes its share of a batch.')
  add(g, 'num_replicas', steps, 0, 'devices that share each batch; 0: all GPUs, or all parts of the CPU')
  add(g, 'devices', str, None, 'split: devices for the branches instead, /GPU:0,/GPU:1 [the branches stay together]')
  add(g, 'num_logical_devices', integer(1, 64), 1, 'cut the one CPU or GPU into so many devices, to try the two above')
  add(g, 'precision', one_of('float32', 'bfloat16'), 'float32', 'of the convolutions; bfloat16: for GPUs, some CPUs')
  add(g, 'jit_compile', automatic, 'auto', 'compile the step with XLA, with other dropout masks; auto: on one GPU')
  add(g, 'gpu_fraction', share, 1.0, "share of each GPU's memory to take")
  add(g, 'log_device_placement', boolean, False, 'log where every operation runs')
  return parser


if __name__ == '__main__':
  answer_early('train.py', make_parser)

import contextlib
import dataclasses
import json
import os

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import alexnet_split
import cifar100
import image_folder
import imagenet
import keras_split
import resnet_split
from splitnet.common.errors import UserError, program
from splitnet.data.dataset import DataSettings
from splitnet.network.graph import Graph
from splitnet.network.layers import preparation
from splitnet.parallel import devices
from splitnet.training import checkpoints, initialize, replicas, resume, schedule
from splitnet.training.loop import Loop, LoopSettings
from splitnet.training.step import make_step

kinds = resnet_split.WideResNet, resnet_split.ResNet18, alexnet_split.AlexNet, keras_split.KerasNetwork
networks = {kind.network: kind for kind in kinds}
datasets = {'cifar100': cifar100, 'image_folder': image_folder, 'imagenet': imagenet}


def parse_flags(argv):
  """Parses the flags, and checks what can be checked without reading anything.

  The defaults that depend on the stage are set, too. Raises UserError if a value is out of range, or flags contradict.
  """
  parser = make_parser()
  flags = parser.parse_args(argv)
  distillation = dict(distill_weight=0.5, distill_temperature=4.0)
  for name in distillation:
    if getattr(flags, name) is not None and not flags.teacher:
      raise UserError(f'--{name} needs --teacher, the folder or checkpoint to distil from')
  defaults = {**STAGE_DEFAULTS[flags.mode], **(distillation if flags.teacher else {})}
  for name in schedule.without_default(vars(flags)):
    del defaults[name]
  data_dir = cifar100.DATA_DIR if flags.dataset == 'cifar100' else None
  for name, value in {**defaults, 'train_dir': os.path.join('runs', flags.mode), 'data_dir': data_dir}.items():
    if getattr(flags, name) is None:
      setattr(flags, name, value)
  for name, mode in ONLY_FOR.items():
    value = getattr(flags, name)
    if flags.mode != mode and value and value != parser.get_default(name):
      raise UserError(f"--{name} '{value}' is for --mode {mode}; --mode {flags.mode} takes none: leave it out")
  keras_split.start_from_file(flags)
  # Each checks itself.
  start_of(flags), take(replicas.Machine, vars(flags)), take(LoopSettings, vars(flags), max_steps=flags.max_steps or 0)
  return flags


def start_of(flags):
  """Returns what the flags ask a run to start from: an initialize.Start."""
  asked = {name: getattr(flags, name) for name in NETWORK_FLAGS if getattr(flags, name) is not None}
  return take(initialize.Start, vars(flags), network=asked)


# --- a run ----------------------------------------------------------------------------------------------------------


def train(flags, machine, placed, command=()):
  """Trains the stage that the flags describe; returns (last step, best accuracy).

  `machine` and `placed`, the Replicas and the devices for the branches or None, come from replicas.set_up; `command` is
  kept with the checkpoints.
  """
  machine.gather([0])  # the chief has the folder
  np.random.seed(flags.seed)
  tf.random.set_seed(flags.seed)

  # The run to resume, if any. 1. It says what the network is; 2. the basemodel does; 3. the flags; 4. the defaults.
  older = keras_split.read_other
  start, before = start_of(flags), resume.stored_run(flags.train_dir, flags.mode, older)
  base = None if before else initialize.read_basemodel(start, older)

  # Data, with images of the size that the network reads.
  known = before['network'] if before else base.network if base else {}
  size = flags.image_size or known.get('image_size')
  dataset = datasets[flags.dataset].open_dataset(take(DataSettings, vars(flags), image_size=size))
  names = dataset.names
  images = dataset.load(flags.train_split, flags.num_train_instance)
  validation = dataset.load('val', flags.num_val_instance)
  data = dict(names.source, classes=len(names.fine), train_images=len(images.labels), split=flags.train_split)
  if flags.dataset != 'cifar100':
    data.update(class_names=names.fine, digest=images.digest())
  if flags.batch_size > len(images.labels):
    raise UserError(f'--batch_size is {flags.batch_size}, but there are only {len(images.labels)} training images')
  steps_per_epoch = len(images.labels) / flags.batch_size
  flags.max_steps = schedule.steps_of(flags.epochs, steps_per_epoch) if flags.epochs else flags.max_steps
  start.network.update(image_size=dataset.image_size)
  if not known:
    start.network.setdefault('num_classes', len(names.fine))
  config = initialize.choose_network(start, networks, base, before, flags.train_dir)
  graph = config.of_stored(Graph.from_dict(before['graph']) if before else base and base.graph)
  dataset = dataclasses.replace(dataset, prepare=preparation(graph, dataset.prepare))
  if config.num_classes != len(names.fine):
    raise UserError(f'--num_classes is {config.num_classes}, but the data has {len(names.fine)} classes')
  if base:
    checkpoints.check_classes(base, names, flags.data_dir)
  sources, changed = resume.identify_checkpoints(flags.basemodel, flags.teacher, before)
  settings = {**vars(flags), **sources}

  # Network, with the basemodel's weights and the groups.
  with machine.scope():
    teacher = initialize.load_teacher(start, graph, older)
    network = initialize.build_network(start, graph, base, names, placed, before)

  # The configuration to store; the run to resume, and all workers, must have the same.
  settings = {n: value for n, value in settings.items() if n not in NETWORK_FLAGS and n != 'mode'}
  configuration = checkpoints.describe(flags.mode, config.to_dict(), network, data, settings, command)
  if before:
    resume.check_settings(configuration, before, flags.train_dir, make_parser().get_default)
  paths = {'data_dir', 'train_dir', *resume.CHECKPOINTS}  # may be other ones on every host
  alike = {n: value for n, value in settings.items() if n not in paths}
  shared = {**configuration, 'data': None, 'command': None, 'settings': alike}
  machine.must_agree('their flags', json.dumps(shared, sort_keys=True).encode())
  machine.must_agree('their data', images.digest().encode(), validation.digest().encode())

  # Training step.
  train_step = make_step(network, dataset, vars(flags), steps_per_epoch, machine, teacher)

  # Loop.
  loop = Loop(take(LoopSettings, vars(flags), validate_first=start.trained), train_step, machine, configuration, names)
  loop.begin(len(validation.labels), flags.verbose)
  slow = '' if before else devices.precision_note(flags.precision, training=True)  # once started it is decided
  chosen_last = flags.train_split == 'train_val' and (
    'the validation images are trained on, so their accuracy chooses nothing: best is the last validation'
  )
  for note in filter(None, (*dataset.notes, changed, slow, chosen_last)):
    loop.note(note)
  return loop.train(images, validation)


@program('train.py', lasting=True)
def main(argv):
  """Runs the program; returns its exit code."""
  flags = parse_flags(argv)
  machine, placed, flags.jit_compile = replicas.set_up(take(replicas.Machine, vars(flags)), flags.batch_size)
  # Before anything in the folder is looked at: another run there would change it meanwhile.
  alone = checkpoints.locked(flags.train_dir) if machine.chief else contextlib.nullcontext()
  with machine.explaining_losses(), alone:
    train(flags, machine, placed, sys.argv[1:] if argv is None else argv)


if __name__ == '__main__':
  sys.exit(main())
