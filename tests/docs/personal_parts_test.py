"""Recipes of parts that stay with their clients, beside plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import twin

SIZES = (5, 1, 3)  # With B = 2 short last batches, and a client of one example.
ETA, MOMENTUM, EPSILON = 0.1, 0.9, 1e-5
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
  """BatchNorm over the rows that are real."""
  del context
  params, state = variables
  h = batch.x @ params['dense']
  real = batch.mask[:, None]
  count = jnp.maximum(batch.mask.sum(), 1).astype(jnp.float32)
  mean = jnp.where(real, h, 0.0).sum(axis=0) / count
  variance = jnp.where(real, (h - mean[None]) ** 2, 0.0).sum(axis=0) / count
  h = normalise(params['norm'], h, mean, variance)
  return logits_of(params, h), moved(state, mean, variance)


@jax.jit
def plain_step(params, state, x, y):
  """One step on a minibatch as it is, without a row that does not count."""

  def loss(params):
    h = x @ params['dense']
    mean, variance = h.mean(axis=0), h.var(axis=0)
    logits = logits_of(params, normalise(params['norm'], h, mean, variance))
    losses = -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]
    return losses.mean(), moved(state, mean, variance)

  grads, state = jax.grad(loss, has_aux=True)(params)
  return jax.tree.map(lambda w, g: w - ETA * g, params, grads), state


def plain_rounds(simulation, clients, rounds):
  """FedBN as its paper has it: (shared parts, norms [K], statistics [K])."""
  params, state = simulation.init()[0].variables
  shared = {name: params[name] for name in ('dense', 'out')}
  norms, statistics = [params['norm']] * 3, [state] * 3
  for number in range(1, rounds + 1):
    cohort = simulation.planner.cohort(number)
    shares = clients.num_examples[cohort] / clients.num_examples[cohort].sum()
    sent = []
    for k in cohort:
      local, own = shared | {'norm': norms[k]}, statistics[k]
      for rows in twin.batches_of(simulation.planner, number, k):
        rows = clients.offsets[k] + rows
        local, own = plain_step(local, own, clients.x[rows], clients.y[rows])
      norms[k], statistics[k] = local.pop('norm'), own
      sent.append(local)
    shared = jax.tree.map(
      lambda *leaves, shares=shares: np.tensordot(shares, np.stack(leaves), 1),
      *sent,
    )
    shared = jax.tree.map(jnp.float32, shared)
  return shared, norms, statistics


@pytest.mark.parametrize('on', ['device', 'host'])
def test_fedbn(page, on):
  """Norm parameters and statistics stay, all else is averaged."""
  rng = np.random.default_rng(4)
  examples = fa.Examples(
    rng.normal(size=(9, FEATURES)).astype(np.float32),
    rng.integers(0, CLASSES, 9).astype(np.int32),
  )
  parts = np.split(np.arange(9), np.cumsum(SIZES)[:-1])
  clients = fa.build_clients(examples, parts)
  simulation = fa.build_simulation(
    fa.Model('normalised', init, apply, train=train, state_of='client'),
    fa.Federation(
      clients, examples, client_fraction=0.7, epochs=2, batch_size=2, seed=5
    ),
    page.fedper(optax.sgd(ETA), head=['norm']),
    execution=fa.Execution(lanes=2),
    placement=fa.Placement(client_states_on=on),
  )
  *_, record = fa.simulate(simulation, rounds=4)
  shared, norms, statistics = plain_rounds(simulation, clients, 4)
  first = simulation.init()[0].params
  states = record.client_states
  if on == 'host':
    states = states.gather(np.arange(3))

  def close(found, expected):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      found,
      expected,
    )

  params = dict(record.state.params)
  close(params.pop('norm'), first['norm'])  # The server's never moved.
  close(params, shared)
  for k in range(3):
    own = jax.tree.map(lambda leaf, k=k: leaf[k], states)
    close(own.algorithm['norm'], norms[k])
    close(own.model_state, statistics[k])
