"""Parses federation.json into checked types, or raises InputError.

A file may have been edited or cut short, so no value is used unchecked.
"""

from collections.abc import Callable
from collections.abc import Mapping
import json
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.errors import InputError
from fedavg_jax.data.readers import parse_json

VERSION = 1
FORMAT = 'federation of fedavg_jax'
AGAIN = 'copy it again, or convert again into a new folder'
_MOST = 2**31 - 1
# Types of numbers, as .npy names them.
_INPUTS, _LABELS, _SIZES = ('|u1', '<i4', '<f4'), ('<i4',), ('<i8',)


class FileInfo(NamedTuple):
  """Describes an .npy file, or one of JSON.

  Attributes:
    shape: the shape of the array; of JSON, the number of entries.
    dtype: the dtype in .npy's notation, or 'json'.
    bytes: the size of the file.
    sha256: the SHA-256 of the file, in hexadecimal.
  """

  shape: tuple[int, ...]
  dtype: str
  bytes: int
  sha256: str


class Shard(NamedTuple):
  """Describes a shard: consecutive clients, and the files with their data.

  Attributes:
    x: the file of the inputs.
    y: the file of the labels.
    sizes: the file with the number of examples of each client.
    names: the file of the clients' names; None if the source has none.
    clients: the number of clients.
    given: the number of clients read from the source, empty ones included.
    bytes: bytes of the inputs and labels.
    sum: the sum of all values of x.
    squares: the sum of their squares.
    labels: the lowest and the highest label.
  """

  x: FileInfo
  y: FileInfo
  sizes: FileInfo
  names: FileInfo | None
  clients: int
  given: int
  bytes: int
  sum: float
  squares: float
  labels: tuple[int, int]

  def files(self) -> Mapping[str, FileInfo]:
    """Returns the files of the shard by name."""
    found = {'x': self.x, 'y': self.y, 'sizes': self.sizes}
    return found if self.names is None else found | {'names': self.names}


class Description(NamedTuple):
  """Describes what a folder of a federation must contain.

  Attributes:
    num_classes: the number of labels, 0 .. num_classes - 1.
    max_value: the largest value that a pixel can have.
    padding: the token behind the end of a sequence; None if all are full.
    classes: names of the labels; () if the source has none.
    shards: the shards of the clients.
    test_x: the file of the test set's inputs.
    test_y: the file of its labels.
    content: the description as JSON, without its source and all names.
  """

  num_classes: int
  max_value: float
  padding: int | None
  classes: tuple[str, ...]
  shards: tuple[Shard, ...]
  test_x: FileInfo
  test_y: FileInfo
  content: str


def read_description(path: pathlib.Path) -> Description:
  """Reads a federation.json.

  Raises:
    InputError: the file is missing, of another version, or damaged.
  """
  if os.path.lexists(path) and not path.is_file():  # A pipe would never end.
    raise InputError(f'{path}: is not a regular file; {AGAIN}')
  try:
    found = parse_json(path.read_text(encoding='utf-8'))
    if found['format'] != FORMAT:
      raise KeyError('format')
    version = found['version']
  except FileNotFoundError:
    raise InputError(
      f'{path}: is missing; must be in a folder that fedavg-jax convert'
      ' has written'
    ) from None
  except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
    reason = type(error).__name__
    if isinstance(error, ValueError):  # Invalid JSON or UTF-8.
      reason = str(error).splitlines()[0][:100]
    raise InputError(
      f'{path}: does not describe a federation ({reason}); {AGAIN}'
    ) from error
  if version != VERSION:
    raise InputError(
      f'{path}: expected format version {VERSION}, got {version!r:.40}; convert'
      ' again, or use the program that wrote it'
    )
  try:
    return _description(found)
  except _WrongError as error:
    raise InputError(f'{path}: {error}; {AGAIN}') from None


def parse_shard(found: Any) -> Shard:
  """Parses the description of a shard in a journal or a federation.json.

  Raises:
    ValueError: a value cannot be what was written.
  """
  names = _get(found, 'names', lambda v: v is None or isinstance(v, dict), True)
  labels = _get(found, 'labels', lambda v: isinstance(v, list) and len(v) == 2)
  if not all(map(_is_whole(NO_LABEL, _MOST), labels)) or labels[0] > labels[1]:
    raise _WrongError(f'labels = {labels!r:.60} must be two class numbers')
  shard = Shard(
    x=_file(found, 'x', _INPUTS),
    y=_file(found, 'y', _LABELS),
    sizes=_file(found, 'sizes', _SIZES),
    names=None if names is None else _file(found, 'names', ('json',)),
    clients=_get(found, 'clients', _is_whole(1)),
    given=_get(found, 'given', _is_whole(1)),
    bytes=_get(found, 'bytes', _is_whole(1)),
    sum=_get(found, 'sum', _is_number),
    squares=_get(found, 'squares', _is_number),
    labels=(labels[0], labels[1]),
  )
  rows, clients = shard.x.shape[0], (shard.clients,)
  names_shape = clients if shard.names is None else shard.names.shape
  if shard.y.shape[0] != rows or not (
    shard.sizes.shape == clients == names_shape
  ):
    raise _WrongError('the arrays of a shard have different lengths')
  return shard


def shard_to_json(shard: Shard) -> dict[str, Any]:
  """Returns the JSON that `parse_shard` parses."""
  found = shard._asdict()
  for name, file in shard.files().items():
    found[name] = file._asdict()
  return found


class _WrongError(ValueError):
  """Says what is wrong with a value of federation.json."""


def _description(found: Mapping[str, Any]) -> Description:
  num_classes = _get(found, 'num_classes', _is_whole(1))
  classes = _get(
    found,
    'classes',
    lambda v: (
      v is None
      or (isinstance(v, list) and all(isinstance(name, str) for name in v))
    ),
    True,
  )
  shards = _get(found, 'shards', lambda v: isinstance(v, list) and len(v) > 0)
  shards = tuple(map(parse_shard, shards))
  test = _get(found, 'test', lambda v: isinstance(v, dict))
  test_x, test_y = _file(test, 'x', _INPUTS), _file(test, 'y', _LABELS)
  for shard in shards:
    for one, other in ((shard.x, test_x), (shard.y, test_y)):
      if one.dtype != other.dtype or one.shape[1:] != other.shape[1:]:
        raise _WrongError('clients and test set differ in shape or dtype')
    if shard.labels[1] >= num_classes:
      raise _WrongError(
        f'labels up to {shard.labels[1]} with num_classes = {num_classes}'
      )
  if test_x.shape[0] != test_y.shape[0]:
    raise _WrongError('inputs and labels of the test set differ in length')
  # Names do not change a result: the content is the same without them.
  content = {
    k: v
    for k, v in found.items()
    if k not in ('source', 'shard_bytes', 'classes')
  }
  content['shards'] = [
    {k: v for k, v in shard.items() if k != 'names'}
    for shard in found['shards']
  ]
  return Description(
    num_classes=num_classes,
    max_value=_get(found, 'max_value', lambda v: _is_number(v) and v > 0),
    padding=_get(
      found, 'padding', lambda v: v is None or _is_whole(0, num_classes - 1)(v)
    ),
    classes=tuple(classes or ()),
    shards=shards,
    test_x=test_x,
    test_y=test_y,
    content=json.dumps(content, sort_keys=True),
  )


def _get(
  found: Any, key: str, holds: Callable[[Any], bool], optional: bool = False
) -> Any:
  """Returns the value of a key, which must satisfy its rule."""
  if not isinstance(found, dict):
    raise _WrongError(f'{found!r:.60} must be an object')
  if key not in found and not optional:
    raise _WrongError(f'{key} is missing')
  value = found.get(key)
  if not holds(value):
    raise _WrongError(f'{key} = {value!r:.60} is not a possible value')
  return value


def _file(found: Any, key: str, dtypes: tuple[str, ...]) -> FileInfo:
  info = _get(found, key, lambda v: isinstance(v, dict))
  shape = _get(
    info,
    'shape',
    lambda v: (
      isinstance(v, list) and len(v) > 0 and all(map(_is_whole(1, 2**62), v))
    ),
  )
  return FileInfo(
    shape=tuple(shape),
    dtype=_get(info, 'dtype', lambda v: v in dtypes),
    bytes=_get(info, 'bytes', _is_whole(1, 2**62)),
    sha256=_get(info, 'sha256', lambda v: isinstance(v, str) and len(v) == 64),
  )


def _is_whole(low: int, high: int = _MOST) -> Callable[[Any], bool]:
  return lambda v: (
    isinstance(v, int) and not isinstance(v, bool) and low <= v <= high
  )


def _is_number(value: Any) -> bool:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return False
  return (
    math.isfinite(value) if isinstance(value, float) else (abs(value) < 2**100)
  )
