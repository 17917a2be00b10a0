"""Parses files into arrays, or raises InputError.

NumPy only. Nothing is unpickled, and nothing is allocated on the word of a
header alone.
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
# A record is a label, then 1,024 red, green and blue values each, row by row.
_CIFAR_RECORD, _CIFAR_IMAGES = 1 + 3 * 32 * 32, 10_000
# No file of these formats is packed tighter; one that unpacks to more is a
# decompression bomb.
_MOST_UNPACKED = 200


def read_idx(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
  """Reads an IDX file of unsigned bytes, gzipped or not.

  The format is two zero bytes, a type byte (8 for uint8), a byte with the rank,
  one big-endian uint32 per dimension, and the values.

  Args:
    path: the file.
    shape: the expected shape.

  Returns:
    A uint8 array.

  Raises:
    InputError: the file cannot be read, is cut short or has another format.
  """
  rank, size = len(shape), int(np.prod(shape))
  content = read_bytes(path, 4 + 4 * rank + size + 1)
  header, values = content[: 4 + 4 * rank], content[4 + 4 * rank :]
  if header[:4] != bytes([0, 0, _IDX_UBYTE, rank]) or len(header) < (
    4 + 4 * rank
  ):
    raise InputError(
      f'{path}: is not an IDX file of bytes with {rank} dimension(s):'
      f' starts with {header[:4].hex() or "nothing"}; {GET_ANEW}'
    )
  found = tuple(int(n) for n in np.frombuffer(header, '>u4')[1:])
  if found != shape:
    raise InputError(f'{path}: expected shape {shape}, got {found}; {GET_ANEW}')
  if len(values) != size:
    raise InputError(
      f'{path}: has {"fewer" if len(values) < size else "more"} than the'
      f' {size:,} values of its shape {shape}; {GET_ANEW}'
    )
  return np.frombuffer(values, np.uint8).reshape(shape)


def read_qmnist_writers(
  path: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray]:
  """Reads the writers of MNIST's training digits from QMNIST's labels.

  The format is an IDX file of big-endian int32 in two dimensions; its first
  column is the digit, its third the writer (Yadav and Bottou 2019).

  Args:
    path: `qmnist-train-labels-idx2-int`, gzipped or not.

  Returns:
    Digits and ids of writers, [60000] int32 each.

  Raises:
    InputError: the file cannot be read or has another format.
  """
  rows, columns = 60_000, 8
  content = read_bytes(path, 12 + 4 * rows * columns + 1)
  header = np.array([0x0C02, rows, columns], '>u4').tobytes()
  if content[:12] != header or len(content) != 12 + 4 * rows * columns:
    raise InputError(
      f"{path}: is not QMNIST's extended labels of {rows:,} digits; {GET_ANEW}"
    )
  values = np.frombuffer(content, '>i4', offset=12).reshape(rows, columns)
  return values[:, 0].astype(np.int32), values[:, 2].astype(np.int32)


def read_cifar10(path: pathlib.Path) -> Examples:
  """Reads a file of CIFAR-10's binary version, `cifar-10-batches-bin`.

  Each record is a label and the 1,024 red, green and blue values of an image
  (Krizhevsky 2009).

  Args:
    path: the file, gzipped or not, of at most 10,000 images.

  Returns:
    x [n, 32, 32, 3] uint8, y [n] int32.

  Raises:
    InputError: the file cannot be read, or has another format.

  >>> import tempfile
  >>> import fedavg_jax as fa
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder) / 'data_batch_1.bin'
  ...   _ = path.write_bytes(bytes([7]) + bytes(3 * 32 * 32))
  ...   examples = fa.data.read_cifar10(path)
  >>> examples.x.shape, examples.y.tolist()
  ((1, 32, 32, 3), [7])
  """
  content = read_bytes(path, _CIFAR_IMAGES * _CIFAR_RECORD + 1)
  if not content or len(content) % _CIFAR_RECORD:
    raise InputError(
      f'{path}: has {len(content):,} bytes; must be a multiple of the'
      f' {_CIFAR_RECORD:,} of an image and its label; {GET_ANEW}'
    )
  records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
  y = records[:, 0].astype(np.int32)
  if y.max() > 9:
    raise InputError(
      f'{path}: has label {y.max()} at image {int(y.argmax())}; must be in'
      f' [0, 9]; {GET_ANEW}'
    )
  x = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return Examples(np.ascontiguousarray(x), y)


def read_leaf(path: pathlib.Path) -> dict[str, Examples]:
  """Reads the users of a file of LEAF's json (Caldas et al. 2018).

  In this format `users` is the list of their names, `num_samples` that of their
  numbers of examples, and `user_data` maps a name to lists `x` and `y`. Only
  inputs of numbers are supported.

  Args:
    path: the file, gzipped or not.

  Returns:
    User -> x [n, ...] float32, y [n] int32, in the order of `users`.

  Raises:
    InputError: the file cannot be read, has another format, or its lengths or
      shapes do not match.

  >>> import tempfile
  >>> import fedavg_jax as fa
  >>> tree = {'users': ['ann'], 'num_samples': [2], 'user_data': {
  ...   'ann': {'x': [[0.0, 0.5], [1.0, 0.0]], 'y': [3, 1]}}}
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder) / 'all.json'
  ...   _ = path.write_text(json.dumps(tree))
  ...   users = fa.data.read_leaf(path)
  >>> users['ann'].x.shape, users['ann'].y.tolist()
  ((2, 2), [3, 1])
  """
  content = read_bytes(path)
  try:
    tree = parse_json(content)
  except (ValueError, RecursionError, MemoryError) as error:
    raise InputError(f'{path}: is not JSON ({_first_line(error)})') from error
  keys = ('users', 'num_samples', 'user_data')
  if not isinstance(tree, dict) or any(key not in tree for key in keys):
    raise InputError(f'{path}: must be an object with {", ".join(keys)}')
  users, counts, data = (tree[key] for key in keys)
  if not isinstance(users, list) or not isinstance(counts, list):
    raise InputError(f'{path}: users and num_samples must be lists')
  if not isinstance(data, dict) or len(users) != len(counts):
    raise InputError(
      f'{path}: has {len(users)} users but {len(counts)} num_samples, or no'
      ' user_data; must have all three for each user'
    )
  examples: dict[str, Examples] = {}
  for user, count in zip(users, counts, strict=True):
    if not isinstance(user, str) or user not in data or user in examples:
      raise InputError(
        f'{path}: user {user!r:.80} must be a unique name with user_data'
      )
    examples[user] = _leaf_user(path, user, count, data[user])
  check_names(list(examples), f'{path}: users')
  shapes = {e.x.shape[1:] for e in examples.values() if len(e.y)}
  if len(shapes) > 1:
    raise InputError(
      f'{path}: inputs have shapes {sorted(shapes)}; must be equal'
    )
  for user, part in examples.items():
    if not len(part.y) and shapes:
      empty = np.zeros((0, *next(iter(shapes))), np.float32)
      examples[user] = part._replace(x=empty)
  return examples


def _leaf_user(path, user, count, record) -> Examples:
  """Reads one user's examples."""
  where = f'{path}: user {user!r:.80}'
  if not isinstance(record, dict) or not all(
    isinstance(record.get(name), list) for name in 'xy'
  ):
    raise InputError(f'{where}: must have lists x and y')
  if not len(record['x']) == len(record['y']) == count:
    raise InputError(
      f'{where}: has {len(record["x"])} x and {len(record["y"])} y, and'
      f' num_samples {count!r:.20}; must be equal'
    )
  for name in 'xy':
    other = _kinds(record[name]) - {int, float}
    if other:  # NumPy would allocate the longest string's size for all strings.
      raise InputError(
        f'{where}: {name}: expected'
        f' {"whole numbers" if name == "y" else "numbers"}, got'
        f' {min(kind.__name__ for kind in other)}'
      )
  y = exact.class_numbers(record['y'], f'{where}: y')
  try:
    with np.errstate(over='ignore'):  # Infinite values raise below.
      x = np.asarray(record['x'], np.float32)
  except (ValueError, OverflowError) as error:  # Ragged lists, or huge numbers.
    raise InputError(
      f'{where}: x must be numbers of one shape ({_first_line(error)})'
    ) from error
  if not np.isfinite(x).all():
    raise InputError(f'{where}: x must be finite in float32')
  if len(x) and (x.ndim < 2 or not x.size):
    raise InputError(
      f'{where}: x has the shape {list(x.shape)}; must have rows of values,'
      ' [n, ...]'
    )
  return Examples(x, y)


def _kinds(value: Any) -> set[type]:
  """Returns the types of all values in nested lists."""
  kinds: set[type] = set()
  level = [value]
  while level:
    kinds.update(map(type, level))
    level = [v for inner in level if isinstance(inner, list) for v in inner]
  return kinds - {list}


def read_bytes(path: pathlib.Path, most: int | None = None) -> bytes:
  """Reads a file's content, and unpacks it if it is gzipped.

  Args:
    path: the file.
    most: the maximum number of bytes to return, None for all.

  Raises:
    InputError: it cannot be read, or unpacks to far too much.
  """
  try:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
      # A pipe would never end.
      raise InputError(f'{path}: is not a regular file')
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
  """Returns the bytes at which unpacking a file of this size must stop."""
  return _MOST_UNPACKED * size + 2**16


def check_unpacked(path: pathlib.Path, content: bytes, limit: int) -> bytes:
  """Returns unpacked content; raises InputError if it reaches the limit."""
  if len(content) == limit:
    raise InputError(
      f'{path}: unpacks to more than {_MOST_UNPACKED} times its size;'
      f' {GET_ANEW}'
    )
  return content


def parse_json(content: str | bytes) -> Any:
  """Parses standard JSON in which every key is unique.

  Raises:
    ValueError: it is not standard JSON, such as NaN, or an object has a key
      twice, of which one value would be lost.
  """
  return json.loads(
    content, parse_constant=_no_constant, object_pairs_hook=_no_duplicate
  )


def _no_constant(name: str) -> Any:
  raise ValueError(f'{name} is not a JSON number')


def _no_duplicate(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'duplicate key {twice!r:.80} in an object')
  return found


def _first_line(error: Exception) -> str:
  text = getattr(error, 'strerror', None) or str(error)
  return (text.strip() or type(error).__name__).splitlines()[0][:160]
