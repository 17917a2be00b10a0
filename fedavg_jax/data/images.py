"""Loads image data sets: MNIST, Fashion-MNIST, CIFAR-10 and digits."""

import pathlib
from typing import Any

import numpy as np

from fedavg_jax.core import client_data
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.folders import find_file
from fedavg_jax.data import readers
from fedavg_jax.data.data_dirs import did_you_mean
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.data.downloads import download
from fedavg_jax.data.downloads import tfds_dir
from fedavg_jax.data.downloads import unpack

_CIFAR_TRAIN = [f'data_batch_{i}.bin' for i in range(1, 6)]
_CIFAR_FILES = (*_CIFAR_TRAIN, 'test_batch.bin')
_WRITERS = 'qmnist-train-labels-idx2-int'

# (split, images x or labels y) -> file name, rank, number of rows.
_IDX_FILES = {
  ('train', 'x'): ('train-images-idx3-ubyte', 3, 60_000),
  ('train', 'y'): ('train-labels-idx1-ubyte', 1, 60_000),
  ('test', 'x'): ('t10k-images-idx3-ubyte', 3, 10_000),
  ('test', 'y'): ('t10k-labels-idx1-ubyte', 1, 10_000),
}

# Training examples of each label, which differ between the data sets.
_LABELS = {
  'mnist': [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
  'fashion_mnist': [6000] * 10,
}


def load_mnist(name: str, folder: pathlib.Path | None) -> Dataset:
  """Loads MNIST, Fashion-MNIST, or MNIST by writer.

  Raises:
    InputError: a file is missing or wrong, or cannot be downloaded.
  """
  files = 'mnist' if name == 'mnist_writers' else name
  paths = _find_idx_files(folder or tfds_dir() / files)
  if folder and name == 'mnist_writers':  # MNIST may be in its own folder.
    paths = _find_idx_files(folder / files) | paths
  missing = [key for key in _IDX_FILES if key not in paths]
  if missing and folder:
    raise InputError(
      f'data_dir = {str(folder)!r}: {folder / _IDX_FILES[missing[0]][0]}[.gz]'
      ' is missing; put the four original IDX files there, or leave data_dir'
      f' empty to download them{did_you_mean(folder, files)}'
    )
  if missing:
    download(files, _addresses(files), tfds_dir())
    paths = _find_idx_files(tfds_dir() / files)
  dataset = _from_idx(files, paths)
  if name == files:
    return dataset
  ids, owners = _writers(folder, dataset.train.y)
  names = tuple(str(writer) for writer in ids)
  return dataset._replace(name=name, owners=owners, client_names=names)


def _writers(
  folder: pathlib.Path | None, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Reads QMNIST writers: sorted ids [K], and the owner of each digit [n]."""
  places = [folder, folder / 'qmnist_writers'] if folder else []
  found = [
    path
    for place in places
    for path in (place / f'{_WRITERS}.gz', place / _WRITERS)
    if path.is_file()
  ]
  if not found:
    raise InputError(
      f'data_dir = {str(folder or "")!r}: {_WRITERS}[.gz] is missing; put'
      " QMNIST's file next to MNIST's four"
    )
  digits, writers = readers.read_qmnist_writers(found[0])
  if not np.array_equal(digits, labels):
    raise InputError(
      f"{found[0]}: labels are not those of MNIST's training digits;"
      f' {readers.GET_ANEW}'
    )
  ids, owners = np.unique(writers, return_inverse=True)
  return ids, owners.astype(np.int32)


def _find_idx_files(
  folder: pathlib.Path,
) -> dict[tuple[str, str], pathlib.Path]:
  """Finds those of the four IDX files that a folder has.

  It accepts NAME and NAME.gz; the names of Kaggle's archives, with a dot before
  idx and each file in a folder of its name; and torchvision's folder raw/.
  """
  found = {}
  for key, (stem, _, _) in _IDX_FILES.items():
    dotted = stem.replace('-idx', '.idx')
    names = [stem, f'{stem}.gz', dotted, f'{dotted}.gz']
    names += [f'{name}/{name}' for name in (stem, dotted)]
    names += [f'{stem}/{dotted}', f'raw/{stem}', f'raw/{stem}.gz']
    for name in reversed(names):
      if path := find_file(folder, name):
        found[key] = path
  return found


def _from_idx(name, paths) -> Dataset:
  arrays = {}
  for key, (_, rank, rows) in _IDX_FILES.items():
    array = readers.read_idx(paths[key], (rows, 28, 28)[:rank])
    if rank == 1 and array.max() > 9:
      raise InputError(
        f'{paths[key]}: has label {array.max()}; must be in [0, 9];'
        f' {readers.GET_ANEW}'
      )
    if key == ('train', 'y') and np.bincount(array).tolist() != _LABELS[name]:
      raise InputError(
        f'{paths[key]}: does not have the labels of {name}; set dataset to the'
        ' one in this folder, or data_dir to the folder of this one'
      )
    arrays[key] = array
  train, test = (
    Examples(arrays[split, 'x'][..., None], arrays[split, 'y'].astype(np.int32))
    for split in ('train', 'test')
  )
  return Dataset(name, train, test, num_classes=10, max_value=255.0)


def load_cifar10(folder: pathlib.Path | None) -> Dataset:
  """Loads CIFAR-10: 50,000 and 10,000 colour images of 32 x 32, in file order.

  Raises:
    InputError: a file is missing or wrong, or cannot be downloaded.
  """
  place = folder or tfds_dir() / 'cifar10'
  if not folder and not all((place / name).is_file() for name in _CIFAR_FILES):
    (archive,) = download('cifar10', _addresses('cifar10'), tfds_dir()).values()
    unpack(archive, _CIFAR_FILES)
  parts = []
  for name in _CIFAR_FILES:
    if not (place / name).is_file():
      raise InputError(
        f'data_dir = {str(folder or "")!r}: {name} is missing; must be the'
        ' folder cifar-10-batches-bin, with its six files, or empty to'
        f' download them{did_you_mean(folder, "cifar10")}'
      )
    x, y = readers.read_cifar10(place / name)
    if len(y) != 10_000:
      raise InputError(
        f'{place / name}: expected 10,000 images, got {len(y):,};'
        f' {readers.GET_ANEW}'
      )
    parts.append(Examples(x, y))
  *train, test = parts
  return Dataset(
    'cifar10', client_data.join(train), test, num_classes=10, max_value=255.0
  )


def load_digits() -> Dataset:
  """Loads 1,500 training and 297 test digits, shuffled with a fixed seed."""
  # Their source and licence are in digits.txt.
  with np.load(pathlib.Path(__file__).with_name('digits.npz')) as arrays:
    x, y = arrays['x'][..., None], arrays['y'].astype(np.int32)
  order = np.random.default_rng(0).permutation(len(y))
  x, y = x[order], y[order]
  return Dataset(
    'digits',
    train=Examples(x[:1500], y[:1500]),
    test=Examples(x[1500:], y[1500:]),
    num_classes=10,
    max_value=16.0,
  )


def _addresses(name: str) -> dict[str, str]:
  """Returns file name -> address for an image data set."""
  import tensorflow_datasets as tfds

  builder: Any = tfds.builder_cls(name)
  if name == 'cifar10':
    return {url.rpartition('/')[2]: url for url in builder.url_infos}
  stems = [stem for stem, _, _ in _IDX_FILES.values()]
  return {f'{stem}.gz': f'{builder.URL}{stem}.gz' for stem in stems}
