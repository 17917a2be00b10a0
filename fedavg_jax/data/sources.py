"""Where the clients of a federation on disk come from."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import importlib
import itertools
import pathlib
import sys
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core import client_data
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import catalog
from fedavg_jax.data import natural
from fedavg_jax.data import partition
from fedavg_jax.data import readers
from fedavg_jax.data.dataset import Dataset

SOURCES = (
  *('leaf', 'shakespeare', 'words', 'mnist_writers'),
  *('images', 'arrays', 'generator'),
)
_IMAGES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.tif', '.tiff', '.webp')


class Source(NamedTuple):
  """Clients that can be read one after another, from any one on.

  Attributes:
    clients: number of a client -> the examples of it and of those after it.
    num_clients: 0 where that is not known before.
    test: the central test set.
    num_classes: labels are 0 .. num_classes - 1; None for those that there are.
    max_value: of a pixel.
    padding: of sequences.
  """

  clients: Callable[[int], Iterable[Examples]]
  num_clients: int
  test: Examples
  num_classes: int | None
  max_value: float
  padding: int | None = None


def open_source(kind: str, path: str) -> Source:
  """Opens what is to be converted.

  Raises:
    InputError: another kind, or a file that is missing or wrong.
  """
  if kind not in SOURCES:
    raise InputError(f'--source {kind}: must be one of {", ".join(SOURCES)}')
  if kind == 'generator':
    return _generator(path)
  place = pathlib.Path(path).expanduser()
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
  """A data set that fits into memory, by its natural clients."""
  assert dataset.owners is not None
  own = client_data.build_clients(
    dataset.train, partition.by_owner(dataset.owners)
  )
  return Source(
    clients=lambda first: _rows(own, first),
    num_clients=own.num_clients,
    test=dataset.test,
    num_classes=dataset.num_classes,
    max_value=dataset.max_value,
    padding=dataset.padding,
  )


def _rows(own: client_data.Clients, first: int) -> Iterator[Examples]:
  for k in range(first, own.num_clients):
    mine = slice(*own.offsets[k : k + 2])
    yield Examples(own.x[mine], own.y[mine])


def _leaf(folder: pathlib.Path) -> Source:
  """LEAF's users, a file of json at a time."""
  files = natural.leaf_files(folder, 'train')

  def users(file: pathlib.Path) -> list[Examples]:
    return [
      Examples(natural.with_channels(own.x), own.y)
      for own in readers.read_leaf(file).values()
    ]

  def clients(first: int) -> Iterator[Examples]:
    return itertools.islice(
      itertools.chain.from_iterable(map(users, files)), first, None
    )

  tests = [
    own
    for file in natural.leaf_files(folder, 'test')
    for own in users(file)
    if len(own.y)
  ]
  if len({own.x.shape[1:] for own in tests}) != 1:
    raise InputError(
      f'--path {folder}: the inputs of test/ must be some, of one shape'
    )
  return Source(
    clients=clients,
    num_clients=0,
    test=client_data.join(tests),
    num_classes=None,
    max_value=1.0,
  )


def _arrays(path: pathlib.Path) -> Source:
  """Arrays by client; those of a folder are read as they are needed."""
  names = ('x', 'y', 'client', 'x_test', 'y_test')
  arrays: dict[str, Any] = {}
  try:
    if path.is_dir():
      for name in names:
        if (path / f'{name}.npy').is_file():
          arrays[name] = np.load(
            path / f'{name}.npy', mmap_mode='r', allow_pickle=False
          )
    else:
      with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in names if name in file}
  except (OSError, ValueError, TypeError) as error:
    reason = str(error).splitlines()[0][:120]
    raise InputError(f'--path {path}: cannot be read ({reason})') from error
  if missing := [name for name in names if name not in arrays]:
    raise InputError(f'--path {path}: lacks {", ".join(missing)}')
  x, y, client, x_test, y_test = (arrays[name] for name in names)
  if not len(x) == len(y) == len(client) or client.ndim != 1:
    raise InputError(
      f'--path {path}: {len(x)} rows of x, {len(y)} of y, client of shape'
      f' {client.shape}; must be as many'
    )
  if client.dtype.kind not in 'iu' or y.dtype.kind not in 'iu':
    raise InputError(
      f'--path {path}: client is {client.dtype} and y {y.dtype}; must be whole'
      ' numbers'
    )
  order = np.argsort(client, kind='stable')
  _, begins = np.unique(client[order], return_index=True)
  ends = np.append(begins[1:], len(order))

  def clients(first: int) -> Iterator[Examples]:
    for begin, end in zip(begins[first:], ends[first:], strict=True):
      rows = np.sort(order[begin:end])
      yield _plain(x[rows], y[rows])

  return Source(
    clients=clients,
    num_clients=len(begins),
    test=_plain(x_test, y_test),
    num_classes=None,
    max_value=255.0 if x.dtype == np.uint8 else 1.0,
  )


def _generator(path: str) -> Source:
  """Clients that a function of the user makes."""
  module, _, name = path.partition(':')
  sys.path.insert(0, '')  # As python itself would find a script's neighbours.
  try:
    function = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise InputError(
      f'--path {path}: must be module:function ({error})'
    ) from error

  def clients(first: int) -> Iterator[Examples]:
    for own in function(first):
      yield _plain(*own)

  test = next(iter(clients(-1)))
  return Source(
    clients=clients,
    num_clients=0,
    test=test,
    num_classes=None,
    max_value=255.0 if test.x.dtype == np.uint8 else 1.0,
  )


def _images(folder: pathlib.Path) -> Source:
  """Images by client and label."""
  owners = sorted(p for p in (folder / 'train').glob('*') if p.is_dir())
  labels = sorted(
    {p.name for p in (folder / 'train').glob('*/*') if p.is_dir()}
    | {p.name for p in (folder / 'test').glob('*') if p.is_dir()}
  )
  owners = [own for own in owners if any(_files(own, labels))]
  test = list(_files(folder / 'test', labels))
  if not owners or not test:
    raise InputError(
      f'--path {folder}: must hold train/CLIENT/LABEL/ANY.png and'
      ' test/LABEL/ANY.png'
    )

  def clients(first: int) -> Iterator[Examples]:
    for own in owners[first:]:
      yield _read_images(_files(own, labels), shape)

  shape = _read_images(test[:1], None).x.shape[1:]
  return Source(
    clients=clients,
    num_clients=len(owners),
    test=_read_images(test, shape),
    num_classes=len(labels),
    max_value=255.0,
  )


def _files(folder: pathlib.Path, labels) -> Iterator[tuple[pathlib.Path, int]]:
  for label, name in enumerate(labels):
    for path in sorted((folder / name).glob('*')):
      if path.suffix.lower() in _IMAGES:
        yield path, label


def _read_images(files, shape: tuple[int, ...] | None) -> Examples:
  """Images of one shape [H, W, C], all if it is not known yet."""
  from PIL import Image  # Used here alone.

  x, y = [], []
  for path, label in files:
    try:
      with Image.open(path) as image:
        if image.mode not in ('L', 'RGB', 'RGBA'):
          image = image.convert('L' if image.mode in ('1', 'I') else 'RGB')
        pixels = np.asarray(image, np.uint8)
    except (OSError, ValueError) as error:
      raise InputError(
        f'{path}: cannot be read as an image'
        f' ({str(error).splitlines()[0][:100]})'
      ) from error
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if shape is not None and pixels.shape != shape:
      raise InputError(
        f'{path}: has the shape {pixels.shape}, others {shape}; must be one'
      )
    x.append(pixels)
    y.append(label)
  return Examples(np.stack(x), np.array(y, np.int32))


def _plain(x: Any, y: Any) -> Examples:
  """Examples in the types that a federation has; images with channels."""
  x, y = np.asarray(x), np.asarray(y)
  if x.dtype == np.float64:
    x = x.astype(np.float32)
  elif x.dtype.kind in 'iu' and x.dtype != np.uint8:
    x = x.astype(np.int32)
  if x.ndim == 3 and x.dtype != np.int32:
    x = x[..., None]
  return Examples(x, y.astype(np.int32))
