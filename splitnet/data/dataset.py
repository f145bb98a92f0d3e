"""What the programs need of a data set: its names, its subsets, and how an image becomes what a network reads.

A data set is a module with one function, `open_dataset(settings)`, which takes a DataSettings and returns a DataSet.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from splitnet.data.batches import ClassNames


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Which data are read, and how; the names are those of the programs' flags.

  Attributes:
    data_dir: their folder; None: where the data set's own program writes it.
    image_size: pixels a side of the images that the network reads; None: the data set's own.
    skip_damaged: whether images that cannot be decoded are left out; otherwise they are a UserError.
    cache: whether images of files are decoded once and kept on the disk.
    min_crop_area: least share of an image that a crop for training shows.
    flip: whether half of the images for training are mirrored.
  """

  data_dir: str | None = None
  image_size: int | None = None
  skip_damaged: bool = False
  cache: bool = False
  min_crop_area: float = 0.08
  flip: bool = True


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A data set that has been found and opened.

  Attributes:
    names: a ClassNames; its `source` says in config.json which data a network was trained on.
    image_size: pixels a side of the images in a batch, which are uint8 [batch, image_size, image_size, 3].
    load: function from the name of a subset, and `limit` (take so many images; None: all), to an Images or an
      ImageFiles; UserError if there is no such subset, or fewer images.
    augment: function from raw images of a batch, an int32 seed [2], and a replica's share of the batch or None, to
      images of the same shape and type, drawn at random by the seed.
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
