"""How fast clients are, in simulated seconds. NumPy only.

Shape letters: K clients.
"""

import dataclasses

import numpy as np

from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError

# What its numbers may be, from and to; in units of `draw_clock`.
EXAMPLES_PER_SECOND, MEGABITS = (1e-12, 1e12), (1e-12, 1e9)
SPREAD, DEADLINE = (0, 10), (0, 1e9)
# A stream of random numbers beside those of sampling.py and partition/.
_CLOCK = 6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clock:
  """How fast every client is, in simulated seconds; the server takes none.

  Attributes:
    examples_per_second: [K] that a client trains on.
    bytes_down_per_second: [K] that it receives.
    bytes_up_per_second: [K] that it sends.
    deadline: seconds after which the server waits for nobody; 0 is none.
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
  """Speeds of clients that stay what they are, from log-normal distributions.

  Args:
    num_clients: K.
    examples_per_second: the median client's.
    speed_spread: standard deviation of the logarithm; 0 makes all alike.
    megabits_down: per second, the median client's; 0 costs no time.
    megabits_up: the same, for what clients send.
    bandwidth_spread: as `speed_spread`, of both bandwidths together: who
      receives fast sends fast.
    deadline: seconds, as in `Clock`.
    seed: of the draws.

  Raises:
    InputError: a value breaks its rule, which is that of the config's `clock`.
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
  """Raises InputError unless a clock has a speed above 0 for each client."""
  for name in (
    'examples_per_second',
    'bytes_down_per_second',
    'bytes_up_per_second',
  ):
    speeds = getattr(clock, name)
    if np.shape(speeds) != (num_clients,) or not np.min(speeds) > 0:
      raise InputError(
        f'clock.{name}: must be {num_clients} numbers above 0, one for each'
        ' client'
      )
  if not clock.deadline >= 0:
    raise InputError(f'clock.deadline = {clock.deadline}: must be at least 0')
