"""Opens the data of the tables and figures."""

import cifar100
import image_folder
import imagenet
from splitnet.common.errors import UserError
from splitnet.data.dataset import DataSettings, find, of_run

DATASETS = {'cifar100': cifar100, 'image_folder': image_folder, 'imagenet': imagenet}


def open_data(dataset, data_dir, image_size=None, skip_damaged=False):
  """Opens a data set by its name: a DataSet.

  Raises UserError if it is not there, or there is no such data set.
  """
  return find(DATASETS, dataset).open_dataset(DataSettings(data_dir, image_size, skip_damaged))


def of_checkpoint(stored, dataset, data_dir):
  """Returns (name, folder) of the data that flags name, else of a checkpoint's.

  Args:
    stored: its configuration, or None; dataset, data_dir: the flags, or None.
  """
  dataset, data_dir = of_run(stored['settings'] if stored else {}, dataset, data_dir)
  return dataset, data_dir or (cifar100.DATA_DIR if dataset == 'cifar100' else None)


def describe(dataset, data):
  """Returns what settings.json says of the data of a run: a dict.

  Images of files are known by their `digest`. Of data without a subset test, which ILSVRC 2012 is, `evaluated` is
  'val'.
  """
  train = data.load('train')
  known = dict(data.names.source, train_images=len(train.labels))
  if dataset == 'cifar100':
    return known
  try:
    data.load('test')
    subset = 'test'
  except UserError:
    subset = 'val'
  return {
    **known, 'classes': len(data.names.fine), 'image_size': data.image_size, 'digest': train.digest(),
    'evaluated': subset,
  }  # fmt: skip
