"""Exports a checkpoint of train.py as SavedModels, whole or branch by branch.

TensorFlow and TensorFlow Serving run them without this project.

  OUT/manifest.json    which model reads what, with the class names
  OUT/whole/1          images -> probabilities, logits, class_names
  OUT/trunk/1          with --branches: images -> the features that each branch reads
  OUT/branch_<i>/1     features -> logits, class_ids, class_names of the branch's own classes

Images are uint8 [batch, 32, 32, 3], of any batch size; whitening is part of the model. Every model has one signature,
'serving_default', and stands in a version folder, as TensorFlow Serving wants it.
"""

import collections
import os
import shutil
import sys

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
import resnet_split
import utils
from splitnet.common.errors import UserError, program
from splitnet.common.files import write_json
from splitnet.common.flags import Parser, add, one_of, switch
from splitnet.network import counting, folding, layers
from splitnet.training import checkpoints

MANIFEST = 'manifest.json'
VERSION = '1'
IMAGES = tf.TensorSpec([None, cifar100.IMAGE_SIZE, cifar100.IMAGE_SIZE, 3], tf.uint8, name='images')


def parse_flags(argv):
  """Parses the flags and checks that --out may be written."""
  parser = Parser(__doc__)
  text = "a run's folder (its last checkpoint), its 'best' or DIR/ckpt-STEP"
  add(parser, 'checkpoint', str, None, text, required=True)
  switch(parser, 'harden', 'split a grouping checkpoint by its present assignments first')
  add(parser, 'out', str, None, 'folder to make', required=True)
  switch(parser, 'branches', 'also the trunk and each branch of a split network alone')
  switch(parser, 'force', 'replace the export that --out holds')
  add(parser, 'precision', one_of('float32', 'bfloat16'), 'float32', 'of the convolutions')
  add(parser, 'data_dir', str, 'cifar100/train_val_split', 'folder of the data, for the class names')
  flags = parser.parse_args(argv)
  flags.out = os.path.normpath(flags.out)
  check_out(flags.out, flags.force)
  return flags


# name: 'whole', 'trunk' or 'branch_<i>'. function: a tf.function with an input signature, from one tensor to a dict of
# tensors. reads: where its input comes from, for the manifest. class_ids: list of int; None for the trunk. parameters,
# flops: its size, as the paper counts.
Model = collections.namedtuple('Model', 'name function reads class_ids parameters flops')


def deal(depths):
  """Deals a tree to models, one for each branch of the last residual stage.

  If only the logits branch, there is one for each of their branches. A model has the branches below its own too, down
  to the trunk: it needs the trunk's features and nothing else. So a branch in the middle is computed by each model
  above it, on machines that would otherwise wait for it.

  Args:
    depths: ordered dict from depth name to number of branches, trunk first; not all 1.

  Returns:
    For each model a dict from depth name to its branches there; the first depth is the lowest that branches.
  """
  counts = list(depths.values())
  top = len(counts) - 2 if counts[-2] > 1 else len(counts) - 1

  def branches_of(model, depth):
    if depth <= top:
      return [int(utils.parents_along(counts[depth : top + 1][::-1])[model])]
    return np.flatnonzero(utils.parents_along(counts[top : depth + 1][::-1]) == model).tolist()

  branching = [(depth, name) for depth, name in enumerate(depths) if depths[name] > 1]
  return [{name: branches_of(i, depth) for depth, name in branching} for i in range(counts[top])]


def build(network, class_names, with_branches):
  """Builds a network's models: list of Model, each behind those that it reads."""
  folded = folding.folded(network)

  def whole(images):
    logits = folded(cifar100.whiten(images))
    names = _for_each_image(class_names, logits)
    return {'probabilities': tf.nn.softmax(logits), 'logits': logits, 'class_names': names}

  counts = counting.counts(network)

  def size(branches):
    return counting.total([c for c in counts if c.node[1] in branches.get(c.node[0], [])])

  all_classes = list(range(len(class_names)))
  models = [Model('whole', tf.function(whole, [IMAGES]), {'images': None}, all_classes, *counting.total(counts))]
  if not with_branches:
    return models
  branches_of = deal(folded.depths)
  lowest = next(iter(branches_of[0]))
  read = [folded.reads(lowest, branches[lowest][0])[1] for branches in branches_of]
  # Branches that read the same channels (with branch_input 'all') share their name, that of the first of them.
  names = [f'features_{branches_of[read.index(channels)][lowest][0]}' for channels in read]
  below = {depth: [0] for depth in folded.depths if depth not in branches_of[0]}
  trunk = _trunk(folded.part(below), dict(zip(names, read)))
  models.append(Model('trunk', trunk, {'images': None}, None, *size(below)))
  for i, branches in enumerate(branches_of):
    part = folded.part(branches)
    reads = {'features': {'model': 'trunk', 'output': names[i]}}
    ids = part.leaf_classes().tolist()
    models.append(Model(f'branch_{i}', _branch(part, ids, class_names), reads, ids, *size(branches)))
  return models


def _trunk(part, channels):
  @tf.function(input_signature=[IMAGES])
  def trunk(images):
    # Whatever the convolutions compute in, machines send each other float32.
    features = layers.divided(part(cifar100.whiten(images)), channels)
    return {name: tf.cast(x, tf.float32) for name, x in features.items()}

  return trunk


def _branch(part, ids, class_names):
  @tf.function(input_signature=[tf.TensorSpec(part.input_spec.shape, tf.float32, name='features')])
  def branch(features):
    logits = part(features)
    names = _for_each_image([class_names[i] for i in ids], logits)
    return {'logits': logits, 'class_ids': _for_each_image(ids, logits), 'class_names': names}

  return branch


def _for_each_image(values, logits):
  """Repeats a list for each image, as outputs are served: a tensor [batch, values]."""
  return tf.tile(tf.constant(values)[None], [tf.shape(logits)[0], 1])


def manifest(models, class_names, **about):
  """Returns the content of manifest.json; about: what else to say of the export."""

  def describe_tensors(specs):
    shapes = {name: ', '.join(['batch', *map(str, spec.shape[1:])]) for name, spec in sorted(specs.items())}
    return {name: f'{specs[name].dtype.name} [{shape}]' for name, shape in shapes.items()}

  described = []
  for model in models:
    concrete = model.function.get_concrete_function()
    inputs = {spec.name: spec for spec in concrete.structured_input_signature[0]}
    described.append(dict(
      name=model.name, path=f'{model.name}/{VERSION}', inputs=describe_tensors(inputs), reads=model.reads,
      outputs=describe_tensors(concrete.structured_outputs), parameters=model.parameters, flops=model.flops,
    ))  # fmt: skip
    if model.class_ids is not None:
      described[-1].update(class_ids=model.class_ids, class_names=[class_names[i] for i in model.class_ids])
  return {**about, 'class_names': class_names, 'models': described}


def check_out(out, force):
  """Raises UserError if something is in the way of an export to a folder."""
  if not os.path.lexists(out) or (os.path.isdir(out) and not os.listdir(out)):
    return
  if not os.path.isfile(os.path.join(out, MANIFEST)):
    raise UserError(f"--out: '{out}' exists and is no export: name a folder that does not exist")
  if not force:
    raise UserError(f"--out: '{out}' holds an export already: name another folder, or replace it with --force")


def write(out, models, content, force):
  """Writes an export whole or not at all; what was there before is there still."""
  # Both are beside the folder, as only there a rename moves it whole.
  folder, name = os.path.split(os.path.realpath(out))
  out = os.path.join(folder, name)
  temporary, old = (os.path.join(folder, f'.{name}.{kind}-{os.getpid()}') for kind in ('new', 'old'))
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
    raise UserError(f"--out: '{out}' cannot be written ({reason})") from e
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def model_text(model):
  """Returns a line of text about a model; model: its dict in the manifest."""
  reads = [f'{source["output"]} of {source["model"]}' if source else name for name, source in model['reads'].items()]
  answers = f'{len(model["class_ids"])} classes' if 'class_ids' in model else 'features'
  size = f'{model["parameters"]:,} parameters, {model["flops"]:,} FLOPs per image'
  return f'{model["name"]:9}  {", ".join(reads) + " -> " + answers:33}  {size}'


@program('export.py')
def main(argv):
  """Exports as the flags say."""
  flags = parse_flags(argv)
  names = cifar100.load_names(flags.data_dir)
  stored = checkpoints.read(flags.checkpoint, resnet_split.read_older)
  checkpoints.check_classes(stored, names, flags.data_dir)
  network = checkpoints.load_network(stored, flags.harden, dtype=tf.dtypes.as_dtype(flags.precision))
  if flags.branches and (network.groups is None or stored.graph.classes.groups == 1):
    way_out = 'add --harden' if checkpoints.class_groups(stored) is not None else 'leave --branches out'
    raise UserError(f"--branches: '{stored.path}' holds a network without branches: {way_out}")
  models = build(network, names.fine, flags.branches)
  content = manifest(models, names.fine, checkpoint=stored.path, network=stored.network, precision=flags.precision)
  write(flags.out, models, content, flags.force)
  print(*map(model_text, content['models']), f'\nwritten: {flags.out}', sep='\n')


if __name__ == '__main__':
  sys.exit(main())
