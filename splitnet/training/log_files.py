"""Names the files of what a run reports, reads metrics.jsonl, and takes back later steps.

metrics.jsonl is what programs read: one JSON object per line, each with 'step' and 'kind'. A run that is resumed from a
checkpoint takes back what was reported of later steps, so that no step stands anywhere twice.

  kind 'train'   total, cross_entropy, l2, accuracy (means since the last line), learning_rate, images_per_second, and
                 if the stage has them distillation, overlap, weight_split, uniform, confidence (by assignment name),
                 group_sizes (lists by assignment name)
  kind 'val'     accuracy, cross_entropy, best
  kind 'groups'  hardened_parameters, parameters, hardened_flops, flops, dropped (see hardening.Dropped); or error
"""

import contextlib
import itertools
import json
import os
import re
import struct
from typing import Annotated, Literal

import tensorflow as tf
from pydantic import Field

from splitnet.common import schema
from splitnet.common.errors import UserError
from splitnet.common.files import whole_file

METRICS = 'metrics.jsonl'
TEXT = 'train.log'
SUMMARIES = 'summaries'


@schema.record
class Step(schema.TypedDict):
  """What every line of metrics.jsonl holds."""

  step: schema.Count
  kind: Literal['val', 'groups']


@schema.record
class TrainingStep(schema.TypedDict):
  """Of a line of kind 'train' what others read."""

  step: schema.Count
  kind: Literal['train']
  total: float
  cross_entropy: schema.NotRequired[float]
  accuracy: schema.Share
  images_per_second: Annotated[float, Field(ge=0)]
  confidence: schema.NotRequired[dict[schema.Text, schema.Share]]


Metrics = Annotated[Step | TrainingStep, Field(discriminator='kind')]


def read_metrics(folder, kind=None):
  """Yields the objects in the metrics.jsonl of a run's folder, in order, if any.

  They are of one kind, or all. Raises UserError if a line is damaged, other than the last of a run that was killed
  while it wrote.
  """
  path = os.path.join(folder, METRICS)
  try:
    with contextlib.suppress(FileNotFoundError), schema.open_file(path) as f:
      for number in itertools.count(1):  # noqa: B007 - the sentence below has it
        line = f.readline(schema.MAX_BYTES)
        if not line.endswith(b'\n'):
          return
        metrics = schema.parse_json(line, Metrics)
        if kind in (None, metrics['kind']):
          yield metrics
  except OSError as e:
    raise UserError(f"'{path}' cannot be read ({e.strerror}): remove it") from e
  except ValueError as e:
    raise UserError(f"line {number} of '{path}' is damaged ({e}): remove it") from e


def _rewrite(path, kept):
  """Writes what is kept of a file, bytes, unless that is all of it."""
  if os.path.getsize(path) != len(kept):
    with whole_file(path, 'wb') as f:
      f.write(kept)


def _line_steps(lines):
  """Yields the step of each line of train.log; those of a line that begins with a blank is the line's before it."""
  step = -1
  for line in lines:
    if not line.startswith(b' '):
      match = re.match(rb'step (\d+): ', line)
      step = int(match.group(1)) if match else -1
    yield step


def _events(content):
  """Yields (bytes, step) of each whole event in the content of a TensorBoard file; step -1: of none.

  Each has 8 bytes of length, 4 of checksum, the event, and 4 of checksum.
  """
  start = 0
  while start + 12 <= len(content):
    (length,) = struct.unpack_from('<Q', content, start)
    end = start + length + 16
    if end > len(content):
      return
    event = tf.compat.v1.Event.FromString(content[start + 12 : end - 4])
    yield content[start:end], event.step if event.HasField('summary') else -1
    start = end


def cut_back(folder, step):
  """Removes what a run has reported of steps after the one that it is resumed at.

  Args:
    folder: the run's; step: int; -1 if it starts anew.

  Raises:
    UserError: if a file is damaged.
  """
  path = os.path.join(folder, TEXT)
  if os.path.exists(path):
    with open(path, 'rb') as f:
      lines = f.read().splitlines(keepends=True)
    lines = [line for line, of in zip(lines, _line_steps(lines)) if of <= step and line.endswith(b'\n')]
    lines = lines if step >= 0 else []  # not even what was said of a run's start
    _rewrite(path, b''.join(lines))
  path = os.path.join(folder, METRICS)
  if os.path.exists(path):
    kept = [metrics for metrics in read_metrics(folder) if metrics['step'] <= step]
    _rewrite(path, b''.join(json.dumps(metrics).encode() + b'\n' for metrics in kept))
  summaries = os.path.join(folder, SUMMARIES)
  for name in os.listdir(summaries) if os.path.isdir(summaries) else ():
    path = os.path.join(summaries, name)
    if '.tfevents.' in name and os.path.isfile(path):
      with open(path, 'rb') as f:
        content = f.read()
      try:
        _rewrite(path, b''.join(event for event, of in _events(content) if of <= step))
      except ValueError as e:
        raise UserError(f"'{path}' is damaged ({e}): remove it") from e
