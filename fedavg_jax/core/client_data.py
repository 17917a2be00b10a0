"""The clients' examples, back to back in two arrays, or trees of arrays."""

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

# At positions of a sequence that have no label.
NO_LABEL = -1
# A stream of random numbers; planning.py has 1 and 2, sizes.py 4.
_ORDER = 3


class Examples(NamedTuple):
  """Inputs and labels in their smallest dtypes.

  Either may be a tree of arrays, dicts and tuples, with the same n: x for a
  model that takes one, y for a loss of one's own.

  Attributes:
    x: [n, ...], uint8 pixels for images, int32 tokens [n, T] for sequences.
    y: [n] int32 labels, of sequences [n, T], `NO_LABEL` where there is none; or
      the targets of a loss of one's own.
  """

  x: Any
  y: Any


class Clients(NamedTuple):
  """K clients' examples: client k holds rows offsets[k] : offsets[k + 1].

  Attributes:
    x: [n, ...] inputs, or a tree of such arrays.
    y: [n] labels, or other targets.
    offsets: [K + 1] int64, ascending from 0 to n.
  """

  x: Any
  y: Any
  offsets: np.ndarray

  @property
  def num_clients(self) -> int:
    """K."""
    return len(self.offsets) - 1

  @property
  def num_examples(self) -> np.ndarray:
    """n_k of every client, [K]."""
    return np.diff(self.offsets)


def build_clients(
  examples: Examples,
  parts: Sequence[Any] | Mapping[Any, Any],
  *,
  seed: int | None = None,
) -> Clients:
  """Lays the examples of each part of a partition back to back.

  Args:
    examples: x [n, ...] real numbers, y [n, ...], or trees of them; see
      `targets` for the type that y gets.
    parts: the rows of client k, whole numbers from 0 to n - 1, as an array or a
      list, maybe empty; of a dictionary, clients are its values in their order.
      No row may occur twice.
    seed: draws a new order of every client's examples, the one that a run of
      the command with this seed trains on; None keeps the order of the parts.

  Raises:
    InputError: a part holds something else, a row that there is not or one that
      another part has; or x and y do not fit each other.

  >>> examples = Examples(np.zeros((3, 2), np.float32), np.array([0, 1, 1]))
  >>> build_clients(examples, [[2], [], [0, 1]]).num_examples
  array([1, 0, 2])
  """
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
  """Counts examples; raises InputError where x and y have other numbers.

  Args:
    examples: x and y, or trees of them, each with an array.
    name: what the message calls them.
  """
  inputs, labels = map(trees.num_rows, examples)
  if inputs != labels:
    raise InputError(f'{name}: {inputs} inputs, but {labels} labels')
  return inputs


def check_offsets(offsets: Any, y: Any) -> np.ndarray:
  """Returns where clients begin and end, [K + 1] int64.

  Args:
    offsets: of `Clients`.
    y: targets of their n examples, or a tree of them.

  Raises:
    InputError: they do not ascend from 0 to n.
  """
  found, number = np.asarray(offsets), trees.num_rows(y)
  if (
    found.ndim != 1
    or found.dtype.kind not in 'iu'
    or len(found) < 2
    or (found[0], found[-1]) != (0, number)
    or (np.diff(found) < 0).any()
  ):
    raise InputError(
      f'clients.offsets: must be whole numbers that ascend from 0 to {number},'
      ' one more than clients; use `build_clients`'
    )
  return found.astype(np.int64, copy=False)


def in_random_order(part: np.ndarray, seed: int, client: int) -> np.ndarray:
  """Draws the order of a client's rows, [n_k], as a function of both."""
  # Apart from the stream `seed` of the division, and those of planning.py;
  # never a trailing zero, which a short seed is padded with.
  return np.random.default_rng([seed, _ORDER, client + 1]).permutation(part)


def targets(y: Any, name: str) -> Any:
  """Turns targets into types that JAX holds, the same for clients and tests.

  Integers and booleans become int32, whatever their type; real numbers and the
  arrays of a tree as `exact.inputs` has them. Which values may be labels only
  the loss knows.

  Args:
    y: [n, ...] numbers, or a tree of such arrays.
    name: what the message calls them.

  Raises:
    InputError: as `exact.inputs`.

  >>> targets(np.array([[True, False]]), 'y')
  array([[1, 0]], dtype=int32)
  """
  y = exact.inputs(y, name)
  if trees.is_tree(y) or isinstance(y, RowsOnDisk) or y.dtype == np.int32:
    return y
  if y.dtype.kind not in 'iub':
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
  """Examples of several, one behind another."""
  return Examples(*map(np.concatenate, zip(*parts, strict=True)))


def first(clients: Clients, number: int) -> Clients:
  """The first clients of a population, their labels in memory."""
  offsets = clients.offsets[: number + 1]
  stop = int(offsets[-1])
  return Clients(
    trees.take(clients.x, slice(0)),
    trees.take(clients.y, slice(stop)),
    offsets,
  )


def stack(clients: Clients, ids: Sequence[int]) -> tuple[np.ndarray, ...]:
  """Some clients as padded arrays, for reading and for `reference.py`.

  Args:
    clients: the population.
    ids: m client numbers.

  Returns:
    x [m, N, ...], y [m, N, ...] and mask [m, N], where N is the largest of them
    and mask is True on real examples; padding is zero.
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
