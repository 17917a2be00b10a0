"""Applies the privacy that a config names to an algorithm, and accounts it."""

from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.algorithms import experimental
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.runs import accountant
from fedavg_jax.runs import canary_audit
from fedavg_jax.runs import config_privacy
from fedavg_jax.runs.accountant import Accountant
from fedavg_jax.runs.accountant import Event
from fedavg_jax.runs.private_parts_builder import LocalSpending
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.schedule import sampling

# A larger epsilon by PLD would need gigabytes, and promise nothing.
_MOST_TIGHT = 50.0


def privatized(
  cfg: RunConfig, algorithm: Algorithm, num_clients: int
) -> Algorithm:
  """Returns the algorithm with the mechanism of `config.privacy`.

  Args:
    cfg: the checked config, in which a sweep has a traced noise multiplier.
    algorithm: the algorithm, with compression and attacks.
    num_clients: K, the number of clients.
  """
  own = cfg.privacy
  if not own.clip:
    return algorithm
  accountant.check_installed()
  accountant.check_delta('privacy.delta', own.delta, num_clients)
  config_privacy.check_noise_cohort(cfg, num_clients)
  expected = config_privacy.expected_cohort(cfg, num_clients)
  noise: Any = own.noise_multiplier
  if own.target_epsilon:
    noise = calibrated(cfg, num_clients)
  if own.noise_cohort_size:  # That of the mean, for a sum of fewer clients.
    noise = noise * (expected / own.noise_cohort_size)
  adaptive = None
  if own.quantile:
    adaptive = experimental.AdaptiveClip(
      own.quantile, own.clip_learning_rate, own.bit_noise
    )
  return experimental.privatize(
    algorithm,
    clip=own.clip,
    noise_multiplier=noise,
    denominator=expected,
    adaptive=adaptive,
  )


def calibrated(cfg: RunConfig, num_clients: int) -> float:
  """Returns the noise multiplier for `privacy.target_epsilon`."""
  own, fraction = cfg.privacy, cfg.client_fraction

  if own.accounting == 'zero_out':
    most = sampling.most_drawn(num_clients, fraction)
  else:
    most = sampling.cohort_size(num_clients, fraction)
  rate = sampling.poisson_rate(num_clients, fraction)

  def event(noise: float) -> Event:
    return accountant.make_event(own.accounting, num_clients, most, noise, rate)

  return accountant.calibrate(
    event,
    rounds=cfg.rounds,
    target_epsilon=own.target_epsilon,
    delta=own.delta,
  )


class Spending(NamedTuple):
  """Reports the epsilon of a run, in its lines and in its summary.

  Attributes:
    cfg: the config of the run.
    accountant: the accountant of the mechanism that runs.
    noise_multiplier: the noise multiplier of the mechanism.
    algorithm: the algorithm that runs.
  """

  cfg: RunConfig
  accountant: Accountant
  noise_multiplier: float
  algorithm: Algorithm

  def text(self) -> str:
    """Describes what the run will have spent after all rounds."""
    event, rounds = self.accountant.event, self.cfg.rounds
    return (
      f'privacy: noise multiplier {self.noise_multiplier:g}, epsilon'
      f' {self.accountant.epsilon(rounds):.4g} at delta'
      f' {self.accountant.delta:g} after {rounds} rounds ({event.accounting})'
    )

  def line(self, number: int) -> dict[str, Any]:
    """Returns what a line of metrics.jsonl has after some rounds."""
    return {'epsilon': self.accountant.epsilon(number)}

  def summary(self, number: int, *, ended: bool) -> dict[str, Any]:
    """Returns what summary.json has after some rounds.

    Args:
      number: the number of rounds.
      ended: whether the run has ended; only then is the epsilon by PLD
        computed, which takes seconds, unless that by RDP is above 50.
    """
    own, rdp = self.cfg.privacy, self.accountant.epsilon(number)
    tight = None
    if ended and number and rdp <= _MOST_TIGHT:
      tight = self.accountant.tight_epsilon(number)
    found = {
      'epsilon': rdp if tight is None else min(rdp, tight),
      'epsilon_rdp': rdp,
      'epsilon_pld': tight,
      'delta': own.delta,
      'accounting': self.accountant.event.accounting,
      'noise_multiplier': self.noise_multiplier,
    }
    if own.canary_scores and ended:
      found |= {
        'round_epsilon': experimental.gaussian_epsilon(
          self.noise_multiplier, own.delta
        ),
        'measured_round_epsilon': canary_audit.measured_epsilon(
          self.algorithm, scores=own.canary_scores, delta=own.delta
        ),
      }
    if own.noise_cohort_size:
      found |= {
        'projected_epsilon': projected(self.cfg).epsilon(number),
        'projected_cohort': own.noise_cohort_size,
        'projected_population': own.population,
      }
    return found


def projected(cfg: RunConfig) -> Accountant:
  """Returns the accountant of the larger cohort that a config imagines.

  Its cohorts are not truncated, and drawn from `privacy.population` clients.
  """
  own = cfg.privacy
  size, number = own.noise_cohort_size, own.population
  most = number if own.accounting == 'zero_out' else size
  event = accountant.make_event(
    own.accounting, number, most, own.noise_multiplier, size / number
  )
  return Accountant(event, own.delta)


def spending(
  cfg: RunConfig, simulation: Simulation, index: int = 0
) -> Spending | LocalSpending | None:
  """Returns the report of a run's privacy, None if its algorithm has none.

  Args:
    cfg: the config of the run.
    simulation: the compiled simulation, whose mechanism and planner are
      accounted, whatever the config says.
    index: the number of the run in a sweep.

  Raises:
    InputError: the cohorts are not those of `privacy.accounting`, or the run
      publishes clients' data.
  """
  algorithm = simulation.parts.trained.at(index)
  mechanism = algorithm.mechanism
  if mechanism is None or mechanism.scheduled:
    return LocalSpending(cfg) if cfg.local_privacy.unit else None
  config_privacy.check_results(cfg)
  noise = float(np.float32(mechanism.noise_multiplier))
  mechanism = mechanism._replace(noise_multiplier=noise)
  own, number = cfg.privacy, len(simulation.planner.num_examples)
  accountant.check_delta('privacy.delta', own.delta, number)
  if own.canary_scores:
    canary_audit.check(algorithm)
  try:
    event = accountant.event_of(simulation.planner, mechanism, own.accounting)
  except InputError as error:
    raise InputError(f'privacy.{error}') from None
  return Spending(cfg, Accountant(event, own.delta), noise, algorithm)
