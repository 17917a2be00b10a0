"""Opens the sources of a conversion: clients that are read one by one."""

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
  """Holds clients that are read one after another, once.

  Attributes:
    clients: an iterator over the examples of each client.
    num_clients: the number of clients, 0 if it is not known in advance.
    test: the central test set.
    num_classes: the number of labels, 0 .. num_classes - 1; None to derive it
      from the labels.
    max_value: the largest value that a pixel can have.
    padding: the token behind the end of a sequence, if there is one.
    classes: names of the labels; () if they have none.
  """

  clients: Iterator[Client]
  num_clients: int
  test: Examples
  num_classes: int | None
  max_value: float
  padding: int | None = None
  classes: Sequence[str] = ()


def open_source(kind: str, path: str) -> Source:
  """Opens the source of a conversion.

  Args:
    kind: one of `SOURCES`.
    path: the file or folder, or module:function of a generator.

  Raises:
    InputError: the kind is unknown, or a file is missing or wrong.
  """
  if kind not in SOURCES:
    raise InputError(f'--source {kind}: must be one of {", ".join(SOURCES)}')
  if kind == 'generator':
    return _generator(path)
  # Unlike Path.expanduser, this does not fail for an unknown user.
  place = pathlib.Path(os.path.expanduser(path))
  if not place.exists():
    raise InputError(f'--path {path}: does not exist')
  if kind == 'images':
    return _images(place)
  if kind == 'arrays':
    return _arrays(place)
  if kind == 'leaf':
    return _leaf(place)
  return _dataset(catalog.load_dataset(kind, path))


def _dataset(dataset: Dataset) -> Source:
  """Opens a data set in memory, by its natural clients."""
  assert dataset.owners is not None
  clients = client_data.build_clients(
    dataset.train, partition.by_owner(dataset.owners)
  )
  return Source(
    clients=_rows(clients, dataset.client_names),
    num_clients=clients.num_clients,
    test=dataset.test,
    num_classes=dataset.num_classes,
    max_value=dataset.max_value,
    padding=dataset.padding,
    classes=dataset.classes,
  )


def _rows(
  clients: client_data.Clients, names: Sequence[str]
) -> Iterator[Client]:
  for k in range(clients.num_clients):
    rows = slice(*clients.offsets[k : k + 2])
    client = Examples(clients.x[rows], clients.y[rows])
    yield NamedExamples(*client, names[k]) if names else client


def _leaf(folder: pathlib.Path) -> Source:
  """Opens LEAF's users, reading one file of json at a time."""
  test = leaf.read_test(folder)
  return Source(
    clients=leaf.read_clients(folder),
    num_clients=0,
    test=test,
    num_classes=None,
    max_value=1.0,
  )


def _arrays(path: pathlib.Path) -> Source:
  arrays = array_files.open_arrays(path)
  return Source(
    clients=arrays.clients(),
    num_clients=len(arrays.begins),
    test=arrays.test,
    num_classes=None,
    max_value=arrays.max_value,
  )


def _images(folder: pathlib.Path) -> Source:
  images = image_folders.open_images(folder)
  return Source(
    clients=images.clients(),
    num_clients=len(images.owners),
    test=images.test,
    num_classes=len(images.classes),
    max_value=images.like.max_value,
    classes=images.classes,
  )


def _generator(path: str) -> Source:
  """Opens the clients that a user-defined function generates."""
  function = references.load(path, f'--path {path}')
  pairs = _pairs(function, path, -1)
  (number, x, y) = next(pairs, (None, None, None))
  if number is None:
    raise InputError(f'--path {path}: yields nothing for -1, the test set')
  test = forms.form(x, y, f'--path {path}: test set, client -1')

  def clients() -> Iterator[Examples]:
    for k, x, y in _pairs(function, path, 0):
      where = f'--path {path}: client {k}'
      if not len(y) and not x.size:
        yield Examples(np.zeros((0, *test.examples.x.shape[1:])), np.zeros(0))
        continue
      formed = forms.form(x, y, where)
      forms.check_scale(formed.max_value, test.max_value, where)
      yield formed.examples

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
  """Calls a user-defined function; yields number, x and y of each client."""
  k = first
  try:
    for pair in function(first):
      if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(
          f'--path {path}: client {k}: expected a pair of arrays, (x, y), got'
          f' {type(pair).__name__}'
        )
      where = f'--path {path}: client {k}'
      x, y = (
        exact.array(pair[0], f'{where}: x'),
        exact.array(pair[1], f'{where}: y'),
      )
      if not y.ndim:
        raise InputError(f'{where}: y must be an array, [n]')
      yield k, x, y
      k += 1
  except (InputError, MemoryError, GeneratorExit):
    raise
  except (Exception, SystemExit) as error:  # User code may raise anything.
    if is_of_machine(error):
      raise
    raise InputError(
      f'--path {path}: fails at client {k} ({references.reason(error)})'
    ) from error
