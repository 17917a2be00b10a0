"""Who takes part in a round, how far each client comes, and how long it takes.

NumPy only. All of it is decided on the host, as a function of seed, round and
client: the plan then holds fewer clients or fewer steps, and the device code
knows of nothing.

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
  """Who is drawn, and how much of the local work each client completes.

  Both are pure functions. The other attributes make the built-in ones,
  `draws.at_random` and `completion.stragglers`; `draw` and `completion` put
  your own in their place.

  Attributes:
    unavailable_fraction: of all clients, out of reach in a round, drawn anew.
    sampling_weights: [K], a client is drawn in proportion to its weight among
      those that are left; None draws uniformly. A weight of 0 is never drawn.
    trace: when clients are in reach; None is always. Where fewer are than a
      cohort has, they are the cohort.
    straggler_fraction: of a cohort, on average, clients drawn anew that stop
      after some of their work, and before all of it.
    straggler_work: what a straggler does some of, drawn uniformly: 1 to all but
      one of its 'minibatches', or 1 to E - 1 whole 'epochs'. Of a single one it
      has done none.
    stragglers: 'keep' averages what clients have done that did not complete all
      of their work, as FedProx does; 'drop' leaves them out, as FedAvg does.
      It is so for a deadline and a rule of your own too. Nobody counts who has
      not completed a minibatch.
    clock: the clients' speeds; with a deadline, who is late has done what it
      could until then. None knows no time.
    draw: `(rng, DrawContext) -> clients [m]`, see `draws.Draw`.
    completion: `(rng, WorkContext) -> minibatches [m]`, see
      `completion.Completion`.
  """

  unavailable_fraction: float = 0.0
  sampling_weights: np.ndarray | None = None
  trace: Trace | None = None
  straggler_fraction: float = 0.0
  straggler_work: str = 'minibatches'
  stragglers: str = 'keep'
  clock: Clock | None = None
  draw: draws.Draw | None = None
  completion: Completion | None = None

  def check(self, num_clients: int) -> None:
    """Raises InputError where a value breaks its rule."""
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
        f'sampling_weights: must be {num_clients} finite numbers from 0, one'
        ' for each client, not all 0'
      )
    if self.trace is not None:
      check_trace(self.trace, num_clients)
    if self.clock is not None:
      check_clock(self.clock, num_clients)
    _check_own(
      'draw',
      self.draw,
      {
        'unavailable_fraction': bool(self.unavailable_fraction),
        'sampling_weights': self.sampling_weights is not None,
        'trace': self.trace is not None,
      },
    )
    _check_own(
      'completion',
      self.completion,
      {
        'straggler_fraction': bool(self.straggler_fraction),
      },
    )

  @property
  def has_own_rules(self) -> bool:
    """Whether a function of the caller decides something."""
    return self.draw is not None or self.completion is not None

  @property
  def stragglers_by_epoch(self) -> bool:
    """Whether some clients do some of their epochs."""
    return self.straggler_fraction > 0 and self.straggler_work == 'epochs'

  @property
  def stops_early(self) -> bool:
    """Whether some clients may do only a part of their work."""
    deadline = self.clock is not None and self.clock.deadline > 0
    return deadline or self._completion_rule is not None

  def cohort(
    self, rng: np.random.Generator, context: draws.DrawContext
  ) -> np.ndarray:
    """Returns the clients of a round, [m] different ones; m <= M.

    Raises:
      InputError: the caller's draw breaks its contract.
    """
    if self.draw is not None:
      return draws.check_cohort(self.draw(rng, context), context)
    return self._built_in_draw(rng, context)

  def completed(self, seed: int, work: WorkContext) -> np.ndarray:
    """Returns minibatches of each client that reach the server's mean, [m].

    Args:
      seed: of the run.
      work: what the clients could do.

    Raises:
      InputError: the caller's completion rule breaks its contract.
    """
    done, rule = work.in_time, self._completion_rule
    if rule is not None:
      rng = np.random.default_rng([seed, _COMPLETION, work.round_number])
      own = rule(rng, work)
      if rule is self.completion:
        own = completion_lib.check_completed(own, work)
      done = np.minimum(own, done)
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
    """The rule in force; None where all do all of their work."""
    if self.completion is None and self.straggler_fraction:
      return completion_lib.stragglers(
        self.straggler_fraction, work=self.straggler_work
      )
    return self.completion


# Who takes part where nothing else is given.
EVERYBODY = Participation()


def _check_own(name: str, rule: object, others: Mapping[str, bool]) -> None:
  """Raises InputError unless a caller's rule is a function and decides alone.

  Args:
    name: of the rule.
    rule: what was given, None for none.
    others: names of built-in settings, and whether they are given too.
  """
  if rule is None:
    return
  if not callable(rule):
    raise InputError(f'participation.{name} = {rule!r}: must be a function')
  for other, given in others.items():
    if given:
      raise InputError(
        f'{other}: must be left out with participation.{name}, which decides'
        ' alone'
      )
