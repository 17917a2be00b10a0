"""Describes the mechanism of an algorithm that is differentially private."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Mechanism(NamedTuple):
  """Describes the Gaussian mechanism by which clients' messages are summed.

  It travels with the `Algorithm`, so that an accountant takes its event from
  what runs. One client's whole data move the sum of a round, in units of its
  noise, by at most 1 / noise_multiplier if they are removed, and by at most
  twice as much if they are replaced.

  Attributes:
    clip: S, the largest norm of a message; with adaptive clipping the first
      one, which then depends on noisy sums alone.
    noise_multiplier: sigma, the standard deviation of the noise over the most
      by which one client moves the sum. If bits are summed too, it is that of
      both sums together.
    denominator: the constant by which the noisy sum is divided, the expected
      number of clients.
    hooks: the functions of `Algorithm` by name that clip, add and add noise; an
      algorithm in which one of them was replaced has another mechanism.
    check_schedule: the function that raises InputError unless the cohorts of
      all rounds, `cohort(round) -> clients`, are those that noise which is
      correlated between rounds allows; None if each round has its own noise.
  """

  clip: float
  noise_multiplier: float
  denominator: float
  hooks: dict[str, Callable]
  check_schedule: Callable[[Callable[[int], np.ndarray]], None] | None = None

  @property
  def scheduled(self) -> bool:
    """Returns whether clients take part by a public schedule."""
    return self.check_schedule is not None
