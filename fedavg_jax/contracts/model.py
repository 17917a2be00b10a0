"""What a model is to the engine: a pair of pure functions."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

Params = Any
# Of a device, or of the host and traced.
Array = jax.Array | np.ndarray
# (key, x of one example) -> x, perhaps of another shape and dtype.
Augment = Callable[[jax.Array, jax.Array], jax.Array]


class Model(NamedTuple):
  """A model for one kind of example.

  Attributes:
    name: for people.
    init: key -> params.
    apply: (params, x [B, ...] raw pixels) -> logits [B, classes]; of sequences,
      (params, x [B, T]) -> logits [B, T, V].
    augment: (key, x of one example) -> x as training sees it; None changes
      nothing.
  """

  name: str
  init: Callable[[jax.Array], Params]
  apply: Callable[[Params, jax.Array], jax.Array]
  augment: Augment | None = None


def num_parameters(params: Params) -> int:
  """How many numbers a model has."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def num_bytes(tree: Any) -> int:
  """Of all arrays of a tree, or of their shapes."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
