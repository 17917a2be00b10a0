"""Compressed messages train as their equations say, in every placement."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.engine import keys
from fedavg_jax.schedule.planning import Planner
from tests.testing import compressors_twin
from tests.testing import quadratics
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing import simulations
from tests.testing import twin

own = fa.experimental
ETA, ROUNDS = 0.2, 3
SETTING = {'cohort_size': 3, 'epochs': 2, 'batch_size': 3, 'seed': 3}
# The compressor of fold_in(key of the client's end, _PURPOSE), its twin with k
# of d entries, and 1 + omega.
_PURPOSE = 0x636F6D70
TWINS = {
  'top_k': (
    own.top_k(0.3),
    lambda key, x: compressors_twin.top_k(key, x, max(int(0.3 * len(x)), 1)),
    lambda d: 1.0,
  ),
  'qsgd': (
    own.qsgd(4),
    lambda key, x: compressors_twin.qsgd(key, x, 4),
    lambda d: 1 + min(d / 16, np.sqrt(d) / 4),
  ),
  'random_k': (
    own.random_k(0.5),
    lambda key, x: compressors_twin.random_k(key, x, max(len(x) // 2, 1)),
    lambda d: d / max(d // 2, 1),
  ),
  'sign': (own.scaled_sign(), compressors_twin.scaled_sign, lambda d: 1.0),
  'drive': (own.drive(), compressors_twin.drive, lambda d: 1.0),
}
NAMES = ('b1', 'b2', 'w1', 'w2')  # The leaves' order.


def plain():
  return fa.fedavg(optax.sgd(ETA), optax.sgd(1.0))


@pytest.fixture
def population(uneven_examples):
  x, y, parts = uneven_examples
  return fa.build_clients(fa.Examples(x, y), parts)


def engine(population, algorithm, **changes):
  """Returns server state and client states after three rounds."""
  options = {'lanes': 2, 'num_devices': 2, **SETTING, **changes}
  return rounds.run_states(
    population, rounds=ROUNDS, algorithm=algorithm, **options
  )[:2]


@pytest.mark.parametrize(
  ('name', 'error_feedback', 'per_leaf'),
  rest_slow(
    2,
    [
      *[('top_k', True, False), ('qsgd', False, True), ('qsgd', True, False)],
      *[('random_k', False, True), ('random_k', True, False)],
      *[('sign', True, True), ('drive', True, False), ('drive', False, False)],
    ],
    True,
  ),
)
def test_three_rounds(
  uneven_examples, population, name, error_feedback, per_leaf
):
  """Uneven clients, one of one example, follow a second implementation."""
  x, y, parts = uneven_examples
  x = x.reshape(len(x), -1) / 255.0
  compressor, apply, shrink = TWINS[name]
  planner = Planner(num_examples=population.num_examples, **SETTING)
  params = twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
  shapes = {n: params[n].shape for n in NAMES}
  groups = [[n] for n in NAMES] if per_leaf else [list(NAMES)]

  def encoded(key, owed):
    sent = {}
    for group in groups:
      vector = np.concatenate([owed[n].ravel() for n in group])
      of_group = jax.random.fold_in(key, NAMES.index(group[0]))
      vector = apply(of_group, vector)
      if error_feedback:
        vector = vector / shrink(len(vector))
      ends = np.cumsum([owed[n].size for n in group])[:-1]
      pieces = np.split(vector, ends)
      sent |= {
        n: p.reshape(shapes[n]) for n, p in zip(group, pieces, strict=True)
      }
    return sent

  memory = {
    k: {n: np.zeros(shapes[n]) for n in NAMES} for k in range(len(parts))
  }
  for t in range(1, ROUNDS + 1):
    sent = twin.deltas(params, x, y, parts, planner, t, ETA)
    for k, delta in sent.items():
      end = keys.of_finish(keys.of_clients(SETTING['seed'], t), k)
      owed = {n: delta[n] + memory[k][n] for n in NAMES}
      sent[k] = encoded(jax.random.fold_in(end, _PURPOSE), owed)
      if error_feedback:
        memory[k] = {n: owed[n] - sent[k][n] for n in NAMES}
    step = twin.mean(sent, {k: len(parts[k]) for k in sent})
    params = {n: params[n] + step[n] for n in NAMES}
  algorithm = own.compress(
    plain(), compressor, error_feedback=error_feedback, per_leaf=per_leaf
  )
  state, clients = engine(population, algorithm)
  rounds.assert_close(state.params, params, 1e-5)
  if error_feedback:
    for k, kept in memory.items():
      got = {n: leaf[k] for n, leaf in clients.memory.items()}
      rounds.assert_close(got, kept, 1e-5)


@pytest.mark.parametrize(
  ('error_feedback', 'per_leaf'),
  rest_slow(1, [(True, True), (False, False), (True, False)], True),
)
def test_all_entries_are_fedavg_to_the_bit(
  population, error_feedback, per_leaf
):
  everything = own.compress(
    plain(), own.top_k(1.0), error_feedback=error_feedback, per_leaf=per_leaf
  )
  expected = engine(population, plain(), batch_size=0)[0]
  found, clients = engine(population, everything, batch_size=0)
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(clients))


def test_all_entries_of_scaffold_are_scaffold_to_the_bit(population):
  """The optimizer and the end of a client see their own control variates."""
  everything = own.compress(
    fa.scaffold(ETA), own.top_k(1.0), error_feedback=True, per_leaf=True
  )
  expected, controls = engine(population, fa.scaffold(ETA))
  found, clients = engine(population, everything)
  jax.tree.map(
    np.testing.assert_array_equal,
    (found.params, found.server, clients.own),
    (expected.params, expected.server, controls),
  )


def finish(algorithm, delta, state, key):
  """Returns ONE client's output for a delta."""
  context = fa.ClientContext(delta, (), state, 0, 9, 1, key)
  return algorithm.client_finish(
    fa.ClientResult(delta, delta, (), jnp.int32(1), 0.5, (), context)
  )


@pytest.mark.parametrize(
  ('compressor', 'tolerance'), [(own.top_k(0.25), 0.0), (own.qsgd(2), 1e-4)]
)
def test_what_was_sent_and_what_is_kept_are_all(compressor, tolerance):
  """Sums of halves have no rounding: with top-k the identity is exact."""
  algorithm = own.compress(plain(), compressor, error_feedback=True)
  rng = np.random.default_rng(0)
  deltas = [
    {'w': np.float32(rng.integers(-9, 9, (4, 3)) / 2), 'b': np.float32([1, t])}
    for t in range(20)
  ]
  state = algorithm.client_init(deltas[0], jnp.int32(0))
  total = jax.tree.map(np.zeros_like, deltas[0])
  step = jax.jit(lambda *args: finish(algorithm, *args)[:2])
  for t, delta in enumerate(deltas):
    sent, state = step(delta, state, jax.random.key(t))
    total = jax.tree.map(np.add, total, sent)
  for name, memory in state.memory.items():
    whole = sum(delta[name] for delta in deltas)
    np.testing.assert_allclose(total[name] + memory, whole, atol=tolerance)
  assert np.abs(state.memory['w']).max() > 0


def test_error_feedback_reaches_the_optimum_where_top_k_stands_still():
  """Client k pulls strongly in direction k; the mean is in none of them.

  Each client sends its largest entry, the sum of which is far from zero at the
  optimum.
  """
  pulls = np.float32([[9.0, 1.0], [-8.0, 1.0]])

  def distance(error_feedback):
    algorithm = own.compress(
      plain(), own.top_k(0.5), error_feedback=error_feedback
    )

    def one_round(t, carry):
      w, states = carry
      outputs = jax.vmap(
        lambda pull, state: finish(
          algorithm, 0.05 * (pull - w), state, jax.random.key(0)
        )
      )(pulls, states)
      return w + outputs.message.mean(axis=0), outputs.state

    w = jnp.zeros(2)
    states = jax.vmap(lambda k: algorithm.client_init(w, k))(jnp.arange(2))
    w, _ = jax.jit(lambda *carry: jax.lax.fori_loop(0, 400, one_round, carry))(
      w, states
    )
    return np.abs(np.asarray(w) - pulls.mean(axis=0)).max()

  assert distance(True) < 0.2 < 0.9 < distance(False)


def test_parts_of_one_number_are_sent_as_they_are():
  """A message of FedExP has a delta and its squared norm, 4 bytes."""
  algorithm = own.compress(own.fedexp(optax.sgd(ETA)), own.scaled_sign())
  delta = jnp.array([3.0, -1.0])
  signs, norm = finish(algorithm, delta, (), jax.random.key(0)).message
  assert signs.tolist() == [2.0, -2.0] and float(norm) == 10.0
  assert algorithm.num_bytes((delta, norm)) == 5 + 4


def test_clipped_before_compressed():
  """A wrapper changes the delta, wherever the other one is."""
  delta = jnp.array([3.0, 4.0])
  for algorithm in (
    fa.clip_delta(own.compress(plain(), own.top_k(0.5)), 1.0),
    own.compress(fa.clip_delta(plain(), 1.0), own.top_k(0.5)),
  ):
    message = finish(algorithm, delta, (), jax.random.key(0)).message
    np.testing.assert_allclose(message, [0.0, 0.8], rtol=1e-6)


def test_hooks_see_their_own_state():
  """A client starts from its state, which a gradient hook returns too."""
  algorithm = own.compress(
    plain()._replace(
      client_init=lambda params, client_id: params + 1,
      client_start=lambda context: context.client_state,
      client_gradient=lambda loss_fn, params, batch, context: (
        batch,
        context.client_state,
      ),
    ),
    own.top_k(0.5),
    error_feedback=True,
  )
  w = jnp.zeros(3)
  state = algorithm.client_init(w, 0)
  context = fa.ClientContext(w, (), state, 0, 9, 1, None)
  assert algorithm.client_start(context).tolist() == [1.0] * 3
  _, gradient = algorithm.client_gradient(None, w, w, context)
  assert gradient.tolist() == [1.0] * 3


def test_streams_calls_and_resumed_runs_have_the_same_bits(population):
  """A call of three rounds equals single ones, streamed and resumed."""
  algorithm = own.compress(plain(), own.qsgd(3), error_feedback=True)

  def build(**options):
    return simulations.build(
      population, simulations.model(), algorithm=algorithm, lanes=2, **options
    )

  *_, expected = fa.simulate(build(rounds_per_call=3), rounds=3)
  streamed = build(examples_on='host', client_states_on='host')
  *_, half = fa.simulate(streamed, rounds=1)
  *_, found = fa.simulate(
    streamed, rounds=3, start=(half.state, half.client_states)
  )
  jax.tree.map(
    np.testing.assert_array_equal, found.state.params, expected.state.params
  )


@pytest.mark.slow
def test_a_sweep_has_the_models_of_single_runs(population):
  def make(eta):
    fedavg = fa.fedavg(optax.sgd(eta), optax.sgd(1.0))
    return own.compress(fedavg, own.top_k(0.1), error_feedback=True)

  sweep = simulations.build(
    population, simulations.model(), algorithm=make, sweep=[0.1, 0.3], lanes=2
  )
  *_, together = fa.simulate(sweep, rounds=2)
  alone = simulations.build(
    population, simulations.model(), algorithm=make(0.3), lanes=2
  )
  *_, one = fa.simulate(alone, rounds=2)
  for name, leaf in one.state.params.items():
    np.testing.assert_allclose(
      together.state.params[name][1], leaf, rtol=0, atol=1e-6
    )


def test_bytes_are_in_the_rounds_cost_and_in_the_clock():
  """Each of four clients has 5 bytes to send, at a byte per second."""
  clock = fa.schedule.Clock(
    examples_per_second=np.full(4, np.inf),
    bytes_down_per_second=np.full(4, np.inf),
    bytes_up_per_second=np.ones(4),
  )
  simulation = quadratics.build(
    own.compress(plain(), own.scaled_sign(), per_leaf=True)._replace(
      server_update=lambda params, state, mean, context: (params, state),
      client_finish=lambda result: fa.ClientOutput(jnp.zeros(8)),
    ),
    participation=fa.Participation(clock=clock),
  )
  cost = simulation.planner.cost(1)
  assert (cost.bytes_up, cost.seconds) == (4 * 5, 5.0)


def test_a_message_is_encoded_once():
  algorithm = own.compress(plain(), own.qsgd(1))
  with pytest.raises(fa.InputError, match='num_bytes: is set.* must be None'):
    own.compress(algorithm, own.top_k(0.5))
