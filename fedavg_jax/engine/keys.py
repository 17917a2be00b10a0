"""Derives random keys from seed, purpose, round, client and local update.

Keys do not depend on lanes, devices, calls, prefetching or interruptions of a
run. An unused key costs nothing, because XLA removes it.
"""

from typing import Any

import jax
import numpy as np

# Purposes differ from all round numbers, which are below 2**31, because the key
# of augmentation depends on seed and round alone.
_CLIENT, _SERVER = np.uint32(2**31), np.uint32(2**31 + 1)
# The purposes of a client's keys.
_START, _FINISH, _UPDATE, _OPTIMIZER, _BATCH = 0, 1, 2, 3, 4


def of_augmentation(seed, number) -> jax.Array:
  """Returns the key of a round's augmentation, from which others derive."""
  return jax.random.fold_in(jax.random.key(seed), number)


def of_server(seed, number) -> jax.Array:
  """Returns the key of the server's update in a round."""
  return jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), _SERVER), number
  )


def of_clients(seed, number) -> jax.Array:
  """Returns the key of a round, from which those of its clients derive."""
  return jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), _CLIENT), number
  )


def of_start(clients: jax.Array, client_id) -> jax.Array:
  """Returns the key of a client's start; `clients` is from `of_clients`."""
  return jax.random.fold_in(jax.random.fold_in(clients, client_id), _START)


def of_finish(clients: jax.Array, client_id) -> jax.Array:
  """Returns the key of a client's end."""
  return jax.random.fold_in(jax.random.fold_in(clients, client_id), _FINISH)


def of_update(clients: jax.Array, client_id, step) -> jax.Array:
  """Returns the key of a client's local update, counted from 0."""
  key = jax.random.fold_in(jax.random.fold_in(clients, client_id), _UPDATE)
  return jax.random.fold_in(key, step)


def of_batch(clients: jax.Array, client_id, examples) -> jax.Array:
  """Returns the key of a client's batch after so many examples."""
  key = jax.random.fold_in(jax.random.fold_in(clients, client_id), _BATCH)
  return jax.random.fold_in(key, examples)


def holds_keys(tree: Any) -> bool:
  """Returns whether any leaf is a typed key, such as `jax.random.key(0)`."""
  return any(map(_is_key, jax.tree.leaves(tree)))


def own_keys(opt_state: Any, clients: jax.Array, client_id) -> Any:
  """Replaces the keys in an optimizer's state by those of a client and round.

  A transformation such as `optax.add_noise` starts with one key, from which
  every client of every round would draw the same numbers. Keys stored as plain
  integers cannot be recognised.
  """
  key = jax.random.fold_in(jax.random.fold_in(clients, client_id), _OPTIMIZER)
  words = jax.random.key_data(key).ravel()

  def own(leaf):
    if not _is_key(leaf):
      return leaf
    for word in words:
      leaf = jax.random.fold_in(leaf, word)
    return leaf

  return jax.tree.map(own, opt_state)


def _is_key(leaf: Any) -> bool:
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
