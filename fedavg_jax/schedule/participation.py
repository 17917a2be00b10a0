"""Who takes part in a round, how far each client comes, and how long it takes.

NumPy only. All of it is decided on the host, as a function of seed, round and
client: the plan then holds fewer clients or fewer steps, and the device code
knows of nothing.

Shape letters: K clients, m clients drawn, P periods of a trace.
"""

import csv
import dataclasses
import os
import pathlib
import re

import numpy as np

from fedavg_jax.core import choices
from fedavg_jax.core import rules
from fedavg_jax.core import text
from fedavg_jax.core.errors import InputError

# Of a trace.
_COLUMNS = ['client', 'first', 'last']
_WHOLE = re.compile(r'[+-]?[0-9]{1,18}')
# Streams of random numbers beside those of planning.py and partition/.
_STRAGGLERS, _CLOCK = 5, 6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
  """When clients are in reach; it begins again after its last round.

  Attributes:
    client: [P] integers, whom a period is about; without one, never in reach.
    first: [P] integers, the round that it begins with, from 1.
    last: [P] integers, the round that it ends with.
  """

  client: np.ndarray
  first: np.ndarray
  last: np.ndarray

  def available(self, round_number: int, num_clients: int) -> np.ndarray:
    """Whether each client is in reach in a round, [K] bool."""
    number = (round_number - 1) % int(self.last.max()) + 1
    now = (self.first <= number) & (number <= self.last)
    reach = np.zeros(num_clients, bool)
    reach[self.client[now]] = True
    return reach


def read_trace(path: str | pathlib.Path, num_clients: int) -> Trace:
  """Reads a CSV file with the columns client, first and last, and no other.

  Args:
    path: of the file; a line is a period in which a client is in reach.
    num_clients: K; clients are 0 to K - 1.

  Raises:
    InputError: names the line that breaks a rule.
  """
  # Unlike Path.expanduser, leaves the home of nobody as it is.
  path = pathlib.Path(os.path.expanduser(path))
  rows = []
  try:
    if path.exists() and not path.is_file():  # A pipe would never end.
      raise InputError(f'availability_trace {path}: must be a file')
    lines = text.split_lines(text.decode(path.read_bytes()))
    reader = csv.reader(lines, skipinitialspace=True)
    if [name.strip() for name in next(reader, [])] != _COLUMNS:
      raise InputError(
        f'availability_trace {path}: line 1 must be {",".join(_COLUMNS)}'
      )
    for row in reader:
      if any(map(str.strip, row)):
        rows.append(_period(path, reader.line_num, row, num_clients))
  except InputError:
    raise
  except (OSError, ValueError, csv.Error) as error:
    reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
    raise InputError(
      f'availability_trace {path}: cannot be read ({reason})'
    ) from error
  if not rows:
    raise InputError(
      f'availability_trace {path}: holds no period, must hold at least one'
    )
  client, first, last = np.array(rows).T
  return Trace(client=client, first=first, last=last)


def _period(
  path: pathlib.Path, line: int, row: list[str], num_clients: int
) -> list[int]:
  """Reads a line; Python's int would take 1_0 too, and any script's digits."""
  values = [value.strip() for value in row]
  if len(values) != len(_COLUMNS) or not all(map(_WHOLE.fullmatch, values)):
    raise InputError(
      f'availability_trace {path}: line {line} must hold three whole numbers,'
      f' holds {",".join(row)!r:.60}'
    )
  client, first, last = map(int, values)
  if not 0 <= client < num_clients:
    raise InputError(
      f'availability_trace {path}: line {line} names client {client}; there are'
      f' 0 to {num_clients - 1}'
    )
  if not 1 <= first <= last < 2**31:
    raise InputError(
      f'availability_trace {path}: line {line} has rounds {first} to {last};'
      ' must begin with 1 or later, and not end before'
    )
  return [client, first, last]


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
    ('examples_per_second', examples_per_second, 1e-12, 1e12),
    ('speed_spread', speed_spread, 0, 10),
    ('megabits_down', megabits_down or 1, 1e-12, 1e9),
    ('megabits_up', megabits_up or 1, 1e-12, 1e9),
    ('bandwidth_spread', bandwidth_spread, 0, 10),
    ('deadline', deadline, 0, 1e9),
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Participation:
  """Who can be drawn, and what keeps clients from doing all their work.

  Attributes:
    unavailable_fraction: of all clients, out of reach in a round, drawn anew.
    sampling_weights: [K], a client is drawn in proportion to its weight among
      those that are left; None draws uniformly. A weight of 0 is never drawn.
    trace: when clients are in reach; None is always. Where fewer are than a
      cohort has, they are the cohort.
    straggler_fraction: of a cohort, on average, clients drawn anew that stop
      after some of their minibatches: 1 to all but one, uniformly; none of
      those that have a single one.
    stragglers: 'keep' averages what clients have done that did not finish, as
      FedProx does; 'drop' leaves them out, as FedAvg does. Nobody counts who
      has not completed a minibatch.
    clock: the clients' speeds; with a deadline, who is late has done what it
      could until then. None knows no time.
  """

  unavailable_fraction: float = 0.0
  sampling_weights: np.ndarray | None = None
  trace: Trace | None = None
  straggler_fraction: float = 0.0
  stragglers: str = 'keep'
  clock: Clock | None = None

  def check(self, num_clients: int) -> None:
    """Raises InputError where a value breaks its rule."""
    rules.check_fraction('unavailable_fraction', self.unavailable_fraction)
    rules.check_fraction(
      'straggler_fraction', self.straggler_fraction, one=True
    )
    choices.check_choice('stragglers', self.stragglers, choices.STRAGGLERS)
    weights = self.sampling_weights
    if weights is not None and (
      np.shape(weights) != (num_clients,)
      or not np.isfinite(weights).all()
      or np.min(weights) < 0
      or not np.any(weights)
    ):
      raise InputError(
        f'sampling_weights: must be {num_clients} finite numbers from 0, one'
        ' for each client, not all 0'
      )
    if self.trace is not None:
      _check_trace(self.trace, num_clients)
    if self.clock is not None:
      _check_clock(self.clock, num_clients)

  def draw(
    self,
    rng: np.random.Generator,
    round_number: int,
    num_clients: int,
    cohort_size: int,
  ) -> np.ndarray:
    """Clients in reach, without replacement, [m]; at most `cohort_size`."""
    away = num_unavailable(num_clients, self.unavailable_fraction)
    drawn = rng.permutation(num_clients)[away:]
    if self.trace is not None:
      drawn = drawn[self.trace.available(round_number, num_clients)[drawn]]
    if self.sampling_weights is not None:
      weights = np.asarray(self.sampling_weights)[drawn]
      drawn, weights = drawn[weights > 0], weights[weights > 0]
      # Who arrives first at these rates is drawn in proportion to them, and so
      # is the next among those that are left.
      drawn = drawn[np.argsort(rng.exponential(size=len(drawn)) / weights)]
    return drawn[:cohort_size]

  def completed(
    self,
    seed: int,
    round_number: int,
    updates: np.ndarray,
    in_time: np.ndarray,
  ) -> np.ndarray:
    """Minibatches of each client that reach the server's mean, [m].

    Args:
      seed: of the stragglers.
      round_number: that they are drawn for.
      updates: [m] minibatches of all epochs of a cohort's clients.
      in_time: [m] that they complete until the deadline.
    """
    done = np.minimum(updates, in_time)
    if self.straggler_fraction:
      rng = np.random.default_rng([seed, _STRAGGLERS, round_number])
      # A whole number that is right on average, also of a cohort of one.
      wanted = round(self.straggler_fraction * len(updates), 6)
      number = int(wanted + rng.random())
      late = rng.permutation(len(updates))[:number]
      share = rng.random(number)
      most = np.maximum(updates[late] - 1, 0)  # Of a single one, none.
      some = np.minimum(1 + (share * most).astype(np.int64), most)
      done[late] = np.minimum(done[late], some)
    if self.stragglers == 'drop':
      done = np.where(done < updates, 0, done)
    return done


# Who takes part where nothing else is told.
EVERYBODY = Participation()


def num_unavailable(num_clients: int, unavailable_fraction: float) -> int:
  """Clients that cannot be reached in a round, cut to a whole number."""
  return int(round(unavailable_fraction * num_clients, 6))


def _check_trace(trace: Trace, num_clients: int) -> None:
  columns = [
    np.asarray(column) for column in (trace.client, trace.first, trace.last)
  ]
  if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
    raise InputError('trace: client, first and last must have one shape, [P]')
  if not columns[0].size or any(
    column.dtype.kind not in 'iu' for column in columns
  ):
    raise InputError('trace: must hold whole numbers, one period at least')
  client, first, last = columns
  if client.min() < 0 or client.max() >= num_clients:
    raise InputError(
      f'trace: names clients {client.min()} to {client.max()}; there are 0 to'
      f' {num_clients - 1}'
    )
  if first.min() < 1 or (last < first).any():
    raise InputError(
      'trace: a period must begin in round 1 or later, and not end before'
    )


def _check_clock(clock: Clock, num_clients: int) -> None:
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
