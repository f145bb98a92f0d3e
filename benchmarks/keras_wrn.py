"""Builds a wide residual network in plain Keras, for speed.py.

The measure of what this project's own loop and layers are worth: with Keras's layers, trained by `model.fit`.
"""

import tensorflow as tf

from splitnet.network.graph import Layer

keras = tf.keras


def build(config, precision='float32', l2_weight=0.0005):
  """Builds the model, whitened images [batch, 32, 32, 3] to logits, not compiled."""
  policy = 'mixed_bfloat16' if precision == 'bfloat16' else 'float32'
  decay = keras.regularizers.L2(l2_weight / 2)

  def conv(x, channels, kernel_size, stride=1):
    std = (1.0 / (kernel_size**2 * x.shape[-1])) ** 0.5
    return keras.layers.Conv2D(
      channels, kernel_size, stride, padding='same', use_bias=False, kernel_regularizer=decay, dtype=policy,
      kernel_initializer=keras.initializers.RandomNormal(stddev=std),
    )(x)  # fmt: skip

  def activate(x, scale=not config.bn_no_scale):
    x = keras.layers.BatchNormalization(momentum=Layer.decay, epsilon=Layer.epsilon, scale=scale, dtype=policy)(x)
    return keras.layers.ReLU(dtype=policy)(x)

  images = keras.Input([32, 32, 3])
  x = conv(images, 16, 3)
  for stage, channels in enumerate((16 * config.k, 32 * config.k, 64 * config.k)):
    for unit in range(config.num_residual_units):
      stride = 2 if stage and not unit else 1
      a = activate(x)
      shortcut = x if unit else a
      if x.shape[-1] != channels:
        shortcut = conv(a, channels, 1, stride)
      a = activate(conv(a, channels, 3, stride))
      x = keras.layers.Add(dtype=policy)([shortcut, conv(a, channels, 3)])
  x = keras.layers.GlobalAveragePooling2D(dtype='float32')(activate(x, scale=True))
  std = (1.0 / x.shape[-1]) ** 0.5
  logits = keras.layers.Dense(
    config.num_classes, kernel_regularizer=decay, dtype='float32',
    kernel_initializer=keras.initializers.RandomNormal(stddev=std),
  )(x)  # fmt: skip
  return keras.Model(images, logits)


def compile_model(model, initial_lr=0.1, momentum=0.9):
  """Compiles a model to be trained as the baseline is."""
  model.compile(
    optimizer=keras.optimizers.SGD(initial_lr, momentum),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=['accuracy'],
  )
  return model
