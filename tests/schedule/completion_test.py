"""Clients do as much work as stragglers, rules and deadlines allow."""

import re

import jax
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule.participation import Participation
from fedavg_jax.schedule.planning import Planner
from tests.testing import rest_slow
from tests.testing import rounds
from tests.testing import simulations
from tests.testing import twin

SIZES = np.array([1, 7, 4, 9, 2, 0])
# Minibatches of two examples, per epoch.
PER_EPOCH = np.array([1, 4, 2, 5, 1, 0])


def make(completion=None, sizes=SIZES, participation=None, **kwargs):
  defaults = {
    **{'cohort_size': len(sizes), 'epochs': 3, 'batch_size': 2, 'seed': 4},
    'participation': participation or Participation(completion=completion),
  }
  return Planner(num_examples=np.asarray(sizes), **(defaults | kwargs))


# Stragglers.


@pytest.mark.parametrize('work', ['minibatches', 'epochs'])
@pytest.mark.parametrize('fraction', [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize('policy', ['keep', 'drop'])
def test_stragglers_have_their_published_bits(work, fraction, policy):
  """The law is repeated client by client; published results depend on it."""
  planner = make(
    participation=Participation(
      straggler_fraction=fraction, straggler_work=work, stragglers=policy
    )
  )
  for t in range(1, 30):
    cohort, completed = planner.work(t)
    done = list(3 * PER_EPOCH[cohort])
    if fraction:
      rng = np.random.default_rng([4, 5, t])
      number = int(fraction * 6 + rng.random())
      late, shares = rng.permutation(6)[:number], rng.random(number)
      for i, share in zip(late, shares, strict=True):
        if policy == 'drop':
          done[i] = 0
        elif work == 'epochs':  # One or two of three epochs.
          done[i] = (1 + int(share * 2)) * PER_EPOCH[cohort[i]]
        else:
          most = max(done[i] - 1, 0)
          done[i] = min(1 + int(share * most), most)
    assert completed.tolist() == done


def test_stragglers_by_epochs_are_uniform_over_all_but_the_last():
  """FedProx has nine of ten clients with 1 to 9 of 10 epochs, one with all."""
  planner = make(
    sizes=[20] * 10,
    epochs=10,
    participation=Participation(
      straggler_fraction=0.9, straggler_work='epochs'
    ),
  )
  seen = []
  for t in range(1, 501):
    _, completed = planner.work(t)
    assert (completed % 10 == 0).all()  # An epoch has ten minibatches.
    assert (completed < 100).sum() == 9
    seen += (completed[completed < 100] // 10).tolist()
  counts = np.bincount(seen, minlength=10)[1:]
  expected = len(seen) / 9
  # Chi-square with eight degrees of freedom exceeds 35 once in 30,000 seeds.
  assert ((counts - expected) ** 2 / expected).sum() < 35


def test_stragglers_by_epochs_need_two_epochs():
  own = Participation(straggler_fraction=0.5, straggler_work='epochs')
  with pytest.raises(InputError, match='epochs = 1: must be at least 2 with'):
    make(participation=own, epochs=1)
  no_stragglers = Participation(straggler_work='epochs')
  assert make(participation=no_stragglers, epochs=1).work(1)[1].sum() == 13


# Arguments of a rule.


def everything(rng, work):
  del rng
  return work.updates


def random_epochs(rng, work):
  """Draws E_k of FedNova (Wang et al. 2020), uniform from 1 to E."""
  return rng.integers(1, work.epochs + 1, len(work.clients)) * (
    work.updates_per_epoch
  )


def test_all_the_work_is_the_default():
  own, default = make(everything), make()
  for t in (1, 2, 3):
    for array, other in zip(own(t), default(t), strict=True):
      np.testing.assert_array_equal(array, other)
    assert own.cost(t) == default.cost(t)


def test_a_rule_receives_the_clients_and_their_work():
  seen = []

  def rule(rng, work):
    seen.append((rng.random(), work))
    return np.minimum(work.updates, 1)

  planner = make(rule)
  cohort, completed = planner.work(2)
  number, work = seen[-1]
  assert number == np.random.default_rng([4, 5, 2]).random()
  assert (work.round_number, work.epochs) == (2, 3)
  np.testing.assert_array_equal(work.clients, cohort)
  np.testing.assert_array_equal(work.num_examples, SIZES[cohort])
  np.testing.assert_array_equal(work.updates_per_epoch, PER_EPOCH[cohort])
  np.testing.assert_array_equal(work.in_time, 3 * PER_EPOCH[cohort])
  np.testing.assert_array_equal(completed, SIZES[cohort] > 0)


def test_random_epochs_do_not_depend_on_the_layout():
  one, four = make(random_epochs), make(random_epochs, lanes=4, num_devices=2)
  for t in (3, 1, 2, 3):
    cohort, completed = one.work(t)
    epochs = np.random.default_rng([4, 5, t]).integers(1, 4, 6)
    np.testing.assert_array_equal(completed, epochs * PER_EPOCH[cohort])
    for own, other in zip(one.work(t), four.work(t), strict=True):
      np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize('policy', ['keep', 'drop'])
def test_a_deadline_holds_for_every_rule(policy):
  """At 2 examples per second, 10 seconds have 20 of 3 n_k examples."""
  clock = fa.schedule.draw_clock(
    6, examples_per_second=2.0, deadline=10.0, seed=0
  )
  planner = make(
    participation=Participation(
      completion=everything, clock=clock, stragglers=policy
    )
  )
  cohort, completed = planner.work(1)
  # Of 7 examples, two epochs and three minibatches of the third; of 9, two
  # epochs and one minibatch.
  partial = {1: 2 * 4 + 3, 3: 2 * 5 + 1}
  expected = [
    partial[k] * (policy == 'keep') if k in partial else 3 * PER_EPOCH[k]
    for k in cohort
  ]
  assert completed.tolist() == expected


def test_clients_that_drop_out_have_no_weight():
  def only_large(rng, work):
    del rng
    return np.where(work.num_examples > 3, work.updates, 0)

  planner = make(only_large, bytes_down=10, bytes_up=3)
  plan = planner(1)
  assert set(plan.cohort[plan.ends[plan.ends >= 0]]) == {1, 2, 3}
  np.testing.assert_allclose(plan.share, 20 / SIZES.sum(), rtol=1e-6)
  account = planner.cost(1)
  assert (account.drawn, account.reported) == (6, 3)
  assert (account.bytes_down, account.bytes_up) == (60, 9)


# Results of a rule.


@pytest.mark.parametrize(
  ('rule', 'words'),
  [
    (lambda rng, work: -np.ones(6, int), 'completes -1 minibatches; must be'),
    (
      lambda rng, work: work.updates + (work.clients == 3),
      'client 3 completes 16 minibatches; must be in [0, 15] with epochs = 3',
    ),
    (lambda rng, work: work.updates[:4], 'got int64 of shape [4]'),
    (lambda rng, work: 3, 'got int64 of shape []'),
    (lambda rng, work: work.updates / 2, 'got float64 of shape [6]'),
    (lambda rng, work: work.updates > 2, 'got bool of shape [6]'),
    (lambda rng, work: [[1], [2, 3]], 'must be an array of numbers'),
    (
      lambda rng, work: np.ma.masked_equal(np.ones_like(work.clients), 1),
      'masked values, must have none',
    ),
    (lambda rng, work: None, 'got object of shape []'),
  ],
)
def test_invalid_work_is_refused(rule, words):
  with pytest.raises(InputError, match=re.escape(words)) as error:
    make(rule)
  assert str(error.value).startswith('participation.completion, round 1: ')


def test_invalid_rules_are_refused():
  rng = np.random.default_rng(0)
  with pytest.raises(InputError, match='completion: returns another result'):
    make(lambda own, work: random_epochs(rng, work), epochs=30)
  with pytest.raises(InputError, match='completion = .all.: must be a func'):
    make('all')
  own = Participation(completion=everything, straggler_fraction=0.5)
  with pytest.raises(InputError, match='straggler_fraction: is not supported'):
    make(participation=own)
  with pytest.raises(InputError, match="straggler_work = 'steps': must be one"):
    make(participation=Participation(straggler_work='steps'))


# Effects of a rule.


@pytest.mark.parametrize(
  'participation',
  [
    Participation(completion=random_epochs),
    Participation(straggler_fraction=0.7, straggler_work='epochs'),
    Participation(
      completion=lambda rng, work: np.minimum(work.updates, 2),
      draw=lambda rng, context: rng.permutation(5)[:3],
    ),
  ],
)
def test_numpy_twin(uneven_examples, participation):
  """Every client of the twin stops where the rule says, for three rounds."""
  x, y, parts = uneven_examples
  population = fa.build_clients(fa.Examples(x, y), parts)
  options = {
    **{'cohort_size': 4, 'epochs': 3, 'batch_size': 3},
    'participation': participation,
  }
  got, _ = rounds.run(population, rounds=3, lanes=2, num_devices=2, **options)
  planner = Planner(num_examples=population.num_examples, seed=3, **options)
  params = twin.rounds_of_work(
    planner,
    twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES),
    *(x.reshape(len(x), -1) / 255.0, y, parts),
    rounds=3,
    learning_rate=rounds.LEARNING_RATE,
  )
  rounds.assert_close(got, params, 2e-6)


@pytest.mark.parametrize(
  'layout', rest_slow(1, [{'lanes': 2, 'examples_on': 'host'}, {'lanes': 2}])
)
def test_random_epochs_are_the_same_in_any_layout(uneven_examples, layout):
  """Clients that stop early have examples in the buffer that no step reads."""
  x, y, parts = uneven_examples
  clients = fa.build_clients(fa.Examples(x, y), parts)
  params = []
  for changes in ({'lanes': 1, 'rounds_per_call': 3}, layout):
    simulation = simulations.build(
      clients,
      simulations.model(),
      participation=Participation(completion=random_epochs),
      **changes,
    )
    *_, last = fa.simulate(simulation, rounds=3)
    params.append(jax.device_get(last.state.params))
  rounds.assert_close(*params, 2e-6)
