"""A trained network of a checkpoint, for Python.

  model = Model('runs/split/best')
  model.predict('photo.jpg')     # [('wolf', 0.62, 0), ...]: class, probability, group
  model.groups                   # [['apple', ...], ['bear', ...]]: None for a dense network
"""

import numpy as np
import tensorflow as tf

import cifar100
import image_folder
import imagenet
import keras_split
from serving.images import read_image
from splitnet.data.dataset import find, of_run
from splitnet.data.images import Crops
from splitnet.network import folding, layers
from splitnet.training import checkpoints

datasets = {'cifar100': cifar100, 'image_folder': image_folder, 'imagenet': imagenet}


def class_names_of(stored, data_dir=None):
  """Returns the names of a checkpoint's classes, a list; if it has none, CIFAR-100's in a folder [that of the run].

  Raises UserError if they are missing, or of other classes.
  """
  known = (stored.configuration or {'data': {}})['data'].get('class_names')
  if known is not None:
    return known
  return cifar_names(stored, data_dir).fine


def cifar_names(stored, data_dir=None):
  """Returns CIFAR-100's names in a folder [that of a checkpoint's run]; UserError if missing, or of other classes."""
  settings = (stored.configuration or {'settings': {}})['settings']
  data_dir = of_run(settings, 'cifar100', data_dir)[1] or cifar100.DATA_DIR
  names = cifar100.load_names(data_dir)
  checkpoints.check_classes(stored, names, data_dir)
  return names


class Model:
  """A network that says what is on images.

  Attributes:
    stored: the checkpoint, a checkpoints.Stored; network: its Network, not folded.
    class_names: list of str.
    class_groups: int array [classes], the group of each class; None for a dense network.
    crops: how image files are cut; None: as for CIFAR-100.
  """

  def __init__(self, checkpoint, data_dir=None, harden=False):
    """Loads a checkpoint: a run's folder, its 'best', or DIR/ckpt-STEP.

    Args:
      data_dir: folder of CIFAR-100, for the names of the classes if the checkpoint has none; None: that of the run.
      harden: whether to split a grouping checkpoint by its present assignments first.

    Raises:
      UserError: if there is none, it is damaged, or the names are not known.
    """
    self.stored = stored = checkpoints.read(checkpoint, keras_split.read_other)
    about = stored.configuration or {'settings': {}, 'data': {}}
    dataset = about['settings'].get('dataset', 'cifar100')
    module = find(datasets, dataset)
    self.class_names = class_names_of(stored, data_dir)
    self.crops = None if dataset == 'cifar100' else Crops.of_size(stored.graph.image_size)
    self.network = checkpoints.load_network(stored, harden)
    self.class_groups = checkpoints.class_groups(stored)
    folded, prepare = folding.folded(self.network), layers.preparation(stored.graph, module.prepare)

    def compute(images):
      return tf.nn.softmax(folded(prepare(images)))

    self._compute = tf.function(compute, autograph=False, reduce_retracing=True)

  def __call__(self, images):
    """Returns probabilities float32 [batch, classes] of uint8 [batch, size, size, 3]."""
    return self._compute(tf.constant(images)).numpy()

  @property
  def groups(self):
    """The names of the classes in each group: list of lists; None for a dense network."""
    if self.class_groups is None:
      return None
    members = [np.flatnonzero(self.class_groups == g) for g in range(self.class_groups.max() + 1)]
    return [[self.class_names[c] for c in group] for group in members]

  def predict(self, path, top=5):
    """Returns what is most probably on an image file: list of (class name, probability, group or None)."""
    return self.top(self(read_image(path, self.crops)[None])[0], top)

  def top(self, probabilities, count=5):
    """Returns the most probable classes: list of (class name, probability, group or None)."""
    chosen = np.argsort(-probabilities, kind='stable')[:count]
    group = (lambda c: None) if self.class_groups is None else (lambda c: int(self.class_groups[c]))
    return [(self.class_names[c], float(probabilities[c]), group(c)) for c in chosen]
