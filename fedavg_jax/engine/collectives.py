"""Arrays and sums that the devices of all processes share."""

from typing import Any

import jax
from jax import lax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from fedavg_jax.engine.processes import leads
from fedavg_jax.engine.processes import several

_MOST_JOINED = 2**20  # Numbers of an array that shares its reduction.


def copy(tree: Any, like: Any) -> Any:
  """Arrays of process 0, on the host of every process.

  Args:
    tree: of process 0.
    like: their shapes, on every process.
  """
  if not several():
    return tree
  mine = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
  return multihost_utils.broadcast_one_to_all(tree if leads() else mine)


def put(tree: Any, shardings: Any) -> Any:
  """Arrays of the host on the devices of all processes.

  Args:
    tree: the same on every process, of which each places what its devices hold.
    shardings: one, or a tree of them.
  """
  leaves = jax.tree.leaves(tree)
  # Traced for its shape alone, it goes nowhere.
  if not several() or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
    return jax.device_put(tree, shardings)

  def one(array, sharding):
    if isinstance(array, jax.Array) and array.sharding == sharding:
      return array  # Is there: not down to the host and up again.
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda array: one(array, shardings), tree)
  return jax.tree.map(one, tree, shardings)


def sum_over_devices(tree: Any) -> Any:
  """`lax.psum` of all leaves, small ones of a dtype joined into one reduction.

  What a reduction costs beside its bytes, it costs once; what is large has no
  need of that, and would be copied.
  """
  leaves, structure = jax.tree.flatten(tree)
  # In the order of the leaves: a set's would differ from process to process.
  groups: dict[Any, list[int]] = {}
  for i, leaf in enumerate(leaves):
    joins = leaf.size <= _MOST_JOINED
    groups.setdefault((leaf.dtype, 'joined' if joins else i), []).append(i)
  summed = list(leaves)
  for own in groups.values():
    flat = jnp.concatenate([leaves[i].reshape(-1) for i in own])
    flat = lax.psum(flat, 'lanes')
    ends = np.cumsum([leaves[i].size for i in own])
    for i, part in zip(own, jnp.split(flat, ends[:-1]), strict=True):
      summed[i] = part.reshape(leaves[i].shape)
  return jax.tree.unflatten(structure, summed)
