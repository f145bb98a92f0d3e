"""What eval.py writes, as other programs read it."""

from splitnet.common import schema


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
