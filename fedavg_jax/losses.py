"""Losses, one number per example."""

from collections.abc import Callable
from typing import Any

import jax
import optax

# (params, x [B, ...], y [B]) -> losses [B].
LossFn = Callable[[Any, jax.Array, jax.Array], jax.Array]


def cross_entropy(apply: Callable) -> LossFn:
  """Makes a loss of a classifier: (params, x [B, ...], y [B]) -> losses [B]."""

  def loss_fn(params, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = apply(params, x)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)

  return loss_fn
