"""Makes a folder that others can use of a checkpoint: weights without optimiser, settings, and a model card.

  OUT/ckpt-STEP.*      the weights, float32
  OUT/config.json      network, groups, data with the names of its classes, settings
  OUT/MODEL_CARD.md    what it is, how it was made (the commands of its stages), how good it is, its groups

eval.py, serving.infer, serving.export, paper.figures and --basemodel take the folder like that of a run.

  python -m serving.publish runs/split/best pretrained/wrn-16-1-split --result runs/split/eval.json
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import os
import shlex
import sys

from splitnet.common.flags import Parser, add, answer_early


def make_parser():
  """Makes the parser of the flags."""
  parser = Parser(__doc__)
  text = "a run's folder (its last checkpoint), its 'best' or DIR/ckpt-STEP"
  parser.add_argument('checkpoint', metavar='CHECKPOINT', help=text)
  parser.add_argument('out', metavar='OUT', help='folder to make, or one of this program to write anew')
  add(parser, 'result', str, None, 'what eval.py wrote of this checkpoint, for the card', required=True)
  add(parser, 'data_dir', str, None, 'folder of CIFAR-100, for the names of its classes [that of the run]')
  return parser


if __name__ == '__main__':
  answer_early('publish.py', make_parser)

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import tensorflow as tf

import keras_split
from serving.model import cifar_names
from splitnet.common import schema
from splitnet.common.errors import UserError, program
from splitnet.common.files import check_folder, write_json, write_text
from splitnet.reporting import results
from splitnet.reporting.names import STATES, network_name
from splitnet.training import checkpoint_files, checkpoints

CARD = 'MODEL_CARD.md'
# Where a run was: of no use to others.
PATHS = ('data_dir', 'train_dir', 'basemodel', 'teacher')


def described(stored, data_dir):
  """Returns the configuration to publish: without paths, with the names of the classes."""
  configuration = stored.configuration
  data, settings = configuration['data'], configuration['settings']
  if 'class_names' not in data:
    names = cifar_names(stored, data_dir)
    data = dict(data, class_names=names.fine, superclass_names=names.coarse)
    data['superclass_of_class'] = [int(c) for c in names.fine_to_coarse]
  settings = {name: None if name in PATHS else value for name, value in settings.items()}
  described = {**configuration, 'data': data, 'settings': settings}
  described.pop('command', None)  # the card has it
  return described


def shown(words):
  """Returns a command's flags as they counted: each once, the last one, without the folder of the data."""
  flags = {}
  for word in words:
    if word.startswith('--'):
      name, _, value = word.partition('=')
      flags.pop(name, None)
      flags[name] = [value] if '=' in word else []
    else:
      flags[name].append(word)
  flags.pop('--data_dir', None)
  return [word for name, values in flags.items() for word in (name, *values)]


def commands_of(path):
  """Returns the commands of the stages that led to a checkpoint, the first one first, as far as they are there."""
  folder = path if os.path.isdir(path) else os.path.dirname(path)
  configuration = checkpoints.read_configuration(folder, keras_split.read_other)
  if configuration is None:
    return []
  base = configuration['settings'].get('basemodel')
  before = commands_of(base) if base and checkpoints.exists(base) else []
  words = configuration.get('command')
  return [*before, f'python train.py {shlex.join(shown(words))}'] if words else before


def card_text(name, stored, configuration, result, commands):
  """Returns the model card, Markdown."""
  data, settings = configuration['data'], configuration['settings']
  step = stored.path.rsplit('-', 1)[-1]
  size = sum(4 * value.size for value in stored.values.values())
  network = network_name(stored.graph, STATES[stored.mode])
  lines = [
    f'# {name}', '',
    f'{network}: {result["parameters"]:,} parameters and {result["flops"]:,} FLOPs per image, as the paper counts; '
    f'{size / 1e6:.1f} MB of float32.', '',
    '| | |', '|---|---|',
    f'| data | {data.get("source", "own")} {settings.get("dataset", "cifar100")}, '
    f'{data["train_images"]:,} training images |',
    f'| images | {stored.graph.image_size} pixels a side, RGB, {len(data["class_names"])} classes |',
    f'| steps | {step} of {settings["max_steps"]}, {settings["batch_size"]} images each; seed {settings["seed"]} |',
    f'| accuracy, top 1 | {100 * result["accuracy"]:.2f} % of {result["images"]:,} images ({result["split"]}) |',
    f'| accuracy, top 5 | {100 * result["top5_accuracy"]:.2f} % |',
  ]  # fmt: skip
  if result.get('agreement') is not None:
    lines.append(f'| agreement of the groups with the superclasses | {result["agreement"]:.2f} |')
  lines += ['', f'    python eval.py --checkpoint pretrained/{name}', '', 'measures that again.', '']
  if commands:
    lines += ['It was made by', '', *(f'    {command}' for command in commands), '']
  for g, members in enumerate(result.get('groups', [])):
    lines += [f'Group {g}: {", ".join(members)}.', '']
  return '\n'.join([
    *lines, 'One run with one seed: it is for trying things, not for comparing methods. It knows its classes and '
    'nothing else, and says one of them of any image.', '',
    'Licence of the weights: MIT, as of the code. The images are not part of it; theirs is their own.', '',
  ])  # fmt: skip


@program('publish.py')
def main(argv):
  """Publishes as the arguments say."""
  flags = make_parser().parse_args(argv)
  stored = checkpoints.read(flags.checkpoint, keras_split.read_other)
  if stored.configuration is None:
    raise UserError(f"'{flags.checkpoint}' is of the released code: only checkpoints of train.py are published")
  advice = f'write it with eval.py --checkpoint {flags.checkpoint} --output_file'
  result = schema.read_json(flags.result, results.Result, advice)
  if os.path.basename(str(result.get('checkpoint'))) != os.path.basename(stored.path):
    raise UserError(f"'{flags.result}' is about '{result.get('checkpoint')}', not '{stored.path}': {advice}")
  if os.path.lexists(flags.out) and not os.path.exists(os.path.join(flags.out, CARD)):
    raise UserError(f"'{flags.out}' exists and has no {CARD}: name a folder that does not exist")
  check_folder('OUT', os.path.dirname(os.path.realpath(flags.out)))
  configuration = described(stored, flags.data_dir)
  name = os.path.basename(os.path.normpath(flags.out))
  text = card_text(name, stored, configuration, result, commands_of(flags.checkpoint))
  step = int(stored.path.rsplit('-', 1)[-1])
  os.makedirs(flags.out, exist_ok=True)
  write_json(os.path.join(flags.out, checkpoint_files.CONFIG), configuration)
  weights = {name: tf.Variable(value) for name, value in stored.values.items()}
  checkpoint = tf.train.Checkpoint(weights=weights, step=tf.Variable(step, dtype=tf.int64))
  checkpoint_files.write(checkpoint, flags.out, step, 1)
  write_text(os.path.join(flags.out, CARD), text)
  size = sum(os.path.getsize(os.path.join(flags.out, file)) for file in os.listdir(flags.out))
  print(f"{size / 1e6:.1f} MB in '{flags.out}': see its {CARD}")


if __name__ == '__main__':
  sys.exit(main())
