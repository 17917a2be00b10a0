"""A task: a model, the loss that it learns by, the metrics of its tests."""

from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from fedavg_jax.contracts import losses
from fedavg_jax.contracts import metrics as metrics_lib
from fedavg_jax.contracts.losses import Loss
from fedavg_jax.contracts.metrics import Metric
from fedavg_jax.contracts.model import Model


class Task(NamedTuple):
  """What is learned, and by what it is measured.

  Attributes:
    model: any.
    loss: (outputs, batch) -> [B].
    metrics: of tests. The first name of the first one is what targets, best
      checkpoints and choices go by.
  """

  model: Model
  loss: Loss
  metrics: tuple[Metric, ...]

  @property
  def classifies(self) -> bool:
    """Whether targets are class numbers, as cross entropy needs them."""
    return self.loss is losses.cross_entropy

  @property
  def never(self) -> float:
    """What no test reaches, as `enough` has it."""
    return -math.inf if self.metrics[0].lower_is_better else math.inf

  def enough(self, target: float, sums: 'Sums') -> float:
    """Returns what the sums of a test must reach on the devices.

    Args:
      target: of the first metric; 0 is none.
      sums: of some test on the same examples.
    """
    if not target:
      return self.never
    found = self.metrics[0].enough
    return found(target, sums.metrics[0]) if found else target

  def reached(self, sums: 'Sums', enough: jax.Array) -> jax.Array:
    """Tells on the devices whether a test has reached a target.

    Args:
      sums: of a test, of a sweep with a leading axis [G].
      enough: of `enough`, [] float32.

    Returns:
      Bool, [] or [G].
    """
    metric = self.metrics[0]

    def compared(sums):
      if metric.value is not None:
        return metric.value(sums)
      return next(iter(metric.result(sums).values()))

    if sums.count.ndim and not metric.stacks:
      compared = jax.vmap(compared)
    return self.reaches(compared(sums.metrics[0]), enough)

  def reaches(self, value: Any, target: Any) -> Any:
    """Tells whether a result of the first metric is the target, or better."""
    lower = self.metrics[0].lower_is_better
    return value <= target if lower else value >= target


def make_task(
  model: Model,
  loss: Loss = losses.cross_entropy,
  metrics: Sequence[Metric] | None = None,
) -> Task:
  """Makes a task.

  Args:
    model: any.
    loss: of its outputs.
    metrics: None takes accuracy and loss with cross entropy, and the mean loss
      with any other one.
  """
  if metrics is None:
    metrics = (metrics_lib.mean_loss(loss),)
    if loss is losses.cross_entropy:
      metrics = metrics_lib.of_classifier()
  return Task(model, loss, tuple(metrics))


class Sums(NamedTuple):
  """What a test comes to: sums over its examples.

  One of each, or with leading axes, such as [R] rounds or [K] clients.

  Attributes:
    metrics: of each metric of a task, what its rows add up to.
    count: float32, labels that were tested, see `metrics.num_labels`.
  """

  metrics: tuple[Any, ...]
  count: Any


def results(task: Task, sums: Sums) -> dict[str, Any]:
  """Makes the results of a test of its sums, on the host, in float64.

  Args:
    task: whose metrics they are.
    sums: with any leading axes.

  Returns:
    name -> number, an array where there are leading axes; NaN where nothing was
    tested.
  """
  sums = jax.tree.map(lambda array: np.asarray(array, np.float64), sums)
  shape = np.shape(sums.count)
  found: dict[str, np.ndarray] = {}
  for metric, own in zip(task.metrics, sums.metrics, strict=True):
    for index in [()] if metric.stacks else np.ndindex(shape):
      one = jax.tree.map(lambda array, index=index: array[index], own)
      with np.errstate(invalid='ignore', divide='ignore'):
        values = metric.result(one)
      for name, value in values.items():
        found.setdefault(name, np.full(shape, np.nan))[index] = value
  return {
    name: np.where(sums.count > 0, values, np.nan)[()]
    for name, values in found.items()
  }
