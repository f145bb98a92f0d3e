"""Drops values at little cost beside the convolutions that they go to.

A mask needs one random bit per value if half are kept, not a random float32; relu and mask share one gradient; and the
factor that inverted dropout multiplies by goes into the batch normalisation below the relu, which has one anyway.
"""

import numpy as np
import tensorflow as tf

# The eight zeros and ones that a byte stands for: looking them up is faster than comparing and casting each.
BITS = np.arange(256)[:, None] >> np.arange(8) & 1


class Dropout:
  """Makes inverted dropout; masks depend on the call's seed and the masks before.

  The probability is kept exactly if it is a whole number of 256ths, such as 0.5, else to 1 / 131072. `active` says
  whether anything is dropped, `factor` what the values that are kept are multiplied by, 1 / keep_prob.
  """

  def __init__(self, seed, keep_prob, share=None):
    """Takes an int32 seed [2] (None if all is kept) and the Share to drop from."""
    self.active = keep_prob < 1.0
    self._seed, self._share, self._drawn = seed, share, 0
    self._type = tf.uint8 if (256.0 * keep_prob).is_integer() else tf.uint16
    possible = 2 ** (8 * self._type.size)
    self._kept = min(possible - 1, max(1, round(possible * keep_prob)))
    self.factor = possible / self._kept if self.active else 1.0

  def __call__(self, x):
    """Drops values of x and multiplies the others by the factor."""
    return x * (self._mask(x) * self.factor) if self.active else x

  def relu(self, x):
    """Drops values of relu(x); whoever computes x multiplies it by the factor."""
    if not self.active:
      return tf.nn.relu(x)

    @tf.custom_gradient
    def masked(x, mask):
      y = tf.nn.relu(x) * mask
      # y is above zero where x is and the mask kept it: all that the gradient needs to know, and all that is stored.
      return y, lambda upstream: (tf.raw_ops.ReluGrad(gradients=upstream, features=y), None)

    return masked(x, self._mask(x))

  def _mask(self, x):
    """Returns a new mask of zeros and ones, of x's shape and type."""
    self._drawn += 1
    if self._kept == 2 ** (8 * self._type.size - 1):
      return self._of_bits(x)
    channels, parts = x.shape[-1], 4 // self._type.size
    words = -(-channels // parts)
    shape = tf.shape(x)[:-1]
    bits = tf.reshape(
      tf.bitcast(self._words(x, tf.concat([shape[1:], [words]], 0)), self._type),
      tf.concat([shape, [words * parts]], 0),
    )
    if words * parts != channels:
      bits = bits[..., :channels]
    return tf.cast(bits < tf.constant(self._kept, self._type), x.dtype)

  def _of_bits(self, x):
    """Returns a mask that keeps half, a random bit each."""
    shape = tf.shape(x)
    values = tf.reduce_prod(shape[1:])
    words = -(-values // 32)
    random = tf.cast(tf.bitcast(self._words(x, [words]), tf.uint8), tf.int32)
    mask = tf.reshape(tf.gather(tf.constant(BITS, x.dtype), random), [shape[0], 32 * words])
    return tf.reshape(mask[:, :values], shape)

  def _words(self, x, shape):
    """Returns new random words for each image of x: uint32 [images, *shape]."""
    seed = tf.stack([self._seed[0] + self._drawn * 1000003, self._seed[1]])
    images = self._share.batch if self._share else tf.shape(x)[0]
    words = tf.random.stateless_uniform(tf.concat([[images], shape], 0), seed, None, None, tf.uint32)
    return self._share.take(words) if self._share else words
