"""Learning rates follow the rounds on clients and on the server."""

import numpy as np
import optax

import fedavg_jax as fa
from tests.testing import quadratics


def test_rates_of_both_sides_are_those_of_the_round():
  """Each client has moved 1 - (1 - eta_t)^n_k of the way to its centre."""
  client = optax.linear_schedule(0.4, 0.1, 3)
  server = optax.linear_schedule(1.0, 0.2, 4)
  found = quadratics.models(
    fa.fedavg(fa.scheduled_sgd(client), optax.sgd(server)), rounds=5
  )
  sizes, centres = np.array(quadratics.SIZES), np.array(quadratics.CENTRES)
  w, path = 1.0, [1.0]
  for t in range(5):
    eta = 0.4 - 0.1 * min(t, 3)
    moved = (1 - (1 - eta) ** sizes) * (centres - w)
    step = 1.0 - 0.2 * min(t, 4)
    w += step * (sizes / sizes.sum()) @ moved
    path.append(w)
  np.testing.assert_allclose(found, path, rtol=1e-5)
