"""Losses, one number per example."""

from collections.abc import Callable

import jax
import optax


def cross_entropy(apply: Callable) -> Callable:
  """Makes a loss of a classifier: (params, x [B, ...], y [B]) -> losses [B]."""

  def loss_fn(params, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = apply(params, x)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)

  return loss_fn
