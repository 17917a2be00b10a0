"""Private rounds follow their equations, and their noise has its law."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.algorithms.experimental.gaussian import clipped
from fedavg_jax.algorithms.experimental.privatize import PrivateMessage
from fedavg_jax.algorithms.experimental.privatize import deviation_of_deltas
from fedavg_jax.algorithms.experimental.privatize import next_clip
from tests.testing import privacy_twin
from tests.testing import quadratics
from tests.testing import rest_slow
from tests.testing import simulations

own = fa.experimental
ETA, ROUNDS = 0.2, 7
SIZES = (2, 6, 3, 1, 4)
CENTRES = (0.0, 2.0, 4.0, 60.0, 1.0)
FEDAVG = fa.fedavg(optax.sgd(ETA), optax.sgd(1.0))
POISSON = fa.Participation(poisson=True)
RULES = {'weighting': 'uniform', 'on_nan': 'skip_client'}


def private(algorithm=FEDAVG, **changes):
  options = {'clip': 1.0, 'noise_multiplier': 0.0, 'denominator': 2.0}
  return own.privatize(algorithm, **(options | changes))


def simulation(algorithm=None, **changes):
  """Builds a federation of five uneven clients, two of them on average."""
  options = {
    'sizes': SIZES,
    'centres': CENTRES,
    'client_fraction': 0.4,
    'participation': POISSON,
  }
  return quadratics.build(
    private() if algorithm is None else algorithm,
    **(options | RULES | changes),
  )


def records(built, rounds=ROUNDS, start=None):
  """Returns the records of all rounds, each with its states."""
  return list(
    fa.simulate(
      built, rounds=rounds, needs_state=lambda number: True, start=start
    )
  )


def models(built):
  return np.array([float(r.state.params['w']) for r in records(built)])


def deltas(w):
  """Returns the delta of each client, by the closed form of its n_k steps."""
  return (1 - (1 - ETA) ** np.array(SIZES)) * (np.array(CENTRES) - w)


def failing(algorithm, client):
  """Returns the algorithm in which one client always sends NaN."""

  def client_finish(result):
    output = algorithm.client_finish(result)
    bad = result.context.client_id == client
    return output._replace(
      message=jax.tree.map(lambda m: jnp.where(bad, jnp.nan, m), output.message)
    )

  return algorithm._replace(client_finish=client_finish)


def test_rounds_equal_loops_in_numpy():
  """Clients are uneven, one never sends a number; cohorts have 0 to 5."""
  adaptive = own.AdaptiveClip(0.6, learning_rate=0.7, bit_noise=1e-12)
  algorithm = private(failing(FEDAVG, 4), adaptive=adaptive)
  built = simulation(algorithm, lanes=2, devices=jax.devices()[:2])
  w, clip, sizes = 1.0, 1.0, set()
  found = records(built, 20)
  for t, record in enumerate(found[1:], 1):
    cohort = built.planner.cohort(t)
    sizes.add(len(cohort))
    sent = [np.array([np.nan if k == 4 else deltas(w)[k]]) for k in cohort]
    assert record.info['clip'] == pytest.approx(clip, rel=1e-5)
    step, clip = privacy_twin.private_round(
      sent, clip, 2.0, quantile=0.6, rate=0.7
    )
    w += float(np.squeeze(step))
    assert float(record.state.params['w']) == pytest.approx(w, rel=1e-5)
  assert {0, 1, 2, 3} <= sizes


@pytest.mark.parametrize('fraction', rest_slow(1, [0.4, 0.0, 1.0]))
def test_without_noise_and_an_idle_clip_it_is_fedavg(fraction):
  cohort = max(int(len(SIZES) * fraction), 1)
  options = {'client_fraction': fraction, 'participation': fa.Participation()}
  idle = private(clip=1e6, denominator=cohort)
  expected = models(simulation(FEDAVG, **options))
  np.testing.assert_allclose(
    models(simulation(idle, **options)), expected, rtol=1e-6
  )


def test_poisson_cohorts_without_privacy():
  """The mean is of who was drawn; a round of nobody changes no bit."""
  built = simulation(FEDAVG)
  w = models(built)
  empty = 0
  for t in range(1, ROUNDS + 1):
    cohort = built.planner.cohort(t)
    step = deltas(w[t - 1])[cohort].mean() if len(cohort) else 0.0
    assert w[t] == pytest.approx(w[t - 1] + step, rel=1e-6)
    if not len(cohort):
      assert w[t] == w[t - 1]
      empty += 1
  assert empty


# Clipping of one message.


def test_clipped_messages():
  def of(*numbers, clip=2.0):
    message = {'a': jnp.float32(numbers[:1]), 'b': jnp.float32([numbers[1:]])}
    short, bit = clipped(message, jnp.float32(clip))
    return np.concatenate([short['a'], short['b'][0]]), float(bit)

  for numbers in ((3.0, -4.0, 0.0), (0.1, 0.2, 0.3), (2.0, 0.0, 0.0)):
    found, bit = of(*numbers)
    expected, sign = privacy_twin.clip(np.array(numbers), 2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert bit == sign
  np.testing.assert_array_equal(
    of(0.1, 0.2, 0.3)[0], np.float32([0.1, 0.2, 0.3])
  )
  # Squares beyond the range of float32, and below it.
  for size in (3e38, 1e25, 1e-30):
    found, _ = of(size, size, -size, clip=min(size, 2.0))
    norm = np.linalg.norm(found.astype(np.float64))
    assert norm == pytest.approx(min(size, 2.0), rel=1e-5)
  numbers = jnp.arange(1, 300, dtype=jnp.bfloat16)  # Rounded only before.
  short, _ = clipped(numbers, jnp.float32(0.7))
  assert np.linalg.norm(np.float64(short)) == pytest.approx(0.7, rel=1e-6)
  assert of(0.0, 0.0, 0.0)[0].tolist() == [0, 0, 0]
  for bad in (np.nan, np.inf, -np.inf):
    found, bit = of(1.0, bad, 0.0)
    assert found.tolist() == [0, 0, 0] and bit == 0


# Noise.


def still(noise, dims=3000, clip=0.5, denominator=4.0, **changes):
  """Builds rounds of clients that learn nothing: the steps are the noise."""
  examples = fa.Examples(np.zeros((8, 1), np.float32), np.zeros(8, np.float32))
  model = fa.Model(
    'still',
    lambda key: {'a': jnp.zeros(dims), 'b': jnp.zeros((dims, 1))},
    lambda params, x: 0.0 * jnp.sum(params['a']) * x[:, 0],
  )
  algorithm = private(
    noise_multiplier=noise, clip=clip, denominator=denominator
  )
  return simulations.build_simulation(
    model,
    fa.build_clients(examples, np.arange(8).reshape(8, 1)),
    examples,
    loss=fa.losses.squared_error,
    **{
      'algorithm': algorithm,
      **{'client_fraction': 0.5, 'epochs': 1, 'batch_size': 0, 'seed': 3},
      **{'participation': POISSON, **RULES, **changes},
    },
  )


def last(built, rounds=3, start=None):
  *_, record = fa.simulate(built, rounds=rounds, start=start)
  return record.state, record.client_states


def test_the_law_of_the_noise():
  """Bounds are five standard deviations; no two numbers share their noise."""
  w = [
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(r.state.params)])
    for r in records(still(1.5), 4)
  ]
  noise = np.diff(np.array(w), axis=0) / (1.5 * 0.5 / 4.0)  # [T, 2 d]
  number = noise.size
  assert abs(noise.mean()) < 5 / np.sqrt(number)
  assert abs(noise.var() - 1) < 5 * np.sqrt(2 / number)
  assert abs((noise**4).mean() - 3) < 5 * np.sqrt(96 / number)
  parts = noise.reshape(8, -1)  # Rounds and leaves.
  shared = np.abs(np.corrcoef(parts) - np.eye(8)).max()
  assert shared < 5 / np.sqrt(parts.shape[1])
  assert len(np.unique(noise)) > 0.99 * number


LAYOUTS = [
  {'lanes': 2, 'devices': jax.devices()[:2], 'rounds_per_call': 1},
  {'lanes': 4, 'examples_on': 'host'},
]


@pytest.mark.parametrize('options', rest_slow(1, LAYOUTS))
def test_layout_calls_and_resume_change_no_bit(options):
  one, other = last(still(1.0, dims=9, lanes=1)), still(1.0, dims=9, **options)
  jax.tree.map(np.testing.assert_array_equal, one, last(other))
  resumed = last(other, start=last(other, 1))
  jax.tree.map(np.testing.assert_array_equal, one, resumed)


@pytest.mark.slow
def test_seeds_have_different_noise():
  one, other = (last(still(1.0, seed=seed))[0].params for seed in (3, 4))
  noise = np.corrcoef(np.ravel(one['a']), np.ravel(other['a']))[0, 1]
  assert abs(noise) < 5 / np.sqrt(3000)


def test_a_round_of_nobody_has_noise():
  built = simulation(private(noise_multiplier=1.0))
  empty = [t for t in range(1, 8) if not len(built.planner.cohort(t))]
  w = models(built)
  assert empty and all(w[t] != w[t - 1] for t in empty)


@pytest.mark.slow
def test_a_sweep_has_the_noise_of_each_value():
  values = [0.0, 0.5, 1.0, 2.0]
  swept, _ = last(
    simulation(lambda noise: private(noise_multiplier=noise), sweep=values)
  )
  for i in (1, 3):
    alone, _ = last(simulation(private(noise_multiplier=values[i])))
    np.testing.assert_allclose(
      swept.params['w'][i], alone.params['w'], rtol=1e-6
    )


# Adaptive clipping.


@pytest.mark.parametrize('quantile', [0.2, 0.5, 0.9])
def test_the_clip_converges_to_the_quantile(quantile):
  norms = np.random.default_rng(0).lognormal(1.0, 0.8, 2000)
  adaptive = own.AdaptiveClip(quantile)
  step = jax.jit(
    lambda clip: next_clip(adaptive, clip, jnp.mean(jnp.float32(norms) <= clip))
  )
  for clip in (jnp.float32(0.01), jnp.float32(900.0)):
    for _ in range(400):
      clip = step(clip)
    assert abs(np.mean(norms <= float(clip)) - quantile) < 0.01


@pytest.mark.parametrize(('noise', 'bits'), [(1.0, 0.6), (0.3, 4.0), (2.0, 50)])
def test_both_sums_together_have_the_noise_multiplier(noise, bits):
  """They are at a distance of S and 1/2, in units of their noise."""
  adaptive = own.AdaptiveClip(0.5, bit_noise=bits)
  deviation = deviation_of_deltas(noise, adaptive)
  distance = np.hypot(1 / deviation, 0.5 / bits)
  assert distance == pytest.approx(1 / noise)
  assert deviation_of_deltas(0.0, adaptive) == 0


def test_the_noise_of_the_bits():
  """The clip of clients whose norms stay below it moves by its noise."""
  adaptive = own.AdaptiveClip(0.5, learning_rate=0.3, bit_noise=0.9)
  algorithm = private(noise_multiplier=1.0, clip=1e9, adaptive=adaptive)

  def log_step(key):
    context = fa.ServerContext(1, key, 1.0, jnp.arange(2), jnp.ones(2, bool))
    server = algorithm.server_init({'w': jnp.zeros(1)})
    sums = PrivateMessage({'w': jnp.zeros(1)}, jnp.float32(1.0))
    _, new = algorithm.server_update({'w': jnp.zeros(1)}, server, sums, context)
    return jnp.log(new.clip / server.clip)

  steps = jax.jit(jax.vmap(log_step))(jax.random.split(jax.random.key(0), 4000))
  # share = 1/2 + (1 + N(0, 0.9^2)) / 2.
  noise = (np.array(steps) / -0.3 - 0.5) * 2 / 0.9
  assert abs(noise.mean()) < 5 / np.sqrt(4000)
  assert abs(noise.var() - 1) < 5 * np.sqrt(2 / 4000)


# Composition, and what breaks the sensitivity.


def test_compressed_messages_are_clipped_as_they_are_sent():
  algorithm = private(own.compress(FEDAVG, own.qsgd(4)))
  message = PrivateMessage({'w': jnp.zeros(100)}, ())
  expected = own.compress(FEDAVG, own.qsgd(4)).num_bytes({'w': jnp.zeros(100)})
  assert algorithm.num_bytes(message) == expected
  bits = private(
    own.compress(FEDAVG, own.qsgd(4)), adaptive=own.AdaptiveClip(0.5)
  )
  assert bits.num_bytes(message._replace(bit=jnp.zeros(()))) == expected + 4


def reading(name):
  """Returns FedAvg whose server reads something of the cohort."""

  def server_update(params, server, mean, context):
    scale = jnp.float32(getattr(context, name)).sum()
    return jax.tree.map(lambda w, m: w + scale * m, params, mean), server

  return FEDAVG._replace(server_update=server_update)


def clock(deadline):
  return fa.Participation(
    poisson=True,
    clock=fa.schedule.draw_clock(
      5, examples_per_second=5.0, deadline=deadline, seed=0
    ),
  )


BATCH_NORM = fa.Model(
  'normalised',
  lambda key: fa.Variables({'w': jnp.float32(1.0)}, {'m': jnp.float32(0.0)}),
  lambda variables, x: variables.params['w'] * x[:, 0],
  train=lambda variables, batch, context: (
    variables.params['w'] * batch.x[:, 0],
    variables.state,
  ),
)


def normalised():
  x = np.ones((4, 1), np.float32)
  examples = fa.Examples(x, x[:, 0])
  return simulations.build_simulation(
    BATCH_NORM,
    fa.build_clients(examples, np.arange(4).reshape(4, 1)),
    examples,
    algorithm=private(),
    loss=fa.losses.squared_error,
    client_fraction=0.5,
    epochs=1,
    batch_size=0,
    participation=POISSON,
    **RULES,
  )


TOP, MEDIAN = own.top_k(0.5), own.coordinate_median()
REFUSED = {
  'no clip': (lambda: private(clip=0.0), 'clip = 0.0: must be above 0'),
  'noise below 0': (
    lambda: private(noise_multiplier=-1.0),
    r'noise_multiplier = -1.0: must be in \[0, 1e\+30\]',
  ),
  'nobody': (lambda: private(denominator=0), 'denominator = 0: must be above'),
  'quantile': (
    lambda: private(adaptive=own.AdaptiveClip(1.0)),
    'quantile = 1.0: must be below 1',
  ),
  'bits': (
    lambda: private(noise_multiplier=1.0, adaptive=own.AdaptiveClip(0.5)),
    'bit_noise = 0.1: must be above noise_multiplier / 2 = 0.5',
  ),
  'twice': (lambda: private(private()), 'the algorithm is private already'),
  'over a median': (
    lambda: private(own.robust(FEDAVG, MEDIAN)),
    'privatize: the algorithm aggregates its messages in its own way',
  ),
  'under a median': (
    lambda: own.robust(private(), MEDIAN),
    'robust: the algorithm aggregates its messages in its own way',
  ),
  'under a bound': (
    lambda: own.bound_norms(private(), 2.0),
    'bound_norms: the algorithm aggregates its messages in its own way',
  ),
  'under a code': (
    lambda: simulation(own.compress(private(), TOP)),
    'algorithm.client_finish: was replaced by a wrapper around privatize',
  ),
  'under an attack': (
    lambda: simulation(own.attack(private(), [1], own.sign_flip(9.0))),
    'algorithm.client_finish: was replaced',
  ),
  'under collusion': (
    lambda: simulation(own.attack(private(), [1], own.inner_product(9.0))),
    'algorithm.aggregate: was replaced',
  ),
  'under another server': (
    lambda: simulation(private()._replace(server_update=FEDAVG.server_update)),
    'algorithm.server_update: was replaced',
  ),
  'with memory': (
    lambda: simulation(private(own.compress(FEDAVG, TOP, error_feedback=True))),
    r'algorithm.client_init: returns a state, must return \(\) with privatize',
  ),
  'scaffold': (
    lambda: simulation(private(fa.scaffold(ETA))),
    'algorithm.client_init: returns a state',
  ),
  'feddyn': (
    lambda: simulation(private(own.feddyn(0.1, optax.sgd(ETA)))),
    'algorithm.client_init: returns a state',
  ),
  'mimelite': (
    lambda: simulation(private(own.mimelite(optax.sgd(ETA), optax.sgd(1.0)))),
    'privatize: the message of a client has .* must be the delta alone',
  ),
  'fednova': (
    lambda: simulation(private(own.fednova(optax.sgd(ETA), optax.sgd(1.0)))),
    'must be the delta alone',
  ),
  'qfedavg': (
    lambda: simulation(private(own.qfedavg(1.0, ETA))),
    'must be the delta alone',
  ),
  'batch norm': (normalised, "model.state_of = 'everybody': must be 'nobody'"),
  'share': (
    lambda: simulation(private(reading('share'))),
    'algorithm.server_update: reads context.share, must not with privatize',
  ),
  'reported': (
    lambda: simulation(private(reading('reported'))),
    'reads context.reported',
  ),
  'weighted mean': (
    lambda: simulation(weighting='examples'),
    "weighting = 'examples': must be 'uniform' with privatize",
  ),
  'stop': (
    lambda: simulation(on_nan='stop'),
    "on_nan = 'stop': must be 'skip_client' with privatize",
  ),
  'denominator': (
    lambda: simulation(private(denominator=3.0)),
    'denominator = 3.0: must be 2, the expected number of clients',
  ),
  'sizes': (
    lambda: simulation(
      participation=fa.Participation(sampling_weights=np.array(SIZES))
    ),
    'sampling_weights: is not supported with privatize',
  ),
  'away': (
    lambda: simulation(
      participation=fa.Participation(unavailable_fraction=0.2)
    ),
    'unavailable_fraction: is not supported with privatize',
  ),
  'own draw': (
    lambda: simulation(
      participation=fa.Participation(draw=lambda rng, context: [0])
    ),
    'participation.draw: is not supported with privatize',
  ),
  'own completion': (
    lambda: simulation(
      participation=fa.Participation(
        poisson=True, completion=lambda rng, work: work.updates
      )
    ),
    'participation.completion: is not supported with privatize',
  ),
  'deadline': (
    lambda: simulation(participation=clock(1.0)),
    'clock.deadline: is not supported with privatize',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_misuses_are_refused_before_anything_compiles(name):
  make, said = REFUSED[name]
  with pytest.raises(fa.InputError, match=said) as info:
    make()
  assert '\n' not in str(info.value)
