"""Maps functions over pytrees of dicts, tuples and arrays without JAX.

An example may have several inputs, such as an image and a text: x, or y for a
user-defined loss, is then a pytree of arrays with the same rows. A list counts
as an array; a tuple of lists is ambiguous and `exact.array` rejects it.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from fedavg_jax.core.errors import InputError

# An array, or a container of pytrees.
PyTree = Any


def is_tree(value: Any) -> bool:
  """Returns whether a value is a dict or a tuple of arrays, not an array.

  >>> is_tree({'image': 1}), is_tree((1, 2)), is_tree([[1], [2]])
  (True, False, False)
  """
  if isinstance(value, dict):
    return True
  return isinstance(value, tuple) and any(
    hasattr(part, 'shape') or is_tree(part) for part in value
  )


def map_named(function: Callable[[Any, str], Any], tree: Any, name: str) -> Any:
  """Calls a function with each array of a tree and its name in messages.

  Raises:
    InputError: the keys of a dictionary cannot be sorted, as JAX sorts them.

  >>> map_named(lambda array, name: name, {'a': 1, 'b': {'c': 2}}, 'x')
  {'a': "x['a']", 'b': {'c': "x['b']['c']"}}
  """
  if not is_tree(tree):
    return function(tree, name)
  if isinstance(tree, dict):
    try:
      keys = sorted(tree)
    except TypeError:
      raise InputError(
        f'{name}: has the keys {list(tree)!r:.80}, must have keys of one type'
      ) from None
    return {
      key: map_named(function, tree[key], f'{name}[{key!r}]') for key in keys
    }
  parts = [
    map_named(function, part, f'{name}[{i}]') for i, part in enumerate(tree)
  ]
  return type(tree)(*parts) if hasattr(tree, '_fields') else tuple(parts)


def map_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
  """Calls a function with each array of a tree.

  >>> map_arrays(len, {'a': 'xyz', 'b': ''})
  {'a': 3, 'b': 0}
  """
  return map_named(lambda array, name: function(array), tree, '')


def arrays(tree: Any) -> list[Any]:
  """Lists the arrays of a tree, in the order of sorted keys.

  >>> arrays({'b': 1, 'a': {'c': 2}})
  [2, 1]
  """
  found: list[Any] = []
  map_arrays(found.append, tree)
  return found


def take(tree: Any, rows: Any) -> Any:
  """Returns some rows of each array, by a slice or by row numbers."""
  return map_arrays(lambda array: array[rows], tree)


def num_rows(tree: Any) -> int:
  """Returns n, the number of rows of each array."""
  return len(arrays(tree)[0])


def nested(paths: Iterable[Sequence[str]], leaves: Iterable[Any]) -> Any:
  """Returns nested dictionaries with each leaf at the keys of its path.

  >>> nested([['a'], ['b', 'c']], [1, 2])
  {'a': 1, 'b': {'c': 2}}
  """
  tree: dict[str, Any] = {}
  for path, leaf in zip(paths, leaves, strict=True):
    *parents, name = path
    inner = tree
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[name] = leaf
  return tree


def flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Returns the leaves of nested dictionaries by their keys with dots.

  >>> flat({'a': 1, 'b': {'c': 2}})
  {'a': 1, 'b.c': 2}
  """
  if not isinstance(tree, dict):
    return {prefix: tree}
  found: dict[str, Any] = {}
  for key, inner in tree.items():
    found |= flat(inner, f'{prefix}.{key}' if prefix else key)
  return found
