"""Converts models for LiteRT (TensorFlow Lite), with weights and sums in 8-bit integers.

What is computed in integers is scaled by the values that a sample of images has there. What has no integer kernel, such
as whitening, stays float32, as do what a model reads and answers.
"""

import tensorflow as tf

SAMPLE = 200  # images of the training subset


def convert(models, images):
  """Converts export.Models: dict from name to a function that writes the file of a path.

  Args:
    models: list of export.Model.
    images: uint8 [SAMPLE, size, size, 3], from which the ranges of values are taken.
  """
  features, files = {}, {}
  for model in models:
    source = model.reads.get('features')
    given = tf.constant(images) if source is None else features[source['output']]
    answers = model.function(given)
    if model.class_ids is None:
      features = answers
    files[model.name] = _writer(_converted(model, given, answers))
  return files


def _writer(content):
  def write(path):
    with open(path, 'wb') as f:
      f.write(content)

  return write


def _converted(model, given, answers):
  """Returns a model's file, as bytes; its outputs are those that are numbers to compare: logits, or features."""
  names = ['logits'] if 'logits' in answers else list(answers)

  @tf.function(input_signature=[tf.TensorSpec(given.shape[:0] + [None] + given.shape[1:], tf.float32, name='given')])
  def function(x):
    outputs = model.function.python_function(x)
    return {name: outputs[name] for name in names}

  converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
  converter.optimizations = [tf.lite.Optimize.DEFAULT]
  converter.representative_dataset = lambda: ([image[None]] for image in tf.cast(given, tf.float32))
  return converter.convert()
