"""Compresses the messages of any algorithm, with or without error feedback."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.algorithms.experimental.contexts import with_own_client_state
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.algorithm_checks import message_shapes
from fedavg_jax.contracts.model import Array
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.trees import PyTree

# Separates the compressor's key from that of the algorithm's `client_finish`.
_COMPRESSOR = 0x636F6D70


class Compressor(NamedTuple):
  """Defines a lossy code C of a vector x of d numbers.

  Attributes:
    apply: (key, x [d] float32) -> C(x), the vector [d] that the server decodes;
      both sides derive random numbers from the same key.
    num_bits: d -> size of the encoded vector, in bits.
    omega: d -> the least known omega with `E|C(x) - x|^2 <= omega |x|^2` if C
      is unbiased, E C(x) = x; 0 if it is biased.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> largest = fa.experimental.top_k(0.5)
  >>> x = jnp.array([1.0, -4.0, 3.0, 2.0])
  >>> largest.apply(jax.random.key(0), x).tolist()
  [0.0, -4.0, 3.0, 0.0]
  >>> largest.num_bits(4)  # Two numbers and a bitmap of their positions.
  68
  """

  apply: Callable[[Array, Array], Array]
  num_bits: Callable[[int], int]
  omega: Callable[[int], float]


class Compressed(NamedTuple):
  """Holds the state of a client with error feedback.

  Attributes:
    own: the client state of the wrapped algorithm.
    memory: the sum of what the client has not sent, initially zero, with the
      structure and shapes of a message.
  """

  own: PyTree
  memory: PyTree


def compress(
  algorithm: Algorithm,
  compressor: Compressor,
  *,
  error_feedback: bool = False,
  per_leaf: bool = False,
) -> Algorithm:
  """Compresses the messages that clients send; the server's update is the same.

  A client sends C(m) instead of its message m, and the server averages what it
  decodes. With error feedback (Seide et al. 2014, Stich et al. 2018,
  Karimireddy et al. 2019) a client has a memory e, initially zero::

    sent = C(m + e) / (1 + omega)
    e   <- m + e - sent

  so that in any round the sum of what it has sent plus e is the sum of its
  messages. A biased compressor has omega = 0. An unbiased one needs no error
  feedback; divided by 1 + omega it is a contraction, for which e is bounded
  (Beznosikov et al. 2020, Section 2). The memory of a client that is dropped
  does not change.

  Args:
    algorithm: the algorithm to wrap, whose messages may have several parts, as
      SCAFFOLD's have. Leaves of one number are sent as they are.
    compressor: the code C, such as `qsgd(16)` or `top_k(0.01)`.
    error_feedback: whether clients keep what they have not sent.
    per_leaf: whether each leaf of a message is a vector x of its own; otherwise
      all leaves together are one.

  Returns:
    The algorithm with compressed messages, whose `num_bytes` counts them.

  Raises:
    InputError: the algorithm has encoded messages already.

  >>> import jax, jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> algorithm = fa.experimental.compress(fedavg, fa.experimental.qsgd(7))
  >>> algorithm.num_bytes(jnp.zeros(10))  # A norm and ten times four bits.
  9
  """
  if algorithm.num_bytes is not None:
    raise InputError(
      'algorithm.num_bytes: is set, so that messages are encoded already; must'
      ' be None for compress'
    )

  def decoded(result: ClientResult, message: PyTree) -> PyTree:
    key = jax.random.fold_in(result.context.key, _COMPRESSOR)
    return _decoded(compressor, key, message, error_feedback, per_leaf)

  def client_finish(result: ClientResult):
    output = algorithm.client_finish(result)
    return output._replace(message=decoded(result, output.message))

  inside = with_own_client_state(algorithm)

  def client_finish_with_memory(result: ClientResult):
    output = inside.client_finish(result)
    memory = result.context.client_state.memory
    owed = jax.tree.map(jnp.add, output.message, memory)
    sent = decoded(result, owed)
    memory = jax.tree.map(jnp.subtract, owed, sent)
    return output._replace(message=sent, state=Compressed(output.state, memory))

  def num_bytes(message: PyTree) -> int:
    return _num_bytes(compressor, message, per_leaf)

  if not error_feedback:
    return algorithm._replace(client_finish=client_finish, num_bytes=num_bytes)

  def client_init(params, client_id):
    memory = jax.tree.map(
      lambda m: jnp.zeros(m.shape, m.dtype), message_shapes(algorithm, params)
    )
    return Compressed(algorithm.client_init(params, client_id), memory)

  return inside._replace(
    client_init=client_init,
    client_finish=client_finish_with_memory,
    num_bytes=num_bytes,
  )


def _decoded(
  compressor: Compressor,
  key: Array,
  message: PyTree,
  error_feedback: bool,
  per_leaf: bool,
) -> PyTree:
  """Returns what the server decodes of ONE client's message."""
  leaves, structure = jax.tree.flatten(message)
  for numbers in _vectors(leaves, per_leaf):
    parts = [leaves[i] for i in numbers]
    x = jnp.concatenate([p.ravel().astype(jnp.float32) for p in parts])
    x = compressor.apply(jax.random.fold_in(key, numbers[0]), x)
    if error_feedback:
      x = x / np.float32(1 + compressor.omega(x.size))
    ends = np.cumsum([part.size for part in parts])[:-1]
    for i, part, new in zip(numbers, parts, jnp.split(x, ends), strict=True):
      leaves[i] = new.reshape(part.shape).astype(part.dtype)
  return structure.unflatten(leaves)


def _num_bytes(compressor: Compressor, message: PyTree, per_leaf: bool) -> int:
  """Counts the bytes of an encoded message, whose bits are one sequence."""
  leaves = jax.tree.leaves(message)
  vectors = _vectors(leaves, per_leaf)
  bits = sum(
    compressor.num_bits(sum(leaves[i].size for i in numbers))
    for numbers in vectors
  )
  alone = set(range(len(leaves))).difference(*vectors)
  return -(-bits // 8) + sum(
    leaves[i].size * leaves[i].dtype.itemsize for i in alone
  )


def _vectors(leaves: Sequence[Any], per_leaf: bool) -> list[list[int]]:
  """Returns the numbers of the leaves that are compressed, vector by vector."""
  numbers = [i for i, leaf in enumerate(leaves) if leaf.size > 1]
  return [[i] for i in numbers] if per_leaf else [numbers] if numbers else []
