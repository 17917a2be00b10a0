"""Metrics: what a test makes of a model's outputs.

A metric has one row of numbers for each example; the engine adds up the rows of
real examples, on every device, and makes the result of the sums on the host.
Any measure that is a function of sums over examples is a metric.

Shape letters: B examples of a batch, C classes.
"""

from collections.abc import Callable
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.contracts.losses import Loss
from fedavg_jax.contracts.losses import check_alike
from fedavg_jax.contracts.losses import label_losses
from fedavg_jax.contracts.model import Batch
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.errors import InputError


class Metric(NamedTuple):
  """A measure of a model on a test set.

  Attributes:
    rows: (outputs, batch) -> any tree of arrays [B, ...], what each example
      adds to the sums.
    result: sums -> name: number. Is given NumPy arrays of float64; and traced
      arrays where a target is set.
    lower_is_better: of the first of its names.
    enough: (target, sums of some test) -> the least value that reaches it; the
      most, where lower is better. None takes the target itself.
    value: sums -> what is compared with `enough`; None takes the first result.
    most: the largest first result that there can be, such as 1 of a share.
    stacks: whether `result` also takes sums with leading axes, such as of many
      clients, which is faster than one after another.
  """

  rows: Callable[[Any, Batch], Any]
  result: Callable[[Any], dict[str, Any]]
  lower_is_better: bool = False
  enough: Callable[[float, Any], float] | None = None
  value: Callable[[Any], Any] | None = None
  most: float = math.inf
  stacks: bool = False


class Ratio(NamedTuple):
  """Attributes: total, count: sums whose ratio is the result."""

  total: Any
  count: Any


def ratio(
  name: str, rows: Callable[[Any, Batch], Ratio], *, lower_is_better: bool
) -> Metric:
  """Makes a metric that is a sum over a sum, such as a mean.

  Args:
    name: of the result.
    rows: (outputs, batch) -> what each example adds to both, [B].
    lower_is_better: or higher.
  """

  def result(sums):
    return {name: sums.total / sums.count}

  return Metric(rows, result, lower_is_better, stacks=True)


def accuracy() -> Metric:
  """Makes the share of labels that have the largest logit.

  A target is reached by the number of correct labels, without a rounding.
  """

  def rows(logits, batch):
    _check_labels('accuracy', logits, batch.y)
    return Ratio(
      _of_each(jnp.argmax(logits, axis=-1) == batch.y),
      num_labels(batch),
    )

  return ratio('accuracy', rows, lower_is_better=False)._replace(
    enough=lambda target, sums: enough_correct(target, int(np.max(sums.count))),
    value=lambda sums: sums.total,
    most=1.0,
  )


def top_k(k: int) -> Metric:
  """Makes the share of labels among the k largest logits, `top_k_accuracy`."""
  name = f'top_{k}_accuracy'

  def rows(logits, batch):
    _check_labels(name, logits, batch.y)
    if k > logits.shape[-1]:
      raise InputError(
        f'{name}: the model has {logits.shape[-1]} classes, must have at least'
        f' {k}'
      )
    _, best = jax.lax.top_k(logits, k)
    found = jnp.any(best == batch.y[..., None], axis=-1)
    return Ratio(_of_each(found), num_labels(batch))

  return ratio(name, rows, lower_is_better=False)._replace(most=1.0)


def label_loss() -> Metric:
  """Makes the mean cross entropy of a label, `loss`."""

  def rows(logits, batch):
    _check_labels('loss', logits, batch.y)
    return Ratio(_of_each(label_losses(logits, batch.y)), num_labels(batch))

  return ratio('loss', rows, lower_is_better=True)


def perplexity() -> Metric:
  """Makes the exponential of a label's mean cross entropy."""
  loss = label_loss()
  return loss._replace(
    result=lambda sums: {
      # Of traced arrays where a target is set.
      'perplexity': _numpy(sums.total).exp(sums.total / sums.count)
    }
  )


def mean_loss(loss: Loss) -> Metric:
  """Makes the mean of a loss over the examples, `loss`."""

  def rows(outputs, batch):
    losses = loss(outputs, batch)
    return Ratio(losses, jnp.ones(len(losses), jnp.float32))

  return ratio('loss', rows, lower_is_better=True)


def squared_error() -> Metric:
  """Makes the mean of (outputs - y)^2, `squared_error`."""

  def rows(outputs, batch):
    check_alike('squared_error', outputs, batch.y)
    errors = (outputs - batch.y.astype(outputs.dtype)) ** 2
    size = math.prod(errors.shape[1:])
    return Ratio(_of_each(errors), jnp.full(len(errors), size, jnp.float32))

  return ratio('squared_error', rows, lower_is_better=True)


class Confusion(NamedTuple):
  """Attributes: hits, predicted, actual: labels of each class, [C]."""

  hits: Any
  predicted: Any
  actual: Any


def macro_f1() -> Metric:
  """Makes the mean over classes of F1, `macro_f1`.

  Where integers y [B, C] mark several labels of an example by 1, those with a
  logit above 0 are predicted; else the one with the largest. A class that
  neither occurs nor is predicted has an F1 of 0, as scikit-learn's
  `f1_score(average='macro', zero_division=0)` over all C labels has it.
  """

  def rows(logits, batch):
    classes, real = logits.shape[-1], batch.y != NO_LABEL
    several = batch.y.shape == logits.shape
    if several and jnp.issubdtype(batch.y.dtype, jnp.integer):
      actual = (batch.y == 1).astype(jnp.float32)
      predicted = jnp.where(real, logits > 0, False).astype(jnp.float32)
    else:
      _check_labels('macro_f1', logits, batch.y)
      real = real[..., None].astype(jnp.float32)
      actual = jax.nn.one_hot(batch.y, classes) * real
      predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes) * real
    return jax.tree.map(
      lambda counts: counts.reshape(len(counts), -1, classes).sum(axis=1),
      Confusion(actual * predicted, predicted, actual),
    )

  def result(sums):
    both = _numpy(sums.hits).maximum(sums.predicted + sums.actual, 1)
    return {'macro_f1': (2 * sums.hits / both).mean()}

  return Metric(rows, result, most=1.0)


def of_classifier() -> tuple[Metric, ...]:
  """Returns the metrics of cross entropy: `accuracy` and `loss`."""
  return accuracy(), label_loss()


def _check_labels(name: str, logits: Any, y: jax.Array) -> None:
  """Raises InputError where targets are no class numbers of the logits."""
  whole = jnp.issubdtype(y.dtype, jnp.integer)
  if not whole or y.shape != logits.shape[:-1]:
    raise InputError(
      f'metrics: {name} needs logits [B, ..., classes] and class numbers'
      f' [B, ...], has logits {[*logits.shape]} and {y.dtype} {[*y.shape]}'
    )


def num_labels(batch: Batch) -> jax.Array:
  """Counts the labels of each example, [B].

  Of integers [B, T, ...] those that are not `NO_LABEL`; all other targets are
  one each, whatever their values.
  """
  y = batch.y
  if (
    not hasattr(y, 'dtype')  # A tree has no type.
    or y.ndim < 2
    or not jnp.issubdtype(y.dtype, jnp.integer)
  ):
    return jnp.ones(len(batch.mask), jnp.float32)
  return _of_each(y != NO_LABEL)


def enough_correct(target: float, count: int) -> float:
  """Returns the fewest correct labels whose share is the target.

  >>> enough_correct(0.99, 10000)
  9900
  """
  enough = math.ceil(target * count) - 1  # The product may be rounded up.
  while enough / count < target:
    enough += 1
  return enough


def _of_each(values: jax.Array) -> jax.Array:
  """Sums over all but the first axis, in float32."""
  return jnp.sum(values.astype(jnp.float32).reshape(len(values), -1), axis=1)


def _numpy(array: Any) -> Any:
  """Returns the library of an array: NumPy's on the host, JAX's if traced."""
  return jnp if isinstance(array, jax.Array) else np
