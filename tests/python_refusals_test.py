"""Python functions have the checks of the commands, with one-line errors."""

import re

import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.schedule import sampling

Y = np.arange(20) % 5
P = fa.partition
SGD = optax.sgd(1.0)


def clock(**changes):
  settings = {'num_clients': 3, 'examples_per_second': 5.0, 'seed': 0}
  return lambda: fa.schedule.draw_clock(**(settings | changes))


def planner(**changes):
  settings = {'num_examples': np.array([2, 3]), 'cohort_size': 1, 'epochs': 1}
  settings |= {'batch_size': 2, 'seed': 0}
  return lambda: fa.engine.Planner(**(settings | changes))


def shards(labels=Y, **changes):
  settings = {'num_clients': 5, 'shards_per_client': 2, 'seed': 0}
  return lambda: P.shards(labels, **(settings | changes))


def dirichlet(labels=Y, **changes):
  settings = {'num_clients': 2, 'alpha': 1.0, 'min_size': 0, 'seed': 0}
  return lambda: P.dirichlet(labels, **(settings | changes))


def inner_dirichlet(labels=Y, **changes):
  settings = {'sizes': np.array([10, 10]), 'alpha': 1.0, 'seed': 0}
  return lambda: P.inner_dirichlet(labels, **(settings | changes))


def pathological(labels=Y, **changes):
  settings = {'num_clients': 5, 'classes_per_client': 2, 'seed': 0}
  return lambda: P.pathological(labels, **(settings | changes))


def few_labels(labels=Y, **changes):
  settings = {'sizes': np.array([10, 10]), 'classes_per_client': 3, 'seed': 0}
  return lambda: P.few_labels(labels, **(settings | changes))


def trace(client, first, last):
  own = fa.schedule.Trace(client=client, first=first, last=last)
  return planner(participation=fa.Participation(trace=own))


COLUMN = Y[:, None]
ONE_HOT = np.eye(5, dtype=int)[Y]
NOT_A_NUMBER = np.where(Y == 3, np.nan, Y)

CASES = {
  # Algorithms.
  'decay in no rounds': (
    lambda: fa.decayed_sgd(0.1, 0.5, rounds=0),
    'rounds = 0: must be at least 1',
  ),
  'decay in half a round': (
    lambda: fa.decayed_sgd(0.1, 0.5, rounds=0.5),
    'rounds = 0.5: must be a whole number',
  ),
  'decay to nothing': (
    lambda: fa.decayed_sgd(0.1, 0.0, rounds=1),
    'factor = 0.0: must be above 0',
  ),
  'growth': (lambda: fa.decayed_sgd(0.1, 1.5, rounds=1), 'factor = 1.5'),
  'ascent': (lambda: fa.decayed_sgd(-0.1, 1, rounds=1), 'learning_rate = -0.1'),
  'rate nan': (
    lambda: fa.decayed_sgd(float('nan'), 1, rounds=1),
    'learning_rate = nan: must be finite',
  ),
  'proximal': (lambda: fa.fedprox(-1.0, SGD, SGD), 'mu = -1.0: must be in'),
  'proximal inf': (
    lambda: fa.fedprox(float('inf'), SGD, SGD),
    'mu = inf: must be finite',
  ),
  'scaffold': (lambda: fa.scaffold(0.0), 'learning_rate = 0.0: must be in'),
  'scaffold server': (
    lambda: fa.scaffold(0.1, -1.0),
    'server_learning_rate = -1.0',
  ),
  'scaffold text': (
    lambda: fa.scaffold('0.1'),
    "learning_rate = '0.1': must be a number",
  ),
  'clip nothing': (
    lambda: fa.clip_delta(fa.fedavg(SGD, SGD), 0.0),
    'max_norm = 0.0: must be above 0',
  ),
  'adam rate': (
    lambda: fa.adaptive('adam', 0, b1=0.9, b2=0.9, tau=0.1),
    'learning_rate = 0: must be in',
  ),
  'adam b1': (
    lambda: fa.adaptive('adam', 0.1, b1=1.0, b2=0.9, tau=0.1),
    'b1 = 1.0: must be below 1',
  ),
  'adam b2': (
    lambda: fa.adaptive('yogi', 0.1, b1=0.9, b2=-0.9, tau=0.1),
    'b2 = -0.9: must be in [0, 1]',
  ),
  'adam tau': (
    lambda: fa.adaptive('adam', 0.1, b1=0.9, b2=0.9, tau=0.0),
    'tau = 0.0: must be in',
  ),
  # Clocks, traces, plans.
  'clock backwards': (
    clock(examples_per_second=-5.0),
    'examples_per_second = -5.0: must be in',
  ),
  'clock stands': (clock(examples_per_second=0), 'examples_per_second = 0'),
  'clock spread': (clock(speed_spread=-1), 'speed_spread = -1'),
  'clock band': (clock(megabits_up=float('inf')), 'megabits_up = inf'),
  'clock deadline': (clock(deadline=-1.0), 'deadline = -1.0'),
  'clock of nobody': (clock(num_clients=0), 'num_clients = 0'),
  'clock seed': (clock(seed=-1), 'seed = -1'),
  'trace of another': (
    trace(np.array([-1]), *[np.array([1])] * 2),
    'trace: has clients -1 to -1; must be in',
  ),
  'trace of lists': (
    trace([0], [1], [2]),
    'trace: client, first and last must be arrays of NumPy',
  ),
  'sizes as a number': (inner_dirichlet(sizes=5), 'sizes = 5: must be whole'),
  'few labels of a number': (few_labels(sizes=5), 'sizes = 5: must be whole'),
  'speeds in words': (
    planner(
      participation=fa.Participation(
        clock=fa.schedule.Clock(
          examples_per_second=np.array(['fast', 'slow']),
          bytes_down_per_second=np.ones(2),
          bytes_up_per_second=np.ones(2),
        )
      )
    ),
    'clock.examples_per_second: must be 2 numbers above 0',
  ),
  'trace backwards': (
    trace(np.array([0]), np.array([3]), np.array([2])),
    'each period must have 1 <= first <= last',
  ),
  'trace before round 1': (
    trace(np.array([0]), np.array([0]), np.array([2])),
    'each period must have 1 <= first <= last',
  ),
  'trace of parts': (
    trace(np.array([0, 1]), np.array([1]), np.array([2])),
    'must have one shape',
  ),
  'trace of nothing': (trace(*[np.zeros(0, int)] * 3), 'at least one period'),
  'trace of halves': (trace(*[np.array([1.5])] * 3), 'whole numbers'),
  'plan seed': (planner(seed=2**32), 'seed = 4294967296: must be in'),
  'plan half an epoch': (planner(epochs=0.5), 'epochs = 0.5: must be a whole'),
  'plan no epoch': (planner(epochs=0), 'epochs = 0: must be at least 1'),
  'plan batch': (planner(batch_size=-1), 'batch_size = -1: must be at least 0'),
  'plan cohort': (
    planner(cohort_size=3),
    'cohort_size = 3: must be in [1, 2]',
  ),
  'fraction': (
    lambda: fa.Participation(unavailable_fraction='a').check(3),
    "unavailable_fraction = 'a': must be a number",
  ),
  # Partitions.
  **{
    f'{name}: {what}': (law(labels), words)
    for name, law in {
      'shards': shards,
      'dirichlet': dirichlet,
      'inner_dirichlet': inner_dirichlet,
      'pathological': pathological,
      'few_labels': few_labels,
    }.items()
    for what, labels, words in (
      ('column', COLUMN, 'labels: has the shape [20, 1], must have [n]'),
      ('one-hot', ONE_HOT, 'labels: has the shape [20, 5], must have [n]'),
      ('nan', NOT_A_NUMBER, 'labels: holds nan at row 3'),
      ('halves', Y + 0.5, 'labels: holds 0.5 at row 0'),
      ('names', Y.astype(str), 'labels: is <U'),
      ('huge', Y + 2**31, 'labels: holds 2147483648'),
      ('negative', Y - 1, 'labels: holds -1 to 3'),
    )
  },
  **{
    f'{name}: seed {seed}': (law(seed=seed), f'seed = {seed}')
    for name, law in {
      'shards': shards,
      'dirichlet': dirichlet,
      'inner_dirichlet': inner_dirichlet,
      'pathological': pathological,
      'few_labels': few_labels,
    }.items()
    for seed in (-1, 10**11, None)
  },
  'iid seed': (lambda: P.iid(9, num_clients=2, seed=-1), 'seed = -1'),
  'iid half a client': (
    lambda: P.iid(9, num_clients=2.5, seed=0),
    'num_clients = 2.5: must be a whole number',
  ),
  'hold out all': (
    lambda: P.hold_out([[0]], fraction=1.0, seed=0),
    'fraction = 1.0: must be below 1',
  ),
  'hold out less than nothing': (
    lambda: P.hold_out([[0]], fraction=-0.1, seed=0),
    'fraction = -0.1',
  ),
  'skew': (
    lambda: P.sizes('power_law', 9, num_clients=2, skew=-1.0, seed=0),
    'skew = -1.0',
  ),
  'owners': (lambda: P.by_owner(np.array([0.5])), 'owners: holds 0.5'),
  'owners of a column': (lambda: P.by_owner(COLUMN), 'owners: has the shape'),
  'shards of half': (shards(shards_per_client=0.5), 'shards_per_client = 0.5'),
  'min_size': (dirichlet(min_size=-1), 'min_size = -1: must be at least 0'),
  'label counts': (
    lambda: P.label_counts(Y, [np.arange(20)], 3),
    'labels: holds 0 to 4, must be in [0, 2]',
  ),
  'client_fraction': (
    lambda: sampling.cohort_size(10, 1.5),
    'client_fraction = 1.5: must be in [0, 1]',
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_refused_in_one_line(name):
  call, words = CASES[name]
  with pytest.raises(fa.InputError, match=re.escape(words)) as caught:
    call()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('dtype', ['u1', '>i2', 'u8', 'f4'])
def test_labels_of_any_dtype_divide_alike(dtype):
  for law in (shards, dirichlet, inner_dirichlet, pathological):
    for one, other in zip(law()(), law(Y.astype(dtype))(), strict=True):
      np.testing.assert_array_equal(one, other)
