"""Augments images for training as TensorFlow's CIFAR-10 tutorial does.

McMahan et al. 2017 use the same input pipeline: a random crop of 24 x 24, a
random horizontal flip, brightness and contrast. It runs on the device, inside
the round, with new random numbers whenever an image is read.
"""

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.models import layers

CROP = 24
_BRIGHTNESS = 63.0  # The largest change of a pixel, of 255.
_CONTRAST = (0.2, 1.8)


def tutorial(key: jax.Array, x: jax.Array) -> jax.Array:
  """Augments ONE image at random.

  Args:
    key: the random key of the image.
    x: [H, W, C] pixels in [0, 255], H and W at least 24.

  Returns:
    [24, 24, C] float32, not clipped to [0, 255].
  """
  top_key, left_key, mirror_key, light_key, contrast_key = jax.random.split(
    key, 5
  )
  height, width, channels = x.shape
  top = jax.random.randint(top_key, (), 0, height - CROP + 1)
  left = jax.random.randint(left_key, (), 0, width - CROP + 1)
  if layers.traced_platform() == 'tpu' and x.dtype == jnp.uint8:
    x = _pick(x, top, left, jax.random.bernoulli(mirror_key))
  else:
    if layers.traced_platform() == 'cpu':
      x = lax.dynamic_slice(x, (top, left, 0), (CROP, CROP, channels))
    else:  # Under `vmap` a GPU takes the slices of examples one after another.
      x = jnp.asarray(x)[top + jnp.arange(CROP)][:, left + jnp.arange(CROP)]
    x = x.astype(jnp.float32)
    x = jnp.where(jax.random.bernoulli(mirror_key), x[:, ::-1], x)
  x = x + jax.random.uniform(light_key, minval=-_BRIGHTNESS, maxval=_BRIGHTNESS)
  low, high = _CONTRAST
  factor = jax.random.uniform(contrast_key, minval=low, maxval=high)
  mean = jnp.mean(x, axis=(0, 1), keepdims=True)  # One mean per channel.
  return (x - mean) * factor + mean


def _pick(x, top, left, mirrored):
  """Crops and mirrors ONE uint8 image by products with zeros and ones.

  A TPU gathers pixels one row after another, and multiplies them at once. The
  products are exact: bfloat16 holds the whole numbers up to 256.
  """
  height, width, _ = x.shape
  here = jnp.arange(CROP)
  rows = top + here
  columns = left + jnp.where(mirrored, CROP - 1 - here, here)
  of_rows = (rows[:, None] == jnp.arange(height)[None]).astype(jnp.bfloat16)
  of_columns = (columns[:, None] == jnp.arange(width)[None]).astype(
    jnp.bfloat16
  )
  x = jnp.einsum('ih,hwc->iwc', of_rows, x.astype(jnp.bfloat16))
  return jnp.einsum('jw,iwc->ijc', of_columns, x).astype(jnp.float32)


def central_crop(x: jax.Array) -> jax.Array:
  """Crops the centre of images, [B, H, W, C] -> [B, 24, 24, C]."""
  top, left = (x.shape[1] - CROP) // 2, (x.shape[2] - CROP) // 2
  return x[:, top : top + CROP, left : left + CROP]


def standardize(x: jax.Array) -> jax.Array:
  """Scales each image, [B, H, W, C], to mean 0 and standard deviation 1.

  The deviation is at least 1 / sqrt(H W C), so that images of one colour stay
  finite.
  """
  size = x[0].size
  mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
  deviation = jnp.std(x, axis=(1, 2, 3), keepdims=True)
  return (x - mean) / jnp.maximum(deviation, size**-0.5)
