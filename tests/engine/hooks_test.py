"""Hooks of an algorithm receive their values; defaults change no bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.engine import keys
from tests.testing import covering
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing import simulations
from tests.testing import twin

SEED, CLIENTS, COHORT = 5, 5, 3


@pytest.fixture
def clients(uneven_examples):
  """Makes five clients of 1, 7, 4, 9 and 2 examples."""
  x, y, parts = uneven_examples
  return fa.build_clients(fa.Examples(x, y), parts)


def last(clients, algorithm, number=3, **options):
  """Returns the last record of some rounds."""
  simulation = simulations.build(
    clients, simulations.model(), algorithm=algorithm, **options
  )
  *_, record = fa.simulate(simulation, rounds=number)
  return record


def equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_hooks_that_do_what_the_defaults_do_change_no_bit(clients):
  plain = rounds.fedavg()
  written_out = plain._replace(
    client_start=lambda context: context.global_params,
    client_finish=lambda result: fa.ClientOutput(
      result.delta, info={'updates': result.num_updates}
    ),
    num_bytes=lambda message: 4 * message['b1'].size,
  )
  equal(
    last(clients, plain).state.params, last(clients, written_out).state.params
  )


def test_all_messages_and_their_weights_give_the_mean(clients):
  def mean(messages, weights):
    return jax.tree.map(lambda m: jnp.tensordot(weights, m, 1), messages)

  gathered = rounds.fedavg()._replace(aggregate=fa.gathered(mean))
  one = last(clients, rounds.fedavg())
  for lanes in (1, 2):
    other = last(clients, gathered, lanes=lanes)
    rounds.assert_close(one.state.params, other.state.params, 1e-6)


@pytest.mark.parametrize('on_nan', ['stop', 'skip_client'])
def test_a_rule_receives_each_message_with_its_weight(clients, on_nan):
  """Each client sends its number; a client that is skipped has weight 0."""

  def client_finish(result):
    client = result.context.client_id
    bad = (on_nan == 'skip_client') & (client == 1)
    return fa.ClientOutput(
      jnp.where(bad, jnp.nan, client.astype(jnp.float32)),
      info={'n': result.context.num_examples},
    )

  algorithm = rounds.fedavg()._replace(
    client_finish=client_finish,
    aggregate=fa.gathered(lambda messages, weights: (messages, weights)),
    server_init=lambda params: {
      'sent': jnp.zeros(CLIENTS),
      'weights': jnp.zeros(CLIENTS),
      'reported': jnp.zeros(CLIENTS, bool),
    },
    server_update=lambda params, server, gathered, context: (
      params,
      {
        'sent': server['sent'].at[context.clients].set(gathered[0]),
        'weights': server['weights'].at[context.clients].set(gathered[1]),
        'reported': server['reported']
        .at[context.clients]
        .set(context.reported),
      },
    ),
  )
  record = last(
    clients,
    algorithm,
    number=1,
    client_fraction=1.0,
    on_nan=on_nan,
    lanes=2,
  )
  sizes = np.array(clients.num_examples, float)
  if on_nan == 'skip_client':
    sizes[1] = 0
    assert record.skipped == 1
  server = record.state.server
  np.testing.assert_array_equal(server['reported'], sizes > 0)
  np.testing.assert_array_equal(server['sent'], np.arange(5) * (sizes > 0))
  np.testing.assert_allclose(server['weights'], sizes / sizes.sum(), rtol=1e-6)
  # The mean over clients that count, without weights.
  assert record.info['n'] == pytest.approx(
    clients.num_examples[sizes > 0].mean()
  )


@pytest.mark.parametrize(
  ('lanes', 'options'),
  rest_slow(
    2,
    covering(
      [1, 2, 4],
      [
        {},
        {'rounds_per_call': 1},
        {'examples_on': 'host'},
        {'client_states_on': 'host'},
        {'devices': 2},
      ],
    ),
    several=True,
  ),
)
def test_keys_depend_on_seed_round_and_client_alone(clients, lanes, options):
  """Clients have draws at their start, in each update and at their end."""
  algorithm = rounds.fedavg(drawing())._replace(
    client_init=lambda params, client_id: {
      'start': jnp.float32(client_id),
      'updates': jnp.float32(0),
      'finish': jnp.float32(0),
    },
    client_start=lambda context: jax.tree.map(
      lambda p: p + jax.random.normal(context.key), context.global_params
    ),
    client_finish=lambda result: fa.ClientOutput(
      result.delta,
      {
        'start': result.optimizer_state['start'],
        'updates': result.optimizer_state['sum'],
        'finish': jax.random.normal(result.context.key),
      },
    ),
  )
  if options == {'devices': 2}:
    options = {'devices': jax.devices()[:2]}
    lanes = max(lanes, 2)
  simulation = simulations.build(
    clients, simulations.model(), algorithm=algorithm, lanes=lanes, **options
  )
  *_, record = fa.simulate(simulation, rounds=2)
  states = record.client_states
  if options.get('client_states_on') == 'host':
    states = states.gather(np.arange(CLIENTS))
  planner = simulation.planner
  newest = {k: t for t in (1, 2) for k in planner.cohort(t)}
  sizes = clients.num_examples
  for k in range(CLIENTS):
    if k not in newest:
      assert states['start'][k] == k and states['finish'][k] == 0
      continue
    own = keys.of_clients(SEED, newest[k])
    draw = jax.random.normal
    # The optimizer sees the model after client_start has drawn.
    assert states['finish'][k] == draw(keys.of_finish(own, k))
    updates = 2 * -(-sizes[k] // 3)
    drawn = sum(draw(keys.of_update(own, k, i)) for i in range(updates))
    np.testing.assert_allclose(states['updates'][k], drawn, rtol=1e-5)
    drawn = draw(keys.of_start(own, k))
    started = float(states['start'][k])
    # The difference to the global model, which is not zero after round 1.
    np.testing.assert_allclose(started, drawn, atol=1e-5)


def drawing():
  """Returns SGD that sums its draws and saves where its model started."""

  def init(params):
    return {'start': params['b1'][0], 'sum': jnp.float32(0)}

  def update(grads, state, params, *, context, step):
    drawn = state['sum'] + jax.random.normal(context.key)
    started = params['b1'][0] - context.global_params['b1'][0]
    start = jnp.where(step == 0, started, state['start'])
    updates = jax.tree.map(lambda g: -0.1 * g, grads)
    return updates, {'start': start, 'sum': drawn}

  return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize('with_context', [True, False])
def test_noise_of_clients_is_independent(with_context):
  """The mean of m clients has 1 / sqrt(m) of the deviation of one."""
  number, pixels = 400, 64
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (number, 4, 4, 1)).astype(np.uint8)
  clients = fa.build_clients(
    fa.Examples(x, np.zeros(number, np.int32)),
    np.arange(number).reshape(number, 1),
  )
  model = fa.Model(
    'nothing',
    lambda key: {'w': jnp.zeros(pixels)},
    lambda params, x: jnp.zeros((len(x), 2)) + 0 * params['w'].sum(),
  )

  def noise(updates, state, params, *, context, step):
    del params, step
    drawn = jax.random.normal(context.key, (pixels,))
    return {'w': drawn}, state

  own = optax.GradientTransformationExtraArgs(optax.init_empty_state, noise)
  if not with_context:  # Its key is made one for each client and round.
    own = optax.add_noise(1.0, 0.0, 3)
  models = [np.zeros(pixels)]
  federation = fa.Federation(
    clients,
    fa.Examples(x[:4], np.zeros(4, np.int32)),
    client_fraction=1.0,
    epochs=1,
    batch_size=1,
  )
  with jax.numpy_dtype_promotion('standard'):  # optax.add_noise needs it.
    simulation = fa.build_simulation(
      model,
      federation,
      fa.fedavg(own, optax.sgd(1.0)),
      execution=fa.Execution(lanes=8, rounds_per_call=1),
    )
  for record in fa.simulate(simulation, rounds=3):
    if record.round:
      models.append(np.asarray(record.state.params['w']))
  steps = np.diff(models, axis=0)  # [3, 64], each a mean of 400 draws.
  # The deviation of 192 draws is known to 5 %; this is four times that.
  assert steps.std() * np.sqrt(number) == pytest.approx(1, rel=0.2)
  # Rounds are independent: the correlation is 0 up to 1 / sqrt(64).
  assert abs(np.corrcoef(steps)[np.triu_indices(3, 1)]).max() < 0.5


def test_bytes_that_depend_on_the_numbers_are_counted(clients):
  """A client sends its number, which takes so many bytes."""
  algorithm = rounds.fedavg()._replace(
    client_finish=lambda result: fa.ClientOutput(
      result.context.client_id.astype(jnp.float32)
    ),
    server_update=lambda params, server, mean, context: (params, server),
    num_bytes=lambda message: message.astype(jnp.int32),
  )
  record = last(clients, algorithm, number=1, client_fraction=1.0, lanes=2)
  assert record.coded == 0 + 1 + 2 + 3 + 4
  fixed = algorithm._replace(num_bytes=lambda message: 3)
  simulation = simulations.build(
    clients, simulations.model(), algorithm=fixed, client_fraction=1.0
  )
  assert simulation.planner.bytes_up == 3
  *_, record = fa.simulate(simulation, rounds=1)
  assert record.coded == 0


@pytest.mark.parametrize('client_states_on', ['device', 'host'])
def test_a_personal_part_of_the_model(clients, client_states_on):
  """The head stays with its client: FedPer is compared with the NumPy twin."""
  head = ('w2', 'b2')

  def body(tree):
    return {n: leaf for n, leaf in tree.items() if n not in head}

  personal = rounds.fedavg()._replace(
    client_init=lambda params, client_id: {n: params[n] for n in head},
    client_start=lambda context: context.global_params | context.client_state,
    client_finish=lambda result: fa.ClientOutput(
      body(result.delta), {n: result.params[n] for n in head}
    ),
    server_update=lambda params, server, mean, context: (
      params | {n: params[n] + mean[n] for n in mean},
      server,
    ),
    server_init=lambda params: (),
  )
  simulation = simulations.build(
    clients,
    simulations.model(),
    algorithm=personal,
    lanes=2,
    client_states_on=client_states_on,
  )
  *_, record = fa.simulate(simulation, rounds=3)
  params = jax.tree.map(np.asarray, simulation.init()[0].params)
  flat = np.asarray(clients.x).reshape(len(clients.x), -1) / 255
  y, offsets = np.asarray(clients.y), clients.offsets
  heads = [{n: params[n] for n in head} for _ in range(CLIENTS)]
  for number in (1, 2, 3):
    cohort = simulation.planner.cohort(number)
    weights = clients.num_examples[cohort]
    weights = weights / weights.sum()
    total = {n: np.zeros_like(leaf) for n, leaf in body(params).items()}
    for weight, k in zip(weights, cohort, strict=True):
      rows = slice(offsets[k], offsets[k + 1])
      local, _ = twin.client_update(
        params | heads[k],
        flat[rows],
        y[rows],
        twin.batches_of(simulation.planner, number, k),
        rounds.LEARNING_RATE,
      )
      heads[k] = {n: local[n] for n in head}
      for n in total:
        total[n] += weight * (local[n] - params[n])
    params = params | {n: params[n] + total[n] for n in total}
  rounds.assert_close(record.state.params, params, 1e-5)
  states = record.client_states
  if client_states_on == 'host':
    states = states.gather(np.arange(CLIENTS))
  for k in range(CLIENTS):
    rounds.assert_close({n: states[n][k] for n in head}, heads[k], 1e-5)


def test_a_sweep_has_the_info_of_each_value(clients):
  def algorithm_of(rate):
    return rounds.fedavg(optax.sgd(rate))._replace(
      client_finish=lambda result: fa.ClientOutput(
        result.delta, info={'rate': jnp.asarray(rate)}
      )
    )

  simulation = simulations.build(
    clients,
    simulations.model(),
    algorithm=algorithm_of,
    sweep=[0.25, 0.5],
  )
  *_, record = fa.simulate(simulation, rounds=2)
  assert record.info['rate'].tolist() == [0.25, 0.5]


def test_keys_in_states_depend_on_client_and_round():
  state = {'key': jax.random.key(3), 'count': jnp.int32(0)}
  assert keys.holds_keys(state) and not keys.holds_keys(state['count'])
  seen = set()
  for number in (1, 2):
    for client in range(3):
      own = keys.own_keys(state, keys.of_clients(0, number), client)
      assert own['count'] == 0
      seen.add(tuple(jax.random.key_data(own['key']).tolist()))
  assert len(seen) == 6
