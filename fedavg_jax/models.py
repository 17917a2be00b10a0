"""The paper's models, behind `init(key)` and `apply(params, x)`.

The only importer of flax: everything else sees a dict of arrays. A model takes
raw pixels and scales them itself, inside the compiled step. It is written for
one client; `vmap` gives every client its own weights.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from fedavg_jax import layers
from fedavg_jax.augment import Augment
from fedavg_jax.datasets import Dataset
from fedavg_jax.errors import InputError

Params = Any


class Model(NamedTuple):
  """A model for one kind of example.

  Attributes:
    name: one of `NAMES`.
    init: key -> params.
    apply: (params, x [B, ...] raw pixels) -> logits [B, classes].
    augment: (key, x of one example) -> x as training sees it; None changes
      nothing.
  """

  name: str
  init: Callable[[jax.Array], Params]
  apply: Callable[[Params, jax.Array], jax.Array]
  augment: Augment | None = None


class Dense(nn.Module):
  """Affine map, [B, I] -> [B, features]."""

  features: int
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', self.bias_init, (self.features,))
    return layers.matmul(x, kernel) + bias[None]


class TwoHiddenLayers(nn.Module):
  """The paper's 2NN: two hidden layers of 200, ReLU; 199,210 on MNIST."""

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    for _ in range(2):
      x = nn.relu(Dense(200)(x))
    return Dense(self.num_classes)(x)


class ConvPoolRelu(nn.Module):
  """Convolution, 2 x 2 maximum, bias, ReLU.

  The same function as convolution, bias, ReLU, maximum: adding a constant and
  ReLU keep the order of numbers. It touches a quarter of the data.
  """

  features: int
  conv_padding: int
  pool_padding: int
  method: str
  kernel_init: nn.initializers.Initializer
  bias_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x):
    shape = (5, 5, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', self.bias_init, (self.features,))
    x = layers.conv2d(x, kernel, padding=self.conv_padding, method=self.method)
    x = layers.max_pool2(x, padding=self.pool_padding)
    return nn.relu(x + bias[None, None, None])


class ConvNet(nn.Module):
  """The paper's MNIST CNN: two 5 x 5 convolutions, dense 512; 1,663,370.

  `torch_like` is the geometry and the initial weights of Flower's baseline:
  both paddings are 1 and weights and biases are uniform in +-1/sqrt(fan_in).
  """

  num_classes: int
  method: str
  torch_like: bool = False

  @nn.compact
  def __call__(self, x):
    for features in (32, 64):
      kernel_init, bias_init = self._initializers(fan_in=25 * x.shape[-1])
      x = ConvPoolRelu(
        features,
        conv_padding=1 if self.torch_like else 2,
        pool_padding=1 if self.torch_like else 0,
        method=self.method,
        kernel_init=kernel_init,
        bias_init=bias_init,
      )(x)
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(self._dense(512, fan_in=x.shape[-1])(x))
    return self._dense(self.num_classes, fan_in=512)(x)

  def _dense(self, features, fan_in):
    kernel_init, bias_init = self._initializers(fan_in)
    return Dense(features, kernel_init=kernel_init, bias_init=bias_init)

  def _initializers(self, fan_in):
    if not self.torch_like:
      return nn.initializers.lecun_normal(), nn.initializers.zeros
    bound = fan_in**-0.5

    def uniform(key, shape, dtype=jnp.float32):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform, uniform


_MODULES = {
  '2nn': lambda num_classes, method: TwoHiddenLayers(num_classes),
  'cnn': ConvNet,
  'cnn_torch': functools.partial(ConvNet, torch_like=True),
}
NAMES = tuple(_MODULES)
PIXELS = ('unit', 'standard')
PRECISIONS = ('float32', 'bfloat16')


def build_model(
  name: str,
  data: Dataset,
  *,
  pixels: str = 'unit',
  convolution: str = 'auto',
  precision: str = 'float32',
) -> Model:
  """Builds one of `NAMES` for the images of a data set.

  Args:
    name: '2nn', 'cnn', or 'cnn_torch' (the CNN of Flower's baseline).
    data: gives the shape of an image, its largest value, the classes.
    pixels: 'unit' scales them to [0, 1], 'standard' then to mean 0 and
      standard deviation 1 over all pixels of the training set.
    convolution: a method of `layers.conv2d`.
    precision: 'bfloat16' computes logits and gradients in that; parameters,
      their updates and losses stay float32.

  Returns:
    A `Model`; params are a dict of dicts of float32 arrays.

  Raises:
    InputError: for another name, scale or precision.
  """
  if name not in _MODULES:
    raise InputError(f'model = {name!r}: must be one of {", ".join(NAMES)}')
  if pixels not in PIXELS:
    raise InputError(f'pixels = {pixels!r}: must be one of {", ".join(PIXELS)}')
  if precision not in PRECISIONS:
    raise InputError(
      f'precision = {precision!r}: must be one of {", ".join(PRECISIONS)}'
    )
  module = _MODULES[name](data.num_classes, convolution)
  mean, std = (0.0, 1.0) if pixels == 'unit' else data.pixel_statistics()

  def apply(params, x) -> Any:
    x = (x.astype(jnp.float32) / data.max_value - mean) / std
    # The cast's gradient brings the parameters' gradient back to float32.
    params, x = jax.tree.map(lambda a: a.astype(precision), (params, x))
    logits: Any = module.apply({'params': params}, x)
    return logits.astype(jnp.float32)

  def init(key):
    example = jnp.zeros((1, *data.input_shape), jnp.float32)
    return module.init(key, example)['params']

  return Model(name, init, apply)


def num_parameters(params: Params) -> int:
  """How many numbers a model has."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
