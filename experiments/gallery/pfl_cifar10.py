"""Defines the cell of pfl's benchmark CIFAR10-IID (Granqvist et al. 2024).

1,000 clients of 50 images, 50 of them in each of 1,500 rounds, E = 1, B = 10,
eta = 0.1, with equal weights, and pixels of mean 0 and deviation 1.

    conv 3 x 3 x 32 - ReLU - conv 3 x 3 x 64 - ReLU - max pool 2
    - dropout 0.25 - dense 128 - ReLU - dropout 0.5 - dense 10

Convolutions have no padding. It has 1,626,442 parameters, initially Glorot
uniform with biases 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gallery import cell as cell_lib
from experiments.gallery.cell import Cell
from experiments.gallery.cell import Published
from experiments.gallery.cell import Source
import fedavg_jax as fa
from fedavg_jax.runs.config_sections import ClientConfig
from fedavg_jax.runs.run_config import RunConfig

SOURCE = Source(
  key='pfl_cifar10',
  title='pfl, CIFAR10-IID',
  published='Granqvist et al. 2024: about 70.4 %, from memory and not yet'
  ' confirmed in the publication.',
  inside='within one point',
  differences='The split among clients is drawn anew.',
)
SHAPES = {
  'conv_1': (3, 3, 3, 32),
  'conv_2': (3, 3, 32, 64),
  'dense_1': (14 * 14 * 64, 128),
  'dense_2': (128, 10),
}


def cnn(dataset: fa.Dataset) -> fa.Model:
  """Builds the model; dropout is in training only."""
  mean, deviation = channel_statistics(dataset.train.x)

  def init(key):
    glorot = jax.nn.initializers.glorot_uniform()
    keys = jax.random.split(key, len(SHAPES))
    return {
      name: {'kernel': glorot(key, shape), 'bias': jnp.zeros(shape[-1])}
      for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }

  def logits(params, x, drop):  # [B, 32, 32, 3] -> [B, 10]
    x = x.astype(jnp.float32) - mean.astype(np.float32)
    x = x / deviation.astype(np.float32)
    for name in ('conv_1', 'conv_2'):
      x = fa.layers.conv2d(x, params[name]['kernel'], padding=0)
      x = jax.nn.relu(x + params[name]['bias'][None, None, None])
    x = drop(0.25, fa.layers.max_pool2(x))
    x = jax.nn.relu(_dense(params['dense_1'], x.reshape(len(x), -1)))
    return _dense(params['dense_2'], drop(0.5, x))

  def apply(params, x):
    return logits(params, x, lambda rate, x: x)

  def train(params, batch, context):
    def drop(rate, x):
      key = jax.random.fold_in(context.key, int(100 * rate))
      kept = jax.random.bernoulli(key, 1 - rate, x.shape)
      return jnp.where(kept, x / (1 - rate), 0.0)

    return logits(params, batch.x, drop), ()

  return fa.Model('pfl_cnn', init, apply, train=train)


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and standard deviation of each channel, [1, 1, 1, C] each.

  Args:
    images: [n, H, W, C] uint8.
  """
  values = np.arange(256.0)
  counts = [
    np.bincount(channel.ravel(), minlength=256)
    for channel in np.moveaxis(images, -1, 0)
  ]
  weights = np.array(counts) / (images.size // images.shape[-1])  # [C, 256]
  mean = weights @ values
  deviation = np.sqrt(weights @ values**2 - mean**2)
  return mean[None, None, None], deviation[None, None, None]


def _dense(params, x):
  return fa.layers.matmul(x, params['kernel']) + params['bias'][None]


CELLS = (
  Cell(
    f'{SOURCE.key}/iid',
    SOURCE,
    RunConfig(
      dataset='cifar10',
      model='experiments.gallery.pfl_cifar10:cnn',
      partition='iid',
      num_clients=1000,
      client_fraction=0.05,
      weighting='uniform',
      rounds=1500,
      eval_every=10,
      client=ClientConfig(epochs=1, batch_size=10, learning_rate=0.1),
    ),
    cell_lib.at_round(1500),
    minutes=60.0,
    published=Published(0.704),
  ),
)
