"""Exports a checkpoint of train.py as SavedModels, which TensorFlow and TensorFlow Serving run without this project.

  OUT/manifest.json    which model reads what, with the class names
  OUT/whole/1          images -> probabilities, logits, class_names
  OUT/trunk/1          with --branches: images -> the features that each branch reads
  OUT/branch_<i>/1     features -> logits, class_ids, class_names of the branch's own classes

Images are uint8 [batch, 32, 32, 3], of any batch size; whitening is part of the model. Every model has one signature,
'serving_default', and stands in a version folder, as TensorFlow Serving wants it.
"""

import argparse
import collections
import os
import shutil
import sys

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
import eval as evaluation
import utils
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import write_json
from splitnet.common.flags import Parser, add
from splitnet.network import inference
from splitnet.training import checkpoints

MANIFEST = 'manifest.json'
VERSION = '1'
IMAGES = tf.TensorSpec([None, cifar100.IMAGE_SIZE, cifar100.IMAGE_SIZE, 3], tf.uint8, name='images')


def make_parser():
  """The flags."""
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add(
    parser,
    'checkpoint',
    str,
    None,
    "folder that train.py wrote (its last checkpoint), its 'best' folder, or DIR/ckpt-STEP",
    required=True,
  )
  parser.add_argument(
    '--harden', action='store_true', help='split a grouping checkpoint by its present assignments first'
  )
  add(parser, 'out', str, None, 'folder to make', required=True)
  parser.add_argument('--branches', action='store_true', help='also the trunk and each branch of a split network alone')
  parser.add_argument('--force', action='store_true', help='replace the export that --out holds')
  add(parser, 'precision', str, 'float32', 'float32 or bfloat16 for the convolutions [%(default)s]')
  add(parser, 'data_dir', str, 'cifar100/train_val_split', 'folder of the data, for the class names [%(default)s]')
  return parser


def parse_flags(argv):
  """Parses and checks the flags.

  Raises:
    UserError: where a value is out of range, or --out cannot be made or must not be replaced.
  """
  flags = make_parser().parse_args(argv)
  if flags.precision not in ('float32', 'bfloat16'):
    raise UserError("--precision is '%s'; it must be float32 or bfloat16" % flags.precision)
  flags.out = os.path.normpath(flags.out)
  check_out(flags.out, flags.force)
  return flags


# --- cutting the network into models ------------------------------------------------------------------------------

# name: 'whole', 'trunk' or 'branch_<i>'. function: a tf.function with an input signature, from one tensor to a dict of
# tensors. reads: where its input comes from, for the manifest. class_ids: list of int; None for the trunk. parameters,
# flops: its size, as `count` gives it.
Model = collections.namedtuple('Model', 'name function reads class_ids parameters flops')


class _Recorded(inference.Folded):
  """A folded network that remembers, when it is traced, where its branches begin and end.

  Attributes:
    inputs: dict from (depth, branch) to the tensor that the branch reads of the depth below.
    outputs: dict from branch to its logits.
  """

  def __init__(self, network):
    super().__init__(network)
    self.inputs, self.outputs = {}, {}

  def _inputs(self, state, units, below, depth):
    inputs = super()._inputs(state, units, below, depth)
    if below != depth:
      self.inputs.update({(depth, branch): x for branch, x in inputs.items()})
    return inputs

  def _linear(self, layer, branch, x):
    self.outputs[branch] = super()._linear(layer, branch, x)
    return self.outputs[branch]


def deal(depths):
  """Deals a tree to models: one for each branch of the last residual stage, or of the logits where only they branch.

  A model has the branches below its own too, down to the trunk: it needs the trunk's features and nothing else. A
  branch in the middle is so computed by each model above it, on machines that would otherwise wait for it.

  Args:
    depths: ordered dict from depth name to number of branches, trunk first; not all 1.

  Returns:
    List, one for each model, of an ordered dict from depth name to the list of the branches that the model has there;
    the first depth is the lowest that branches.
  """
  names, counts = list(depths), list(depths.values())
  first = next(i for i, branches in enumerate(counts) if branches > 1)
  top = len(counts) - 2 if counts[-2] > 1 else len(counts) - 1

  def path(model, depth):
    if depth <= top:
      return [int(utils.parents_along(counts[depth : top + 1][::-1])[model])]
    return np.flatnonzero(utils.parents_along(counts[top : depth + 1][::-1]) == model).tolist()

  return [{names[depth]: path(i, depth) for depth in range(first, len(counts))} for i in range(counts[top])]


def count(network, held):
  """Parameters and FLOPs per image of some of a network's branches, as the paper counts.

  Args:
    network: a resnet_split.Network; held: dict from depth name to list of branches.
  """
  built = [(layer.depth, branch) for layer in network.plan.layers for branch in range(network.branches(layer))]
  return utils.total_count([c for c, (depth, branch) in zip(network.counts, built) if branch in held.get(depth, [])])


def build(network, class_names, branches):
  """The models of a network.

  Args:
    network: a resnet_split.Network; class_names: list of str, in the order of the labels.
    branches: whether to add the trunk and the branches.

  Returns:
    List of Model.
  """
  recorded = _Recorded(network)
  traced = tf.function(lambda images: recorded(cifar100.whiten(images)), [IMAGES]).get_concrete_function()
  images, everything = traced.inputs[0], list(range(len(class_names)))

  def whole(images):
    logits = traced(images)
    names = _for_each_image(class_names, logits)
    return {'probabilities': tf.nn.softmax(logits), 'logits': logits, 'class_names': names}

  total = utils.total_count(network.counts)
  models = [Model('whole', tf.function(whole, [IMAGES]), {'images': None}, everything, *total)]
  if not branches:
    return models
  dealt = deal(network.plan.depths)
  first = next(iter(dealt[0]))
  # With branch_input 'all' the branches read one and the same tensor.
  features = {recorded.inputs[first, held[first][0]].ref(): 'features_%d' % held[first][0] for held in dealt[::-1]}
  trunk = _trunk(_part(images, [tensor.deref() for tensor in features]), list(features.values()))
  below = {depth: [0] for depth in network.plan.depths if depth not in dealt[0]}
  models.append(Model('trunk', trunk, {'images': None}, None, *count(network, below)))
  for i, held in enumerate(dealt):
    read = recorded.inputs[first, held[first][0]]
    classes = [network.members(network.plan.units['split_q1'], 'logits', branch) for branch in held['logits']]
    ids = np.concatenate(classes).tolist()
    function = _branch(_part(read, [recorded.outputs[branch] for branch in held['logits']]), read, ids, class_names)
    reads = {'features': {'model': 'trunk', 'output': features[read.ref()]}}
    models.append(Model('branch_%d' % i, function, reads, ids, *count(network, held)))
  return models


def _part(read, wanted):
  """The part of a traced graph between a tensor and some others that need no further input: a function.

  Args:
    read: the tensor; wanted: list of the others.

  Returns:
    A function from a tensor, in the place of `read`, to the list of what the others are then.
  """
  definition = read.graph.as_graph_def()
  nodes = {node.name: node for node in definition.node}
  needed, found = set(), [tensor.op.name for tensor in wanted]
  while found:
    name = found.pop()
    if name not in needed and name != read.op.name:
      needed.add(name)
      found.extend(source.lstrip('^').split(':')[0] for source in nodes[name].input)
  part = tf.compat.v1.GraphDef(versions=definition.versions, node=[node for n, node in nodes.items() if n in needed])
  names = [tensor.name for tensor in wanted]
  return lambda x: tf.graph_util.import_graph_def(part, {read.name: x}, names, name='')


def _trunk(part, names):
  def trunk(images):
    # Whatever the convolutions compute in, machines send each other float32.
    return {name: tf.cast(x, tf.float32) for name, x in zip(names, part(images))}

  return tf.function(trunk, [IMAGES])


def _branch(part, read, ids, class_names):
  def branch(features):
    logits = tf.concat(part(tf.cast(features, read.dtype)), 1)
    names = _for_each_image([class_names[i] for i in ids], logits)
    return {'logits': logits, 'class_ids': _for_each_image(ids, logits), 'class_names': names}

  return tf.function(branch, [tf.TensorSpec(read.shape, tf.float32, name='features')])


def _for_each_image(values, logits):
  """A list as a tensor [batch, values]: all outputs of a model must have the batch's size to be served row by row."""
  return tf.tile(tf.constant(values)[None], [tf.shape(logits)[0], 1])


# --- writing ------------------------------------------------------------------------------------------------------


def manifest(models, class_names, **about):
  """What stands in manifest.json: a dict that JSON can hold.

  Args:
    models: list of Model; class_names: list of str; **about: what else to say of the export.
  """

  def tensors(specs):
    return {
      name: '%s [%s]' % (spec.dtype.name, ', '.join(['batch', *(str(size) for size in spec.shape[1:])]))
      for name, spec in sorted(specs.items())
    }

  described = []
  for model in models:
    concrete = model.function.get_concrete_function()
    inputs = {spec.name: spec for spec in concrete.structured_input_signature[0]}
    description = {
      'name': model.name,
      'path': '%s/%s' % (model.name, VERSION),
      'inputs': tensors(inputs),
      'reads': model.reads,
      'outputs': tensors(concrete.structured_outputs),
      'parameters': model.parameters,
      'flops': model.flops,
    }
    if model.class_ids is not None:
      description['class_ids'] = model.class_ids
      description['class_names'] = [class_names[i] for i in model.class_ids]
    described.append(description)
  return {**about, 'class_names': class_names, 'models': described}


def check_out(out, force):
  """Checks that an export may be written to a folder.

  Raises:
    UserError: where something is in the way.
  """
  if os.path.isdir(out) and not os.listdir(out):
    return
  if os.path.lexists(out):
    if not os.path.isfile(os.path.join(out, MANIFEST)):
      raise UserError("--out: '%s' exists and is no export: name a folder that does not exist" % out)
    if not force:
      raise UserError("--out: '%s' holds an export already: name another folder, or replace it with --force" % out)


def write(out, models, content, force):
  """Writes an export whole or not at all.

  Args:
    out: the folder; models: list of Model; content: of manifest.json.
    force: replace an export that is there.

  Raises:
    UserError: where it cannot be written; what was there before is there still.
  """
  # Both stand beside the folder, as only there a rename moves it whole.
  folder, name = os.path.split(os.path.realpath(out))
  out = os.path.join(folder, name)
  temporary, old = (os.path.join(folder, '.%s.%s-%d' % (name, what, os.getpid())) for what in ('new', 'old'))
  try:
    os.makedirs(temporary)
    for model in models:
      path = os.path.join(temporary, model.name, VERSION)
      tf.saved_model.save(tf.Module(), path, signatures={'serving_default': model.function})
    write_json(os.path.join(temporary, MANIFEST), content)
    check_out(out, force)  # again: it took a while
    if os.path.isdir(out):
      os.rename(out, old)
    try:
      os.rename(temporary, out)
    except BaseException:
      if os.path.isdir(old):
        os.rename(old, out)
      raise
    shutil.rmtree(old, ignore_errors=True)
  except (OSError, tf.errors.OpError) as e:
    reason = getattr(e, 'strerror', None) or str(e).split('\n')[0]
    raise UserError("--out: '%s' cannot be written (%s)" % (out, reason)) from e
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def run(flags):
  """Exports as the flags say; returns the manifest."""
  names = cifar100.load_names(flags.data_dir)
  stored = checkpoints.read(flags.checkpoint)
  if stored.config.num_classes != len(names.fine):
    raise UserError(
      "'%s' has %d classes, but the data in '%s' has %d"
      % (stored.path, stored.config.num_classes, flags.data_dir, len(names.fine))
    )
  network = evaluation.load_network(stored, flags.harden, tf.dtypes.as_dtype(flags.precision))
  if flags.branches and (network.groups is None or stored.config.ngroups1 == 1):
    way_out = 'add --harden' if evaluation.class_groups(stored) is not None else 'leave --branches out'
    raise UserError("--branches: '%s' holds a network without branches: %s" % (stored.path, way_out))
  models = build(network, names.fine, flags.branches)
  content = manifest(
    models,
    names.fine,
    checkpoint=stored.path,
    network=checkpoints.describe(stored.mode, network, {}, {})['network'],
    precision=flags.precision,
  )
  write(flags.out, models, content, flags.force)
  for model in content['models']:
    reads = ['%s of %s' % (s['output'], s['model']) if s else name for name, s in model['reads'].items()]
    classes = '%d classes' % len(model['class_ids']) if 'class_ids' in model else 'features'
    answers = '%s -> %s' % (', '.join(reads), classes)
    size = '{:,} parameters, {:,} FLOPs per image'.format(model['parameters'], model['flops'])
    print('%-9s  %-33s  %s' % (model['name'], answers, size))
  print('\nwritten: %s' % flags.out)
  return content


def main(argv=None):
  """Runs the program; returns its exit code."""
  return run_program('export.py', lambda: run(parse_flags(argv)))


if __name__ == '__main__':
  sys.exit(main())
