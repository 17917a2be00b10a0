"""LEAF's json by user, a file at a time or all at once.

A user is one client, however many files of a split name it.
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
  """Lists the json of a split, 'train' or 'test', in natural order.

  Raises:
    InputError: there is none.
  """
  files = [
    path
    for path in entries(folder / split)
    if path.name.lower().endswith(('.json', '.json.gz'))
  ]
  if not files:
    raise InputError(
      f'data_dir = {str(folder)!r}: {split}/ holds no json; must be a folder'
      " of LEAF's, with train/ and test/"
    )
  # Their users would be one client each, with every example twice.
  stems = [re.sub(r'\.json(\.gz)?$', '', p.name, flags=re.I) for p in files]
  names = [path.name for path in files]
  check_names(stems, f'data_dir = {str(folder)!r}: files of {split}/', names)
  return files


def with_channels(x: np.ndarray) -> np.ndarray:
  """Gives LEAF's inputs [n, ...] the form of images [n, H, W, C]."""
  shape = x.shape[1:]
  if len(shape) == 1:  # Rows of pixels, most often of a square image.
    side = int(np.sqrt(shape[0]))
    shape = (side, side) if side**2 == shape[0] else (shape[0], 1)
  if len(shape) == 2:
    shape = (*shape, 1)
  return x.reshape(len(x), *shape)


def read_clients(folder: pathlib.Path) -> Iterator[NamedExamples]:
  """Reads the users of train/, in the order in which files name them first.

  A user that is in several files is read from all of them at its first; no more
  than one file and such users are in memory at once.

  Raises:
    InputError: as `readers.read_leaf`; or two names are one.
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
    for name, own in readers.read_leaf(file).items():
      if name in several:
        if name not in gathered:
          continue  # At an earlier file.
        own = gathered.pop(name)
      yield NamedExamples(with_channels(own.x), own.y, name)


def _gather(files: list[pathlib.Path], names: set[str]) -> dict[str, Examples]:
  """Reads some users from all files."""
  parts: dict[str, list[Examples]] = {name: [] for name in names}
  for file in files if names else ():
    for name, own in readers.read_leaf(file).items():
      if name in names and len(own.y):
        parts[name].append(own)
  empty = Examples(np.zeros((0, 1), np.float32), np.zeros(0, np.int32))
  shapes = {own.x.shape[1:] for some in parts.values() for own in some}
  if len(shapes) > 1:
    raise InputError(
      f'{files[0].parent}: inputs have shapes {sorted(shapes)}, must be one'
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
    own
    for file in files_of(folder, 'test')
    for own in readers.read_leaf(file).values()
    if len(own.y)
  ]
  if len({own.x.shape[1:] for own in parts}) != 1:
    raise InputError(
      f'data_dir = {str(folder)!r}: test/ must have examples, of one shape'
    )
  joined = client_data.join(parts)
  return joined._replace(x=with_channels(joined.x))


def load_leaf(folder: pathlib.Path) -> Dataset:
  """Loads LEAF's users as clients: those with training examples."""
  files_of(folder, 'train')  # Of two that are missing the first is named.
  test = read_test(folder)
  train = [own for own in read_clients(folder) if len(own.y)]
  if not train:
    raise InputError(
      f'data_dir = {str(folder)!r}: train/ must have examples, as test/ has'
    )
  for own in train:
    if own.x.shape[1:] != test.x.shape[1:]:
      raise InputError(
        f'data_dir = {str(folder)!r}: user {own.name!r:.80} of train/ has the'
        f' shape {own.x.shape[1:]}, test/ {test.x.shape[1:]}; must be one'
      )
  examples = [Examples(own.x, own.y) for own in train]
  joined = client_data.join(examples)
  return Dataset(
    'leaf',
    joined,
    test,
    num_classes=int(max(joined.y.max(), test.y.max())) + 1,
    max_value=1.0,
    owners=number_owners(examples),
    client_names=tuple(own.name for own in train),
  )
