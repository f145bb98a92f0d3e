"""Converts models for LiteRT (TensorFlow Lite), in 8-bit integers, and for ONNX, in float32.

For LiteRT, what is computed in integers is scaled by the values that a sample of images has there. What has no integer
kernel, such as whitening, stays float32, as do what a model reads and answers. The converter for ONNX, tf2onnx, is no
requirement of this project.
"""

import tempfile

from splitnet.common.quiet import without_notices

import tensorflow as tf

from splitnet.common.errors import UserError

SAMPLE = 200  # images of the training subset


def to_litert(models, images):
  """Converts export.Models: dict from name to a function that writes the file of a path.

  Args:
    models: list of export.Model.
    images: uint8 [SAMPLE, size, size, 3], from which the ranges of values are taken.
  """
  features, files = {}, {}
  for model in models:
    source = model.reads.get('features')
    given = tf.cast(tf.constant(images) if source is None else features[source['output']], tf.float32)
    if model.class_ids is None:
      features = model.function(tf.constant(images))
    with tempfile.TemporaryDirectory() as folder:
      tf.saved_model.save(tf.Module(), folder, signatures=_numeric(model).get_concrete_function())
      converter = tf.lite.TFLiteConverter.from_saved_model(folder)
      converter.optimizations = [tf.lite.Optimize.DEFAULT]
      converter.representative_dataset = lambda given=given: ([one[None]] for one in given)
      with without_notices():
        files[model.name] = _writer(converter.convert())
  return files


def to_onnx(models):
  """Converts export.Models, as `to_litert` does; UserError if tf2onnx is missing."""
  try:
    import tf2onnx
  except ImportError as e:
    raise UserError(f"--format onnx needs tf2onnx ({e}): run 'pip install tf2onnx onnx onnxruntime'") from e
  files = {}
  for model in models:
    function = _numeric(model)
    converted, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=17)
    files[model.name] = _writer(converted.SerializeToString())
  return files


def _writer(content):
  def write(path):
    with open(path, 'wb') as f:
      f.write(content)

  return write


def _numeric(model):
  """Returns a model's tf.function of float32 whose answers are numbers to compare: logits, or features."""
  ((spec,), _) = model.function.get_concrete_function().structured_input_signature

  @tf.function(input_signature=[tf.TensorSpec(spec.shape, tf.float32, name='given')])
  def function(given):
    outputs = model.function.python_function(given)
    return {'logits': outputs['logits']} if 'logits' in outputs else outputs

  return function
