"""Measures the accuracy of an export in every format that it has, whole and put together from its branches.

Keras's models are run by Keras, LiteRT's by TensorFlow's interpreter, ONNX's by onnxruntime, if it is installed.
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import os
import sys
import warnings

from splitnet.common.flags import Parser, add, answer_early, integer, one_of


def make_parser():
  """Returns the parser of the flags."""
  parser = Parser(__doc__)
  add(parser, 'export', str, None, 'folder that export.py made', required=True)
  add(parser, 'dataset', one_of('cifar100', 'image_folder', 'imagenet'), None, "which data [the checkpoint's]")
  add(parser, 'data_dir', str, None, 'their folder [of cifar100 cifar100/train_val_split]')
  add(parser, 'split', one_of('test', 'val', 'train'), 'test', 'which images')
  add(parser, 'limit', integer(1), None, 'take only the first images of it [all]')
  return parser


if __name__ == '__main__':
  answer_early('accuracy.py', make_parser)

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np
import tensorflow as tf

from serving import export, infer
from serving.model import datasets
from splitnet.common import schema
from splitnet.common.errors import UserError, first_line, program
from splitnet.common.files import plain_path
from splitnet.data.batches import numbered_batches
from splitnet.data.dataset import DataSettings, find
from splitnet.reporting.tables import markdown

BATCH = 100


def load_saved_model(path):
  """Loads a SavedModel: a function from images or features to a dict of arrays."""
  loaded = tf.saved_model.load(path)  # kept, as its signatures do not keep its variables
  signature = loaded.signatures['serving_default']
  ((name, spec),) = signature.structured_input_signature[1].items()
  return lambda x, _=loaded: signature(**{name: tf.cast(x, spec.dtype)})


def load_keras(path):
  """Loads a Keras model, as `load_saved_model` does."""
  import keras

  model = keras.saving.load_model(path)

  def answer(x):
    y = model.predict_on_batch(np.asarray(x, np.float32))
    return y if isinstance(y, dict) else {'logits': y}

  return answer


def load_litert(path):
  """Loads a LiteRT model, as `load_saved_model` does."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # it is deprecated for a package that TensorFlow does not bring
    runner = tf.lite.Interpreter(path).get_signature_runner()
  return lambda x: runner(given=np.asarray(x, np.float32))


def load_onnx(path):
  """Loads an ONNX model, as `load_saved_model` does."""
  import onnxruntime

  session = onnxruntime.InferenceSession(path)
  names = [output.name for output in session.get_outputs()]
  return lambda x: dict(zip(names, session.run(None, {'given': np.asarray(x, np.float32)})))


def path_of(name, model):
  """Returns where a model, its dict in the manifest, stands in the export in a format."""
  return model['path'] if name == 'SavedModel' else f'{name}/{model["name"]}{export.FORMATS[name]}'


def open_models(folder, content):
  """Returns the models of an export: dict from format to a dict from name to function, which `load_*` made.

  Raises UserError if one cannot be loaded.
  """
  loaders = {'SavedModel': load_saved_model}
  further = {'keras': load_keras, 'litert': load_litert, 'onnx': load_onnx}
  loaders.update({name: load for name, load in further.items() if name in content.get('formats', [])})
  models = {}
  with plain_path(folder) as plain:
    for name, load in loaders.items():
      models[name] = {}
      for model in content['models']:
        try:
          models[name][model['name']] = load(os.path.join(plain, path_of(name, model)))
        except Exception as e:  # a damaged model raises what it likes
          raise UserError(f"the export in '{folder}' is damaged ({first_line(e)}): export it again") from e
  return models


def classify(models, content, images, branches):
  """Returns the classes that models answer, int array [images]; those of the branches together, or the whole's."""
  outputs, together = {}, np.full([len(images), len(content['class_names'])], np.nan, np.float32)
  for model in content['models']:
    if (model['name'] != 'whole') == branches:
      source = model['reads'].get('features')
      outputs[model['name']] = models[model['name']](
        images if source is None else outputs[source['model']][source['output']]
      )
      if 'class_ids' in model:
        together[:, model['class_ids']] = outputs[model['name']]['logits']
  return together.argmax(1)


@program('accuracy.py')
def main(argv):
  """Prints a table of the accuracies."""
  flags = make_parser().parse_args(argv)
  path, advice = os.path.join(flags.export, 'manifest.json'), 'export it again'
  content = schema.read_json(path, infer.Manifest, advice, f"there is no export in '{flags.export}'")
  chosen = flags.dataset or content.get('dataset', 'cifar100')  # exports of earlier versions do not say it
  dataset = find(datasets, chosen).open_dataset(DataSettings(flags.data_dir, content.get('image_size')))
  if dataset.names.fine != content.get('class_names'):
    raise UserError(f"the export in '{flags.export}' has other classes than the data: name those with --data_dir")
  data = dataset.load(flags.split, flags.limit)
  right = {}
  models = open_models(flags.export, content)
  ways = [False, True] if any(model['name'] == 'trunk' for model in content['models']) else [False]
  for _, pixels, labels in numbered_batches(data, BATCH):
    for name in models:
      for branches in ways:
        answers = classify(models[name], content, np.asarray(pixels), branches)
        right[name, branches] = right.get((name, branches), 0) + int(np.sum(answers == np.asarray(labels)))
  count = len(data.labels)
  rows = []
  for (name, branches), n in right.items():
    size = _bytes(flags.export, name, content, branches)
    rows.append([name, 'branches' if branches else 'whole', f'{100 * n / count:.2f} %', f'{size:,}'])
  print(markdown(['format', 'models', f'accuracy, {count:,} {flags.split} images', 'bytes'], rows), end='')


def _bytes(folder, name, content, branches):
  """Returns how many bytes a format's files have."""
  total = 0
  for model in content['models']:
    if (model['name'] != 'whole') == branches:
      path = os.path.join(folder, path_of(name, model))
      files = [os.path.join(where, file) for where, _, names in os.walk(path) for file in names] or [path]
      total += sum(map(os.path.getsize, files))
  return total


if __name__ == '__main__':
  sys.exit(main())
