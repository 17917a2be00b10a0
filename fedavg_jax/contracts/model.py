"""What a model is to the engine: a pair of pure functions."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax

Params = Any
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
    as_written: compute `apply` as it is written. If false, the engine may
      compute it in forms that are faster on its devices, equal up to rounding.
  """

  name: str
  init: Callable[[jax.Array], Params]
  apply: Callable[[Params, jax.Array], jax.Array]
  augment: Augment | None = None
  as_written: bool = False


def num_parameters(params: Params) -> int:
  """How many numbers a model has."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def num_bytes(tree: Any) -> int:
  """Of all arrays of a tree, or of their shapes."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
