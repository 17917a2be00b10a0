"""Defines the cell of FLUTE's benchmark LR_MNIST (Garcia et al. 2022).

MNIST among 1,000 clients with two labels each and log-normal sizes, 10 of them
in each of 100 rounds, E = 1, B = 10, eta = 0.03. The model is that of FedML:
the cross entropy takes the sigmoid of its outputs as logits, which are thus in
[0, 1]. Each pixel has mean 0 and deviation 1 over the data, as in the code of
FedProx that made them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gallery import cell as cell_lib
from experiments.gallery import fedprox_mnist
from experiments.gallery.cell import Cell
from experiments.gallery.cell import Published
from experiments.gallery.cell import Source
import fedavg_jax as fa
from fedavg_jax.runs.config_sections import ClientConfig
from fedavg_jax.runs.run_config import RunConfig

SOURCE = Source(
  key='flute',
  title='FLUTE, LR_MNIST',
  published='The README of FLUTE: about 81 % after 100 rounds, without a'
  ' deviation.',
  inside='within two points',
  differences='FLUTE reads a division of MNIST among 1,000 clients that it'
  ' downloads, and tests on their held-out examples; here the clients are those'
  " of Flower's baseline, and the test is MNIST's.",
)


def sigmoid_regression(dataset: fa.Dataset) -> fa.Model:
  """Builds the model, 784 x 10, for the pixels of a data set."""
  pixels = dataset.train.x.reshape(len(dataset.train.x), -1)
  mean = pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
  scale = 1 / (pixels.std(axis=0, dtype=np.float64).astype(np.float32) + 1e-3)
  linear = fedprox_mnist.linear_layer()

  def apply(params, x):  # [B, 28, 28, 1] -> [B, 10]
    x = x.astype(jnp.float32).reshape(len(x), -1)
    x = (x - jnp.asarray(mean)[None]) * jnp.asarray(scale)[None]
    return jax.nn.sigmoid(linear.apply(params, x))

  return fa.Model('sigmoid_regression', linear.init, apply)


CELLS = (
  Cell(
    f'{SOURCE.key}/lr_mnist',
    SOURCE,
    RunConfig(
      dataset='experiments.gallery.fedprox_mnist:data',
      model='experiments.gallery.flute:sigmoid_regression',
      partition='natural',
      num_clients=0,
      client_fraction=0.01,
      rounds=100,
      client=ClientConfig(epochs=1, batch_size=10, learning_rate=0.03),
    ),
    cell_lib.at_round(100),
    minutes=0.2,
    published=Published(0.81, margin=0.02),
  ),
)
