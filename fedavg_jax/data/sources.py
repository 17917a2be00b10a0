"""Where the clients of a federation on disk come from."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core import client_data
from fedavg_jax.core import exact
from fedavg_jax.core import references
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import is_of_machine
from fedavg_jax.data import array_files
from fedavg_jax.data import catalog
from fedavg_jax.data import forms
from fedavg_jax.data import image_folders
from fedavg_jax.data import leaf
from fedavg_jax.data import partition
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.data.shard_writer import Client
from fedavg_jax.data.shard_writer import NamedExamples

SOURCES = (
  *('leaf', 'shakespeare', 'words', 'mnist_writers'),
  *('images', 'arrays', 'generator'),
)


class Source(NamedTuple):
  """Clients that are read one after another, once.

  Attributes:
    clients: gives the examples of each.
    num_clients: 0 where that is not known before.
    test: the central test set.
    num_classes: labels are 0 .. num_classes - 1; None for those that there are.
    max_value: of a pixel.
    padding: of sequences.
    classes: names of the labels; () where they have none.
  """

  clients: Iterator[Client]
  num_clients: int
  test: Examples
  num_classes: int | None
  max_value: float
  padding: int | None = None
  classes: Sequence[str] = ()


def open_source(kind: str, path: str) -> Source:
  """Opens what is to be converted.

  Raises:
    InputError: another kind, or a file that is missing or wrong.
  """
  if kind not in SOURCES:
    raise InputError(f'--source {kind}: must be one of {", ".join(SOURCES)}')
  if kind == 'generator':
    return _generator(path)
  # Unlike Path.expanduser, leaves the home of nobody as it is.
  place = pathlib.Path(os.path.expanduser(path))
  if not place.exists():
    raise InputError(f'--path {path}: there is no such file or folder')
  if kind == 'images':
    return _images(place)
  if kind == 'arrays':
    return _arrays(place)
  if kind == 'leaf':
    return _leaf(place)
  return _dataset(catalog.load_dataset(kind, path))


def _dataset(dataset: Dataset) -> Source:
  """Takes a data set that fits into memory by its natural clients."""
  assert dataset.owners is not None
  own = client_data.build_clients(
    dataset.train, partition.by_owner(dataset.owners)
  )
  return Source(
    clients=_rows(own, dataset.client_names),
    num_clients=own.num_clients,
    test=dataset.test,
    num_classes=dataset.num_classes,
    max_value=dataset.max_value,
    padding=dataset.padding,
    classes=dataset.classes,
  )


def _rows(own: client_data.Clients, names: Sequence[str]) -> Iterator[Client]:
  for k in range(own.num_clients):
    mine = slice(*own.offsets[k : k + 2])
    client = Examples(own.x[mine], own.y[mine])
    yield NamedExamples(*client, names[k]) if names else client


def _leaf(folder: pathlib.Path) -> Source:
  """Reads LEAF's users a file of json at a time."""
  test = leaf.read_test(folder)
  return Source(
    clients=leaf.read_clients(folder),
    num_clients=0,
    test=test,
    num_classes=None,
    max_value=1.0,
  )


def _arrays(path: pathlib.Path) -> Source:
  own = array_files.open_arrays(path)
  return Source(
    clients=own.clients(),
    num_clients=len(own.begins),
    test=own.test,
    num_classes=None,
    max_value=own.max_value,
  )


def _images(folder: pathlib.Path) -> Source:
  own = image_folders.open_images(folder)
  return Source(
    clients=own.clients(),
    num_clients=len(own.owners),
    test=own.test,
    num_classes=len(own.classes),
    max_value=own.like.max_value,
    classes=own.classes,
  )


def _generator(path: str) -> Source:
  """Takes clients that a function of the user makes."""
  function = references.load(path, f'--path {path}')
  pairs = _pairs(function, path, -1)
  (number, x, y) = next(pairs, (None, None, None))
  if number is None:
    raise InputError(f'--path {path}: gives nothing for -1, the test set')
  test = forms.form(x, y, f'--path {path}: test set, client -1')

  def clients() -> Iterator[Examples]:
    for k, x, y in _pairs(function, path, 0):
      where = f'--path {path}: client {k}'
      if not len(y) and not x.size:
        yield Examples(np.zeros((0, *test.examples.x.shape[1:])), np.zeros(0))
        continue
      own = forms.form(x, y, where)
      forms.check_scale(own.max_value, test.max_value, where)
      yield own.examples

  return Source(
    clients=clients(),
    num_clients=0,
    test=test.examples,
    num_classes=None,
    max_value=test.max_value,
  )


def _pairs(
  function: Callable[[int], Any], path: str, first: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """Calls a person's function; gives the number, x and y of each client."""
  k = first
  try:
    for own in function(first):
      if not isinstance(own, (tuple, list)) or len(own) != 2:
        raise InputError(
          f'--path {path}: client {k} is {type(own).__name__}, must be a pair'
          ' of arrays, (x, y)'
        )
      where = f'--path {path}: client {k}'
      x, y = (
        exact.array(own[0], f'{where}: x'),
        exact.array(own[1], f'{where}: y'),
      )
      if not y.ndim:
        raise InputError(f'{where}: y must be an array, [n]')
      yield k, x, y
      k += 1
  except (InputError, MemoryError, GeneratorExit):
    raise
  except (Exception, SystemExit) as error:  # Of a person's own code, anything.
    if is_of_machine(error):
      raise
    raise InputError(
      f'--path {path}: fails at client {k} ({references.reason(error)})'
    ) from error
