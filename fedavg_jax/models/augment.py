"""What training does to an image whenever it is read, written for ONE image.

The input pipeline of TensorFlow's CIFAR-10 tutorial, which the paper uses too:
a random crop of 24 x 24, a random mirror image, brightness, contrast. It runs
on the device, inside the round, which keys it by client and epoch.
"""

import jax
from jax import lax
import jax.numpy as jnp

CROP = 24
_BRIGHTNESS = 63.0  # At most, of 255, added or taken away.
_CONTRAST = (0.2, 1.8)


def tutorial(key: jax.Array, x: jax.Array) -> jax.Array:
  """[H, W, C] pixels from 0 to 255 -> [24, 24, C] float32, not clipped."""
  top_key, left_key, mirror_key, light_key, contrast_key = jax.random.split(
    key, 5
  )
  height, width, channels = x.shape
  top = jax.random.randint(top_key, (), 0, height - CROP + 1)
  left = jax.random.randint(left_key, (), 0, width - CROP + 1)
  x = lax.dynamic_slice(x, (top, left, 0), (CROP, CROP, channels))
  x = x.astype(jnp.float32)
  x = jnp.where(jax.random.bernoulli(mirror_key), x[:, ::-1], x)
  x = x + jax.random.uniform(light_key, minval=-_BRIGHTNESS, maxval=_BRIGHTNESS)
  low, high = _CONTRAST
  factor = jax.random.uniform(contrast_key, minval=low, maxval=high)
  mean = jnp.mean(x, axis=(0, 1), keepdims=True)  # Of each channel.
  return (x - mean) * factor + mean


def central_crop(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, 24, 24, C]; what is 24 x 24 stays as it is."""
  top, left = (x.shape[1] - CROP) // 2, (x.shape[2] - CROP) // 2
  return x[:, top : top + CROP, left : left + CROP]


def standardize(x: jax.Array) -> jax.Array:
  """Every image [B, H, W, C] to mean 0 and standard deviation 1.

  The deviation counts as at least 1 / sqrt(H W C): an image of one colour stays
  finite.
  """
  numbers = x[0].size
  mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
  deviation = jnp.std(x, axis=(1, 2, 3), keepdims=True)
  return (x - mean) / jnp.maximum(deviation, numbers**-0.5)
