"""Your own Keras model as a graph, with its weights; where it can be split, and what that saves.

  python keras_split.py MODEL.keras [--groups 2-2-2]

The model is a functional or sequential image classifier, as model.save('MODEL.keras') writes it. The program prints
above which layers a tree of it can branch. train.py, eval.py and serving.export take the file for a baseline
checkpoint: `--network MODEL.keras` in train.py, `--checkpoint MODEL.keras` elsewhere. docs/keras.md says more.
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import sys

from splitnet.common.flags import Parser, add, answer_early


def make_parser():
  """Returns the parser of the flags."""
  parser = Parser(__doc__)
  parser.add_argument('model', metavar='MODEL.keras', help='file that model.save wrote')
  add(parser, 'groups', str, '2-2-2', 'numbers of branches above each layer of --split_at, and of groups of classes')
  add(parser, 'split_at', str, '', 'layers above which it branches, bottom up [two, see above]')
  return parser


if __name__ == '__main__':
  answer_early('keras_split.py', make_parser)

import dataclasses
import json
import zipfile

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import numpy as np

import resnet_split
from splitnet.common.errors import UserError, first_line, program
from splitnet.data import images
from splitnet.network import branching, counting, grouping, settings
from splitnet.network.graph import Graph, Tree
from splitnet.network.keras_layers import of_channels
from splitnet.network.keras_reader import read_model
from splitnet.reporting.tables import markdown
from splitnet.training import checkpoints
from splitnet.training.checkpoints import MODEL_FILE

MAX_CONFIG = 1 << 26  # bytes
MAX_RATIO = 100  # of unpacked bytes to packed ones; weights can hardly be packed at all

_MEAN, _DEVIATION = np.array(images.MEAN), np.array(images.DEVIATION)
# How pixels from 0 to 255 become what a model reads, if no layer of it says so: factor, offset and whether the channels
# are then reversed; the names of the last three are those of keras.applications.
PREPROCESS = {
  'data': None,  # as the data set prepares them
  'pixels': None,  # as they are
  'unit': (1 / 255, 0.0, False),  # from 0 to 1
  'tf': (1 / 127.5, -1.0, False),  # from -1 to 1
  'torch': (1 / (255 * _DEVIATION), -_MEAN / _DEVIATION, False),
  'caffe': (1.0, -np.array([123.68, 116.779, 103.939]), True),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasNetwork(settings.Settings):
  """Where a Keras model branches, and how its images are prepared."""

  network = 'keras'
  split_depths = ('lowest', 'lower', 'middle', 'upper', 'classes')

  split_at: str = ''  # the layers above which it branches, bottom up; '': branching.default_borders
  preprocess: str = ''  # one of PREPROCESS; '': its own layers do
  ngroups4: int = 1  # above the last but two of split_at
  ngroups5: int = 1

  def graph(self):
    """Raises UserError: what the network is stands in its file."""
    raise UserError("--network keras is that of a model's file: give --network MODEL.keras")

  def of_stored(self, graph):
    """Returns the Graph of a file or a checkpoint with the branches of these settings."""
    if graph is None:
      return self.graph()
    graph = prepared(graph, self.preprocess)
    names = [name.strip() for name in self.split_at.split(',') if name.strip()]
    below = branching.find_borders(graph, names) if names else branching.default_borders(graph)
    wanted = next((len(self.counts) - i for i, count in enumerate(self.counts) if count > 1), 1) - 1  # beside classes
    if wanted > len(below):
      raise UserError(
        f'--groups {self.split} divides {wanted} depths below the classes, but the tree branches above {len(below)} '
        f'layers: name {wanted} with --split_at'
      )
    return branching.branched(graph, below, self.counts[len(self.counts) - len(below) - 1 :], self.branch_input)


def start_from_file(flags):
  """Makes of `--network MODEL.keras` the basemodel that it is; raises UserError if there is another one."""
  if flags.network and flags.network.endswith(MODEL_FILE):
    if flags.basemodel not in (None, '', flags.network):
      raise UserError(
        f"--network '{flags.network}' is where a run starts, and so is --basemodel '{flags.basemodel}': leave one out"
      )
    flags.basemodel, flags.network = flags.network, None


def prepared(graph, preprocess):
  """Returns the Graph whose images are prepared in one of the ways of PREPROCESS.

  Raises UserError if the graph's own layers do so already, or nothing says how.
  """
  image = graph.layers[0]
  if any(layer.name == 'preprocess' for layer in graph.layers) or (preprocess == 'data' and image.reads == 'prepared'):
    return graph  # of a checkpoint
  if image.reads == 'pixels':
    if preprocess not in ('', 'pixels'):
      raise UserError(f'--preprocess is {preprocess}, but {graph.name} prepares its images itself: leave it out')
    return graph
  if preprocess == '':
    raise UserError(
      f'no layer of {graph.name} prepares its images (Rescaling or Normalization), so say with --preprocess how they '
      f'were prepared when it was trained: {", ".join(PREPROCESS)}'
    )
  if preprocess == 'data':
    return Graph(graph.name, graph.depths, (dataclasses.replace(image, reads='prepared'), *graph.layers[1:]))
  layers = [dataclasses.replace(image, reads='pixels')]
  if PREPROCESS[preprocess]:
    factors, offsets, reverse = PREPROCESS[preprocess]
    numbers = of_channels(factors=factors, offsets=offsets)
    layers.append(
      dataclasses.replace(
        image, name='preprocess', op='affine', inputs=('image',), reads='prepared', reverse=reverse, **numbers
      )
    )
  layers += [
    dataclasses.replace(layer, inputs=tuple(layers[-1].name if name == 'image' else name for name in layer.inputs))
    for layer in graph.layers[1:]
  ]
  return Graph(graph.name, graph.depths, tuple(layers))


# --- reading --------------------------------------------------------------------------------------------------------


def read_other(stored, values, path):
  """Returns what checkpoints.read needs of an older checkpoint, or of a model's file.

  Of a file (`values` is None) that is its settings (a dict), its Graph without branches, and its values by variable
  name; of a checkpoint, what resnet_split.read_older returns. Raises UserError if it is neither, or cannot be split.
  """
  if values is not None:
    return resnet_split.read_older(stored, values, path)
  config = _read_config(path)
  read_model(path, config)  # before anything of it is made
  graph, values = read_model(path, config, _load(path))
  known = {'network': KerasNetwork.network, 'num_classes': graph.classes.size, 'image_size': graph.image_size}
  return known, graph, values


def _read_config(path):
  """Returns the configuration that a model's file holds, a dict."""
  advice = "write it with model.save('MODEL.keras')"
  try:
    with zipfile.ZipFile(path) as archive:
      sizes = [(info.file_size, info.compress_size) for info in archive.infolist()]
      config = archive.getinfo('config.json')
      if config.file_size > MAX_CONFIG or sum(full for full, _ in sizes) > MAX_RATIO * sum(n for _, n in sizes) + 2**20:
        raise ValueError('it is far larger unpacked')
      config = json.loads(archive.read(config))
    if not isinstance(config, dict):
      raise ValueError('its config.json is no object')
    return config
  except OSError as e:
    raise UserError(f"the Keras model '{path}' cannot be read ({e.strerror})") from e
  except KeyError as e:
    raise UserError(f"'{path}' is no Keras model (it has no config.json): {advice}") from e
  except Exception as e:  # a damaged archive raises what it likes
    raise UserError(f"'{path}' is no Keras model, or damaged ({first_line(e)}): {advice}") from e


def _load(path):
  """Loads a model whose configuration has been read: nothing of it is code."""
  import keras  # takes a second, and only models' files need it

  try:
    return keras.saving.load_model(path, compile=False, safe_mode=True)
  except Exception as e:  # a damaged file raises what it likes
    raise UserError(f"the Keras model '{path}' cannot be loaded ({first_line(e)[:200]})") from e


# --- where it can be split ------------------------------------------------------------------------------------------


def sizes_of(graph):
  """Returns the parameters and FLOPs of a graph's tree with groups of even size."""
  return counting.total(counting.counts(Tree(graph, grouping.even_groups(graph))), everything=True)


def choices(graph, branches=2):
  """Returns a table of what branches above each layer save, as text; those of the default are marked."""
  found, defaults, rows = branching.borders(graph), branching.default_borders(graph), []
  for below, layer in found.items():
    last = below == max(found)
    tree = branching.branched(graph, [] if last else [layer], [branches] * (1 if last else 2))
    name = f'{layer.name} (default)' if layer in defaults else layer.name
    shape = f'{layer.size} x {layer.size} x {layer.units.size}'
    rows.append(['(only the classes)' if last else name, shape, str(len(graph.weighted) - below), *_saved(graph, tree)])
  return markdown(['--split_at', 'writes', 'weighted layers above', 'parameters saved', 'FLOPs saved'], rows)


def _saved(graph, tree):
  return [f'{100 * (1 - size / whole):.1f} %' for size, whole in zip(sizes_of(tree), sizes_of(graph))]


@program('keras_split.py')
def main(argv):
  """Prints the layers above which a model can branch, and what a split saves."""
  flags = make_parser().parse_args(argv)
  known, graph, _ = read_other(None, None, checkpoints.find(flags.model))
  parameters, flops = sizes_of(graph)
  print(f'{graph.name}: images of {graph.image_size} x {graph.image_size} pixels, {graph.classes.size} classes')
  print(f'{parameters:,} parameters, {flops:,} FLOPs per image\n\nTwo branches above one layer would save:\n')
  print(choices(graph))
  preprocess = 'pixels' if graph.layers[0].reads == 'unknown' else ''
  known.update(preprocess=preprocess, split_at=flags.split_at)
  del known['network']
  tree = KerasNetwork.of_split(flags.groups, **known).of_stored(graph)
  saved = _saved(graph, tree)
  above = ', '.join(layer.name for layer in tree.borders.values() if layer)
  print(f'--groups {tree.split} above {above}: saves {saved[0]} of the parameters and {saved[1]} of the FLOPs')


if __name__ == '__main__':
  sys.exit(main())
