"""Defines what a data set gives the programs.

It is a module with a function `open_dataset(settings)`, which takes a DataSettings and returns a DataSet, and with that
DataSet's `prepare`, for what computes on images without opening the data: the export of a network, for one.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from splitnet.common.errors import UserError
from splitnet.data.batches import ClassNames


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Says which data are read, and how; the names are those of the programs' flags."""

  data_dir: str | None = None  # their folder; None: where the data set's own program writes it
  image_size: int | None = None  # pixels a side of the images that the network reads; None: the data set's own
  skip_damaged: bool = False  # leave out images that cannot be decoded, which otherwise are a UserError
  cache: bool = False  # decode images of files once, and keep them on the disk
  min_crop_area: float = 0.08  # least share of an image that a crop for training shows
  flip: bool = True  # mirror half of the images for training


@dataclasses.dataclass(frozen=True)
class DataSet:
  """Holds a data set that has been found and opened.

  Attributes:
    names: a ClassNames; its `source` says in config.json which data a network was trained on.
    image_size: pixels a side of the images in a batch, which are uint8 [batch, image_size, image_size, 3].
    load: function from the name of a subset, and `limit` (take so many images; None: all), to an Images or an
      ImageFiles; UserError if there is no such subset, or fewer images.
    augment: function from images [batch, height, width, channels], an int32 seed [2], and None or the part of a batch
      that they are (its `batch` is the size of the whole, its `take(values)` picks this part's rows), to images of the
      same shape and type, drawn at random by the seed as if the whole batch were there.
    prepare: function from raw images to the float32 images that a network reads.
    read: function from the path of an image file to a raw image, uint8 [image_size, image_size, 3]; UserError if it
      is damaged. None if the images come from no such files.
    notes: sentences about the data that a user should see before the first step.
  """

  names: ClassNames
  image_size: int
  load: Callable[..., Any]
  augment: Callable[..., Any]
  prepare: Callable[..., Any]
  read: Callable[[str], Any] | None = None
  notes: tuple[str, ...] = ()


def find(datasets, name):
  """Returns the module of a checkpoint's data set, of a dict by name; UserError if it is none of them."""
  if name not in datasets:
    raise UserError(
      f"the checkpoint was trained on '{name}', which this version does not have: it has {', '.join(datasets)}"
    )
  return datasets[name]


def of_run(settings, dataset, data_dir):
  """Returns (name, folder or None) of the data that flags name, else of those that a run was trained on.

  CIFAR-100 is the same in every folder, so a run's that is gone is none; one of other data is named all the same.

  Args:
    settings: the run's, a dict, maybe empty; dataset, data_dir: the flags, or None.
  """
  was = settings.get('dataset', 'cifar100')
  if data_dir is None and dataset in (None, was):
    data_dir = settings.get('data_dir')
    if was == 'cifar100' and not os.path.isdir(data_dir or ''):
      data_dir = None
  return dataset or was, data_dir
