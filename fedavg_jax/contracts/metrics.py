"""Defines metrics of a model on a test set.

A metric maps each example to a row of numbers; the engine sums the rows of real
examples on all devices and computes the result from the sums on the host. Any
function of sums over examples is a metric.

Shape letters: B rows of a batch, C classes, T positions of a sequence.
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
from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import Batch
from fedavg_jax.contracts.model import Scalar
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.trees import PyTree

__all__ = [
  'accuracy',
  'label_loss',
  'macro_f1',
  'mean_loss',
  'num_labels',
  'of_classifier',
  'perplexity',
  'Ratio',
  'ratio',
  'squared_error',
  'top_k',
]


class Metric(NamedTuple):
  """Measures a model on a test set.

  Attributes:
    rows: (outputs, batch) -> pytree of arrays [B, ...], the terms of the sums.
    result: sums -> numbers by name. The sums are float64 arrays of NumPy, or
      traced arrays if a target is set.
    lower_is_better: whether a lower first result is better.
    enough: (target, sums of some test) -> threshold of `value` that reaches the
      target; None takes the target itself.
    value: sums -> number to compare with `enough`; None takes the first result.
    most: the largest possible first result, such as 1 for a fraction.
    stacks: whether `result` also takes sums with leading axes, such as those of
      many clients, which is faster than a call for each.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> metric = fa.Metric(
  ...     rows=lambda outputs, batch: jnp.abs(outputs - batch.y),
  ...     result=lambda total: {'total_error': total}, lower_is_better=True)
  >>> metric.result(6)
  {'total_error': 6}
  """

  rows: Callable[[PyTree, Batch], PyTree]
  result: Callable[[PyTree], dict[str, Scalar]]
  lower_is_better: bool = False
  enough: Callable[[float, PyTree], float] | None = None
  value: Callable[[PyTree], Scalar] | None = None
  most: float = math.inf
  stacks: bool = False


class Ratio(NamedTuple):
  """Holds the numerator and the denominator of a metric.

  Attributes:
    total: the numerator: [B] in rows, [] in sums.
    count: the denominator, of the same shape.

  >>> import fedavg_jax as fa
  >>> sums = fa.metrics.Ratio(total=9, count=10)
  >>> sums.count
  10
  """

  total: Array
  count: Array


def ratio(
  name: str, rows: Callable[[PyTree, Batch], Ratio], *, lower_is_better: bool
) -> Metric:
  """Builds a metric that is a sum divided by a sum, such as a mean.

  Args:
    name: the name of the result.
    rows: (outputs, batch) -> terms of the numerator and of the denominator, [B]
      each.
    lower_is_better: whether a lower result is better.

  >>> import fedavg_jax as fa
  >>> def rows(outputs, batch):
  ...   return fa.metrics.Ratio(outputs.max(axis=-1), batch.y >= 0)
  >>> confidence = fa.metrics.ratio('confidence', rows, lower_is_better=False)
  >>> confidence.result(fa.metrics.Ratio(total=9.0, count=12.0))
  {'confidence': 0.75}
  """

  def result(sums):
    return {name: sums.total / sums.count}

  return Metric(rows, result, lower_is_better, stacks=True)


def accuracy() -> Metric:
  """Builds `accuracy`, the fraction of labels with the largest logit.

  It needs logits [B, ..., C] and integer labels [B, ...]. Whether a target is
  reached is decided by the number of correct labels, without rounding.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> y = jnp.array([0, 1, 1])
  >>> batch = fa.Batch(x=y, y=y, mask=y >= 0, size=jnp.int32(3))
  >>> logits = jnp.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
  >>> fa.metrics.accuracy().rows(logits, batch).total.tolist()
  [1.0, 1.0, 0.0]
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
  """Builds `top_{k}_accuracy`, the fraction of labels in the k largest logits.

  It needs logits [B, ..., C] and integer labels [B, ...]; tracing it raises
  InputError where C is below k.

  Args:
    k: the number of logits, at least 1.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> y = jnp.array([0, 2])
  >>> batch = fa.Batch(x=y, y=y, mask=y >= 0, size=jnp.int32(2))
  >>> logits = jnp.array([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
  >>> fa.metrics.top_k(2).rows(logits, batch).total.tolist()
  [1.0, 0.0]
  """
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
  """Builds `loss`, the mean cross entropy of the labels, in nats.

  It needs logits [B, ..., C] and integer labels [B, ...].

  >>> import fedavg_jax as fa
  >>> loss = fa.metrics.label_loss()
  >>> loss.result(fa.metrics.Ratio(total=3.0, count=4.0))
  {'loss': 0.75}
  """

  def rows(logits, batch):
    _check_labels('loss', logits, batch.y)
    return Ratio(_of_each(label_losses(logits, batch.y)), num_labels(batch))

  return ratio('loss', rows, lower_is_better=True)


def perplexity() -> Metric:
  """Builds `perplexity`, the exponential of the labels' mean cross entropy.

  It needs logits [B, ..., C] and integer labels [B, ...].

  >>> import fedavg_jax as fa
  >>> metric = fa.metrics.perplexity()
  >>> float(metric.result(fa.metrics.Ratio(total=0.0, count=4.0))['perplexity'])
  1.0
  """
  loss = label_loss()
  return loss._replace(
    result=lambda sums: {
      # The sums are traced arrays if a target is set.
      'perplexity': _numpy(sums.total).exp(sums.total / sums.count)
    }
  )


def mean_loss(loss: Loss) -> Metric:
  """Builds `loss`, the mean of a loss over the examples.

  Args:
    loss: (outputs, batch) -> losses [B].

  >>> import fedavg_jax as fa
  >>> metric = fa.metrics.mean_loss(fa.losses.squared_error)
  >>> metric.result(fa.metrics.Ratio(total=3.0, count=4.0))
  {'loss': 0.75}
  """

  def rows(outputs, batch):
    losses = loss(outputs, batch)
    return Ratio(losses, jnp.ones(len(losses), jnp.float32))

  return ratio('loss', rows, lower_is_better=True)


def squared_error() -> Metric:
  """Builds `squared_error`, the mean of (outputs - y)^2.

  It needs outputs and y of one shape, [B, ...]; the mean is over all numbers.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> y = jnp.zeros((2, 3))
  >>> batch = fa.Batch(x=y, y=y, mask=jnp.ones(2, bool), size=jnp.int32(2))
  >>> rows = fa.metrics.squared_error().rows(y + 2, batch)
  >>> rows.total.tolist(), rows.count.tolist()
  ([12.0, 12.0], [3.0, 3.0])
  """

  def rows(outputs, batch):
    check_alike('squared_error', outputs, batch.y)
    errors = (outputs - batch.y.astype(outputs.dtype)) ** 2
    size = math.prod(errors.shape[1:])
    return Ratio(_of_each(errors), jnp.full(len(errors), size, jnp.float32))

  return ratio('squared_error', rows, lower_is_better=True)


class Confusion(NamedTuple):
  """Counts labels of each class: [B, C] in rows, [C] in sums.

  Attributes:
    hits: numbers of labels that were predicted correctly.
    predicted: numbers of predicted labels.
    actual: numbers of labels in the data.

  >>> import fedavg_jax as fa
  >>> counts = fa.metrics.Confusion([1, 0], predicted=[2, 0], actual=[1, 1])
  >>> counts.predicted
  [2, 0]
  """

  hits: Array
  predicted: Array
  actual: Array


def macro_f1() -> Metric:
  """Builds `macro_f1`, the mean of the classes' F1 scores.

  It needs logits [B, ..., C] and integer labels [B, ...]. Integers y [B, C]
  instead mark each of several labels of an example by 1; then the labels with a
  logit above 0 are predicted, else the one with the largest logit. The F1 of a
  class that neither occurs nor is predicted is 0, as in scikit-learn's
  `f1_score(average='macro', zero_division=0)` over all C labels.

  >>> import numpy as np
  >>> import fedavg_jax as fa
  >>> sums = fa.metrics.Confusion(*np.array([[2, 0], [2, 1], [2, 1]]))
  >>> float(fa.metrics.macro_f1().result(sums)['macro_f1'])
  0.5
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
  """Returns the default metrics of a classifier: `accuracy` and `loss`.

  >>> import fedavg_jax as fa
  >>> len(fa.metrics.of_classifier())
  2
  """
  return accuracy(), label_loss()


def _check_labels(name: str, logits: Any, y: jax.Array) -> None:
  """Raises InputError unless targets are class numbers for the logits."""
  whole = jnp.issubdtype(y.dtype, jnp.integer)
  if not whole or y.shape != logits.shape[:-1]:
    raise InputError(
      f'metrics: {name} needs logits [B, ..., classes] and class numbers'
      f' [B, ...], has logits {[*logits.shape]} and {y.dtype} {[*y.shape]}'
    )


def num_labels(batch: Batch) -> jax.Array:
  """Counts the labels of each example, [B] float32.

  Integers [B, T, ...] count unless they are `NO_LABEL`; targets of any other
  dtype or shape count as one label per example.

  Args:
    batch: the rows, masked ones included.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> y = jnp.array([[3, 1], [2, -1]])
  >>> batch = fa.Batch(x=y, y=y, mask=jnp.ones(2, bool), size=jnp.int32(2))
  >>> fa.metrics.num_labels(batch).tolist()
  [2.0, 1.0]
  """
  y = batch.y
  if (
    not hasattr(y, 'dtype')  # A pytree has no dtype.
    or y.ndim < 2
    or not jnp.issubdtype(y.dtype, jnp.integer)
  ):
    return jnp.ones(len(batch.mask), jnp.float32)
  return _of_each(y != NO_LABEL)


def enough_correct(target: float, count: int) -> float:
  """Returns the fewest correct labels whose fraction reaches the target.

  Args:
    target: an accuracy in (0, 1].
    count: the number of labels.

  >>> import fedavg_jax as fa
  >>> fa.metrics.enough_correct(0.99, 10000)
  9900
  """
  enough = math.ceil(target * count) - 1  # The product may be rounded up.
  while enough / count < target:
    enough += 1
  return enough


def _of_each(values: jax.Array) -> jax.Array:
  """Sums over all axes but the first, in float32, [B]."""
  return jnp.sum(values.astype(jnp.float32).reshape(len(values), -1), axis=1)


def _numpy(array: Any) -> Any:
  """Returns the library of an array: NumPy's on the host, JAX's if traced."""
  return jnp if isinstance(array, jax.Array) else np
