"""Defines a cell of the gallery: a published number and our setting for it."""

from collections.abc import Callable
import hashlib
import json
from typing import NamedTuple

import numpy as np

from fedavg_jax.runs import run_config
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.schedule.completion import Completion


class Reading(NamedTuple):
  """Makes the number of a cell from a curve.

  Attributes:
    name: the words for the number, such as 'best over rounds'.
    of: (rounds [T], values [T]) -> the number.
  """

  name: str
  of: Callable[[np.ndarray, np.ndarray], float]


BEST = Reading('best over rounds', lambda rounds, values: float(values.max()))


def mean_of_last(number: int) -> Reading:
  """Returns the mean of the last rounds.

  >>> mean_of_last(2).of(np.arange(4), np.array([0.0, 0.1, 0.5, 0.7]))
  0.6
  """
  return Reading(
    f'mean of the last {number} rounds',
    lambda rounds, values: float(values[rounds > rounds[-1] - number].mean()),
  )


def at_round(number: int) -> Reading:
  """Returns the value after a round.

  >>> at_round(20).of(np.array([0, 10, 20, 30]), np.array([0.1, 0.4, 0.6, 0.7]))
  0.6
  """
  return Reading(
    f'at round {number}',
    lambda rounds, values: float(values[np.flatnonzero(rounds == number)[0]]),
  )


# Two deviations above 5 points would count almost any number as inside.
_WIDEST = 0.05


class Published(NamedTuple):
  """Holds a published number.

  Attributes:
    value: the number, a fraction such as an accuracy; of a range its middle.
    spread: its published standard deviation over seeds; None if not published.
    margin: the largest distance that counts as inside, where no standard
      deviation is published.
    words: the published range, in percent, where it is not one number.
  """

  value: float
  spread: float | None = None
  margin: float = 0.01
  words: str = ''

  @property
  def reach(self) -> float | None:
    """Returns the largest distance that counts as inside, two deviations.

    None where they exceed 5 points, which leaves no verdict.

    >>> Published(0.5179, 0.2675).reach is None
    True
    """
    if self.spread is None:
      return self.margin
    return 2 * self.spread if 2 * self.spread <= _WIDEST else None

  def has_inside(self, ours: float) -> bool | None:
    """Returns whether our mean is within reach; None without a verdict.

    >>> Published(0.9909, 0.0005).has_inside(0.9899)
    True
    >>> Published(0.10, 0.0).has_inside(0.11)
    False
    """
    if self.reach is None:
      return None
    return abs(ours - self.value) <= self.reach + 1e-9  # For decimal numbers.


class Claim(NamedTuple):
  """Describes what a published figure without numbers shows.

  Attributes:
    text: the claim, as a sentence.
    curve: the name of the compared curve.
    lower: the cell whose curve ends lower, without its source.
    higher: the cell whose curve ends higher.
  """

  text: str
  curve: str
  lower: str
  higher: str


class Source(NamedTuple):
  """Describes where the numbers of a group of cells were published.

  Attributes:
    key: the first part of its cells' names, and its file of results.
    title: the name of the group.
    published: the publication, and how its numbers were read.
    inside: the rule by which a number counts as inside.
    differences: known differences between our settings and the published ones.
    claims: the claims of its figures, if it has no numbers.
  """

  key: str
  title: str
  published: str
  inside: str
  differences: str
  claims: tuple[Claim, ...] = ()


class Cell(NamedTuple):
  """Describes a published number, and how to compute ours.

  Attributes:
    name: the source's key and the setting, with slashes.
    source: the publication.
    config: our setting, with seed 0.
    reading: how a run's curve of test accuracies becomes the number.
    minutes: the estimated minutes of a seed on one CPU core.
    published: the published number; None if only a figure was published.
    completion: the rule by which clients complete their work, where no option
      of the config describes it.
  """

  name: str
  source: Source
  config: RunConfig
  reading: Reading
  minutes: float
  published: Published | None = None
  completion: Completion | None = None

  def seeded(self, seed: int) -> RunConfig:
    """Returns the setting of a seed, which generated data share."""
    changes = {'seed': seed}
    if 'seed' in self.config.options.get('dataset', {}):
      changes['options.dataset.seed'] = seed
    return self.config.replace(changes)

  def digest(self, seed: int) -> str:
    """Returns 16 digits of the SHA-256 of what a seed's setting changes.

    Options with their default values are left out, so that a new option does
    not make results old.
    """
    defaults = dict(run_config.flatten(RunConfig()))
    changed = {
      key: value
      for key, value in run_config.flatten(self.seeded(seed))
      if key not in defaults or value != defaults[key]
    }
    rule = getattr(self.completion, '__qualname__', '')
    text = json.dumps([changed, rule], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
