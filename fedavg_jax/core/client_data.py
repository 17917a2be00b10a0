"""Stores the examples of all clients contiguously, in two arrays or pytrees."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core import exact
from fedavg_jax.core import rules
from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.rows_on_disk import RowsOnDisk
from fedavg_jax.core.trees import PyTree

# Marks the positions of a sequence that have no label.
NO_LABEL = -1
# The number of a random stream; planning.py uses 1 and 2, sizes.py 4.
_ORDER = 3


class Examples(NamedTuple):
  """Holds n inputs and their labels, in their smallest dtypes.

  Either may be a pytree of dicts, tuples and arrays with the same n: x for a
  model that takes several inputs, y for a user-defined loss.

  Attributes:
    x: [n, ...] inputs: uint8 pixels of images, int32 tokens [n, T] of
      sequences.
    y: [n] int32 labels; [n, T] for sequences, with `NO_LABEL` at positions that
      have none; or the targets of a user-defined loss.

  >>> import numpy as np
  >>> import fedavg_jax as fa
  >>> images = np.zeros((3, 28, 28, 1), np.uint8)
  >>> examples = fa.Examples(x=images, y=np.array([0, 1, 1], np.int32))
  >>> len(examples.x) == len(examples.y)
  True
  """

  x: PyTree
  y: PyTree


class Clients(NamedTuple):
  """Holds K clients' examples; rows offsets[k] : offsets[k + 1] are client k's.

  Attributes:
    x: [n, ...] inputs, or a pytree of such arrays.
    y: [n, ...] labels or other targets, or a pytree of such arrays.
    offsets: [K + 1] int64 row numbers, ascending from 0 to n.

  >>> import numpy as np
  >>> import fedavg_jax as fa
  >>> clients = fa.Clients(np.zeros((3, 2)), np.arange(3), np.array([0, 2, 3]))
  >>> clients.num_clients
  2
  >>> clients.num_examples.tolist()
  [2, 1]
  """

  x: PyTree
  y: PyTree
  offsets: np.ndarray

  @property
  def num_clients(self) -> int:
    """Returns K."""
    return len(self.offsets) - 1

  @property
  def num_examples(self) -> np.ndarray:
    """Returns n_k, the number of examples of each client, [K]."""
    return np.diff(self.offsets)


def build_clients(
  examples: Examples,
  parts: Sequence[Any] | Mapping[Any, Any],
  *,
  seed: int | None = None,
) -> Clients:
  """Groups examples by client, as a partition assigns them.

  Args:
    examples: the real numbers x [n, ...] and y [n, ...], or pytrees of them;
      see `targets` for the dtype that y gets.
    parts: the row numbers of each client, integers in [0, n - 1], as arrays or
      lists, which may be empty; or a dictionary whose values are such. No row
      may occur twice; rows that do not occur are left out.
    seed: the seed of a shuffle of each client's rows, the same shuffle as in a
      run of the command with this seed; None preserves the order of `parts`.

  Returns:
    K = len(parts) clients.

  Raises:
    InputError: a part has values that are not row numbers of the examples, two
      parts share a row, or x and y have different n.

  >>> import numpy as np
  >>> import fedavg_jax as fa
  >>> examples = fa.Examples(np.zeros((3, 2)), np.array([0, 1, 1]))
  >>> fa.build_clients(examples, [[2], [], [0, 1]]).num_examples.tolist()
  [1, 0, 2]
  """
  if not isinstance(examples, Examples):
    raise InputError(
      f'examples: is {type(examples).__name__}, must be fa.Examples(x, y)'
    )
  if not isinstance(parts, (Iterable, Mapping)):
    raise InputError(
      f'parts: is {type(parts).__name__}, must have the row numbers of each'
      ' client'
    )
  x, y = exact.inputs(examples.x, 'x'), targets(examples.y, 'y')
  number = count_examples(Examples(x, y), 'examples')
  values = parts.values() if isinstance(parts, Mapping) else parts
  rows = [_rows(part, k, number) for k, part in enumerate(values)]
  if not rows:
    raise InputError('parts: must hold at least one client')
  _check_once(rows, number)
  if seed is not None:
    rules.check_seed(seed)
    rows = [in_random_order(part, seed, k) for k, part in enumerate(rows)]
  order = np.concatenate(rows)
  return Clients(
    x=trees.take(x, order),
    y=trees.take(y, order),
    offsets=np.concatenate([[0], np.cumsum([len(part) for part in rows])]),
  )


def count_examples(examples: Examples, name: str) -> int:
  """Returns n; raises InputError where x and y differ in it.

  Args:
    examples: the inputs and labels; each pytree has at least one array.
    name: the name of the examples in the message.
  """
  inputs, labels = map(trees.num_rows, examples)
  if inputs != labels:
    raise InputError(f'{name}: {inputs} inputs, but {labels} labels')
  return inputs


def check_offsets(offsets: Any, y: Any) -> np.ndarray:
  """Returns the offsets of clients as int64, [K + 1].

  Args:
    offsets: the `Clients.offsets` to check.
    y: the targets of the n examples, an array or a pytree.

  Raises:
    InputError: the offsets do not ascend from 0 to n.
  """
  found, number = np.asarray(offsets), trees.num_rows(y)
  # Compared, not subtracted: differences of unsigned numbers wrap.
  if (
    found.ndim != 1
    or found.dtype.kind not in 'iu'
    or len(found) < 2
    or (found[0], found[-1]) != (0, number)
    or (found[1:] < found[:-1]).any()
  ):
    raise InputError(
      f'clients.offsets: must be whole numbers that ascend from 0 to {number},'
      ' one more than clients; use `build_clients`'
    )
  return found.astype(np.int64, copy=False)


def in_random_order(part: np.ndarray, seed: int, client: int) -> np.ndarray:
  """Shuffles a client's rows, [n_k]; depends on seed and client alone."""
  # This stream differs from that of the partition, `seed`, and from those of
  # planning.py. It never ends in a zero: NumPy pads short seeds with zeros.
  return np.random.default_rng([seed, _ORDER, client + 1]).permutation(part)


def targets(y: Any, name: str) -> Any:
  """Converts targets to dtypes of JAX, the same for clients and tests.

  Integers of any dtype become int32, booleans stay; `exact.inputs` converts
  real numbers and the arrays of a pytree. Which values are valid labels depends
  on the loss and is not checked here.

  Args:
    y: [n, ...] numbers, or a pytree of such arrays.
    name: the name of the targets in messages.

  Raises:
    InputError: `exact.inputs` rejects them.

  >>> targets(np.array([[3, -1]], np.int8), 'y')
  array([[ 3, -1]], dtype=int32)
  """
  y = exact.inputs(y, name)
  if trees.is_tree(y) or isinstance(y, RowsOnDisk) or y.dtype == np.int32:
    return y
  if y.dtype.kind not in 'iu':
    return y
  return exact.whole_numbers(y, name, least=-(2**31))


def _rows(part: Any, client: int, num_examples: int) -> np.ndarray:
  rows = exact.array(part, f'parts: client {client}')
  if rows.size and (rows.ndim != 1 or rows.dtype.kind not in 'iu'):
    raise InputError(
      f'parts: client {client} has {rows.dtype} {list(rows.shape)}, must have'
      ' the numbers of its rows, [n_k]'
    )
  if rows.size and (rows.min() < 0 or rows.max() >= num_examples):
    raise InputError(
      f'parts: client {client} has rows {rows.min()} to {rows.max()}, must be'
      f' in [0, {num_examples - 1}]'
    )
  return rows.reshape(-1).astype(np.int64, copy=False)


def _check_once(parts: Sequence[np.ndarray], num_examples: int) -> None:
  rows = np.concatenate(parts)
  counts = np.bincount(rows, minlength=num_examples)
  if counts.size and counts.max() > 1:
    row = int(counts.argmax())
    owners = [k for k, part in enumerate(parts) if (part == row).any()]
    whose = ' and '.join(map(str, owners[:2]))
    raise InputError(
      f'parts: row {row} occurs {counts[row]} times, in client {whose}; a row'
      ' belongs to one client, once'
    )


def join(parts: Sequence[Examples]) -> Examples:
  """Returns the examples of several parts, concatenated."""
  return Examples(*map(np.concatenate, zip(*parts, strict=True)))


def first(clients: Clients, number: int) -> Clients:
  """Returns the first clients of a population, with labels in memory."""
  offsets = clients.offsets[: number + 1]
  stop = int(offsets[-1])
  return Clients(
    trees.take(clients.x, slice(0)),
    trees.take(clients.y, slice(stop)),
    offsets,
  )


def stack(clients: Clients, ids: Sequence[int]) -> tuple[np.ndarray, ...]:
  """Returns some clients' examples as padded arrays.

  `fa.engine.build_reference_round` takes its data in this form.

  Args:
    clients: the population.
    ids: m client numbers.

  Returns:
    x [m, N, ...], y [m, N, ...] and mask [m, N], where N is the number of
    examples of the largest of these clients; mask is True on real examples,
    and padding is zero.

  >>> import numpy as np
  >>> import fedavg_jax as fa
  >>> clients = fa.Clients(np.zeros((3, 2)), np.arange(3), np.array([0, 2, 3]))
  >>> x, y, mask = fa.stack(clients, [1, 0])
  >>> x.shape, y.tolist(), mask.tolist()
  ((2, 2, 2), [[2, 0], [0, 1]], [[True, False], [True, True]])
  """
  sizes = clients.num_examples[list(ids)]
  mask = np.arange(sizes.max()) < sizes[:, None]

  def padded(array):
    rows = np.zeros(mask.shape + array.shape[1:], array.dtype)
    for row, k in enumerate(ids):
      first, stop = clients.offsets[k : k + 2]
      rows[row, : sizes[row]] = array[first:stop]
    return rows

  x, y = (trees.map_arrays(padded, own) for own in clients[:2])
  return x, y, mask
