"""Applies clients' own noise and secure sums that a config names."""

from typing import Any
from typing import NamedTuple

from fedavg_jax.algorithms import experimental
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.runs import accountant
from fedavg_jax.runs.run_config import RunConfig


def noisy(cfg: RunConfig, algorithm: Algorithm) -> Algorithm:
  """Returns the algorithm with the noise of `config.local_privacy`."""
  own = cfg.local_privacy
  if not own.unit:
    return algorithm
  accountant.check_installed()
  if own.unit == 'client':
    return experimental.local_dp(algorithm, own.clip, own.noise_multiplier)
  return experimental.example_dp(
    algorithm, own.clip, own.noise_multiplier, cfg.client.batch_size
  )


def summed(cfg: RunConfig, algorithm: Algorithm) -> Algorithm:
  """Returns the algorithm with the sums of `config.secure`."""
  own = cfg.secure
  if not own.max_abs:
    return algorithm
  return experimental.secure_aggregation(
    algorithm,
    own.max_abs,
    value_bits=own.value_bits,
    bits=own.bits,
    max_weight=own.max_weight,
    rounding=own.rounding,
  )


class LocalSpending(NamedTuple):
  """Reports the epsilon of the noise that clients add.

  It is that of a client that takes part in every round.

  Attributes:
    cfg: the config of the run.
  """

  cfg: RunConfig

  def epsilon(self, number: int) -> float:
    """Returns epsilon after some rounds."""
    own = self.cfg.local_privacy
    if own.unit == 'client':
      return experimental.local_epsilon(own.noise_multiplier, own.delta, number)
    return experimental.example_epsilon(
      own.noise_multiplier, own.delta, number, self.cfg.client.epochs
    )

  def text(self) -> str:
    """Describes what the run will have spent after all rounds."""
    own, rounds = self.cfg.local_privacy, self.cfg.rounds
    return (
      f'local privacy of each {own.unit}: noise multiplier'
      f' {own.noise_multiplier:g}, epsilon {self.epsilon(rounds):.4g} at delta'
      f' {own.delta:g} after {rounds} rounds'
    )

  def line(self, number: int) -> dict[str, Any]:
    """Returns what a line of metrics.jsonl has after some rounds."""
    return {'local_epsilon': self.epsilon(number)}

  def summary(self, number: int, *, ended: bool) -> dict[str, Any]:
    """Returns what summary.json has after some rounds.

    Args:
      number: the number of rounds.
      ended: whether the run has ended, which changes nothing here.
    """
    del ended
    own = self.cfg.local_privacy
    return self.line(number) | {'delta': own.delta, 'unit': own.unit}
