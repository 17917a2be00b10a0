"""Combines a model, its training loss and its test metrics into a task."""

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
from fedavg_jax.core.trees import PyTree


class Task(NamedTuple):
  """Holds a model, its training loss and its test metrics.

  Attributes:
    model: the model to train.
    loss: (outputs, batch) -> losses [B].
    metrics: the metrics of tests. The first result of the first one decides
      when a target is reached and which checkpoint or setting is the best.
  """

  model: Model
  loss: Loss
  metrics: tuple[Metric, ...]

  @property
  def classifies(self) -> bool:
    """Returns whether targets are class numbers, which cross entropy needs."""
    return self.loss is losses.cross_entropy

  @property
  def never(self) -> float:
    """Returns the threshold, as `enough` does, that no test reaches."""
    return -math.inf if self.metrics[0].lower_is_better else math.inf

  def enough(self, target: float, sums: 'Sums') -> float:
    """Returns the threshold that the sums of a test must reach.

    Args:
      target: the target of the first metric; 0 for none.
      sums: the sums of some test on the same examples.
    """
    if not target:
      return self.never
    found = self.metrics[0].enough
    return found(target, sums.metrics[0]) if found else target

  def reached(self, sums: 'Sums', enough: jax.Array) -> jax.Array:
    """Returns whether a test has reached a threshold, on the devices.

    Args:
      sums: the sums of a test; with a leading axis [G] in a sweep.
      enough: the threshold of `enough`, [] float32.

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
    """Returns whether a value of the first metric is the target, or better."""
    lower = self.metrics[0].lower_is_better
    return value <= target if lower else value >= target


def make_task(
  model: Model,
  loss: Loss = losses.cross_entropy,
  metrics: Sequence[Metric] | None = None,
) -> Task:
  """Builds a task.

  Args:
    model: the model to train.
    loss: the training loss of the model's outputs.
    metrics: the metrics of tests; None takes accuracy and loss with cross
      entropy, and the mean loss with any other loss.
  """
  if metrics is None:
    metrics = (metrics_lib.mean_loss(loss),)
    if loss is losses.cross_entropy:
      metrics = metrics_lib.of_classifier()
  return Task(model, loss, tuple(metrics))


class Sums(NamedTuple):
  """Holds the sums of a test over its examples.

  Sums of several tests have leading axes, such as [R] rounds or [K] clients.

  Attributes:
    metrics: the sum of the rows of each metric of a task.
    count: float32, the number of tested labels; see `metrics.num_labels`.
  """

  metrics: tuple[PyTree, ...]
  count: Any


def results(task: Task, sums: Sums) -> dict[str, Any]:
  """Computes the results of a test from its sums, on the host, in float64.

  Args:
    task: the task, with the metrics.
    sums: the sums, with any leading axes.

  Returns:
    Numbers by name, arrays if there are leading axes; NaN where no label was
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
