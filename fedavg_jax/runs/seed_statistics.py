"""Summarizes the runs of a setting over their seeds.

For a setting with the values v_1, ..., v_n of n seeds,

  mean = sum_i v_i / n,  std = sqrt(sum_i (v_i - mean)^2 / (n - 1)).

The difference to another setting with values w_i is taken seed by seed, d_i =
v_i - w_i, over the seeds that both have run: what the seed decides, such as the
cohorts, is then the same on both sides, and the standard deviation of d is that
of the effect. There is no difference if one of these runs has no value, because
it has diverged or has not reached the target: the seeds left would be those
that both have survived.

Runs that end at their own target end after different rounds, and their last
models all have just the target: such a table has no final and no best values,
but the rounds to the target.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import statistics
from typing import Generic
from typing import NamedTuple
from typing import TypeVar

from fedavg_jax.runs import compare

T = TypeVar('T')


class Moments(NamedTuple):
  """Holds mean and standard deviation of values.

  Attributes:
    mean: the mean.
    std: the standard deviation, with n - 1; None where n = 1.
    n: the number of values.
  """

  mean: float
  std: float | None
  n: int


class Columns(NamedTuple, Generic[T]):
  """Holds what a run, or a setting, is judged by.

  Attributes:
    final: the first metric on the test set, at the end.
    best: its best value in any round, on the validation set if there is one.
    rounds: the rounds to the target.
    bytes: the bytes that were sent until then, both ways.
    seconds: the simulated seconds until then.
  """

  final: T
  best: T
  rounds: T
  bytes: T
  seconds: T


class Setting(NamedTuple):
  """Holds the statistics of a setting over its seeds.

  Attributes:
    name: the setting.
    seeds: the number of its runs.
    diverged: the number of those that have diverged.
    reached: the number of those that have reached the target.
    stopped: the number of those that ended when they reached their own target.
    moments: mean and standard deviation of each column; None where a run has no
      value, because it has diverged or has not reached the target. Final and
      best are None in all settings if a run of any was stopped.
    differences: those of the differences to the first setting, over the seeds
      that both have run; None without any, where a run of these has no value,
      and in the first setting.
  """

  name: str
  seeds: int
  diverged: int
  reached: int
  stopped: int
  moments: Columns[Moments | None]
  differences: Columns[Moments | None]


def moments(values: Sequence[float | None]) -> Moments | None:
  """Returns mean and standard deviation; None where a value is missing.

  >>> moments([0.0, 2.0])
  Moments(mean=1.0, std=1.4142135623730951, n=2)
  >>> moments([0.5]), moments([0.5, None]), moments([])
  (Moments(mean=0.5, std=None, n=1), None, None)
  """
  found = [value for value in values if value is not None]
  if not found or len(found) < len(values):
    return None
  std = statistics.stdev(found) if len(found) > 1 else None
  return Moments(statistics.fmean(found), std, len(found))


def settings(
  groups: Mapping[str, Sequence[compare.Run]], target: float
) -> list[Setting]:
  """Returns the statistics of settings, in their order.

  Args:
    groups: the runs of each setting, of different seeds.
    target: a value of their measure; 0 is none.
  """
  values = {
    name: {run.seed: _of_run(run, target) for run in runs}
    for name, runs in groups.items()
  }
  if any(_is_stopped(run) for runs in groups.values() for run in runs):
    values = {
      name: {
        seed: one._replace(final=None, best=None) for seed, one in own.items()
      }
      for name, own in values.items()
    }
  first, *_ = values
  return [
    Setting(
      name=name,
      seeds=len(runs),
      diverged=sum(run.status == 'diverged' for run in runs),
      reached=sum(one.rounds is not None for one in values[name].values()),
      stopped=sum(map(_is_stopped, runs)),
      moments=Columns(*map(moments, zip(*values[name].values(), strict=True))),
      differences=(
        _NO_DIFFERENCES
        if name == first
        else _paired(values[name], values[first])
      ),
    )
    for name, runs in groups.items()
  ]


_NO_DIFFERENCES: Columns[Moments | None] = Columns(*[None] * 5)


def _is_stopped(run: compare.Run) -> bool:
  return run.status == 'target reached'


def _of_run(run: compare.Run, target: float) -> Columns[float | None]:
  """Returns the columns of one run; None for values that it does not have."""
  row = compare.row(run, target)
  return Columns(
    final=None if run.status == 'diverged' else run.final,
    best=row['best'],
    rounds=row['to_target'],
    bytes=row['bytes'] if target else None,
    seconds=row['simulated'] if target else None,
  )


def _paired(
  values: Mapping[int, Columns[float | None]],
  others: Mapping[int, Columns[float | None]],
) -> Columns[Moments | None]:
  """Returns the moments of the differences in the seeds that both have run."""
  both = [seed for seed in values if seed in others]

  def column(i: int) -> Moments | None:
    pairs = [(values[seed][i], others[seed][i]) for seed in both]
    return moments(
      [None if v is None or w is None else v - w for v, w in pairs]
    )

  return Columns(*map(column, range(len(Columns._fields))))
