"""Defines the models of McMahan et al. 2017.

Only this module imports flax; other modules get a dict of arrays. A model takes
raw pixels or tokens and scales them inside the compiled step. It is written for
one client; `vmap` gives every client its own weights.

Shape letters: B examples, T time steps, V tokens, I inputs, F features.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from fedavg_jax.contracts.model import Model
from fedavg_jax.core import choices
from fedavg_jax.core import exact
from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.rows_on_disk import RowsOnDisk
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.models import augment
from fedavg_jax.models import layers


class Dense(nn.Module):
  """Applies an affine map, [B, I] -> [B, features]."""

  features: int
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', self.bias_init, (self.features,))
    return layers.matmul(x, kernel) + bias[None].astype(x.dtype)


class MLP(nn.Module):
  """Defines the paper's 2NN, with two hidden layers of 200 units and ReLU.

  It has 199,210 parameters on MNIST.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    for _ in range(2):
      x = nn.relu(Dense(200)(x))
    return Dense(self.num_classes)(x)


class ConvPoolRelu(nn.Module):
  """Applies a 5 x 5 convolution, 2 x 2 max pooling, a bias and ReLU.

  Pooling last would be the same function, because bias and ReLU are monotonic;
  pooling first leaves a quarter of the data for them.
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
    return nn.relu(x + bias[None, None, None].astype(x.dtype))


class MnistCNN(nn.Module):
  """Defines the paper's CNN: two 5 x 5 convolutions and 512 dense units.

  It has 1,663,370 parameters on MNIST. `torch_like` selects the geometry and
  initial weights of Flower's baseline: both paddings are 1, and weights and
  biases are uniform in +-1/sqrt(fan_in).
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


class CifarCNN(nn.Module):
  """Defines the network of TensorFlow's CIFAR-10 tutorial.

  It has 1,068,298 parameters on images of 24 x 24. The paper refers to it and
  reports about a million parameters, but not whether it used the tutorial's
  weight decay and moving average, so this model omits them.
  """

  num_classes: int
  method: str

  @nn.compact
  def __call__(self, x):
    norm = functools.partial(
      layers.local_response_norm, radius=4, bias=1.0, alpha=0.001 / 9, beta=0.75
    )
    # Pool before bias and ReLU: the function is the same, and it is cheaper.
    x = layers.max_pool3(self._conv(x, 1))
    x = nn.relu(self._add_bias(x, 1, 0.0))
    x = nn.relu(self._add_bias(self._conv(norm(x), 2), 2, 0.1))
    x = layers.max_pool3(norm(x))
    x = x.reshape(x.shape[0], -1)
    for features in (384, 192):
      x = nn.relu(_truncated(features, 0.04, 0.1)(x))
    return _truncated(self.num_classes, 1 / 192, 0.0)(x)

  def _conv(self, x, number):
    shape = (5, 5, x.shape[-1], 64)
    init = nn.initializers.truncated_normal(0.05)
    kernel = self.param(f'kernel_{number}', init, shape)
    return layers.conv2d(x, kernel, padding=2, method=self.method)

  def _add_bias(self, x, number, value):
    init = nn.initializers.constant(value)
    bias = self.param(f'bias_{number}', init, (x.shape[-1],))
    return x + bias[None, None, None].astype(x.dtype)


def _truncated(features, deviation, bias):
  return Dense(
    features,
    kernel_init=nn.initializers.truncated_normal(deviation),
    bias_init=nn.initializers.constant(bias),
  )


class Lstm(nn.Module):
  """Applies a peephole LSTM, [B, T, I] -> [B, T, features].

  It has 4 F (I + F + 1) + 3 F parameters.
  """

  features: int

  @nn.compact
  def __call__(self, x, steps):
    gates = 4 * self.features
    weights = nn.initializers.lecun_normal()
    return layers.lstm(
      x,
      self.param('kernel', weights, (x.shape[-1], gates)),
      self.param(
        'recurrent', nn.initializers.orthogonal(), (self.features, gates)
      ),
      self.param('bias', nn.initializers.zeros, (gates,)),
      self.param('peephole', nn.initializers.zeros, (3, self.features)),
      steps,
    )


class LanguageModel(nn.Module):
  """Predicts the token after every token: embedding, LSTMs of 256, dense.

  With 258 tokens, embedding 8 and two layers it has 866,578 parameters, with
  10,000 tokens, 192 and one layer 4,950,544: the numbers of the paper, which
  result only with peepholes and one bias per gate, though the paper does not
  mention these.
  """

  num_tokens: int
  embedding: int
  num_layers: int
  padding: int | None  # The token after the end of a sequence.
  precision: str = 'float32'

  @nn.compact
  def __call__(self, x):
    b, t = x.shape
    table = self.param(
      'embedding',
      nn.initializers.normal(self.embedding**-0.5),
      (self.num_tokens, self.embedding),
    )
    steps = None
    if layers.traced_platform() == 'cpu' and self.padding is None:
      steps = jnp.int32(t)
    elif layers.traced_platform() == 'cpu':
      # Skip the time steps after the end of the longest sequence.
      positions = jnp.arange(1, t + 1, dtype=jnp.int32)
      steps = layers.longest(jnp.where(x != self.padding, positions[None], 0))
    x = table[x].astype(self.precision)
    for _ in range(self.num_layers):
      x = Lstm(256)(x, steps)
    logits = Dense(self.num_tokens)(x.reshape(b * t, -1))
    return logits.reshape(b, t, -1)


_IMAGES = {
  '2nn': lambda num_classes, method: MLP(num_classes),
  'cnn': MnistCNN,
  'cnn_torch': functools.partial(MnistCNN, torch_like=True),
  'cifar_cnn': CifarCNN,
}
# The name of each model's last layer.
HEADS = {
  **{'2nn': 'Dense_2', 'cnn': 'Dense_1', 'cnn_torch': 'Dense_1'},
  **{'cifar_cnn': 'Dense_2', 'char_lstm': 'Dense_0', 'word_lstm': 'Dense_0'},
}
_SEQUENCES = {
  'char_lstm': functools.partial(LanguageModel, embedding=8, num_layers=2),
  'word_lstm': functools.partial(LanguageModel, embedding=192, num_layers=1),
}


def build_model(
  name: str,
  data: Dataset,
  *,
  pixels: str = 'unit',
  augmentation: str = 'none',
  convolution: str = 'auto',
  precision: str = 'float32',
) -> Model:
  """Builds one of `choices.MODELS` for a data set.

  Args:
    name: the architecture: '2nn', 'cnn', 'cnn_torch' (the CNN of Flower's
      baseline) or 'cifar_cnn' for images, 'char_lstm' or 'word_lstm' for
      sequences. All but 'cnn_torch' are from McMahan et al. 2017.
    data: the data set, for the shape and the largest value of images and the
      number of classes, or for the number of tokens and the padding token.
    pixels: the scale of pixels. 'unit' scales them to [0, 1], 'standard' to
      mean 0 and standard deviation 1 over the training set, and 'image' to mean
      0 and standard deviation 1 in each image.
    augmentation: the augmentation in training, 'none' or 'tutorial'; the latter
      trains on the random crops of `augment.tutorial`, of 24 x 24, and tests
      on central crops.
    convolution: the method of `layers.conv2d`.
    precision: the dtype of logits and gradients: 'bfloat16', or float32 for the
      other words of `choices.PRECISIONS`, whose products `Execution.precision`
      chooses; parameters, their updates and losses are always float32.

  Returns:
    A `Model`; params are a dict of dicts of float32 arrays.

  Raises:
    InputError: an option is not one of its words, or the model does not support
      the data.

  >>> import jax
  >>> import fedavg_jax as fa
  >>> data = fa.load_dataset('digits')
  >>> model = fa.build_model('2nn', data)
  >>> params = jax.eval_shape(model.init, jax.random.key(0))
  >>> jax.eval_shape(model.apply, params, data.test.x[:5]).shape
  (5, 10)
  """
  for key, value, known in (
    ('model', name, choices.MODELS),
    ('pixels', pixels, choices.PIXELS),
    ('augmentation', augmentation, choices.AUGMENTATIONS),
    ('precision', precision, choices.PRECISIONS),
  ):
    choices.check_choice(key, value, known)
  if any(map(trees.is_tree, data.train)):
    raise InputError(
      f'model = {name!r}: needs one array of inputs and one of labels, those'
      f' of {data.name} are pytrees; use a custom model'
    )
  sequences = data.train.y.ndim > 1
  if sequences != (name in _SEQUENCES):
    kind = 'sequences' if sequences else 'images'
    raise InputError(
      f'model = {name!r}: must be one of'
      f' {", ".join(_SEQUENCES if sequences else _IMAGES)} for the {kind} of'
      f' {data.name}'
    )
  if sequences:
    _check_tokens(data)
  elif name != '2nn' and len(data.input_shape) != 3:
    raise InputError(
      f'model = {name!r}: needs images [n, H, W, C], those of {data.name} have'
      f' the shape {["n", *data.input_shape]}'.replace("'n'", 'n')
    )
  crops = augmentation == 'tutorial'
  if crops and (sequences or min(data.input_shape[:2]) < augment.CROP):
    raise InputError(
      f"augmentation = 'tutorial': needs images of at least {augment.CROP} x"
      f' {augment.CROP}, those of {data.name} have shape {data.input_shape}'
    )
  dtype = 'bfloat16' if precision == 'bfloat16' else 'float32'
  if sequences:
    module = _SEQUENCES[name](
      data.num_classes, padding=data.padding, precision=dtype
    )
  else:
    module = _IMAGES[name](data.num_classes, convolution)
  mean, std = data.pixel_statistics() if pixels == 'standard' else (0.0, 1.0)

  def prepared(x):
    if sequences:
      return x.astype(jnp.int32)
    x = augment.central_crop(x) if crops else x
    if pixels == 'image':
      return augment.standardize(x.astype(jnp.float32)).astype(dtype)
    x = (x.astype(jnp.float32) / data.max_value - mean) / std
    return x.astype(dtype)

  def apply(params, x) -> Any:
    # Layers round the weights to the dtype of their inputs where they use them;
    # the gradient of that brings the weights' gradient back to float32.
    logits: Any = module.apply({'params': params}, prepared(x))
    return logits.astype(jnp.float32)

  def init(key):
    example = prepared(jnp.zeros((1, *data.input_shape), data.train.x.dtype))
    if not sequences:
      example = example.astype(jnp.float32)
    return module.init(key, example)['params']

  return Model(
    name,
    # One program compiles in half the time of separate operations. With jit,
    # the weights of an LSTM would differ in their last bits.
    init if sequences else jax.jit(init),
    apply,
    augment.tutorial if crops else None,
    as_written=True,  # The layers are already fast, or chosen by the user.
  )


def _check_tokens(data: Dataset) -> None:
  """Raises InputError for tokens that an embedding would clip silently."""
  for split, own in (('train', data.train), ('test', data.test)):
    if isinstance(own.x, RowsOnDisk):
      continue  # The conversion has checked them.
    exact.whole_numbers(
      own.x, f'{data.name}: {split}.x', num_classes=data.num_classes
    )
