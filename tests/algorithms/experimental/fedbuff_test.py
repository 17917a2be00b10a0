"""FedBuff follows its equations in NumPy, and is FedAvg where all is fresh."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import quadratics

ETA, ETA_G, ROUNDS = 0.25, 0.5, 7
SIZES = quadratics.SIZES  # (2, 6, 3, 1)
SPEEDS = np.array([2.0, 1.0, 3.0, 0.3])  # Examples per second.


def clock(speeds=SPEEDS):
  free = np.full(len(speeds), np.inf)
  return fa.schedule.Clock(
    examples_per_second=np.asarray(speeds, np.float64),
    bytes_down_per_second=free,
    bytes_up_per_second=free,
  )


def asynchronous(buffer=2, most_staleness=5, speeds=SPEEDS, **rules):
  return fa.Participation(
    clock=clock(speeds), buffer=buffer, most_staleness=most_staleness, **rules
  )


def fedbuff(exponent=0.5, client=None):
  base = fa.fedavg(client or optax.sgd(ETA), optax.sgd(ETA_G))
  return fa.experimental.fedbuff(base, exponent)


def twin(planner, exponent, rounds, weights, decay=1.0):
  """Returns w after each round: every client's steps in closed form."""
  models = [1.0]
  for t in range(1, rounds + 1):
    arrived = planner.arrivals.of_round(t)
    total = sum(weights[k] for k in arrived.clients)
    step = 0.0
    for k, tau in zip(arrived.clients, arrived.staleness, strict=True):
      start, centre = models[t - 1 - tau], quadratics.CENTRES[k]
      # n_k steps of gradient descent on (w - c_k)^2 / 2.
      eta = ETA * decay ** (t - 1 - tau)  # That of the round of its start.
      local = centre + (start - centre) * (1 - eta) ** SIZES[k]
      step += weights[k] / total * (1 + tau) ** -exponent * (local - start)
    models.append(models[-1] + ETA_G * step)
  return np.array(models)


def test_equations():
  simulation = quadratics.build(
    fedbuff(), client_fraction=0.75, participation=asynchronous()
  )
  records = list(
    fa.simulate(simulation, rounds=ROUNDS, needs_state=lambda number: True)
  )
  got = [float(record.state.params['w']) for record in records]
  planner = simulation.planner
  staleness = [planner.arrivals.of_round(t).staleness for t in range(1, 8)]
  assert np.max(staleness) >= 2  # Else nothing is tested.
  np.testing.assert_allclose(got, twin(planner, 0.5, ROUNDS, SIZES), rtol=1e-5)
  for record, stale in zip(records[1:], staleness, strict=True):
    assert record.info['staleness'] == pytest.approx(np.mean(stale))
  # Everything that a round costs, since the round before.
  costs = [planner.cost(t) for t in range(1, ROUNDS + 1)]
  assert sum(c.seconds for c in costs) == pytest.approx(
    planner.arrivals.of_round(ROUNDS).time
  )
  assert costs[0].bytes_down == 4 * costs[0].drawn  # One float32 each.
  assert [c.reported for c in costs] == [2] * ROUNDS


def test_a_client_knows_its_own_round_and_staleness():
  """It takes the learning rate of its start; a custom hook reads both."""
  seen = {}

  def client_finish(result):
    context = result.context
    info = {'start': context.round, 'late': 1 + context.staleness}
    seen.update(info)
    return fa.ClientOutput(result.delta, info=info)

  decayed = fedbuff(0, fa.decayed_sgd(ETA, 0.5, 1))
  algorithm = decayed._replace(client_finish=client_finish)
  simulation = quadratics.build(
    algorithm, client_fraction=0.75, participation=asynchronous()
  )
  records = list(
    fa.simulate(simulation, rounds=ROUNDS, needs_state=lambda number: True)
  )
  planner = simulation.planner
  np.testing.assert_allclose(
    [float(record.state.params['w']) for record in records],
    twin(planner, 0, ROUNDS, SIZES, decay=0.5),
    rtol=1e-5,
  )
  assert seen
  for t, record in enumerate(records[1:], 1):
    late = planner.arrivals.of_round(t).staleness.mean()
    assert record.info['late'] == pytest.approx(1 + late)
    assert record.info['start'] == pytest.approx(t - late)


@pytest.mark.slow
def test_clients_are_tested_after_training_on_their_own(tmp_path):
  cfg = fa.RunConfig(
    rounds=2,
    num_clients=12,
    holdout_fraction=0.3,
    client_eval_every=2,
    finetune_epochs=1,
    pictures=False,
  ).replace({'asynchronous.buffer': 3, 'clock.examples_per_second': 9.0})
  fa.train(cfg, tmp_path / 'run')
  *_, last = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(last)['personal_tested'] == 12


def test_equal_speeds_are_fedavg_to_the_bit():
  """A buffer as large as the cohort makes all start from the newest model."""
  options = {'client_fraction': 0.5, 'sizes': (3, 3, 3, 3)}
  rules = asynchronous(speeds=np.ones(4))
  simulation = quadratics.build(fedbuff(), participation=rules, **options)
  arrivals = simulation.planner.arrivals

  def draw(rng, context):
    del rng
    return arrivals.of_round(context.round_number).clients

  synchronous = quadratics.models(
    fa.fedavg(optax.sgd(ETA), optax.sgd(ETA_G)),
    rounds=ROUNDS,
    participation=fa.Participation(draw=draw),
    **options,
  )
  got = quadratics.models(
    fedbuff(), rounds=ROUNDS, participation=rules, **options
  )
  np.testing.assert_array_equal(got, synchronous)
  # Synchronous rounds take the algorithm as it is.
  np.testing.assert_array_equal(
    quadratics.models(fedbuff(), rounds=2, **options),
    quadratics.models(
      fa.fedavg(optax.sgd(ETA), optax.sgd(ETA_G)), rounds=2, **options
    ),
  )


def test_lanes_calls_streams_and_resume_agree():
  """A client's start is a matter of the plan, not of the layout."""
  options = {'client_fraction': 0.75, 'participation': asynchronous()}

  def run(start=None, rounds=ROUNDS, **parts):
    simulation = quadratics.build(fedbuff(), **options, **parts)
    *_, last = fa.simulate(
      simulation, rounds=rounds, start=start, needs_state=lambda n: n == rounds
    )
    return last

  whole = run()
  half = run(rounds=3)
  resumed = run(start=jax.device_get((half.state, half.client_states)))
  for a, b in zip(
    jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  others = [
    {'lanes': 2, 'devices': jax.devices()[:2]},
    {'rounds_per_call': 1},
    {'examples_on': 'host'},
  ]
  for parts in others:
    np.testing.assert_allclose(
      run(**parts).state.params['w'], whole.state.params['w'], rtol=1e-6
    )


def test_a_skipped_round_keeps_every_model():
  """A round without a finite update still has its place in the buffer."""

  def client_finish(result):
    second = result.context.round + result.context.staleness == 2
    return fa.ClientOutput(
      jax.tree.map(lambda d: jnp.where(second, jnp.nan, d), result.delta)
    )

  broken = fedbuff()._replace(client_finish=client_finish)
  simulation = quadratics.build(
    broken,
    client_fraction=0.75,
    participation=asynchronous(),
    on_nan='skip_client',
  )
  records = list(
    fa.simulate(simulation, rounds=4, needs_state=lambda number: True)
  )
  models = [float(record.state.params['w']) for record in records]
  assert models[2] == models[1] != models[3]
  ring = np.asarray(records[4].state.earlier[0]['w'])
  np.testing.assert_array_equal(ring[:5], np.float32(models))


@pytest.mark.parametrize(
  ('rules', 'words'),
  [
    ({'buffer': 4}, r'buffer = 4: must be in \[1, 3\]'),
    ({'straggler_fraction': 0.5}, 'straggler_fraction: is not supported'),
    ({'unavailable_fraction': 0.1}, 'unavailable_fraction: is not supported'),
    ({'most_staleness': -1}, 'most_staleness = -1'),
    ({'buffer': -1}, 'buffer = -1'),
  ],
)
def test_unsound_rules(rules, words):
  with pytest.raises(fa.InputError, match=words):
    quadratics.build(
      fedbuff(), client_fraction=0.75, participation=asynchronous(**rules)
    )


def test_a_buffer_needs_a_clock():
  with pytest.raises(fa.InputError, match='buffer = 2: needs a clock'):
    quadratics.build(
      fedbuff(), client_fraction=0.75, participation=fa.Participation(buffer=2)
    )


def test_bad_exponent():
  with pytest.raises(fa.InputError, match='exponent = -1'):
    fedbuff(-1)
