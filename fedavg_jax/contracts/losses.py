"""Defines losses, (outputs of the model, batch) -> one number per row, [B].

Labels are classes, one per example, [B], or one per position of a sequence,
[B, T], where `NO_LABEL` marks positions without a label. The loss of a sequence
is the sum over its labels divided by T, even if some positions have none, so
that every label has the same weight. The losses and learning rates that McMahan
et al. 2017 report for Shakespeare fit this scale: in their Figure 3, lines fill
half of 80 positions and the curves are at half the loss of a character.

The losses of masked rows do not count; a loss that compares rows with each
other, such as a contrastive one, must not compare with masked rows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.model import Batch
from fedavg_jax.contracts.model import Params
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.trees import PyTree

__all__ = [
  'binary_cross_entropy',
  'cross_entropy',
  'Loss',
  'mean_gradient',
  'of_examples',
  'per_example_gradients',
  'squared_error',
]

# (outputs of the model, batch) -> losses [B].
Loss = Callable[[PyTree, Batch], jax.Array]


def label_losses(logits: jax.Array, y: jax.Array) -> jax.Array:
  """Computes the cross entropy of each label, in nats.

  Args:
    logits: [..., V] logits of V classes.
    y: [...] int32 classes in [0, V - 1], or `NO_LABEL`.

  Returns:
    Losses [...], zero where there is no label.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> y = jnp.array([1, -1])
  >>> losses = fa.losses.label_losses(jnp.zeros((2, 4)), y)
  >>> losses.shape, float(losses[1])
  ((2,), 0.0)
  """
  real = y != NO_LABEL
  # Class 0 replaces a missing label; its loss is masked below.
  losses = optax.losses.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(real, y, 0)
  )
  return jnp.where(real, losses, 0.0)


def cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
  """Computes the mean cross entropy of each row's labels, in nats.

  Args:
    outputs: [B, V] logits of V classes; [B, T, V] of sequences.
    batch: the rows; y [B] or [B, T] has int32 classes, or `NO_LABEL`.

  Returns:
    Losses [B].

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> y = jnp.array([1])
  >>> batch = fa.Batch(x=y, y=y, mask=y > 0, size=jnp.int32(1))
  >>> loss = fa.losses.cross_entropy(jnp.zeros((1, 2)), batch)
  >>> bool(jnp.allclose(loss, jnp.log(2)))
  True
  """
  return _mean_of_example(label_losses(outputs, batch.y))


def squared_error(outputs: jax.Array, batch: Batch) -> jax.Array:
  """Computes the mean of (outputs - y)^2 over each row.

  Args:
    outputs: [B, ...] predictions.
    batch: the rows; y has the shape of the outputs.

  Returns:
    Losses [B].

  Raises:
    InputError: outputs and y differ in shape.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> y = jnp.array([[3.0]])
  >>> batch = fa.Batch(x=y, y=y, mask=y[:, 0] > 0, size=jnp.int32(1))
  >>> fa.losses.squared_error(jnp.array([[1.0]]), batch).tolist()
  [4.0]
  """
  check_alike('squared_error', outputs, batch.y)
  return _mean_of_example((outputs - _float(batch.y)) ** 2)


def binary_cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
  """Computes the mean binary cross entropy of each row's labels, in nats.

  Args:
    outputs: [B, C] logits, one for each of C independent labels.
    batch: the rows; y [B, C] has probabilities of the labels, in [0, 1].

  Returns:
    Losses [B].

  Raises:
    InputError: outputs and y differ in shape.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> y = jnp.array([[1.0, 0.0]])
  >>> batch = fa.Batch(x=y, y=y, mask=y[:, 0] > 0, size=jnp.int32(1))
  >>> loss = fa.losses.binary_cross_entropy(jnp.zeros((1, 2)), batch)
  >>> bool(jnp.allclose(loss, jnp.log(2)))
  True
  """
  check_alike('binary_cross_entropy', outputs, batch.y)
  losses = optax.losses.sigmoid_binary_cross_entropy(outputs, _float(batch.y))
  return _mean_of_example(losses)


def of_examples(
  apply: Callable[[Params, PyTree], PyTree], loss: Loss = cross_entropy
) -> Callable[[Params, PyTree, PyTree], jax.Array]:
  """Combines a model and a loss into one function of parameters and examples.

  Args:
    apply: (params, x [B, ...]) -> outputs, such as a `Model.apply`.
    loss: the loss of the outputs.

  Returns:
    A function (params, x [B, ...], y [B, ...]) -> losses [B] with all rows
    unmasked, for `build_reference_round`.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> loss_fn = fa.losses.of_examples(lambda params, x: x @ params)
  >>> y = jnp.zeros(4, jnp.int32)
  >>> loss_fn(jnp.zeros((2, 3)), jnp.ones((4, 2)), y).shape
  (4,)
  """

  def losses(params, x, y):
    number = len(jax.tree.leaves(y)[0])
    mask = jnp.ones(number, bool)
    size = jnp.full((), number, jnp.int32)
    return loss(apply(params, x), Batch(x, y, mask, size))

  return losses


def mean_gradient(
  loss_fn: Callable[[Params, Batch], jax.Array], params: Params, batch: Batch
) -> tuple[jax.Array, Params]:
  """Differentiates the mean loss of a minibatch, or of a part of it.

  It is what a client does without an `Algorithm.client_gradient`, to build
  another one from.

  Args:
    loss_fn: (params, batch) -> losses [B], as `Algorithm.client_gradient`
      receives it.
    params: the parameters of one client.
    batch: the B rows.

  Returns:
    Losses [B], and the gradient of the sum over the real rows divided by
    `batch.size`, with the shapes of the parameters.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> batch = fa.Batch(
  ...     x=jnp.ones((3, 1)), y=jnp.array([1.0, 3.0, 9.0]),
  ...     mask=jnp.arange(3) < 2, size=jnp.int32(2))
  >>> losses, gradient = fa.losses.mean_gradient(
  ...     lambda w, batch: (batch.x @ w - batch.y) ** 2, jnp.zeros(1), batch)
  >>> losses.tolist(), gradient.tolist()
  ([1.0, 9.0, 81.0], [-4.0])
  """

  def mean_loss(params):
    losses = loss_fn(params, batch)
    total = jnp.sum(jnp.where(batch.mask, losses, 0.0))
    return total / jnp.maximum(batch.size, 1).astype(losses.dtype), losses

  gradient, losses = jax.grad(mean_loss, has_aux=True)(params)
  return losses, gradient


def per_example_gradients(
  loss_fn: Callable[[Params, Batch], jax.Array], params: Params, batch: Batch
) -> tuple[jax.Array, Params]:
  """Differentiates the loss of each row of a batch separately.

  Args:
    loss_fn: (params, batch) -> losses [B], as `Algorithm.client_gradient`
      receives it.
    params: the parameters of one client.
    batch: the B rows.

  Returns:
    Losses [B] and gradients [B, ...], both zero in masked rows.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> batch = fa.Batch(
  ...     x=jnp.ones((3, 2)), y=jnp.ones(3), mask=jnp.arange(3) < 2,
  ...     size=jnp.int32(2))
  >>> losses, gradients = fa.losses.per_example_gradients(
  ...     lambda w, batch: (batch.x @ w - batch.y) ** 2, jnp.zeros(2), batch)
  >>> losses.tolist(), gradients.shape
  ([1.0, 1.0, 0.0], (3, 2))
  """

  def one(x, y, real):
    x, y = jax.tree.map(lambda row: row[None], (x, y))
    own = Batch(x, y, jnp.ones(1, bool), jnp.int32(1))

    def loss(params):
      return jnp.where(real, loss_fn(params, own)[0], 0.0)

    return jax.value_and_grad(loss)(params)

  return jax.vmap(one)(batch.x, batch.y, batch.mask)


def check_alike(name: str, outputs: Any, y: jax.Array) -> None:
  """Raises InputError where outputs and targets differ in shape.

  Args:
    name: the name of the loss or metric, which would else broadcast one to the
      other.
    outputs: the outputs of the model, [B, ...].
    y: the targets, [B, ...].

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> try:
  ...   fa.losses.check_alike('mine', jnp.zeros((4, 1)), jnp.zeros(4))
  ... except fa.InputError as error:
  ...   print(error)
  mine: the model returns [1] per example, expected [], the targets' shape
  """
  if outputs.shape != y.shape:
    raise InputError(
      f'{name}: the model returns {[*outputs.shape[1:]]} per example, expected'
      f" {[*y.shape[1:]]}, the targets' shape"
    )


def _mean_of_example(losses: jax.Array) -> jax.Array:
  return jnp.mean(losses, axis=tuple(range(1, losses.ndim)))


def _float(y: jax.Array) -> jax.Array:
  return y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(jnp.float32)
