"""Computes a SHA-256 of functions and of the numbers that they use.

Two calls that make the same model, loss or algorithm have the same hash, in
other processes too; a changed learning rate, layer or line of code has another.
Of installed functions the names and the closures count; of user code also the
compiled code, and the globals that it reads. Values other than numbers, arrays,
functions and containers of these count only by their type.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import inspect
import types
from typing import Any

import jax
import numpy as np

from fedavg_jax.core.errors import InputError
from fedavg_jax.core.rows_on_disk import RowsOnDisk
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs.own_code import is_own_object

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
# Arrays on disk may exceed memory: this number of rows is read.
_ROWS_READ = 3


def fingerprint(part: Any) -> str:
  """Returns the SHA-256 of a part of a run, in hexadecimal.

  Args:
    part: a function, an array, a number, or tuples, dictionaries and
      dataclasses of them.

  >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2)
  False
  """
  sha = hashlib.sha256()
  for piece in _pieces(part, {}):
    sha.update(piece)
    sha.update(b'\0')
  return sha.hexdigest()


def check(
  before: Mapping[str, Any], now: Mapping[str, str], of: str, place: str
) -> None:
  """Raises InputError where a part of a run has changed.

  Args:
    before: the fingerprints of parts by name, from JSON; parts without one are
      not compared.
    now: the present fingerprints of all parts by name.
    of: the words for the run in messages, such as 'of the run in folder'.
    place: the word for its location, 'folder' or 'workdir'.
  """
  for name, sha256 in now.items():
    if before.get(name, sha256) != sha256:
      raise InputError(
        f'{name}: its functions, or numbers that they use, are not those {of};'
        f' restore them, or choose a new {place}'
      )


def _pieces(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
  """Yields the bytes of a value and its parts, to be hashed.

  Args:
    value: any value.
    seen: the number and the value of every earlier part, by its `id`, since
      functions may refer to each other.
  """
  if isinstance(value, _PLAIN):
    yield f'{type(value).__name__} {value!r}'.encode()
    return
  if id(value) in seen:
    yield f'again {seen[id(value)][0]}'.encode()
    return
  seen[id(value)] = len(seen), value  # A reference: no other part gets its id.
  yield type(value).__qualname__.encode()
  for part in _parts(value):
    yield from _pieces(part, seen)


def _parts(value: Any) -> Any:
  """Returns the parts of a value in a reproducible order."""
  if isinstance(value, (np.ndarray, np.generic, jax.Array, RowsOnDisk)):
    return _of_array(value)
  match value:
    case tuple() | list():
      return value
    case dict() | types.MappingProxyType():
      return sorted(value.items(), key=lambda item: repr(item[0]))
    case set() | frozenset():
      return sorted(fingerprint(one) for one in value)
    case functools.partial():
      return value.func, value.args, value.keywords
    case types.MethodType():
      return value.__self__, value.__func__
    case types.ModuleType():
      return (value.__name__,)
    case types.CodeType():
      return value.co_code, value.co_names, value.co_consts
    case type():
      return _of_class(value)
  if hasattr(value, '__wrapped__') or isinstance(value, types.FunctionType):
    return _of_function(inspect.unwrap(value))
  return _of_object(value)


def _of_array(value: Any) -> list[Any]:
  """Returns the shape and a digest of an array; PRNG keys are arrays too."""
  if isinstance(value, jax.core.Tracer):
    return [str(value.aval)]
  shape = [int(size) for size in value.shape]
  if isinstance(value, jax.Array):
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
      value = jax.random.key_data(value)
    value = jax.device_get(value)
  if isinstance(value, (RowsOnDisk, np.memmap)):
    rows = np.unique(np.linspace(0, len(value) - 1, _ROWS_READ).astype(int))
    value = np.concatenate([value[row : row + 1] for row in rows])
  if value.dtype.hasobject:
    return [shape, value.tolist()]
  return [shape, checkpoint.digest([value])]


def _of_function(function: Any) -> list[Any]:
  """Returns name, defaults and closure; of user code also code and globals."""
  if not isinstance(function, types.FunctionType):
    return _of_object(function)
  found = [
    function.__module__,
    function.__qualname__,
    function.__defaults__,
    function.__kwdefaults__,
    [_content(cell) for cell in function.__closure__ or ()],
  ]
  if is_own_object(function):
    known = function.__globals__
    names = sorted(set(_names(function.__code__)) & set(known))
    found += [function.__code__, [(name, known[name]) for name in names]]
  return found


def _content(cell: Any) -> Any:
  """Returns the value of a closure's cell, None where it has none yet."""
  try:
    return cell.cell_contents
  except ValueError:
    return None


def _names(code: types.CodeType) -> Iterator[str]:
  """Yields the names that a function and those inside it read."""
  yield from code.co_names
  for inner in code.co_consts:
    if isinstance(inner, types.CodeType):
      yield from _names(inner)


def _of_class(value: type) -> list[Any]:
  """Returns the name of a class; of user code also its bases and members."""
  name = f'{value.__module__}.{value.__qualname__}'
  if not is_own_object(value):
    return [name]
  members = {
    name: found
    for name, found in vars(value).items()
    if isinstance(found, types.FunctionType)
    or (isinstance(found, _PLAIN) and not name.startswith('__'))
  }
  return [name, value.__bases__, members]


def _of_object(value: Any) -> list[Any]:
  """Returns the class of an object, and its fields or attributes."""
  if isinstance(value, types.BuiltinFunctionType):
    return [value.__module__, value.__qualname__]
  found: list[Any] = [type(value)]
  if dataclasses.is_dataclass(value):
    found += [
      (field.name, getattr(value, field.name, None))
      for field in dataclasses.fields(value)
    ]
  elif is_own_object(type(value)):
    found.append(getattr(value, '__dict__', None))
  return found
