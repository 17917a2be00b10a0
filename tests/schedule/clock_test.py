"""The speeds of clients have their law."""

import numpy as np

from fedavg_jax.schedule.clock import draw_clock


def test_speeds_have_the_given_median_and_spread():
  clock = draw_clock(
    4001,
    examples_per_second=100.0,
    speed_spread=0.7,
    megabits_down=8.0,
    megabits_up=2.0,
    bandwidth_spread=0.3,
    seed=0,
  )
  for speeds, median, spread in (
    (clock.examples_per_second, 100.0, 0.7),
    (clock.bytes_down_per_second, 1e6, 0.3),
    (clock.bytes_up_per_second, 2.5e5, 0.3),
  ):
    logs = np.log(speeds)
    error = 4 * 1.25 * spread / np.sqrt(4001)
    np.testing.assert_allclose(np.median(logs), np.log(median), atol=error)
    np.testing.assert_allclose(logs.std(), spread, rtol=0.05)
  np.testing.assert_allclose(
    clock.bytes_down_per_second, 4 * clock.bytes_up_per_second
  )
  alike = draw_clock(9, examples_per_second=5.0, seed=0)
  assert set(alike.examples_per_second) == {5.0}
  assert np.isinf(alike.bytes_up_per_second).all()
