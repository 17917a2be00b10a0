"""Defines the workloads of the benchmark: federations of random data.

The first three are those of `fedavg-jax bench` (`fedavg_jax/cli/workloads.py`).
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fedavg_jax as fa
from fedavg_jax.cli import bench_rounds
from fedavg_jax.cli import workloads
from fedavg_jax.models import layers
from fedavg_jax.models import zoo

Workload, make_federation = workloads.Workload, bench_rounds.make_federation


def _log_normal(clients, median, sigma, most, seed=0) -> tuple[int, ...]:
  sizes = np.random.default_rng(seed).lognormal(np.log(median), sigma, clients)
  return tuple(int(n) for n in np.clip(sizes, 1, most))


# Sizes like those of natural clients, drawn from similar distributions.
# MNIST has 539 writers with 19 to 131 digits, median 116.
WRITERS = tuple(
  int(n)
  for n in np.clip(131 - np.random.default_rng(0).gamma(1.2, 15, 539), 19, 131)
)
# Shakespeare has 1,069 roles: half have a few lines, the longest thousands.
ROLES = _log_normal(1069, median=70, sigma=1.6, most=6000)
LOG_NORMAL = _log_normal(3400, median=100, sigma=1.0, most=2000)

WORKLOADS = {
  'cnn': workloads.WORKLOADS['cnn'],
  '2nn': workloads.WORKLOADS['2nn'],
  'flute_lr': workloads.WORKLOADS['lr'],
}
WORKLOADS |= {
  f'{name}_e5': dataclasses.replace(
    WORKLOADS[name],
    about=WORKLOADS[name].about.replace('E = 1', 'E = 5'),
    epochs=5,
  )
  for name in ('cnn', '2nn')
}
WORKLOADS |= {
  'pfl_cifar10': Workload(
    about="pfl-research's CIFAR10-IID: 1,000 users x 50, cohort 50, E = 1,"
    ' B = 10, mean not weighted; its CNN without its dropout',
    model='simple_cnn',
    shape=(32, 32, 3),
    sizes=(50,) * 1000,
    cohort=50,
    weighting='uniform',
  ),
  'writers': Workload(
    about='2NN, sizes like MNIST by writer: 539 clients, 50 per round, 4 lanes',
    model='2nn',
    sizes=WRITERS,
    cohort=50,
    lanes=4,
  ),
  'roles': Workload(
    about="2NN, sizes like Shakespeare's roles: 1,069 clients, 115 per round",
    model='2nn',
    sizes=ROLES,
    cohort=115,
  ),
  'log_normal_50': Workload(
    about='LR, log-normal sizes: 3,400 clients, 50 per round, 8 lanes',
    model='lr',
    sizes=LOG_NORMAL,
    cohort=50,
    lanes=8,
  ),
  'log_normal_500': Workload(
    about='LR, log-normal sizes: 3,400 clients, 500 per round, 32 lanes',
    model='lr',
    sizes=LOG_NORMAL,
    cohort=500,
    lanes=32,
  ),
}
WORKLOADS |= {
  'cifar': Workload(
    about="the tutorial's network on 24 x 24 crops, Table 3: 100 clients x 500,"
    ' C = 0.1, E = 5, B = 50',
    model='cifar_cnn',
    shape=(32, 32, 3),
    sizes=(500,) * 100,
    cohort=10,
    epochs=5,
    batch=50,
  ),
  'shakespeare': Workload(
    about='character LSTM, lines like those of roles: 1,069 clients, 106 per'
    ' round, E = 1, B = 10',
    model='char_lstm',
    shape=(80,),
    classes=258,
    sizes=ROLES,
    cohort=106,
    learning_rate=1.0,
  ),
  'words': Workload(
    about='LSTM of 10,000 words: 1,000 clients x 50, 20 per round, E = 1,'
    ' B = 8',
    model='word_lstm',
    shape=(10,),
    classes=10_000,
    sizes=(50,) * 1000,
    cohort=20,
    batch=8,
    learning_rate=1.0,
  ),
}
WORKLOADS |= {
  f'run_{name}': dataclasses.replace(
    WORKLOADS[name],
    about=f'{WORKLOADS[name].about}, tested on 10,000 examples every round',
    tested=10_000,
  )
  for name in ('2nn', 'cnn')
}
WORKLOADS['roles_8'] = dataclasses.replace(
  WORKLOADS['roles'], about=f'{WORKLOADS["roles"].about}, 8 lanes', lanes=8
)
COHORTS = (10, 30, 100, 300, 1000)
WORKLOADS |= {
  f'cohort_{m}': Workload(
    about=f'2NN, 1,000 clients x 60, {m} per round',
    model='2nn',
    sizes=(60,) * 1000,
    cohort=m,
  )
  for m in COHORTS
}
WORKLOADS |= {
  f'size_{n}': Workload(
    about=f'2NN, 100 clients x {n:,}, 10 per round',
    model='2nn',
    sizes=(n,) * 100,
    cohort=10,
  )
  for n in (10, 100, 1000)
}


# Of a larger population, for accelerators.
WORKLOADS['cohort_10000'] = dataclasses.replace(
  WORKLOADS['cohort_1000'],
  about='2NN, 10,000 clients x 60, all of them per round',
  sizes=(60,) * 10_000,
  cohort=10_000,
)


class SimpleCnn(nn.Module):
  """Defines pfl-research's `simple_cnn` for CIFAR-10, without its dropout.

  It has 1,626,442 parameters.
  """

  classes: int
  method: str = 'auto'

  @nn.compact
  def __call__(self, x):
    for i, features in enumerate((32, 64)):
      kernel = self.param(
        f'kernel_{i}',
        nn.initializers.glorot_uniform(),
        (3, 3, x.shape[-1], features),
      )
      bias = self.param(f'bias_{i}', nn.initializers.zeros, (features,))
      x = layers.conv2d(x, kernel, padding=0, method=self.method)
      if i == 1:  # Pooling before bias and ReLU is equivalent and cheaper.
        x = layers.max_pool2(x)
      x = nn.relu(x + bias[None, None, None])
    x = nn.relu(zoo.Dense(128)(x.reshape(x.shape[0], -1)))
    return zoo.Dense(self.classes)(x)


def from_dict(content: dict[str, Any]) -> Workload:
  """Returns the workload of the content that `as_dict` returned."""
  lists: dict[str, Any] = {
    name: tuple(content[name]) for name in ('shape', 'sizes')
  }
  return Workload(**(content | lists))


def make_data(workload: Workload) -> tuple[fa.Dataset, fa.Clients]:
  """Draws random examples; divides them by the workload's sizes."""
  if len(workload.shape) > 1:
    return bench_rounds.make_data(workload)
  (length,) = workload.shape
  examples, padding = _sequences(
    np.random.default_rng(0), sum(workload.sizes), length, workload.classes
  )
  return bench_rounds.divide(workload, examples, padding)


def _sequences(rng, number, length, tokens):
  """Draws random tokens; characters form lines of random lengths, padded."""
  x, y = rng.integers(0, min(tokens, 256), (2, number, length), np.int32)
  if tokens > 258:
    return fa.Examples(x, y), None
  lengths = rng.integers(5, length + 1, number)  # Half full on average.
  behind = np.arange(length) >= lengths[:, None]
  x[behind], y[behind] = tokens - 1, -1
  return fa.Examples(x, y), tokens - 1


def make_model(
  workload: Workload,
  data: fa.Dataset,
  *,
  convolution: str = 'auto',
  precision: str = 'float32',
) -> fa.Model:
  """Builds the workload's model: one of the package, or of this file."""
  if workload.model == 'cifar_cnn':
    return fa.build_model(
      workload.model,
      data,
      pixels='image',
      augmentation='tutorial',
      convolution=convolution,
      precision=precision,
    )
  if workload.model != 'simple_cnn':
    return bench_rounds.make_model(
      workload, data, convolution=convolution, precision=precision
    )
  module = SimpleCnn(workload.classes, convolution)
  dtype = 'bfloat16' if precision == 'bfloat16' else 'float32'

  def apply(params, x) -> Any:
    x = x.astype(jnp.float32) / 255
    params, x = jax.tree.map(lambda a: a.astype(dtype), (params, x))
    logits: Any = module.apply({'params': params}, x)
    return logits.astype(jnp.float32)

  def init(key):
    return module.init(key, jnp.zeros((1, *workload.shape)))['params']

  return fa.Model(workload.model, init, apply)
