"""Computes the epsilon of rounds from the mechanism and the sampler that run.

The event of a round is derived from the planner, which draws the cohorts, and
from `Algorithm.mechanism`, which clips, sums and adds noise. Rounds compose in
Renyi DP (Mironov 2017), which is cheap, and by privacy loss distributions
(PLD, Koskela et al. 2020), which are tighter and take seconds. Both are those
of dp-accounting, which is imported when it is needed.

Neighbouring federations differ in one client. Its data are removed and the
number K of clients is public ('zero_out'), or replaced ('replace_one').

Shape letter: O orders alpha of Renyi DP.
"""

from collections.abc import Callable
from collections.abc import Generator
import contextlib
import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from fedavg_jax.contracts.mechanism import Mechanism
from fedavg_jax.core import choices
from fedavg_jax.core import optional
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.engine.simulation import check_is_simulation
from fedavg_jax.schedule.planning import Planner

# The noise multipliers among which one is found, and its significant digits: a
# later version of the library then finds the same one when a run resumes.
_NOISES, _DIGITS = (0.1, 1e6), 4


class Event(NamedTuple):
  """Describes what one round does, as far as its privacy depends on it.

  Attributes:
    accounting: the neighbouring relation, one of `choices.ACCOUNTINGS`.
    num_clients: K.
    rate: q, the probability of drawing each client; of a fixed cohort M / K.
    most: M, the most clients of a cohort.
    noise: the standard deviation of the noise of the sum over the most by which
      one client can move it.
  """

  accounting: str
  num_clients: int
  rate: float
  most: int
  noise: float


def event_of(
  planner: Planner, mechanism: Mechanism | None, accounting: str
) -> Event:
  """Returns the event of a round of a mechanism whose cohorts a planner draws.

  Args:
    planner: the planner of the rounds.
    mechanism: the mechanism of the algorithm, None if it has none.
    accounting: the neighbouring relation, one of `choices.ACCOUNTINGS`.

  Raises:
    InputError: there is no mechanism, or the relation does not fit the sampler.
  """
  choices.check_choice('accounting', accounting, choices.ACCOUNTINGS)
  if mechanism is None or mechanism.scheduled:
    raise InputError(
      'algorithm: adds no noise of its own in each round, must be that of'
      ' fa.experimental.privatize'
    )
  poisson = planner.participation.poisson
  needed = 'zero_out' if poisson else 'replace_one'
  if accounting != needed:
    raise InputError(
      f'accounting = {accounting!r}: must be {needed!r} with'
      f' {"Poisson" if poisson else "fixed"} cohorts, whose theorem has this'
      ' relation'
    )
  # As the devices have it.
  noise = float(np.float32(mechanism.noise_multiplier))
  number, most = len(planner.num_examples), planner.cohort_size
  return make_event(accounting, number, most, noise, planner.rate)


def make_event(
  accounting: str, num_clients: int, most: int, noise: float, rate: float = 0.0
) -> Event:
  """Returns the event of a round whose noise is sigma times the clip S.

  Args:
    accounting: the neighbouring relation, one of `choices.ACCOUNTINGS`.
    num_clients: K.
    most: M, the most clients of a cohort, or their number.
    noise: sigma. A client that is removed moves the sum by S, one that is
      replaced by 2 S.
    rate: q of Poisson cohorts.

  >>> make_event('replace_one', 100, 10, noise=1.0).noise
  0.5
  """
  if accounting == 'zero_out':
    return Event(accounting, num_clients, rate, most, noise)
  return Event(accounting, num_clients, most / num_clients, most, noise / 2)


@dataclasses.dataclass(frozen=True)
class Accountant:
  """Computes the epsilon that rounds have spent.

  Attributes:
    event: the event of each round.
    delta: the delta at which epsilon holds, at most 1 / K.

  Raises:
    InputError: delta is out of range, or dp-accounting is not installed.

  >>> event = Event('zero_out', 3383, 120 / 3383, 174, 1.2)
  >>> accountant = Accountant(event, delta=1e-5)
  >>> accountant.epsilon(0), round(accountant.epsilon(100), 2)
  (0.0, 1.99)
  """

  event: Event
  delta: float

  def __post_init__(self) -> None:
    check_delta('delta', self.delta, self.event.num_clients)
    check_installed()

  def epsilon(self, rounds: int) -> float:
    """Returns epsilon after some rounds, by RDP; infinite without noise."""
    if not rounds:
      return 0.0
    if not self.event.noise:
      return math.inf
    from dp_accounting import rdp

    orders, one_round = self._one_round
    composed: Any = rounds * one_round
    epsilon, _ = rdp.compute_epsilon(list(orders), composed, self.delta)
    return float(epsilon)

  def tight_epsilon(self, rounds: int) -> float | None:
    """Returns epsilon after some rounds, by PLD, in a second or two.

    It is None for fixed cohorts, for which the library has none.
    """
    if self.event.accounting != 'zero_out':
      return None
    if not rounds or not self.event.noise:
      return self.epsilon(rounds)
    from dp_accounting.pld import privacy_loss_distribution as pld

    def sampled(rate):
      return pld.from_gaussian_mechanism(self.event.noise, sampling_prob=rate)

    one_round = sampled(self.event.rate)
    full, last, rate = truncation(self.event)
    if full:
      other = sampled(rate).compute_mixture(pld.identity(), last / full)
      one_round = one_round.compute_mixture(other, 1 - full)
    all_rounds = one_round.self_compose(rounds)
    return float(all_rounds.get_epsilon_for_delta(self.delta))

  @functools.cached_property
  def _one_round(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the orders of RDP and its value at each for one round, [O]."""
    return rdp_of(self.event)


def rdp_of(event: Event) -> tuple[np.ndarray, np.ndarray]:
  """Returns the orders alpha of Renyi DP and the RDP of one round at each, [O].

  Poisson cohorts have at most M clients. A client without data keeps its place
  among those drawn, so that the other clients A that train do not depend on
  anybody's data. Given their number, the client trains with a probability r::

    |A| < M - 1: r = q        |A| = M: r = 0
    |A| = M - 1: r = r*, above q

  Whoever knows A sees the Gaussian mechanism sampled with probability r::

    RDP(alpha) = log(sum over |A| of P(|A|) e^((alpha - 1) RDP_r(alpha)))
                 / (alpha - 1)

  Args:
    event: the event of the round.
  """
  import dp_accounting
  from dp_accounting import rdp

  relations = dp_accounting.NeighboringRelation
  gaussian = dp_accounting.GaussianDpEvent(event.noise)

  def of(sampled, relation=relations.ADD_OR_REMOVE_ONE):
    accountant = rdp.RdpAccountant(neighboring_relation=relation)
    with _quiet():
      accountant.compose(sampled)
    return accountant._orders, accountant._rdp

  if event.accounting == 'replace_one':
    sampled = dp_accounting.SampledWithoutReplacementDpEvent(
      event.num_clients, event.most, gaussian
    )
    return of(sampled, relations.REPLACE_ONE)
  orders, whole = of(dp_accounting.PoissonSampledDpEvent(event.rate, gaussian))
  full, last, rate = truncation(event)
  if not full:
    return orders, whole
  _, truncated = of(dp_accounting.PoissonSampledDpEvent(rate, gaussian))
  cases = (
    (1 - full, whole),
    (last, truncated),
    (full - last, np.zeros_like(whole)),
  )
  terms = [np.log(p) + (orders - 1) * own for p, own in cases if p > 0]
  return orders, np.logaddexp.reduce(terms) / (orders - 1)


def truncation(event: Event) -> tuple[float, float, float]:
  """Returns P(|A| >= M - 1), P(|A| = M - 1) and r*, as in `rdp_of`.

  >>> found = truncation(Event('zero_out', 2, 0.5, most=1, noise=1.0))
  >>> np.allclose(found, (1.0, 0.625, 0.6))
  True
  """
  from scipy import stats

  number, rate, most = event.num_clients, event.rate, event.most
  if most >= number:
    return 0.0, 0.0, rate
  # Of the other clients n are drawn. The client keeps its place with
  # probability M / (n + 1) where more than M are drawn with it.
  law: Any = stats.binom
  more = np.arange(most, number)
  edge = law.pmf(most - 1, number - 1, rate)
  beyond = law.pmf(more, number - 1, rate) * most / (more + 1)
  inside = rate * (edge + np.sum(beyond))
  last = inside + (1 - rate) * edge
  full = max(law.sf(most - 2, number - 1, rate), last)
  return float(full), float(last), float(inside / last) if last else rate


def epsilon(
  simulation: Simulation,
  *,
  rounds: int,
  delta: float,
  accounting: str = 'zero_out',
  tight: bool = False,
) -> float:
  """Returns the epsilon that rounds of a private simulation spend.

  The models of all rounds are (epsilon, delta)-differentially private for whole
  clients. With `accounting='zero_out'`, for Poisson cohorts, the data of one
  client may be removed, and the number of clients is public. With
  'replace_one', for cohorts of a fixed size, they may be replaced by others.

  Args:
    simulation: a simulation of `fa.experimental.privatize(...)`.
    rounds: the number of rounds, at least 0.
    delta: delta, above 0 and at most 1 / K.
    accounting: the neighbouring relation, 'zero_out' or 'replace_one'.
    tight: whether to compose privacy loss distributions, which takes seconds,
      in place of Renyi DP; only with 'zero_out'.

  Raises:
    InputError: the cohorts are those of another relation, a number breaks its
      rule, or dp-accounting is not installed.

  >>> import numpy as np, optax
  >>> import fedavg_jax as fa
  >>> x = np.ones((30, 4), np.float32)
  >>> data = fa.Examples(x, x.sum(axis=1))
  >>> federation = fa.Federation(
  ...   fa.build_clients(data, np.arange(30).reshape(30, 1)), data,
  ...   client_fraction=0.1, epochs=1, batch_size=1, weighting='uniform',
  ...   on_nan='skip_client', participation=fa.Participation(poisson=True))
  >>> model = fa.Model('linear', lambda key: np.zeros(4), lambda w, x: x @ w)
  >>> simulation = fa.build_simulation(
  ...   model, federation, fa.experimental.privatize(
  ...     fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
  ...     clip=1.0, noise_multiplier=2.0, denominator=3.0),
  ...   loss=fa.losses.squared_error)
  >>> round(fa.epsilon(simulation, rounds=10, delta=1e-3), 2)
  0.56
  """
  check_is_simulation(simulation)
  rules.check_whole('rounds', rounds, 0)
  if simulation.sweep is not None:
    raise InputError(
      'simulation: is a sweep, must be one of its values alone, built by'
      ' build_simulation'
    )
  mechanism = simulation.parts.trained.first.mechanism
  event = event_of(simulation.planner, mechanism, accounting)
  accountant = Accountant(event, delta)
  if not tight:
    return accountant.epsilon(rounds)
  found = accountant.tight_epsilon(rounds)
  if found is None:
    raise InputError(
      "tight = True: must be False with accounting = 'replace_one', for which"
      ' there is RDP alone'
    )
  return found


def calibrate(
  event_of_noise: Callable[[float], Event],
  *,
  rounds: int,
  target_epsilon: float,
  delta: float,
) -> float:
  """Returns the least noise multiplier whose epsilon is at most a target.

  It is that of RDP, rounded up to four significant digits.

  Args:
    event_of_noise: the function noise multiplier -> event of a round.
    rounds: the number of rounds, at least 1.
    target_epsilon: the largest epsilon after all rounds, above 0.
    delta: delta.

  Raises:
    InputError: the target needs a noise multiplier outside of [0.1, 1e6].

  >>> calibrate(
  ...     lambda noise: Event('zero_out', 3383, 120 / 3383, 174, noise),
  ...     rounds=100, target_epsilon=2.0, delta=1e-5)
  1.196
  """
  check_installed()
  from scipy import optimize

  def excess(log_noise: float) -> float:
    event = event_of_noise(math.exp(log_noise))
    return Accountant(event, delta).epsilon(rounds) - target_epsilon

  low, high = (math.log(noise) for noise in _NOISES)
  if excess(low) < 0 or excess(high) > 0:
    raise InputError(
      f'target_epsilon = {target_epsilon}: needs a noise multiplier outside of'
      f' [{_NOISES[0]:g}, {_NOISES[1]:g}] after {rounds} rounds with delta ='
      f' {delta}; must be nearer to 1'
    )
  root: Any = optimize.brentq(excess, low, high, xtol=1e-6)
  unit = 10.0 ** (math.floor(root / math.log(10)) - _DIGITS + 1)
  steps = math.ceil(math.exp(root) / unit)
  while excess(math.log(steps * unit)) > 0:
    steps += 1
  return round(steps * unit, 12)


def check_delta(name: str, delta: float, num_clients: int) -> None:
  """Raises InputError unless delta is above 0 and at most 1 / K."""
  rules.check_positive(name, delta, 1.0)
  if delta > 1 / num_clients:
    raise InputError(
      f'{name} = {delta!r}: must be at most 1 / K = {1 / num_clients:.3g}, else'
      ' publishing one client would be private'
    )


def check_installed() -> None:
  """Raises InputError if dp-accounting is not installed."""
  optional.load('dp_accounting', 'privacy', "'fedavg_jax[privacy]'")


@contextlib.contextmanager
def _quiet() -> Generator[None]:
  """Silences the library's warnings of orders that it leaves out."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)
