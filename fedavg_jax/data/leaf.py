"""Reads LEAF's json by user, one file after another or all into memory.

A user is one client, however many files of a split contain it.
"""

from collections import Counter
from collections.abc import Iterator
import pathlib
import re

import numpy as np

from fedavg_jax.core import client_data
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.folders import check_names
from fedavg_jax.core.folders import entries
from fedavg_jax.data import readers
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.data.dataset import number_owners
from fedavg_jax.data.shard_writer import NamedExamples


def files_of(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
  """Lists the json files of a split, 'train' or 'test', in natural order.

  Raises:
    InputError: there are none, or two have one name.
  """
  files = [
    path
    for path in entries(folder / split)
    if path.name.lower().endswith(('.json', '.json.gz'))
  ]
  if not files:
    raise InputError(
      f'data_dir = {str(folder)!r}: {split}/ has no json; must be a folder of'
      ' LEAF, with train/ and test/'
    )
  # The users of such copies would have every example twice.
  stems = [re.sub(r'\.json(\.gz)?$', '', p.name, flags=re.I) for p in files]
  names = [path.name for path in files]
  check_names(stems, f'data_dir = {str(folder)!r}: files of {split}/', names)
  return files


def with_channels(x: np.ndarray) -> np.ndarray:
  """Reshapes LEAF's inputs [n, ...] to images [n, H, W, C]."""
  shape = x.shape[1:]
  if len(shape) == 1:  # Flat pixels, usually of a square image.
    side = int(np.sqrt(shape[0]))
    shape = (side, side) if side**2 == shape[0] else (shape[0], 1)
  if len(shape) == 2:
    shape = (*shape, 1)
  return x.reshape(len(x), *shape)


def read_clients(folder: pathlib.Path) -> Iterator[NamedExamples]:
  """Reads the users of train/, in the order of their first appearance.

  A user in several files is read from all of them at its first; only one file
  and such users are in memory at once.

  Raises:
    InputError: a file is missing or wrong, or two names are one.
  """
  files = files_of(folder, 'train')
  counts = Counter(
    name
    for file in (files if len(files) > 1 else ())
    for name in readers.read_leaf(file)
  )
  check_names(list(counts), f'{folder}: users')
  several = {name for name, count in counts.items() if count > 1}
  gathered = _gather(files, several)
  for file in files:
    for name, user in readers.read_leaf(file).items():
      if name in several:
        if name not in gathered:
          continue  # It was read at an earlier file.
        user = gathered.pop(name)
      yield NamedExamples(with_channels(user.x), user.y, name)


def _gather(files: list[pathlib.Path], names: set[str]) -> dict[str, Examples]:
  """Reads some users from all files and joins each user's examples."""
  parts: dict[str, list[Examples]] = {name: [] for name in names}
  for file in files if names else ():
    for name, user in readers.read_leaf(file).items():
      if name in names and len(user.y):
        parts[name].append(user)
  empty = Examples(np.zeros((0, 1), np.float32), np.zeros(0, np.int32))
  shapes = {user.x.shape[1:] for some in parts.values() for user in some}
  if len(shapes) > 1:
    raise InputError(
      f'{files[0].parent}: inputs have shapes {sorted(shapes)}; must be equal'
    )
  return {
    name: client_data.join(some) if some else empty
    for name, some in parts.items()
  }


def read_test(folder: pathlib.Path) -> Examples:
  """Reads the examples of all users of test/.

  Raises:
    InputError: there are none, or their shapes differ.
  """
  parts = [
    user
    for file in files_of(folder, 'test')
    for user in readers.read_leaf(file).values()
    if len(user.y)
  ]
  if len({user.x.shape[1:] for user in parts}) != 1:
    raise InputError(
      f'data_dir = {str(folder)!r}: test/ must have examples, of one shape'
    )
  joined = client_data.join(parts)
  return joined._replace(x=with_channels(joined.x))


def load_leaf(folder: pathlib.Path) -> Dataset:
  """Loads LEAF's users with training examples as clients.

  Raises:
    InputError: a file is missing or wrong, or shapes differ.
  """
  files_of(folder, 'train')  # If both are missing, the error is about train/.
  test = read_test(folder)
  train = [user for user in read_clients(folder) if len(user.y)]
  if not train:
    raise InputError(
      f'data_dir = {str(folder)!r}: train/ must have examples, as test/ has'
    )
  for user in train:
    if user.x.shape[1:] != test.x.shape[1:]:
      raise InputError(
        f'data_dir = {str(folder)!r}: user {user.name!r:.80} of train/ has the'
        f' shape {user.x.shape[1:]}, test/ {test.x.shape[1:]}; must be equal'
      )
  examples = [Examples(user.x, user.y) for user in train]
  joined = client_data.join(examples)
  return Dataset(
    'leaf',
    joined,
    test,
    num_classes=int(max(joined.y.max(), test.y.max())) + 1,
    max_value=1.0,
    owners=number_owners(examples),
    client_names=tuple(user.name for user in train),
  )
