"""Random keys of a seed, a purpose, a round, a client and a local update.

They depend on nothing else: not on lanes, devices, calls, streams or on where a
run was resumed. An unused key costs nothing, because XLA leaves it out.
"""

from typing import Any

import jax
import numpy as np

# Round numbers lie below 2**31, so that no purpose is one of them: the key of
# augmentation is that of seed and round alone.
_CLIENT, _SERVER = np.uint32(2**31), np.uint32(2**31 + 1)
# What a client's key is for.
_START, _FINISH, _UPDATE, _OPTIMIZER, _BATCH = 0, 1, 2, 3, 4


def of_augmentation(seed, number) -> jax.Array:
  """Returns the key from which a round's augmentation comes."""
  return jax.random.fold_in(jax.random.key(seed), number)


def of_server(seed, number) -> jax.Array:
  """Returns the key of the server's update in a round."""
  return jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), _SERVER), number
  )


def of_clients(seed, number) -> jax.Array:
  """Returns the key from which those of a round's clients come."""
  return jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), _CLIENT), number
  )


def of_start(clients: jax.Array, client_id) -> jax.Array:
  """Returns the key of a client's begin; `clients` is of `of_clients`."""
  return jax.random.fold_in(jax.random.fold_in(clients, client_id), _START)


def of_finish(clients: jax.Array, client_id) -> jax.Array:
  """Returns the key of a client's end."""
  return jax.random.fold_in(jax.random.fold_in(clients, client_id), _FINISH)


def of_update(clients: jax.Array, client_id, step) -> jax.Array:
  """Returns the key of a client's local update, counted from 0."""
  key = jax.random.fold_in(jax.random.fold_in(clients, client_id), _UPDATE)
  return jax.random.fold_in(key, step)


def of_batch(clients: jax.Array, client_id, examples) -> jax.Array:
  """Returns the key of a client's batch, by the examples it has read before."""
  key = jax.random.fold_in(jax.random.fold_in(clients, client_id), _BATCH)
  return jax.random.fold_in(key, examples)


def holds_keys(tree: Any) -> bool:
  """Tells whether some leaves are typed keys, such as `jax.random.key(0)`."""
  return any(map(_is_key, jax.tree.leaves(tree)))


def own_keys(opt_state: Any, clients: jax.Array, client_id) -> Any:
  """Makes the keys in an optimizer's state those of a client and round.

  A transformation such as `optax.add_noise` begins with one key, from which
  every client of every round would draw the same numbers. What holds a key as
  bare integers look like any other integers.
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
