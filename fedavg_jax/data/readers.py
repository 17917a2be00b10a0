"""What is in a file, as arrays: whatever it holds, an answer or one line.

NumPy only. Nothing is unpickled, and nothing is allocated because a file says
so: only what is in it counts.
"""

import gzip
import json
import pathlib
import stat
from typing import Any
import zlib

import numpy as np

from fedavg_jax.core import exact
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import is_of_machine
from fedavg_jax.core.folders import check_names

GET_ANEW = 'copy or download the file again'

_IDX_UBYTE = 0x08
# A label, then 1,024 red, green and blue values each, row by row.
_CIFAR_RECORD, _CIFAR_IMAGES = 1 + 3 * 32 * 32, 10_000
# No file of these formats is packed tighter: what unpacks further is a trap.
_MOST_UNPACKED = 200


def read_idx(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
  """Reads an IDX file of unsigned bytes, gzipped or not.

  The format: two zero bytes, a type byte (8 for uint8), a byte with the rank,
  one big-endian uint32 per dimension, the values.

  Args:
    path: the file.
    shape: that it must have.

  Returns:
    A uint8 array.

  Raises:
    InputError: the file cannot be read, is cut short or is something else.
  """
  rank, size = len(shape), int(np.prod(shape))
  content = read_bytes(path, 4 + 4 * rank + size + 1)
  header, values = content[: 4 + 4 * rank], content[4 + 4 * rank :]
  if header[:4] != bytes([0, 0, _IDX_UBYTE, rank]) or len(header) < (
    4 + 4 * rank
  ):
    raise InputError(
      f'{path}: not an IDX file of bytes with {rank} dimension(s):'
      f' starts with {header[:4].hex() or "nothing"}; {GET_ANEW}'
    )
  found = tuple(int(n) for n in np.frombuffer(header, '>u4')[1:])
  if found != shape:
    raise InputError(
      f'{path}: has shape {found}, must have {shape}; {GET_ANEW}'
    )
  if len(values) != size:
    raise InputError(
      f'{path}: holds {"less" if len(values) < size else "more"} than the'
      f' {size:,} values of its shape {shape}; {GET_ANEW}'
    )
  return np.frombuffer(values, np.uint8).reshape(shape)


def read_qmnist_writers(
  path: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray]:
  """Reads who wrote MNIST's training digits, from QMNIST's extended labels.

  The format: an IDX file of big-endian int32 in two dimensions; of its columns
  the first is the digit, the third the writer (Yadav and Bottou 2019).

  Args:
    path: `qmnist-train-labels-idx2-int`, gzipped or not.

  Returns:
    Digits and ids of writers, [60000] int32 each.

  Raises:
    InputError: the file cannot be read or is something else.
  """
  rows, columns = 60_000, 8
  content = read_bytes(path, 12 + 4 * rows * columns + 1)
  header = np.array([0x0C02, rows, columns], '>u4').tobytes()
  if content[:12] != header or len(content) != 12 + 4 * rows * columns:
    raise InputError(
      f"{path}: not QMNIST's extended labels of {rows:,} digits; {GET_ANEW}"
    )
  values = np.frombuffer(content, '>i4', offset=12).reshape(rows, columns)
  return values[:, 0].astype(np.int32), values[:, 2].astype(np.int32)


def read_cifar10(path: pathlib.Path) -> Examples:
  """Reads a file of `cifar-10-batches-bin`.

  Args:
    path: the file.

  Returns:
    x [n, 32, 32, 3] uint8, y [n] int32.

  Raises:
    InputError: the file cannot be read, or is no such file; 10,000 images are
      the most.
  """
  content = read_bytes(path, _CIFAR_IMAGES * _CIFAR_RECORD + 1)
  if not content or len(content) % _CIFAR_RECORD:
    raise InputError(
      f'{path}: holds {len(content):,} bytes, must be a multiple of the'
      f' {_CIFAR_RECORD:,} of an image and its label; {GET_ANEW}'
    )
  records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
  y = records[:, 0].astype(np.int32)
  if y.max() > 9:
    raise InputError(
      f'{path}: has a label {y.max()} at image {int(y.argmax())}, must be 0 to'
      f' 9; {GET_ANEW}'
    )
  x = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return Examples(np.ascontiguousarray(x), y)


def read_leaf(path: pathlib.Path) -> dict[str, Examples]:
  """Reads a file of LEAF's json, gzipped or not: users with their examples.

  The format: `users` names them, `num_samples` counts their examples, and
  `user_data` maps a name to lists `x` and `y` (Caldas et al. 2018). Only inputs
  of numbers are read.

  Args:
    path: the file.

  Returns:
    User -> x [n, ...] float32, y [n] int32, in the order of `users`.

  Raises:
    InputError: the file cannot be read, is no such file, or its lengths and
      shapes do not fit each other.
  """
  content = read_bytes(path)
  try:
    tree = parse_json(content)
  except (ValueError, RecursionError, MemoryError) as error:
    raise InputError(f'{path}: not JSON ({_first_line(error)})') from error
  keys = ('users', 'num_samples', 'user_data')
  if not isinstance(tree, dict) or any(key not in tree for key in keys):
    raise InputError(f'{path}: must hold an object with {", ".join(keys)}')
  users, counts, data = (tree[key] for key in keys)
  if not isinstance(users, list) or not isinstance(counts, list):
    raise InputError(f'{path}: users and num_samples must be lists')
  if not isinstance(data, dict) or len(users) != len(counts):
    raise InputError(
      f'{path}: has {len(users)} users but {len(counts)} num_samples, or no'
      ' user_data; they must belong together'
    )
  examples: dict[str, Examples] = {}
  for user, count in zip(users, counts, strict=True):
    if not isinstance(user, str) or user not in data or user in examples:
      raise InputError(
        f'{path}: user {user!r:.80} must be a name, once, with user_data'
      )
    examples[user] = _leaf_user(path, user, count, data[user])
  check_names(list(examples), f'{path}: users')
  shapes = {e.x.shape[1:] for e in examples.values() if len(e.y)}
  if len(shapes) > 1:
    raise InputError(
      f'{path}: inputs have shapes {sorted(shapes)}, must be one'
    )
  for user, own in examples.items():
    if not len(own.y) and shapes:
      empty = np.zeros((0, *next(iter(shapes))), np.float32)
      examples[user] = own._replace(x=empty)
  return examples


def _leaf_user(path, user, count, own) -> Examples:
  """One user's examples."""
  where = f'{path}: user {user!r:.80}'
  if not isinstance(own, dict) or not all(
    isinstance(own.get(name), list) for name in 'xy'
  ):
    raise InputError(f'{where}: must have lists x and y')
  if not len(own['x']) == len(own['y']) == count:
    raise InputError(
      f'{where}: has {len(own["x"])} x and {len(own["y"])} y, num_samples says'
      f' {count!r:.20}; must be equal'
    )
  for name in 'xy':
    other = _kinds(own[name]) - {int, float}
    if other:  # Of texts NumPy would make an array as wide as the longest.
      raise InputError(
        f'{where}: {name} holds {min(kind.__name__ for kind in other)}, must'
        f' hold {"whole numbers" if name == "y" else "numbers"}'
      )
  y = exact.class_numbers(own['y'], f'{where}: y')
  try:
    with np.errstate(over='ignore'):  # Refused below.
      x = np.asarray(own['x'], np.float32)
  except (ValueError, OverflowError) as error:  # Ragged, or huge.
    raise InputError(
      f'{where}: x are not numbers of one shape ({_first_line(error)})'
    ) from error
  if not np.isfinite(x).all():
    raise InputError(f'{where}: x are not finite in float32')
  if len(x) and (x.ndim < 2 or not x.size):
    raise InputError(
      f'{where}: x has the shape {list(x.shape)}, must have rows of values,'
      ' [n, ...]'
    )
  return Examples(x, y)


def _kinds(value: Any) -> set[type]:
  """Types of all that stands in nested lists."""
  kinds: set[type] = set()
  level = [value]
  while level:
    kinds.update(map(type, level))
    level = [v for inner in level if isinstance(inner, list) for v in inner]
  return kinds - {list}


def read_bytes(path: pathlib.Path, most: int | None = None) -> bytes:
  """A file's content, unpacked where it is gzipped.

  Args:
    path: the file.
    most: bytes that are wanted, None for all.

  Raises:
    InputError: it cannot be read, or unpacks to far too much.
  """
  try:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
      raise InputError(f'{path}: must be a file')  # A pipe would never end.
    size = status.st_size if most is None else min(status.st_size, most)
    with open(path, 'rb') as file:
      zipped = file.read(2) == b'\x1f\x8b'
    if not zipped:
      with open(path, 'rb') as file:
        return file.read(size)
    limit = unpacked_limit(status.st_size)
    with gzip.open(path) as file:
      content = file.read(limit if most is None else min(limit, most))
  except (OSError, EOFError, MemoryError, zlib.error) as error:
    if is_of_machine(error):
      raise
    raise InputError(
      f'{path}: cannot be read ({_first_line(error)}); {GET_ANEW}'
    ) from error
  return check_unpacked(path, content, limit)


def unpacked_limit(size: int) -> int:
  """Bytes that a packed file of a size may unpack to."""
  return _MOST_UNPACKED * size + 2**16


def check_unpacked(path: pathlib.Path, content: bytes, limit: int) -> bytes:
  """What was unpacked; raises InputError where it reaches the limit."""
  if len(content) == limit:
    raise InputError(
      f'{path}: unpacks to more than {_MOST_UNPACKED} times its size;'
      f' {GET_ANEW}'
    )
  return content


def parse_json(content: str | bytes) -> Any:
  """Parses JSON as its standard has it, with every key once.

  Raises:
    ValueError: it is something else, such as NaN, or a key occurs twice in an
      object: one of its values would be lost.
  """
  return json.loads(
    content, parse_constant=_no_constant, object_pairs_hook=_no_duplicate
  )


def _no_constant(name: str) -> Any:
  raise ValueError(f'{name} is no number of JSON')


def _no_duplicate(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'the key {twice!r:.80} occurs twice in an object')
  return found


def _first_line(error: Exception) -> str:
  text = getattr(error, 'strerror', None) or str(error)
  return (text.strip() or type(error).__name__).splitlines()[0][:160]
