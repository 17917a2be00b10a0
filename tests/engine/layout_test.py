"""The number of lanes is chosen within bounds, with a reason."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import devices
from fedavg_jax.engine import layout
from fedavg_jax.engine import step_cost
from fedavg_jax.schedule.planning import Planner


def planner(sizes, cohort_size):
  return Planner(
    num_examples=np.array(sizes),
    cohort_size=cohort_size,
    epochs=1,
    batch_size=10,
    seed=0,
  )


def gpu(free):
  """Makes an accelerator, as far as the choice of lanes reads it."""
  stats = {'bytes_limit': free + 5, 'bytes_in_use': 5}
  return types.SimpleNamespace(
    platform='gpu', process_index=0, memory_stats=lambda: stats
  )


def choose(requested, cohort=10, sizes=(600,) * 100, devices=None, **kwargs):
  kwargs = {'num_weights': 1000, 'lane_bytes': 1000, 'other_bytes': 0} | kwargs
  chosen, why = layout.choose_lanes(
    requested, planner(sizes, cohort), devices or jax.devices(), **kwargs
  )
  return chosen.num_devices, chosen.lanes, why


@pytest.mark.parametrize(
    ('lanes', 'cohort', 'expected'),
    [(0, 10, (2, 2)), (0, 1, (1, 1)), (1, 10, (1, 1)), (4, 10, (2, 4)),
     (10, 10, (2, 10)), (98, 9, (2, 10)), (98, 1, (1, 1))],
)  # fmt: skip
def test_on_two_cpu_devices(lanes, cohort, expected):
  assert choose(lanes, cohort)[:2] == expected


def test_small_models_get_all_lanes_of_an_accelerator_large_ones_few():
  free = [gpu(2**40)]
  assert choose(0, 50, devices=free, num_weights=10_000)[1] == 50
  assert choose(0, 50, devices=free, num_weights=10**7)[1] == 1


def test_the_reason_has_the_lanes_that_kernels_would_give():
  """Kernels take as long as the bytes of 24 lanes; the weights decide."""
  step = step_cost.StepCost(24, 0, bytes=4_000_000, memory=0)
  assert layout.lanes_that_hide(step) == 24
  read = step._replace(host_reads=1)
  assert layout.lanes_that_hide(read) == 24 + 15 / 2
  kwargs = {'devices': [gpu(2**40)], 'num_weights': 10**7, 'step': step}
  _, lanes, why = choose(0, 24, **kwargs)
  assert lanes == 1 and why.endswith('give 24 lanes (estimated, not used)')
  assert 'estimated' not in choose(0, step=step)[2]  # On a CPU.


def test_the_compiled_program_decides_what_fits():
  """A lane that needs more than was estimated leaves room for fewer lanes."""
  own = dataclasses.replace(planner((600,) * 100, 10), lanes=8, widths=(8,))
  fit = functools.partial(layout.lanes_that_fit_compiled, planner=own)
  assert fit(2**17, devices=[gpu(2**20)]) == 8
  assert fit(2**18, devices=[gpu(2**20)]) == 3  # A fifth stays free.
  assert fit(2**20, devices=[gpu(2**23)]) == 8
  assert fit(2**30, devices=[silent()]) == 8
  with pytest.raises(InputError, match='a lane of the compiled program needs'):
    fit(2**21, devices=[gpu(2**20)])


def silent():
  return types.SimpleNamespace(
    platform='gpu', process_index=0, memory_stats=lambda: None
  )


def test_no_more_lanes_than_the_longest_client_needs():
  """One client has 1,000 steps, 49 have ten: two lanes are enough."""
  sizes = [10_000] + [100] * 49
  devices, lanes, why = choose(0, 50, sizes, [gpu(2**40)])
  assert (devices, lanes) == (1, 2)
  assert '100 % of their steps are useful' in why


def test_memory_bounds_the_choice_and_is_named():
  devices = [gpu(2**20)]
  _, lanes, why = choose(0, 50, devices=devices, lane_bytes=2**20 // 10)
  assert lanes == 8  # A fifth of the memory stays free.
  assert 'limited by device memory to 8 per device' in why
  kwargs = {'devices': devices, 'lane_bytes': 2**20 // 10}
  assert choose(0, 50, other_bytes=2**19, **kwargs)[1] == 4


@pytest.mark.parametrize(
  ('lanes', 'kwargs', 'said'),
  [
    (-1, {}, 'lanes = -1: must be at least 0'),
    (3, {}, 'lanes = 3: must be a multiple of the 2 devices'),
    (
      10,
      {'devices': [gpu(2**20)], 'lane_bytes': 2**18},
      'lanes = 10: a lane needs about 0.25 MiB, so at most 3 fit',
    ),
  ],
)
def test_bad_lanes_are_refused(lanes, kwargs, said):
  with pytest.raises(InputError, match=said):
    choose(lanes, **kwargs)


def test_a_model_larger_than_memory_is_refused():
  with pytest.raises(InputError, match='one lane of 100,000 weights needs'):
    choose(0, devices=[gpu(2**20)], num_weights=100_000)


def test_useful_share():
  share = layout.useful_share
  assert share([np.array([4, 2, 2])], 1, (2,)) == 1.0
  assert share([np.array([4, 2, 2])], 1, (4,)) == 0.5
  # Two lanes idle from the second step on, one for the third never started.
  assert share([np.array([4, 2, 2])], 1, (4, 1)) == 8 / (4 * 2 + 2)
  # A cohort's weight is its number of steps.
  both = [np.array([4, 2, 2]), np.array([1])]
  assert share(both, 1, (2,)) == pytest.approx(9 / 10)
  # Each device has its own trip count: an idle device executes nothing.
  assert share([np.array([4, 1])], 2, (1,)) == 1.0


@pytest.mark.parametrize(
  ('sigma', 'lanes', 'expected'), [(0.1, 4, 1), (2.0, 8, 4), (2.0, 1, 1)]
)
def test_widths_where_few_clients_are_much_longer(sigma, lanes, expected):
  sizes = np.random.default_rng(0).lognormal(5, sigma, 500).astype(int) + 1
  chosen, _ = layout.choose_lanes(
    lanes,
    planner(sizes, 50),
    jax.devices()[:1],
    num_weights=1,
    lane_bytes=1,
    other_bytes=0,
  )
  assert len(chosen.widths) == expected
  assert chosen.widths[0] == lanes


def test_free_memory_of_this_machine():
  assert devices.free_bytes(jax.devices()[0]) > 2**20
  assert devices.free_bytes(silent()) is None
  assert devices.total_bytes(silent()) is None
  assert devices.total_bytes(gpu(7)) == 12
