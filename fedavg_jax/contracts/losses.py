"""Losses: (outputs of the model, batch) -> one number per example, [B].

A label is a class, [B], or one per position of a sequence, [B, T], where
`NO_LABEL` marks positions that have none. The loss of a sequence is the sum
over its labels divided by T, full or not: every label weighs the same. It is on
this scale that the losses and learning rates which McMahan et al. 2017 give for
Shakespeare make sense (Figure 3: lines fill half of 80 positions, and its
curves lie at half of what a character costs).

What a loss says of rows that are masked out does not count; one that compares
rows with each other, such as a contrastive one, must not compare with those.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.model import Batch
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.errors import InputError

Loss = Callable[[Any, Batch], jax.Array]


def label_losses(logits: jax.Array, y: jax.Array) -> jax.Array:
  """Cross entropy of every label: logits [..., V], y [...] -> [...].

  Zero where there is no label.
  """
  real = y != NO_LABEL
  # Any valid label will do where there is none: it does not count.
  losses = optax.losses.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(real, y, 0)
  )
  return jnp.where(real, losses, 0.0)


def cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
  """Computes that of a classifier: logits [B, ..., V], y [B, ...] -> [B].

  >>> y = jnp.array([1])
  >>> batch = Batch(x=y, y=y, mask=y > 0, size=jnp.int32(1))
  >>> bool(jnp.isclose(cross_entropy(jnp.zeros((1, 2)), batch)[0], jnp.log(2)))
  True
  """
  return _mean_of_example(label_losses(outputs, batch.y))


def squared_error(outputs: jax.Array, batch: Batch) -> jax.Array:
  """Computes the mean of (outputs - y)^2: outputs and y [B, ...] -> [B].

  >>> y = jnp.array([[3.0]])
  >>> batch = Batch(x=y, y=y, mask=y[:, 0] > 0, size=jnp.int32(1))
  >>> squared_error(jnp.array([[1.0]]), batch).tolist()
  [4.0]
  """
  check_alike('squared_error', outputs, batch.y)
  return _mean_of_example((outputs - _float(batch.y)) ** 2)


def binary_cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
  """Computes that of several labels: logits and y [B, C] in 0 .. 1 -> [B].

  >>> y = jnp.array([[1.0, 0.0]])
  >>> batch = Batch(x=y, y=y, mask=y[:, 0] > 0, size=jnp.int32(1))
  >>> bool(jnp.isclose(binary_cross_entropy(0 * y, batch)[0], jnp.log(2)))
  True
  """
  check_alike('binary_cross_entropy', outputs, batch.y)
  losses = optax.losses.sigmoid_binary_cross_entropy(outputs, _float(batch.y))
  return _mean_of_example(losses)


def of_examples(apply: Callable, loss: Loss = cross_entropy) -> Callable:
  """Makes (params, x [B, ...], y [B, ...]) -> losses [B] of a model.

  Args:
    apply: of a model.
    loss: of its outputs.

  Returns:
    A function of examples that all count, as `build_reference_round` takes it.
  """

  def losses(params, x, y):
    number = len(jax.tree.leaves(y)[0])
    mask = jnp.ones(number, bool)
    size = jnp.full((), number, jnp.int32)
    return loss(apply(params, x), Batch(x, y, mask, size))

  return losses


def per_example_gradients(
  loss_fn: Callable, params: Any, batch: Batch
) -> tuple[jax.Array, Any]:
  """Differentiates the loss of each example by itself.

  Args:
    loss_fn: (params, batch) -> losses [B], as `client_gradient` gets it.
    params: of one client.
    batch: of B examples.

  Returns:
    Losses [B] and gradients [B, ...]; both are zero where a row is masked out.
  """

  def one(x, y, real):
    x, y = jax.tree.map(lambda row: row[None], (x, y))
    own = Batch(x, y, jnp.ones(1, bool), jnp.int32(1))

    def loss(params):
      return jnp.where(real, loss_fn(params, own)[0], 0.0)

    return jax.value_and_grad(loss)(params)

  return jax.vmap(one)(batch.x, batch.y, batch.mask)


def check_alike(name: str, outputs: Any, y: jax.Array) -> None:
  """Raises InputError where a model makes something of another shape than y.

  Args:
    name: of the loss or metric that would broadcast one to the other.
    outputs: of the model.
    y: targets.
  """
  if outputs.shape != y.shape:
    raise InputError(
      f'{name}: the model makes {[*outputs.shape[1:]]} of an example, its'
      f' targets are {[*y.shape[1:]]}; must be of one shape'
    )


def _mean_of_example(losses: jax.Array) -> jax.Array:
  return jnp.mean(losses, axis=tuple(range(1, losses.ndim)))


def _float(y: jax.Array) -> jax.Array:
  return y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(jnp.float32)
