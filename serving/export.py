"""Exports a checkpoint of train.py as SavedModels, and for other runtimes.

TensorFlow and TensorFlow Serving run them without this project, whole or branch by branch.

  OUT/manifest.json    which model reads what, with the class names
  OUT/whole/1          images -> probabilities, logits, class_names
  OUT/trunk/1          with --branches: images -> the features that each branch reads
  OUT/branch_<i>/1     features -> logits, class_ids, class_names of the branch's own classes
  OUT/keras/*.keras    with --format keras: the same as functional Keras models without custom objects
  OUT/litert/*.tflite  with --format litert: the same for LiteRT (TensorFlow Lite), in 8-bit integers
  OUT/onnx/*.onnx      with --format onnx: the same for ONNX runtimes; needs tf2onnx

Images are uint8 [batch, size, size, 3], of any batch size; whitening or normalisation is part of the model. Every model
has one signature, 'serving_default', and stands in a version folder, as TensorFlow Serving wants it.
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import collections
import contextlib
import fcntl
import glob
import os
import re
import shutil
import sys

from splitnet.common.flags import Parser, add, answer_early, one_of, some_of, switch

FORMATS = {'keras': '.keras', 'litert': '.tflite', 'onnx': '.onnx'}  # further ones, and how their files' names end


def make_parser():
  """Returns the parser of the flags."""
  parser = Parser(__doc__)
  text = "a run's folder (its last checkpoint), its 'best' or DIR/ckpt-STEP"
  add(parser, 'checkpoint', str, None, text, required=True)
  switch(parser, 'harden', 'split a grouping checkpoint by its present assignments first')
  add(parser, 'out', str, None, 'folder to make', required=True)
  switch(parser, 'branches', 'also the trunk and each branch of a split network alone')
  switch(parser, 'force', 'replace the export that --out holds')
  add(parser, 'format', some_of(*FORMATS), [], 'further formats, beside the SavedModels [none]')
  add(parser, 'precision', one_of('float32', 'bfloat16'), 'float32', 'of the convolutions')
  text = 'folder of CIFAR-100, for the class names; of other data the checkpoint has them [that of the run]'
  add(parser, 'data_dir', str, None, text)
  return parser


if __name__ == '__main__':
  answer_early('export.py', make_parser)

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

import cifar100
import keras_split
import utils
from serving import conversions, infer, keras_models
from serving.model import class_names_of, datasets
from splitnet.common import schema
from splitnet.common.errors import UserError, program
from splitnet.common.files import check_folder, write_json
from splitnet.data.batches import numbered_batches
from splitnet.data.dataset import DataSettings, find, of_run
from splitnet.data.images import Crops
from splitnet.network import counting, folding, layers
from splitnet.training import checkpoints

MANIFEST = 'manifest.json'
VERSION = '1'
MODEL = r'whole|trunk|branch_\d+'  # names of models
# What tf.saved_model.save writes.
SAVED_MODEL = r'saved_model\.pb|fingerprint\.pb|variables/variables\.(index|data-\d+-of-\d+)|assets/.+'


def parse_flags(argv):
  """Parses the flags and checks that --out may be written."""
  flags = make_parser().parse_args(argv)
  if not flags.out:
    raise UserError('--out is empty: name a folder that does not exist')
  flags.out = os.path.normpath(flags.out)
  remove_leftovers(flags.out)
  check_out(flags.out, flags.force)
  check_folder('--out', os.path.dirname(os.path.realpath(flags.out)))
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


# How a tree is cut into models. below: the nodes of the trunk, dict from depth to branches; branches: list of those of
# each branch model. names, slices: of each branch model, the name of the features that it reads, and which of the
# trunk's channels these are.
Cut = collections.namedtuple('Cut', 'below branches names slices')


def cut_of(network):
  """Returns the Cut of a tree."""
  branches = deal(network.depths)
  lowest = next(iter(branches[0]))
  read = [network.reads(lowest, nodes[lowest][0])[1] for nodes in branches]
  # Branches that read the same channels (with branch_input 'all') share their name, that of the first of them.
  names = [f'features_{branches[read.index(channels)][lowest][0]}' for channels in read]
  return Cut({depth: [0] for depth in network.depths if depth not in branches[0]}, branches, names, read)


def build(network, class_names, with_branches, prepare=cifar100.prepare):
  """Builds a network's models: list of Model, each behind those that it reads.

  `prepare` is a function from raw images to what the network reads.
  """
  folded, pixels = folding.folded(network), network.graph.image_size
  images_spec = tf.TensorSpec([None, pixels, pixels, 3], tf.uint8, name='images')

  def whole(images):
    logits = folded(prepare(images))
    names = _for_each_image(class_names, logits)
    return {'probabilities': tf.nn.softmax(logits), 'logits': logits, 'class_names': names}

  counts = counting.counts(network)

  def size(branches):
    return counting.total([c for c in counts if c.node[1] in branches.get(c.node[0], [])])

  all_classes = list(range(len(class_names)))
  models = [Model('whole', tf.function(whole, [images_spec]), {'images': None}, all_classes, *counting.total(counts))]
  if not with_branches:
    return models
  cut = cut_of(folded)
  trunk = _trunk(folded.part(cut.below), dict(zip(cut.names, cut.slices)), prepare, images_spec)
  models.append(Model('trunk', trunk, {'images': None}, None, *size(cut.below)))
  for i, branches in enumerate(cut.branches):
    part = folded.part(branches)
    reads = {'features': {'model': 'trunk', 'output': cut.names[i]}}
    ids = part.leaf_classes().tolist()
    models.append(Model(f'branch_{i}', _branch(part, ids, class_names), reads, ids, *size(branches)))
  return models


def _trunk(part, channels, prepare, images_spec):
  @tf.function(input_signature=[images_spec])
  def trunk(images):
    # Whatever the convolutions compute in, machines send each other float32.
    features = layers.divided(part(prepare(images)), channels)
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
  models = exported_models(out)
  if models is None:
    raise UserError(f"--out: '{out}' exists and is no export: name a folder that does not exist")
  if not force:
    raise UserError(f"--out: '{out}' holds an export already: name another folder, or replace it with --force")
  if strangers := others(out, models):
    shown = ', '.join(strangers[:3]) + (', ...' if len(strangers) > 3 else '')
    raise UserError(f"--out: '{out}' holds more than an export ({shown}): move that away, or name another folder")


def exported_models(folder):
  """Returns the names of the models of the export that a folder holds, a list; None if it holds none of ours."""
  try:
    content = schema.read_bytes(os.path.join(folder, MANIFEST), schema.MAX_BYTES)
    models = [(model['name'], model['path']) for model in schema.parse_json(content, infer.Manifest)['models']]
  except (OSError, ValueError):
    return None
  ours = all(re.fullmatch(MODEL, name) and path == f'{name}/{VERSION}' for name, path in models)
  files = [os.path.join(folder, path, 'saved_model.pb') for _, path in models]
  return [name for name, _ in models] if ours and all(map(os.path.isfile, files)) else None


def others(folder, models):
  """Returns what is in the folder of an export and no part of it: sorted list of paths within the folder."""
  files = '|'.join(rf'{name}/({MODEL}){re.escape(ending)}' for name, ending in FORMATS.items())
  ours = re.compile(rf'{re.escape(MANIFEST)}|({"|".join(models)})/{VERSION}/({SAVED_MODEL})|{files}')
  found = []
  for path, folders, files in os.walk(folder):
    links = [name for name in folders if os.path.islink(os.path.join(path, name))]
    inside = [os.path.relpath(os.path.join(path, name), folder) for name in files + links]
    found += [name for name in inside if not ours.fullmatch(name) or os.path.islink(os.path.join(folder, name))]
  return sorted(found)


def _beside(out, kind, process):
  """Returns a path beside a folder, as only there a rename moves it whole."""
  folder, name = os.path.split(os.path.realpath(out))
  return os.path.join(folder, f'.{name}.{kind}-{process}')


@contextlib.contextmanager
def _locked(folder):
  """Keeps a folder, under whichever name, from being taken for a leftover."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  finally:
    os.close(descriptor)


def remove_leftovers(out):
  """Removes what killed exports left beside a folder; what one of them had moved away gets its name again."""
  for kind in ('old', 'new'):
    for path in glob.glob(glob.escape(_beside(out, kind, '')) + '*'):
      if path.rsplit('-', 1)[1].isdecimal():
        with contextlib.suppress(OSError), _locked(path):  # not one of a process that is at work
          if kind == 'old' and not os.path.lexists(out):
            os.rename(path, out)
          else:
            shutil.rmtree(path, ignore_errors=True)


def write(out, models, content, force, files=None):
  """Writes an export whole or not at all.

  Args:
    out: the folder.
    models: list of Model.
    content: of manifest.json.
    force: replace an export that is there.
    files: further files: dict from the path in the folder to a function that writes it there.

  Raises:
    UserError: if it cannot be written; what was there before is there still.
  """
  out = os.path.realpath(out)
  temporary, old = (_beside(out, kind, os.getpid()) for kind in ('new', 'old'))
  locks = contextlib.ExitStack()
  try:
    os.makedirs(temporary)
    locks.enter_context(_locked(temporary))
    for model in models:
      path = os.path.join(temporary, model.name, VERSION)
      tf.saved_model.save(tf.Module(), path, signatures={'serving_default': model.function})
    for name, save in (files or {}).items():
      os.makedirs(os.path.dirname(os.path.join(temporary, name)), exist_ok=True)
      save(os.path.join(temporary, name))
    write_json(os.path.join(temporary, MANIFEST), content)
    check_out(out, force)  # again: it took a while
    if os.path.isdir(out):
      locks.enter_context(_locked(out))
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
    locks.close()


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
  stored = checkpoints.read(flags.checkpoint, keras_split.read_other)
  trained_on = stored.configuration or {'settings': {}, 'data': {}}
  dataset, data_dir = of_run(trained_on['settings'], None, flags.data_dir)
  module = find(datasets, dataset)
  class_names, size = class_names_of(stored, flags.data_dir), stored.graph.image_size
  network = checkpoints.load_network(stored, flags.harden, dtype=tf.dtypes.as_dtype(flags.precision))
  if flags.branches and (network.groups is None or stored.graph.classes.groups == 1):
    way_out = 'add --harden' if checkpoints.class_groups(stored) is not None else 'leave --branches out'
    raise UserError(f"--branches: '{stored.path}' holds a network without branches: {way_out}")
  prepare = layers.preparation(stored.graph, module.prepare)
  models = build(network, class_names, flags.branches, prepare)
  files = {}
  if 'keras' in flags.format:
    made = keras_models.build(network, prepare, cut_of(network) if flags.branches else None)
    files.update({f'keras/{name}.keras': model.save for name, model in made.items()})
  if 'litert' in flags.format:
    data = module.open_dataset(DataSettings(data_dir, size))
    sample = data.load('train', conversions.SAMPLE)
    pixels = np.concatenate([pixels for _, pixels, _ in numbered_batches(sample, conversions.SAMPLE)])
    files.update({f'litert/{name}.tflite': save for name, save in conversions.to_litert(models, pixels).items()})
  if 'onnx' in flags.format:
    files.update({f'onnx/{name}.onnx': save for name, save in conversions.to_onnx(models).items()})
  content = manifest(
    models, class_names, checkpoint=stored.path, network=stored.network, precision=flags.precision, dataset=dataset,
    image_size=size, shorter_side=None if dataset == 'cifar100' else Crops.of_size(size).resize, formats=flags.format,
  )  # fmt: skip
  write(flags.out, models, content, flags.force, files)
  print(*map(model_text, content['models']), f'\nwritten: {flags.out}', sep='\n')


if __name__ == '__main__':
  sys.exit(main())
