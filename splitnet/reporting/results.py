"""What eval.py writes, and as what other programs read it."""

import os

from splitnet.common import schema
from splitnet.common.files import is_stream, write_json
from splitnet.reporting import plots


@schema.record
class Accuracy(schema.TypedDict):
  """The least that a result holds."""

  accuracy: schema.Share


@schema.record
class Size(Accuracy):
  """A network's accuracy and size, and its groups if it has any."""

  parameters: schema.Positive
  flops: schema.Positive
  groups: schema.NotRequired[list[list[schema.Text]]]
  agreement: schema.NotRequired[schema.Share | None]


@schema.record
class Result(Size):
  """What stands beside another result; without superclasses there is none of a class."""

  top5_accuracy: schema.Share
  images: schema.Positive
  split: schema.Text
  superclass_of_class: schema.NotRequired[dict[schema.Text, schema.Text] | None]
  confusion_picture: schema.NotRequired[schema.Text]
  samples_picture: schema.NotRequired[schema.Text]


def by_superclass(members, superclass_of):
  """Returns the superclasses of some classes, in order.

  A list of (superclass, those of its classes that are among them, how many it has in all).
  """
  inside = {}
  for name in members:
    inside.setdefault(superclass_of[name], []).append(name)
  every = list(superclass_of.values())
  return [(superclass, inside[superclass], every.count(superclass)) for superclass in sorted(inside)]


def write(path, result, names, groups, samples):
  """Writes a result as JSON and, beside it, two pictures; returns their paths.

  A device or a pipe has nothing beside it.

  Args:
    result: dict; the paths of the pictures are added to it: the confusion matrix, and some images with the answers.
    names, groups: the ClassNames, and the hard groups of the classes or None.
    samples: (pixels, class probabilities, labels) of the images.
  """
  if is_stream(path):
    write_json(path, result)
    return [path]
  confusion, sheet = (f'{os.path.splitext(path)[0]}-{kind}.png' for kind in ('confusion', 'samples'))
  result.update(confusion_picture=confusion, samples_picture=sheet)
  write_json(path, result)
  title = f'{result["network_text"]}, {result["split"]}: top-1 accuracy {100 * result["accuracy"]:.2f} %'
  superclasses = names.coarse and (names.coarse, names.fine_to_coarse)
  plots.draw_confusion(result['confusion'], names.fine, superclasses, groups, title, confusion)
  plots.save_pixels(plots.answer_sheet(*samples, names.fine), sheet)
  return [path, confusion, sheet]
