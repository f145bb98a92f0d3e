"""Small Keras models for the tests."""

import keras
import numpy as np
from keras import layers

SIZE, CLASSES = 16, 6


def scrambled(model, seed=0):
  """Gives a model weights whose every channel differs, so that a swapped one shows; returns it."""
  rng = np.random.default_rng(seed)
  for layer in model._flatten_layers(include_self=False):
    weights = {v.name: v for v in layer.variables}
    for name, variable in weights.items():
      if name in ('bias', 'beta', 'moving_mean'):
        variable.assign(rng.normal(0, 0.3, variable.shape))
      elif name in ('gamma', 'moving_variance'):
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
  return model


def images(size=SIZE, count=5, seed=1):
  return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def residual():
  """Every kind of layer that a residual network has, functions among them."""
  given = keras.Input([SIZE, SIZE, 3])
  x = layers.RandomFlip('horizontal')(given)
  x = layers.Rescaling(1 / 127.5, -1)(x)
  x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1, 2, 3], name='norm')(x)
  x = layers.ZeroPadding2D(3)(x)
  x = layers.Conv2D(12, 7, 2, name='stem')(x)
  x = layers.BatchNormalization(epsilon=1e-3, momentum=0.99)(x)
  x = layers.ReLU()(x)
  x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
  x = layers.MaxPooling2D(3, 2, name='pool')(x)
  for stage, channels in enumerate((12, 20)):
    y = layers.Conv2D(channels, 1, padding='same', use_bias=False, name=f'a{stage}')(x)
    y = layers.BatchNormalization(scale=False)(y)
    y = layers.Activation('relu')(y)
    y = layers.Conv2D(channels, 3, padding='same', name=f'b{stage}')(y)
    y = layers.BatchNormalization(center=False)(y)
    if x.shape[-1] != channels:
      x = layers.Conv2D(channels, 1, name=f'shortcut{stage}')(x)
    x = layers.Add(name=f'sum{stage}')([x, y])
    y = keras.ops.relu(layers.Conv2D(channels, 3, padding='same', name=f'c{stage}')(x))
    x = layers.Activation('relu', name=f'end{stage}')(x + y)
  x = layers.GlobalAveragePooling2D()(x)
  x = layers.Dropout(0.5)(x)
  return keras.Model(given, layers.Dense(CLASSES, activation='softmax', name='classes')(x), name='residual')


def flattened():
  """Flattened maps, dense layers and another model inside."""
  inner = keras.Sequential(
    [
      keras.Input([8, 8, 8]),
      layers.Conv2D(16, 3, padding='same', activation='relu', name='conv'),
      layers.AveragePooling2D(2),
      layers.Conv2D(18, 3, activation='gelu', name='last'),
    ],
    name='inner',
  )
  return keras.Sequential(
    [
      keras.Input([SIZE, SIZE, 3]),
      layers.Rescaling(1 / 255),
      layers.Conv2D(8, 3, strides=2, padding='same', activation='relu', name='conv'),
      layers.Dropout(0.2),
      inner,
      layers.Flatten(),
      layers.Dense(30, activation='relu', name='hidden'),
      layers.Dropout(0.5),
      layers.Dense(CLASSES, name='classes'),
    ],
    name='flattened',
  )


def mobile():
  """Depthwise and separable convolutions, bounded rectifiers, a convolution as the last layer."""
  given = keras.Input([SIZE, SIZE, 3])
  x = layers.Conv2D(8, 3, 2, padding='same', use_bias=False, name='stem')(given / 255.0)
  for i, (channels, stride) in enumerate(((12, 1), (16, 2), (20, 1))):
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    if stride == 2:
      x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.DepthwiseConv2D(3, stride, 'valid' if stride == 2 else 'same', use_bias=i == 1, name=f'dw{i}')(x)
    x = layers.LeakyReLU(0.1)(layers.BatchNormalization()(x))
    x = layers.Conv2D(channels, 1, use_bias=False, name=f'pw{i}')(x)
  x = layers.SeparableConv2D(18, 3, padding='same', activation='silu', name='separable')(x)
  x = layers.GlobalMaxPooling2D(keepdims=True)(x)
  x = layers.Conv2D(CLASSES, 1, name='classes')(layers.Dropout(0.1)(x))
  return keras.Model(given, layers.Softmax()(layers.Reshape([CLASSES])(x)), name='mobile')


def direct():
  """A map that the classes read whole; pixels as they are, and no layer that says so."""
  return keras.Sequential(
    [
      keras.Input([SIZE, SIZE, 3]),
      layers.BatchNormalization(),
      *(layers.Conv2D(8 + 4 * i, 3, 2, padding='same', activation='elu', name=f'conv{i}') for i in range(3)),
      layers.Flatten(),
      layers.Dense(CLASSES, use_bias=False, name='classes'),
    ],
    name='direct',
  )


MODELS = {'residual': residual, 'flattened': flattened, 'mobile': mobile, 'direct': direct}


def logits_of(model, given):
  """Returns a model's logits without its softmax, up to a constant for each image."""
  y = np.asarray(model.predict_on_batch(given), np.float64)
  return np.log(y) if np.allclose(y.sum(1), 1, atol=1e-4) and (y >= 0).all() else y
