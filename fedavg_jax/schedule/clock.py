"""Defines how fast clients are, in simulated seconds. NumPy only.

Shape letters: K clients.
"""

import dataclasses

import numpy as np

from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError

# The lowest and the highest value of the arguments of `draw_clock`.
EXAMPLES_PER_SECOND, MEGABITS = (1e-12, 1e12), (1e-12, 1e9)
SPREAD, DEADLINE = (0, 10), (0, 1e9)
# A stream of random numbers; sampling.py, participation.py and partition/ have
# others.
_CLOCK = 6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clock:
  """Holds the speed of every client; the server's work takes no time.

  >>> import fedavg_jax as fa
  >>> clock = fa.schedule.Clock(
  ...   examples_per_second=np.array([100.0, 10.0]),
  ...   bytes_down_per_second=np.full(2, np.inf),
  ...   bytes_up_per_second=np.full(2, 1e6), deadline=60.0)
  >>> participation = fa.Participation(clock=clock, stragglers='drop')
  >>> participation.stops_early
  True

  Attributes:
    examples_per_second: [K], examples on which a client trains in one simulated
      second.
    bytes_down_per_second: [K], bytes that it receives in one.
    bytes_up_per_second: [K], bytes that it sends in one.
    deadline: simulated seconds that the server waits for clients; 0 is no
      limit.
  """

  examples_per_second: np.ndarray
  bytes_down_per_second: np.ndarray
  bytes_up_per_second: np.ndarray
  deadline: float = 0.0


def draw_clock(
  num_clients: int,
  *,
  examples_per_second: float,
  speed_spread: float = 0.0,
  megabits_down: float = 0.0,
  megabits_up: float = 0.0,
  bandwidth_spread: float = 0.0,
  deadline: float = 0.0,
  seed: int,
) -> Clock:
  """Draws the speeds of clients once, from log-normal distributions.

  Args:
    num_clients: K, the number of clients.
    examples_per_second: the median client's speed, in examples per second.
    speed_spread: the standard deviation of the speed's logarithm; with 0 all
      clients are equally fast.
    megabits_down: the median client's download bandwidth, in megabits per
      second; with 0 downloads take no time.
    megabits_up: the median upload bandwidth, in megabits per second.
    bandwidth_spread: the standard deviation of the bandwidths' logarithm, at
      least 0; one draw scales both bandwidths of a client.
    deadline: simulated seconds, as in `Clock`.
    seed: the seed of the draws.

  Raises:
    InputError: a value breaks its rule, the same as in the config's `clock`.

  >>> import fedavg_jax as fa
  >>> clock = fa.schedule.draw_clock(
  ...   4, examples_per_second=50.0, speed_spread=1.0, megabits_up=8.0, seed=0)
  >>> clock.examples_per_second.shape, len(set(clock.examples_per_second))
  ((4,), 4)
  >>> clock.bytes_up_per_second.tolist()  # Without bandwidth_spread.
  [1000000.0, 1000000.0, 1000000.0, 1000000.0]
  """
  rules.check_whole('num_clients', num_clients, 1)
  for name, value, low, high in (
    ('examples_per_second', examples_per_second, *EXAMPLES_PER_SECOND),
    ('speed_spread', speed_spread, *SPREAD),
    ('megabits_down', megabits_down or 1, *MEGABITS),
    ('megabits_up', megabits_up or 1, *MEGABITS),
    ('bandwidth_spread', bandwidth_spread, *SPREAD),
    ('deadline', deadline, *DEADLINE),
  ):
    rules.check_real(name, value, low, high)
  rng = np.random.default_rng([rules.check_seed(seed), _CLOCK])
  speed, bandwidth = np.exp(
    rng.standard_normal((2, num_clients))
    * np.array([[speed_spread], [bandwidth_spread]])
  )

  def rate(megabits):
    return bandwidth * (megabits * 1e6 / 8 if megabits else np.inf)

  return Clock(
    examples_per_second=examples_per_second * speed,
    bytes_down_per_second=rate(megabits_down),
    bytes_up_per_second=rate(megabits_up),
    deadline=deadline,
  )


def check_clock(clock: Clock, num_clients: int) -> None:
  """Raises InputError unless every client has speeds above 0."""
  for name in (
    'examples_per_second',
    'bytes_down_per_second',
    'bytes_up_per_second',
  ):
    speeds = getattr(clock, name)
    if (
      np.shape(speeds) != (num_clients,)
      or np.asarray(speeds).dtype.kind not in 'iuf'
      or not np.min(speeds) > 0
    ):
      raise InputError(
        f'clock.{name}: must be {num_clients} numbers above 0, one for each'
        ' client'
      )
  if not clock.deadline >= 0:
    raise InputError(f'clock.deadline = {clock.deadline}: must be at least 0')
