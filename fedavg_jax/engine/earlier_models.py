"""Stores the last global models, from which asynchronous clients start.

The models of H rounds are in a ring buffer: that of round v is in row v mod H.

Shape letters: H models.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedavg_jax.contracts.model import Array


def first(model: Any, number: int) -> Any:
  """Returns the buffer before round 1, [H, ...]; () for H = 0.

  Args:
    model: the initial model, a tree of arrays.
    number: H, one more than the most rounds that a client's model is behind.
  """
  if not number:
    return ()
  return jax.tree.map(
    lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], number, axis=0), model
  )


def read(earlier: Any, version: Array) -> Any:
  """Returns the model after round `version`, which must be one of the last H.

  >>> import jax.numpy as jnp
  >>> earlier = write(first(jnp.array([0.0]), 3), jnp.array([5.0]), 4)
  >>> read(earlier, 4).tolist(), read(earlier, 3).tolist()
  ([5.0], [0.0])
  """
  return jax.tree.map(lambda leaf: leaf[version % leaf.shape[0]], earlier)


def write(earlier: Any, model: Any, version: Array) -> Any:
  """Returns the buffer with the model after round `version` in its place."""
  if not jax.tree.leaves(earlier):
    return earlier
  return jax.tree.map(
    lambda ring, leaf: ring.at[version % ring.shape[0]].set(leaf),
    earlier,
    model,
  )
