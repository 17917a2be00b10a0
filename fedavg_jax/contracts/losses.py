"""Losses, one number per example.

A label is a class, [B], or one per position of a sequence, [B, T], where
`NO_LABEL` marks positions that have none. The loss of a sequence is the sum
over its labels divided by T, full or not: every label weighs the same. It is on
this scale that the losses and learning rates which McMahan et al. 2017 give for
Shakespeare make sense (Figure 3: lines fill half of 80 positions, and its
curves lie at half of what a character costs).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.core.client_data import NO_LABEL

# (params, x [B, ...], y [B, ...]) -> losses [B].
LossFn = Callable[[Any, jax.Array, jax.Array], jax.Array]


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


def cross_entropy(apply: Callable) -> LossFn:
  """Makes a loss of a classifier: (params, x [B, ...], y [B, ...]) -> [B]."""

  def loss_fn(params, x: jax.Array, y: jax.Array) -> jax.Array:
    losses = label_losses(apply(params, x), y)
    return jnp.mean(losses, axis=tuple(range(1, y.ndim)))

  return loss_fn
