"""Clients know the gradient of their whole data set at the global model."""

import numpy as np
import pytest

import fedavg_jax as fa
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing import simulations
from tests.testing import twin


def little_work(rng, work):
  """Lets clients complete one or two minibatches, less than an epoch."""
  del rng
  return np.minimum(1 + work.clients % 2, work.updates)


CASES = [
  {'batch_size': 5, 'micro_batch': 2, 'lanes': 2},
  {'batch_size': 2, 'participation': fa.Participation(completion=little_work)},
  {'batch_size': 0, 'lanes': 1, 'micro_batch': 4},
  {'batch_size': 0, 'lanes': 4},
]


@pytest.mark.parametrize('options', rest_slow(2, CASES))
def test_every_client_has_its_full_gradient(uneven_examples, options):
  """Two epochs move the local models; the gradient is at the global one."""
  x, y, parts = uneven_examples
  clients = fa.build_clients(fa.Examples(x, y), parts)
  algorithm = rounds.fedavg()._replace(
    client_init=lambda params, client_id: params,
    client_finish=lambda result: fa.ClientOutput(
      result.delta, result.full_gradient
    ),
    full_gradient=True,
  )
  simulation = simulations.build(
    clients,
    simulations.model(),
    algorithm=algorithm,
    client_fraction=1.0,
    **options,
  )
  *_, record = fa.simulate(simulation, rounds=1)
  begin = twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
  inputs = clients.x.reshape(len(clients.x), -1) / 255.0
  completed = dict(zip(*simulation.planner.work(1), strict=True))
  for k, first in enumerate(clients.offsets[:-1]):
    batches = twin.batches_of(simulation.planner, 1, k)[: completed[k]]
    read = first + np.unique(np.concatenate(batches))
    _, gradient = twin.losses_and_gradient(begin, inputs[read], clients.y[read])
    own = {name: leaf[k] for name, leaf in record.client_states.items()}
    rounds.assert_close(own, gradient, 1e-6)
