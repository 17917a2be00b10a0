"""Defines the LeNet of NIID-Bench (Li et al. 2022), as Flower reproduces it.

    conv 5 x 5 x 6 - ReLU - max pool 2 - conv 5 x 5 x 16 - ReLU - max pool 2
    - dense 120 - ReLU - dense 84 - ReLU - dense 10

Convolutions have no padding. It has 44,426 parameters on MNIST and 62,006 on
CIFAR-10. Weights and biases are uniform in +-1/sqrt(fan_in), as in PyTorch, and
pixels are in [0, 1].

Shape letters: B examples; H, W, C height, width and channels of an image.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

import fedavg_jax as fa

PADDING = 4  # Pixels on each side of a CIFAR image before the random crop.


def lenet(dataset: fa.Dataset, *, augment: bool = False) -> fa.Model:
  """Builds the model for the images of a data set.

  Args:
    dataset: the data set, of images [n, H, W, C].
    augment: whether to train on random crops, mirrored at random.
  """
  height, width, channels = dataset.input_shape
  flat = 16 * _after(height) * _after(width)
  shapes = {
    'conv_1': (5, 5, channels, 6),
    'conv_2': (5, 5, 6, 16),
    'dense_1': (flat, 120),
    'dense_2': (120, 84),
    'dense_3': (84, dataset.num_classes),
  }
  scale = 1 / dataset.max_value

  def init(key):
    keys = jax.random.split(key, len(shapes))
    return {
      name: uniform_layer(key, shape)
      for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

  def apply(params, x):  # [B, H, W, C] -> [B, classes]
    x = x.astype(jnp.float32) * scale
    for name in ('conv_1', 'conv_2'):
      x = fa.layers.conv2d(x, params[name]['kernel'], padding=0)
      # Pooling first is the same function, with a quarter of the additions.
      x = fa.layers.max_pool2(x) + params[name]['bias'][None, None, None]
      x = jax.nn.relu(x)
    x = x.reshape(len(x), -1)
    for name in ('dense_1', 'dense_2'):
      x = jax.nn.relu(_dense(params[name], x))
    return _dense(params['dense_3'], x)

  return fa.Model('lenet', init, apply, augment=crop if augment else None)


def uniform_layer(key: jax.Array, shape: tuple[int, ...]) -> dict:
  """Draws kernel and bias of a layer, as PyTorch initialises them.

  Args:
    key: a random key.
    shape: the shape of the kernel; all axes but the last are the fan-in.
  """
  bound = math.prod(shape[:-1]) ** -0.5
  kernel_key, bias_key = jax.random.split(key)
  return {
    'kernel': jax.random.uniform(
      kernel_key, shape, minval=-bound, maxval=bound
    ),
    'bias': jax.random.uniform(
      bias_key, shape[-1:], minval=-bound, maxval=bound
    ),
  }


def crop(key: jax.Array, x: jax.Array) -> jax.Array:
  """Crops and mirrors ONE image at random, [H, W, C] -> [H, W, C].

  The image is first extended by 4 pixels on each side, by reflection.
  """
  top_key, left_key, mirror_key = jax.random.split(key, 3)
  sides = (PADDING, PADDING)
  padded = jnp.pad(x, (sides, sides, (0, 0)), mode='reflect')
  top = jax.random.randint(top_key, (), 0, 2 * PADDING + 1)
  left = jax.random.randint(left_key, (), 0, 2 * PADDING + 1)
  x = lax.dynamic_slice(padded, (top, left, 0), x.shape)
  return jnp.where(jax.random.bernoulli(mirror_key), x[:, ::-1], x)


def _dense(params, x):
  return fa.layers.matmul(x, params['kernel']) + params['bias'][None]


def _after(side: int) -> int:
  """Returns the side of an image after both convolutions and poolings."""
  return ((side - 4) // 2 - 4) // 2
