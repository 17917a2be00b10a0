"""A custom draw has its arguments and effects; invalid results are refused."""

import re

import jax
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule.participation import Participation
from fedavg_jax.schedule.planning import Planner
from tests.testing import rest_slow
from tests.testing import simulations
from tests.testing.plans import shapes

SIZES = np.array([1, 7, 4, 9, 2, 6])
TRACE = fa.schedule.Trace(
  client=np.arange(6).repeat(2),
  first=np.tile([1, 4], 6),
  last=np.array([2, 4, 1, 5, 3, 5, 2, 6, 1, 4, 3, 6]),
)


def make(draw=None, participation=None, **kwargs):
  defaults = {'cohort_size': 3, 'epochs': 2, 'batch_size': 2, 'seed': 4}
  own = participation or Participation(draw=draw)
  return Planner(num_examples=SIZES, participation=own, **(defaults | kwargs))


# Bits of the built-in draw.


@pytest.mark.parametrize('away', [0.0, 0.5])
@pytest.mark.parametrize('weights', [None, SIZES, np.array([0, 1, 0, 2, 3, 4])])
@pytest.mark.parametrize('trace', [None, TRACE])
def test_built_in_draws_have_their_published_bits(away, weights, trace):
  """The law is repeated client by client; published results depend on it."""
  planner = make(
    participation=Participation(
      unavailable_fraction=away, sampling_weights=weights, trace=trace
    )
  )
  for t in range(1, 30):
    rng = np.random.default_rng([4, 1, t])
    order = list(rng.permutation(6))[int(6 * away) :]
    if trace is not None:
      number = (t - 1) % 6 + 1
      reach = {
        k
        for k, first, last in zip(
          trace.client, trace.first, trace.last, strict=True
        )
        if first <= number <= last
      }
      order = [k for k in order if k in reach]
    if weights is not None:
      order = [k for k in order if weights[k] > 0]
      arrival = dict(zip(order, rng.exponential(size=len(order)), strict=True))
      order.sort(key=lambda k, arrival=arrival: arrival[k] / weights[k])
    assert planner.cohort(t).tolist() == order[:3]


# Arguments of a draw.


def uniform(rng, context):
  """Draws like the default, as a researcher would write it."""
  return rng.permutation(context.num_clients)[: context.cohort_size]


def test_a_draw_has_the_generator_of_the_round():
  own, built_in = make(uniform), make()
  for t in range(1, 10):
    np.testing.assert_array_equal(own.cohort(t), built_in.cohort(t))
    for array, other in zip(own(t), built_in(t), strict=True):
      np.testing.assert_array_equal(array, other)
    assert own.cost(t) == built_in.cost(t)


def test_a_draw_receives_the_round_the_clients_and_the_cohort():
  seen = []

  def draw(rng, context):
    del rng
    seen.append(context)
    return [context.round_number % context.num_clients]

  planner = make(draw)
  for t in (1, 8):
    assert planner.cohort(t).tolist() == [t % 6]
    assert seen[-1].round_number == t and seen[-1].cohort_size == 3
    np.testing.assert_array_equal(seen[-1].num_examples, SIZES)


def test_a_draw_cannot_change_the_clients():
  def draw(rng, context):
    del rng
    context.num_examples[0] = 100
    return [0]

  with pytest.raises(ValueError, match='read-only'):
    make(draw)
  assert SIZES[0] == 1 and SIZES.flags.writeable


def test_layouts_do_not_change_who_is_drawn():
  def by_size(rng, context):
    """Draws by power of choice (Cho et al. 2020) by a score, 5 candidates."""
    candidates = rng.permutation(context.num_clients)[:5]
    return candidates[np.argsort(-context.num_examples[candidates])][:3]

  one, four = make(by_size), make(by_size, lanes=4, num_devices=2)
  for t in (3, 1, 2, 3):  # In any order.
    np.testing.assert_array_equal(one.cohort(t), four.cohort(t))
    rng = np.random.default_rng([4, 1, t])
    # Without ties, these are the largest three of the order's first five.
    largest = sorted(rng.permutation(6)[:5], key=lambda k: -SIZES[k])[:3]
    assert one.cohort(t).tolist() == largest


@pytest.mark.parametrize('lists', [[[0], [5, 1, 3], []], [[2, 4], [4], [0]]])
def test_a_fixed_list_may_be_shorter_than_a_cohort(lists):
  """The plan's shapes stay; the rest of the cohort trains nothing."""
  planner = make(lambda rng, context: lists[(context.round_number - 1) % 3])
  full = make(cohort_size=3)(1)
  for t, cohort in enumerate(lists, 1):
    plan = planner(t)
    assert set(plan.cohort[plan.ends[plan.ends >= 0]]) == set(cohort)
    np.testing.assert_allclose(plan.weight.sum(), bool(cohort), rtol=1e-6)
    assert planner.cost(t).drawn == len(cohort)
    assert shapes(plan) == shapes(full)


# Results of a draw.


@pytest.mark.parametrize(
  ('drawn', 'words'),
  [
    ([0, 1, 2, 3], 'returns 4 clients; must be at most the cohort size 3'),
    ([0, 6], 'returns client 6; must be in [0, 5]'),
    ([0, -1], 'returns client -1; must be in [0, 5]'),
    ([4, 1, 4], 'returns client 4 2 times; must return each at most once'),
    ([0.0, 1.0], 'must return client numbers [m], whole'),
    ([[0, 1]], 'got int64 of shape [1, 2]'),
    (np.arange(6) < 3, 'got bool of shape [6]'),
    (np.uint64(3), 'got uint64 of shape []'),
    ([[0], [1, 2]], 'must be an array of numbers'),
    (np.ma.masked_equal([0, 1], 1), 'has 1 masked values, must have none'),
    (None, 'got object of shape []'),
    (['0'], 'of shape [1]'),
  ],
)
def test_invalid_cohorts_are_refused(drawn, words):
  with pytest.raises(InputError, match=re.escape(words)) as error:
    make(lambda rng, context: drawn)
  assert str(error.value).startswith('participation.draw, round 1: ')


def test_a_later_round_is_refused_by_its_number():
  planner = make(lambda rng, context: [context.round_number])
  with pytest.raises(InputError, match='draw, round 6: returns client 6'):
    planner(6)


@pytest.mark.parametrize('drawn', [[0, 2], (2, 0), np.array([5], np.uint8), []])
def test_valid_cohorts(drawn):
  cohort = make(lambda rng, context: drawn).cohort(1)
  assert cohort.tolist() == list(drawn) and cohort.dtype == np.int64


def test_a_draw_that_counts_its_calls_is_refused():
  calls = iter(range(100))
  with pytest.raises(InputError, match='participation.draw: returns another'):
    make(lambda rng, context: [next(calls) % 6])


@pytest.mark.parametrize(
  ('participation', 'words'),
  [
    (Participation(draw=3), 'participation.draw = 3: must be a function'),
    *(
      (
        Participation(draw=uniform, **{name: value}),
        f'{name}: is not supported with participation.draw',
      )
      for name, value in {
        'unavailable_fraction': 0.5,
        'sampling_weights': SIZES,
        'trace': TRACE,
      }.items()
    ),
  ],
)
def test_invalid_draws_are_refused(participation, words):
  with pytest.raises(InputError, match=re.escape(words)):
    make(participation=participation)


# Draws within a simulation.


@pytest.mark.parametrize(
  'layout', rest_slow(1, [{'examples_on': 'host'}, {'rounds_per_call': 1}])
)
def test_a_simulation_with_the_uniform_draw_has_the_bits_of_the_default(
  uneven_examples, layout
):
  x, y, parts = uneven_examples
  clients = fa.build_clients(fa.Examples(x, y), parts)
  params = []
  for own in (Participation(), Participation(draw=uniform)):
    simulation = simulations.build(
      clients, simulations.model(), participation=own, **layout
    )
    *_, last = fa.simulate(simulation, rounds=3)
    params.append(jax.device_get(last.state.params))
  for one, other in zip(*map(jax.tree.leaves, params), strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_bad_draw_is_refused_where_a_simulation_is_built(uneven_examples):
  x, y, parts = uneven_examples
  clients = fa.build_clients(fa.Examples(x, y), parts)
  with pytest.raises(InputError, match='draw, round 1: returns client 5'):
    simulations.build(
      clients,
      simulations.model(),
      participation=Participation(draw=lambda rng, context: [5]),
    )
