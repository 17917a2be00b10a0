"""Personal leaves follow their equations in NumPy, for every role."""

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts.algorithm_checks import traffic
from fedavg_jax.schedule.planning import Planner
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing import simulations
from tests.testing import twin

ETA, ROUNDS = 0.2, 3
SETTING = {'cohort_size': 3, 'epochs': 2, 'batch_size': 3, 'seed': 3}
HEAD, BODY = ('w2', 'b2'), ('w1', 'b1')
SGD, SERVER = optax.sgd(ETA), optax.sgd(1.0)


def frozen_body(path):
  return 'frozen' if path in BODY else 'shared'


def plain_rounds(x, y, parts, personal, frozen=(), head_epochs=0, **setting):
  """Returns the server's leaves and the own leaves [K], in NumPy.

  With `head_epochs` the personal leaves are trained alone in the first epochs
  of a round, and the others alone in the rest.

  """
  setting = SETTING | setting
  sizes = np.array([len(part) for part in parts])
  planner = Planner(num_examples=sizes, **setting)
  x = x.reshape(len(x), -1) / 255.0
  params = twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
  own = {k: {n: params[n] for n in personal} for k in range(len(parts))}
  for number in range(1, ROUNDS + 1):
    sent = {}
    for k in map(int, planner.cohort(number)):
      w = params | own[k]
      batches = twin.batches_of(planner, number, k)
      alone = head_epochs * len(batches) // setting['epochs']
      for i, batch in enumerate(batches):
        rows = parts[k][batch]
        _, gradient = twin.losses_and_gradient(w, x[rows], y[rows])
        for name in w:
          trains = not head_epochs or (i < alone) == (name in personal)
          if trains and name not in frozen:
            w[name] = w[name] - ETA * gradient[name]
      own[k] = {n: w[n] for n in personal}
      sent[k] = {n: w[n] for n in w if n not in personal}
    params = params | twin.mean(sent, sizes)
  return params, {n: np.stack([own[k][n] for k in own]) for n in personal}


def engine(examples, algorithm, number=ROUNDS, **changes):
  """Returns server state, client states and metrics of the engine."""
  x, y, parts = examples
  clients = fa.build_clients(fa.Examples(x, y), parts)
  options = {'lanes': 2, 'num_devices': 2} | SETTING | changes
  return rounds.run_states(
    clients, rounds=number, algorithm=algorithm, **options
  )


def close(got, expected):
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=name)


def equal(got, expected):
  jax.tree.map(np.testing.assert_array_equal, got, expected)


FEDAVG = fa.fedavg(SGD, SERVER)
FAMILIES = {
  'fedper': (fa.experimental.personal(FEDAVG, ['?2']), HEAD, (), 0),
  'lg': (
    fa.experimental.personal(FEDAVG, fa.experimental.Shared(HEAD)),
    *(BODY, (), 0),
  ),
  'fedrep': (
    fa.experimental.personal(
      FEDAVG, HEAD, first=fa.experimental.first_epochs(1, 3)
    ),
    *(HEAD, (), 1),
  ),
  'adapters': (fa.experimental.personal(FEDAVG, frozen_body), (), BODY, 0),
}


@pytest.mark.parametrize(
  ('family', 'lanes', 'num_devices'),
  rest_slow(
    4,
    [
      *[('fedper', 2, 2), ('lg', 1, 1), ('fedrep', 2, 1), ('adapters', 8, 2)],
      *[('fedper', 1, 1), ('lg', 8, 2), ('fedrep', 8, 2), ('adapters', 1, 1)],
    ],
    True,
  ),
)
def test_numpy_twin(uneven_examples, family, lanes, num_devices):
  algorithm, personal, frozen, head_epochs = FAMILIES[family]
  params, own = plain_rounds(
    *uneven_examples, personal, frozen, head_epochs=head_epochs
  )
  state, clients, _ = engine(
    uneven_examples, algorithm, lanes=lanes, num_devices=num_devices
  )
  close(state.params, params)
  close(clients.own, own)
  assert len(jax.tree.leaves(clients)) == len(personal)


def test_whole_batches_and_one_client(uneven_examples):
  """B is infinite and C is 0: one update per epoch, of one client."""
  setting = {'batch_size': 0, 'cohort_size': 1}
  params, own = plain_rounds(*uneven_examples, HEAD, head_epochs=1, **setting)
  fedrep = fa.experimental.personal(
    FEDAVG, HEAD, first=fa.experimental.first_epochs(1, 0)
  )
  state, clients, _ = engine(uneven_examples, fedrep, **setting)
  close(state.params, params)
  close(clients.own, own)


def test_all_shared_is_the_algorithm_to_the_bit(uneven_examples):
  """No algorithm sees that its leaves have roles, nor has its states."""
  plain = engine(uneven_examples, FEDAVG)[0].params
  shared = fa.experimental.personal(FEDAVG, lambda path: 'shared')
  equal(engine(uneven_examples, shared)[0].params, plain)


@pytest.mark.parametrize(
  'algorithm',
  rest_slow(
    1,
    [
      fa.scaffold(ETA),
      fa.fedavg(SGD, fa.adaptive('adam', 0.1, b1=0.9, b2=0.99, tau=1e-3)),
      fa.experimental.fednova(SGD, SERVER),
    ],
  ),
)
def test_algorithms_see_the_shared_leaves_alone(uneven_examples, algorithm):
  """A personal head that never moves is as good as a frozen one."""
  still = optax.set_to_zero()
  kept = fa.experimental.personal(algorithm, HEAD, still)
  frozen = fa.experimental.personal(
    algorithm, lambda path: 'frozen' if path in HEAD else 'shared', still
  )
  own, none = (engine(uneven_examples, each) for each in (kept, frozen))
  equal(own[0].params, none[0].params)
  equal(jax.tree.leaves(own[0].server), jax.tree.leaves(none[0].server))
  for leaf in jax.tree.leaves(own[0].server) + jax.tree.leaves(own[1].inner):
    assert leaf.shape[-1:] in ((6,), ())  # Only w1 and b1 have states.
  for name in HEAD:
    np.testing.assert_array_equal(
      own[1].own[name], np.stack([own[0].params[name]] * 5)
    )


def test_clients_that_were_not_drawn_have_the_initial_leaves(uneven_examples):
  algorithm = FAMILIES['fedper'][0]
  state, clients, _ = engine(uneven_examples, algorithm, 1, cohort_size=1)
  planner = Planner(
    num_examples=np.array([len(part) for part in uneven_examples[2]]),
    **SETTING | {'cohort_size': 1},
  )
  (drawn,) = planner.cohort(1)
  moved = [
    k for k in range(5) if (clients.own['w2'][k] != state.params['w2']).any()
  ]
  assert moved == [drawn]


def test_only_shared_leaves_are_sent():
  params = jax.eval_shape(
    lambda: jax.tree.map(
      np.float32, twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES)
    )
  )
  body, head = 4 * (9 * 6 + 6), 4 * (6 * 4 + 4)
  for family, sent in (
    *(('fedper', body), ('fedrep', body)),
    *(('lg', head), ('adapters', head)),
  ):
    found = traffic(FAMILIES[family][0], params, 'everybody')
    assert found == (sent, sent, False)


@pytest.mark.parametrize(
  ('change', 'options'),
  rest_slow(
    1,
    [
      ('host', {'client_states_on': 'host', 'examples_on': 'host'}),
      ('calls', {'rounds_per_call': 3}),
    ],
    True,
  ),
)
def test_places_and_calls_change_no_bit(uneven_examples, change, options):
  x, y, parts = uneven_examples
  clients = fa.build_clients(fa.Examples(x, y), parts)
  ends = []
  for own in ({'rounds_per_call': 1}, options):
    simulation = simulations.build(
      clients,
      simulations.model(),
      algorithm=FAMILIES['fedper'][0],
      lanes=2,
      **own,
    )
    (*_, record) = fa.simulate(simulation, rounds=ROUNDS)
    states = record.client_states
    if change == 'host' and own is options:
      states = states.gather(np.arange(5))
    ends.append((record.state.params, states))
  equal(*ends)


@pytest.mark.slow
def test_a_sweep_has_the_models_of_its_values(uneven_examples):
  x, y, parts = uneven_examples
  clients = fa.build_clients(fa.Examples(x, y), parts)

  def fedper(eta):
    return fa.experimental.personal(fa.fedavg(optax.sgd(eta), SERVER), HEAD)

  sweep = simulations.build(
    clients, simulations.model(), algorithm=fedper, sweep=[0.1, ETA], lanes=2
  )
  alone = simulations.build(
    clients, simulations.model(), algorithm=fedper(ETA), lanes=2
  )
  (*_, both), (*_, one) = (
    fa.simulate(simulation, rounds=2) for simulation in (sweep, alone)
  )
  close(jax.tree.map(lambda leaf: leaf[1], both.state.params), one.state.params)
  close(
    jax.tree.map(lambda leaf: leaf[1], both.client_states.own),
    {name: one.client_states.own[name] for name in HEAD},
  )


def test_refusals(uneven_examples):
  make = fa.experimental.personal
  for bad, said in (
    (lambda: make(FEDAVG, 'w2'), "roles = 'w2': must be a list of patterns"),
    (lambda: make(FEDAVG, ['w2'], first=-1), 'first = -1: must be at least 0'),
    (lambda: make(fa.scaffold(ETA), ['w2']), 'optimizer: must be given with'),
    (lambda: fa.experimental.first_epochs(-1, 3), 'epochs = -1: must be'),
  ):
    with pytest.raises(fa.InputError, match=said):
      bad()
  for roles, said in (
    (['w3'], "pattern 'w3' names no leaf of the model, must name some of b1, "),
    (['*'], 'roles: no leaf of the model is shared, must be some of b1, b2'),
    (lambda path: 'own', "'b1' has the role 'own', must be one of shared, "),
  ):
    with pytest.raises(fa.InputError, match=said):
      simulations.build(
        fa.build_clients(fa.Examples(*uneven_examples[:2]), uneven_examples[2]),
        simulations.model(),
        algorithm=make(FEDAVG, roles),
      )
