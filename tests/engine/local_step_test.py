"""One client's step, its message and its end are computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.engine import client_round
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import local_step
from tests.testing import rounds

ETA = 0.5


def squares(params, x, y):
  """Returns losses (w x - y)^2 / 2 of one weight; x [B, 1], y [B]."""
  return 0.5 * (params['w'] * x[:, 0] - y) ** 2


MODEL, LOSS = rounds.of_loss(squares)


def training(**changes):
  settings = {
    'model': MODEL,
    'loss': LOSS,
    'algorithm': fa.fedavg(optax.sgd(ETA), optax.sgd(1.0)),
    'step_examples': 2,
    'accumulates': False,
    'skips_clients': False,
    'counts_bytes': False,
    'widths': (1,),
  }
  return local_step.Training(**(settings | changes))


def context(own, w=1.0):
  params = {'w': jnp.float32(w)}
  state = compiled_round.ServerState(
    jnp.int32(4), params, own.algorithm.server_init(params)
  )
  return local_step.round_context(own, state, np.int32(3))


def one_lane(own, begin):
  lanes = client_round.empty_lanes(own, begin, (), 1)
  return jax.tree.map(lambda leaf: leaf[0], lanes)


DATA = fa.Examples(
  np.array([[1.0], [2.0], [3.0], [9.0]], np.float32),
  np.array([0.0, 1.0, 2.0, 7.0], np.float32),
)
ORDER = np.array([0, 1, 2, 3], np.int32)


def step(start, count, batch, completes=True):
  return local_step.Step(
    jnp.int32(start), jnp.int32(count), jnp.int32(batch), jnp.bool(completes)
  )


def test_a_step_is_gradient_descent_on_the_mean():
  own = training()
  lane = local_step.local_step(
    own, context(own), DATA, ORDER, one_lane(own, context(own)), step(1, 2, 2)
  )
  # Residuals 1 and 1 with inputs 2 and 3: the mean gradient is 2.5.
  assert lane.params['w'] == pytest.approx(1 - ETA * 2.5)
  assert (lane.loss, lane.examples, lane.updates) == (1.0, 2, 1)


def test_a_masked_row_has_no_effect():
  """The minibatch has one example; the row after it, 9 -> 7, is masked."""
  own = training()
  lane = local_step.local_step(
    own, context(own), DATA, ORDER, one_lane(own, context(own)), step(2, 1, 1)
  )
  assert lane.params['w'] == pytest.approx(1 - ETA * 3)
  assert (lane.loss, lane.examples) == (0.5, 1)


def test_an_idle_step_counts_nothing():
  own = training()
  before = one_lane(own, context(own))
  lane = local_step.local_step(
    own, context(own), DATA, ORDER, before, step(0, 0, 0, False)
  )
  assert (lane.loss, lane.examples, lane.updates) == (0, 0, 0)
  assert lane.params == before.params


def test_parts_of_a_minibatch_are_one_update():
  own = training(accumulates=True)
  begin = context(own)
  lane = one_lane(own, begin)
  lane = local_step.local_step(
    own, begin, DATA, ORDER, lane, step(0, 2, 3, False)
  )
  assert lane.params['w'] == 1 and lane.updates == 0
  # Residuals 1 and 1 with inputs 1 and 2, of a minibatch of three.
  assert lane.grads['w'] == pytest.approx((1 + 2) / 3)
  lane = local_step.local_step(own, begin, DATA, ORDER, lane, step(2, 1, 3))
  assert lane.params['w'] == pytest.approx(1 - ETA * (1 + 2 + 3) / 3)
  assert lane.grads['w'] == 0 and lane.updates == 1 and lane.examples == 3


def test_a_client_sends_its_delta():
  own = training()
  lane = one_lane(own, context(own))
  lane = lane._replace(params={'w': jnp.float32(3.0)})
  output = local_step.client_output(own, context(own), lane)
  assert output.message['w'] == 2 and output.state == ()


def lanes_of(own, begin, w):
  lanes = client_round.empty_lanes(own, begin, (), len(w))
  return lanes._replace(
    params={'w': jnp.float32(w)},
    loss=jnp.float32([10.0, 20.0, 30.0]),
    examples=jnp.int32([1, 2, 3]),
    updates=jnp.int32([1, 1, 1]),
  )


def finish(own, w, ends, weight=(0.25, 0.5, 0.75)):
  begin = context(own)
  lanes = lanes_of(own, begin, w)
  sums = client_round.empty_sums(own, begin, lanes, 2)
  return client_round.finish_clients(
    own, begin, lanes, sums, jnp.int32(ends), jnp.float32(weight)
  )


def test_clients_that_end_are_added_up_by_weight():
  """The lanes in the middle and at the end finish clients 1 and 0."""
  sums = finish(training(), [jnp.nan, 3.0, 5.0], [-1, 1, 0])
  assert sums.messages['w'] == pytest.approx(0.5 * 2 + 0.75 * 4)
  assert (sums.loss, sums.examples, sums.weight) == (50, 5, 1.25)
  assert sums.trained.tolist() == [1, 1] and sums.skipped == 0


@pytest.mark.parametrize('skips', [False, True])
def test_a_client_that_is_not_finite(skips):
  own = training(skips_clients=skips)
  sums = finish(own, [3.0, jnp.inf, 5.0], [0, 1, -1])
  assert np.isfinite(sums.messages['w']) == skips
  assert sums.skipped == int(skips)
  assert sums.trained.tolist() == [1, int(not skips)]
  assert sums.weight == (0.25 if skips else 0.75)


def test_lanes_that_finish_restart_from_the_global_model():
  own = training()
  begin = context(own, w=7.0)
  lanes = lanes_of(own, begin, [1.0, 2.0, 3.0])
  plan = fa.engine.Planner(
    num_examples=np.array([3]), cohort_size=1, epochs=1, batch_size=1, seed=0
  )(1)
  lanes = client_round.start_clients(
    own, begin, lanes, jnp.array([True, False, True]), plan, 1, ()
  )
  assert lanes.params['w'].tolist() == [7, 2, 7]
  assert lanes.loss.tolist() == [0, 20, 0]
  assert lanes.examples.tolist() == [0, 2, 0]
  assert lanes.updates.tolist() == [0, 1, 0]


def server(sums_of, own=None):
  own = own or training()
  params = {'w': jnp.float32(1.0)}
  state = compiled_round.ServerState(
    jnp.int32(4), params, own.algorithm.server_init(params)
  )
  sums = client_round.RoundSums(
    loss=jnp.float32(6.0),
    examples=jnp.int32(3),
    weight=jnp.float32(1.0),
    skipped=jnp.int32(0),
    trained=jnp.int32([1, 0]),
    messages={'w': jnp.float32(0.5)},
    client_states=jnp.float32([[5.0], [6.0]]),
    model_state=(),
    info={},
    coded=jnp.float32(0),
  )._replace(**sums_of)
  plan = fa.engine.Planner(
    num_examples=np.array([3, 1]),
    cohort_size=2,
    epochs=1,
    batch_size=1,
    seed=0,
  )(5)
  return compiled_round.server_step(own, state, sums, plan), sums


def test_the_server_adds_the_mean_delta():
  (state, finite), sums = server({})
  assert finite and state.round == 5 and state.params['w'] == 1.5
  metrics = compiled_round.round_metrics(sums, finite, {})
  assert metrics.train_loss == 2 and metrics.examples == 3


def test_weights_of_the_remaining_clients_add_up_to_one():
  own = training(skips_clients=True)
  skipped = {'skipped': jnp.int32(1), 'weight': jnp.float32(0.25)}
  (state, finite), _ = server(skipped, own)
  assert finite and state.params['w'] == pytest.approx(1 + 0.5 / 0.25)


@pytest.mark.parametrize(
  'sums_of',
  [
    {'messages': {'w': jnp.float32(jnp.inf)}},
    {'loss': jnp.float32(jnp.nan)},
    {'client_states': jnp.float32([[jnp.nan], [0.0]])},
  ],
)
def test_a_round_that_is_not_finite_is_not_applied(sums_of):
  (state, finite), sums = server(sums_of)
  assert not finite and state.round == 4 and state.params['w'] == 1
  stored = jnp.zeros((3, 1))
  kept = compiled_round.keep_states(stored, sums, jnp.int32([2, 0]), finite)
  assert kept.tolist() == stored.tolist()


def test_a_round_without_trained_clients_changes_nothing():
  (state, finite), _ = server({'trained': jnp.int32([0, 0])})
  assert finite and state.round == 5 and state.params['w'] == 1


def test_only_states_of_trained_clients_are_written():
  (_, finite), sums = server({})
  kept = compiled_round.keep_states(
    jnp.zeros((3, 1)), sums, jnp.int32([2, 0]), finite
  )
  assert kept.tolist() == [[0], [0], [5]]
