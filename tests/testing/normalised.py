"""Makes a small network with BatchNorm, and a few clients for it."""

import jax
import jax.numpy as jnp
import numpy as np

import fedavg_jax as fa

SIZES = (5, 1, 3)  # With B = 2: short minibatches, and a client of one.
MOMENTUM, EPSILON = 0.9, 1e-5
CLASSES, FEATURES, HIDDEN = 3, 8, 4


def normalise(norm, h, mean, variance):
  h = (h - mean[None]) / jnp.sqrt(variance[None] + EPSILON)
  return h * norm['scale'][None] + norm['bias'][None]


def logits_of(params, h):
  return jax.nn.relu(h) @ params['out']


def moved(state, mean, variance):
  return {
    'mean': MOMENTUM * state['mean'] + (1 - MOMENTUM) * mean,
    'variance': MOMENTUM * state['variance'] + (1 - MOMENTUM) * variance,
  }


def init(key):
  first, last = jax.random.split(key)
  return fa.Variables(
    {
      'dense': jax.random.normal(first, (FEATURES, HIDDEN)) / 3,
      'norm': {'scale': jnp.ones(HIDDEN), 'bias': jnp.zeros(HIDDEN)},
      'out': jax.random.normal(last, (HIDDEN, CLASSES)) / 2,
    },
    {'mean': jnp.zeros(HIDDEN), 'variance': jnp.ones(HIDDEN)},
  )


def apply(variables, x):
  params, state = variables
  h = normalise(params['norm'], x @ params['dense'], **state)
  return logits_of(params, h)


def train(variables, batch, context):
  """Applies BatchNorm with the statistics of the unmasked rows."""
  del context
  params, state = variables
  h = batch.x @ params['dense']
  real = batch.mask[:, None]
  count = jnp.maximum(batch.mask.sum(), 1).astype(jnp.float32)
  mean = jnp.where(real, h, 0.0).sum(axis=0) / count
  variance = jnp.where(real, (h - mean[None]) ** 2, 0.0).sum(axis=0) / count
  h = normalise(params['norm'], h, mean, variance)
  return logits_of(params, h), moved(state, mean, variance)


def model(state_of):
  """Makes the model, with `fa.Model`'s option `state_of`."""
  return fa.Model('normalised', init, apply, train=train, state_of=state_of)


def federation(**options):
  """Makes three clients, of which a round draws two."""
  rng = np.random.default_rng(4)
  examples = fa.Examples(
    rng.normal(size=(9, FEATURES)).astype(np.float32),
    rng.integers(0, CLASSES, 9).astype(np.int32),
  )
  parts = np.split(np.arange(9), np.cumsum(SIZES)[:-1])
  return fa.Federation(
    fa.build_clients(examples, parts),
    examples,
    client_fraction=0.7,
    epochs=2,
    batch_size=2,
    seed=5,
    **options,
  )
