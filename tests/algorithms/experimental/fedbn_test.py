"""FedBN, with norms and statistics of the clients, is compared with JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import normalised
from tests.testing import twin

ETA = 0.1


@jax.jit
def plain_step(params, state, x, y):
  """Takes one step on a minibatch without masked rows."""

  def loss(params):
    h = x @ params['dense']
    mean, variance = h.mean(axis=0), h.var(axis=0)
    logits = normalised.logits_of(
      params, normalised.normalise(params['norm'], h, mean, variance)
    )
    losses = -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]
    return losses.mean(), normalised.moved(state, mean, variance)

  grads, state = jax.grad(loss, has_aux=True)(params)
  return jax.tree.map(lambda w, g: w - ETA * g, params, grads), state


def plain_rounds(simulation, clients, rounds):
  """Computes FedBN as in its paper.

  Returns:
    The shared parts, the norms [K] and the statistics [K].

  """
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
def test_fedbn(on):
  """Norm parameters and statistics are the client's, all else is averaged."""
  federation = normalised.federation()
  clients = federation.clients
  simulation = fa.build_simulation(
    normalised.model('client'),
    federation,
    fa.experimental.personal(
      fa.fedavg(optax.sgd(ETA), optax.sgd(1.0)), ['norm']
    ),
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
  close(params.pop('norm'), first['norm'])  # The server's have not changed.
  close(params, shared)
  for k in range(3):
    own = jax.tree.map(lambda leaf, k=k: leaf[k], states)
    close(own.algorithm.own['norm'], norms[k])
    close(own.model_state, statistics[k])
