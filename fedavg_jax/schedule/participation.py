"""Decides who takes part in a round, and how much work each client completes.

NumPy only. The host decides both as a function of seed, round and client; the
plan then has fewer clients or fewer steps, and the device code needs no case
for it.

Shape letters: K clients, m clients drawn.
"""

from collections.abc import Mapping
import dataclasses
import functools

import numpy as np

from fedavg_jax.core import choices
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule import completion as completion_lib
from fedavg_jax.schedule import draws
from fedavg_jax.schedule.availability import Trace
from fedavg_jax.schedule.availability import check_trace
from fedavg_jax.schedule.clock import Clock
from fedavg_jax.schedule.clock import check_clock
from fedavg_jax.schedule.completion import Completion
from fedavg_jax.schedule.completion import WorkContext

# A stream of random numbers; sampling.py, clock.py and partition/ have others.
_COMPLETION = 5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Participation:
  """Decides which clients are drawn, and how much work each completes.

  Both are pure functions. `draw` and `completion` are custom ones; the other
  attributes configure the built-in ones, `draws.at_random` and
  `completion.stragglers`. A client that has not completed a minibatch sends
  nothing. The default draws from all clients, which complete all their work
  (McMahan et al. 2017).

  >>> import fedavg_jax as fa
  >>> half = fa.Participation(straggler_fraction=0.5, stragglers='drop')
  >>> planner = fa.engine.Planner(
  ...   num_examples=np.full(8, 20), cohort_size=4, participation=half,
  ...   epochs=1, batch_size=10, seed=0)
  >>> cohort, completed = planner.work(1)
  >>> len(cohort), sorted(completed.tolist())  # Of 2 minibatches each.
  (4, [0, 0, 2, 2])

  Attributes:
    unavailable_fraction: the fraction of all clients that is unavailable in a
      round, in [0, 1), drawn anew in every round.
    sampling_weights: [K] weights; each client drawn is chosen in proportion to
      its weight among those not yet drawn, never with a weight of 0. None draws
      uniformly.
    trace: the rounds in which clients are available; None is all of them. Where
      fewer are available than a cohort has, they are the cohort.
    straggler_fraction: the mean fraction of a cohort that stops early, in
      [0, 1], drawn anew in every round.
    straggler_work: the unit of a straggler's work, drawn uniformly: 1 to all
      but one of its 'minibatches', or 1 to E - 1 complete 'epochs'. A straggler
      with a single unit completes none.
    stragglers: 'keep' averages the partial work of clients that stopped early,
      as FedProx does (Li et al. 2020); 'drop' leaves these clients out, as
      FedAvg does. Both also apply to a deadline and to a custom rule.
    clock: the clients' speeds; a client that would miss the deadline completes
      what it can until then. None simulates no time.
    poisson: whether each client is drawn with probability C, independently of
      the others, so that cohorts differ in size and may be empty; see
      `sampling.most_drawn` for the largest. False draws a fixed number.
    draw: a custom draw, `(rng, DrawContext) -> clients [m]`; see `draws.Draw`.
    completion: a custom rule, `(rng, WorkContext) -> minibatches [m]`; see
      `completion.Completion`.
    buffer: the updates after which the server makes a new model while a
      cohort's number of clients trains at any time, asynchronously, on the
      clock; see `arrivals.Arrivals`. 0 waits for the whole cohort.
    most_staleness: the most rounds that a client's initial model may be behind
      when its update arrives; a staler update is discarded. Devices store as
      many models, and one more.
  """

  unavailable_fraction: float = 0.0
  sampling_weights: np.ndarray | None = None
  trace: Trace | None = None
  straggler_fraction: float = 0.0
  straggler_work: str = 'minibatches'
  stragglers: str = 'keep'
  clock: Clock | None = None
  poisson: bool = False
  draw: draws.Draw | None = None
  completion: Completion | None = None
  buffer: int = 0
  most_staleness: int = 20

  def check(self, num_clients: int) -> None:
    """Raises InputError if a value breaks its rule for K = num_clients."""
    rules.check_fraction('unavailable_fraction', self.unavailable_fraction)
    rules.check_fraction(
      'straggler_fraction', self.straggler_fraction, one=True
    )
    choices.check_choice('stragglers', self.stragglers, choices.STRAGGLERS)
    choices.check_choice(
      'straggler_work', self.straggler_work, choices.STRAGGLER_WORK
    )
    weights = self.sampling_weights
    if weights is not None and (
      np.shape(weights) != (num_clients,)
      or not np.isfinite(weights).all()
      or np.min(weights) < 0
      or not np.any(weights)
    ):
      raise InputError(
        f'sampling_weights: must be {num_clients} finite numbers of at least 0,'
        ' one for each client, not all 0'
      )
    if self.trace is not None:
      check_trace(self.trace, num_clients)
    if self.clock is not None:
      check_clock(self.clock, num_clients)
    _check_custom(
      'draw',
      self.draw,
      {
        'unavailable_fraction': bool(self.unavailable_fraction),
        'sampling_weights': self.sampling_weights is not None,
        'trace': self.trace is not None,
        'poisson': self.poisson,
      },
    )
    _check_custom(
      'completion',
      self.completion,
      {
        'straggler_fraction': bool(self.straggler_fraction),
      },
    )
    if not isinstance(self.poisson, bool):
      raise InputError(f'poisson = {self.poisson!r}: must be True or False')
    if self.poisson:
      self._check_poisson()
    rules.check_whole('buffer', self.buffer, 0)
    rules.check_whole('most_staleness', self.most_staleness, 0, 10_000)
    if self.buffer:
      self._check_asynchronous()

  def _check_poisson(self) -> None:
    """Raises InputError for rules by which draws would not be independent."""
    for name, given in (
      ('unavailable_fraction', bool(self.unavailable_fraction)),
      ('sampling_weights', self.sampling_weights is not None),
      ('availability_trace', self.trace is not None),
      ('buffer', bool(self.buffer)),
    ):
      if given:
        raise InputError(
          f'{name}: is not supported with poisson = True, which draws every'
          ' client with the same probability, independently'
        )

  def _check_asynchronous(self) -> None:
    """Raises InputError for rules that only whole cohorts can follow."""
    if self.clock is None:
      raise InputError(
        f'buffer = {self.buffer}: needs a clock, which decides when updates'
        ' arrive'
      )
    for name, given in (
      ('clock.deadline', bool(self.clock.deadline)),
      ('unavailable_fraction', bool(self.unavailable_fraction)),
      ('sampling_weights', self.sampling_weights is not None),
      ('availability_trace', self.trace is not None),
      ('straggler_fraction', bool(self.straggler_fraction)),
      ('participation.draw', self.draw is not None),
      ('participation.completion', self.completion is not None),
    ):
      if given:
        raise InputError(
          f'{name}: is not supported with buffer = {self.buffer}, which draws'
          ' from idle clients and waits for their work'
        )

  @property
  def has_own_rules(self) -> bool:
    """Returns whether the draw or the completion rule is custom."""
    return self.draw is not None or self.completion is not None

  @property
  def stragglers_by_epoch(self) -> bool:
    """Returns whether some clients complete only some of their epochs."""
    return self.straggler_fraction > 0 and self.straggler_work == 'epochs'

  @property
  def stops_early(self) -> bool:
    """Returns whether some clients may complete only a part of their work."""
    deadline = self.clock is not None and self.clock.deadline > 0
    return deadline or self._completion_rule is not None

  def cohort(
    self, rng: np.random.Generator, context: draws.DrawContext
  ) -> np.ndarray:
    """Returns the clients of a round, [m] distinct ones; m <= M.

    Raises:
      InputError: a custom draw breaks its contract.
    """
    if self.draw is not None:
      return draws.check_cohort(self.draw(rng, context), context)
    if self.poisson:
      return draws.poisson(rng, context)
    return self._built_in_draw(rng, context)

  def completed(self, seed: int, work: WorkContext) -> np.ndarray:
    """Returns the minibatches behind each client's update, [m] int64.

    Args:
      seed: the seed of the run.
      work: the local work of the clients.

    Raises:
      InputError: a custom completion rule breaks its contract.
    """
    done, rule = work.in_time, self._completion_rule
    if rule is not None:
      rng = np.random.default_rng([seed, _COMPLETION, work.round_number])
      completed = rule(rng, work)
      if rule is self.completion:
        completed = completion_lib.check_completed(completed, work)
      done = np.minimum(completed, done)
    if self.stragglers == 'drop':
      done = np.where(done < work.updates, 0, done)
    return done

  @functools.cached_property
  def _built_in_draw(self) -> draws.Draw:
    return draws.at_random(
      unavailable_fraction=self.unavailable_fraction,
      weights=self.sampling_weights,
      trace=self.trace,
    )

  @functools.cached_property
  def _completion_rule(self) -> Completion | None:
    """Returns the rule in force; None if all clients complete all work."""
    if self.completion is None and self.straggler_fraction:
      return completion_lib.stragglers(
        self.straggler_fraction, work=self.straggler_work
      )
    return self.completion


# The default: all clients can be drawn, and complete all their work.
EVERYBODY = Participation()


def _check_custom(name: str, rule: object, others: Mapping[str, bool]) -> None:
  """Raises InputError unless a custom rule is a function and the only one.

  Args:
    name: the name of the rule, 'draw' or 'completion'.
    rule: the rule, or None.
    others: name of each built-in setting -> whether it is set too.
  """
  if rule is None:
    return
  if not callable(rule):
    raise InputError(f'participation.{name} = {rule!r}: must be a function')
  for other, given in others.items():
    if given:
      raise InputError(f'{other}: is not supported with participation.{name}')
