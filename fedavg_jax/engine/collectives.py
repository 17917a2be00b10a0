"""Places and reduces arrays over the devices of all processes."""

from typing import Any

import jax
from jax import lax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from fedavg_jax.engine.processes import is_distributed
from fedavg_jax.engine.processes import is_primary

_MOST_JOINED = 2**20  # The largest size of an array that shares a reduction.


def copy(tree: Any, like: Any) -> Any:
  """Returns the arrays of process 0, on the host of every process.

  Args:
    tree: the arrays of process 0; ignored on the others.
    like: the shapes of the arrays, on every process.
  """
  if not is_distributed():
    return tree
  mine = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
  return multihost_utils.broadcast_one_to_all(tree if is_primary() else mine)


def put(tree: Any, shardings: Any) -> Any:
  """Places arrays of the host on the devices of all processes.

  Args:
    tree: the arrays, equal on every process; each places the parts of its own
      devices.
    shardings: one sharding, or a tree of them; those of absent arrays, None in
      `tree`, are ignored.
  """
  leaves = jax.tree.leaves(tree)
  # Tracers, of `jax.eval_shape`, need no transfer between processes.
  if not is_distributed() or any(
    isinstance(leaf, jax.core.Tracer) for leaf in leaves
  ):
    return jax.device_put(tree, shardings)

  def one(array, sharding):
    if array is None:
      return None
    if isinstance(array, jax.Array) and array.sharding == sharding:
      return array  # Already in place: skip the round trip to the host.
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda array: one(array, shardings), tree)
  return jax.tree.map(one, tree, shardings, is_leaf=lambda leaf: leaf is None)


def sum_over_devices(tree: Any) -> Any:
  """Applies `lax.psum` to all leaves; joins small ones of a dtype.

  Joined leaves pay the fixed cost of a reduction once. Large leaves have no
  need of that, and joining would copy them.
  """
  leaves, structure = jax.tree.flatten(tree)
  # The groups follow the order of the leaves, because the order of a set would
  # differ between processes.
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
