"""Recipes return the numbers that FedJAX's tests of its algorithms expect.

Those (fedjax/algorithms/*_test.py) have two clients of three and two examples,
the loss x * w, w = 4 at first, one epoch with B = 2 and plain SGD at 1.

"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa

LARGE = (2.0, 4.0, 6.0), (8.0, 10.0)
SMALL = (0.2, 0.4, 0.6), (0.8, 0.1)


def product():
  """Returns the model x * w, whose outputs are its losses."""
  return fa.Model(
    'product',
    lambda key: {'w': jnp.float32(4.0)},
    lambda params, x: x[:, 0] * params['w'],
  )


def after(page, algorithm, values, rounds):
  """Returns w after rounds of both clients, which read in FedJAX's order."""
  x = np.float32(np.concatenate(values))[:, None]
  clients = fa.build_clients(
    fa.Examples(x, np.zeros(len(x), np.float32)), [range(3), range(3, 5)]
  )
  planner = fa.engine.Planner(
    num_examples=clients.num_examples,
    cohort_size=2,
    epochs=1,
    batch_size=2,
    seed=0,
  )
  mesh = fa.engine.lane_mesh(jax.devices()[:1])
  one_round = fa.engine.build_round(
    product(), algorithm, planner, mesh, loss=lambda outputs, batch: outputs
  )
  data = fa.engine.place_examples(clients.x, clients.y, mesh)
  params = product().init(None)
  state = fa.engine.init_state(params, algorithm, mesh)
  kept = fa.engine.init_client_states(params, algorithm, 2, mesh)
  for number in range(1, rounds + 1):
    plan = page.in_fedjax_order(planner(number), clients)
    state, kept, _ = one_round(state, kept, data, plan)
  return float(state.params['w'])


def test_the_order_is_fedjax_s(page):
  """FedJAX's view of three examples has the last two first, then the first."""
  sizes = np.array([3, 2])
  planner = fa.engine.Planner(
    num_examples=sizes, cohort_size=2, epochs=1, batch_size=2, seed=0, lanes=2
  )
  clients = fa.Clients(None, None, np.array([0, 3, 5]))
  for number in range(1, 5):
    plan = page.in_fedjax_order(planner(number), clients)
    read = plan.order[plan.start[0, 0] :][:3]
    assert set(read[:2]) == {1, 2} and read[2] == 0
    assert set(plan.order[plan.start[1, 0] :][:2]) == {3, 4}


def test_fedprox(page):
  algorithm = fa.fedprox(0.01, optax.sgd(1.0), optax.sgd(1.0))
  w = after(page, algorithm, LARGE, 1)
  assert w == pytest.approx(-3.77, rel=3e-7)


@pytest.mark.parametrize(
  ('lite', 'max_norm', 'values', 'published'),
  [
    (False, None, LARGE, 2.08),
    (True, None, SMALL, 3.8799999),
    (True, 0.5, SMALL, 3.904),
  ],
)
def test_mime(page, lite, max_norm, values, published):
  algorithm = page.mime(optax.sgd(1.0), 0.2, lite=lite)
  if max_norm:
    algorithm = page.clip_training(algorithm, max_norm)
  assert after(page, algorithm, values, 2) == pytest.approx(published, rel=1e-7)


@pytest.mark.parametrize('lite', [False, True])
def test_mime_of_momentum(page, lite):
  """Five rounds are compared with NumPy: clients do not change c, a momentum.

  Each gradient is that of x * w, so that Mime's correction makes it c.

  """
  rho, rate = 0.5, 0.1
  algorithm = page.mime(optax.sgd(rate, momentum=rho), 0.2, lite=lite)
  w, kept = 4.0, 0.0
  c = np.mean(np.concatenate(LARGE))
  for _ in range(5):
    deltas = []
    for values, minibatches in zip(LARGE, ([5.0, 2.0], [9.0]), strict=True):
      local = sum(
        -rate * ((g if lite else c) + rho * kept) for g in minibatches
      )
      deltas.append(len(values) * local)
    w += 0.2 * sum(deltas) / 5
    kept = c + rho * kept
  assert after(page, algorithm, LARGE, 10) == pytest.approx(w, rel=1e-5)


def test_pairs_of_rounds_have_one_cohort_each(page):
  planner = fa.engine.Planner(
    num_examples=np.array([7, 1, 5, 9, 2, 4]),
    cohort_size=3,
    epochs=4,
    batch_size=2,
    seed=0,
    participation=page.in_pairs(3),
  )
  cohorts = []
  for number in range(1, 20, 2):
    (cohort, measuring), (again, training) = map(
      planner.work, (number, number + 1)
    )
    np.testing.assert_array_equal(cohort, again)
    np.testing.assert_array_equal(
      measuring, -(-planner.num_examples[cohort] // 2)
    )
    np.testing.assert_array_equal(training, 4 * measuring)
    cohorts.append(tuple(cohort))
  assert len(set(cohorts)) > 5
