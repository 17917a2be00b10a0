"""Files and packages to arrays. NumPy only; heavy imports happen on use.

* `digits`: 1,797 real handwritten digits of 8 x 8 that scikit-learn ships.
* `mnist`, `fashion_mnist`: the four original IDX files, from a folder or
  downloaded through tensorflow-datasets, which knows their checksums.
* `cifar10`: the six files of `cifar-10-batches-bin`, from a folder.
"""

import os
import pathlib
import shutil
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax import readers
from fedavg_jax.clients import Examples
from fedavg_jax.errors import InputError

NAMES = ('digits', 'mnist', 'fashion_mnist', 'cifar10')

# Part of an example's split, whether images or labels, rank, number of rows.
_IDX_FILES = {
  ('train', 'x'): ('train-images-idx3-ubyte', 3, 60_000),
  ('train', 'y'): ('train-labels-idx1-ubyte', 1, 60_000),
  ('test', 'x'): ('t10k-images-idx3-ubyte', 3, 10_000),
  ('test', 'y'): ('t10k-labels-idx1-ubyte', 1, 10_000),
}

# Training examples of each label: tells one data set's files from another's.
_LABELS = {
  'mnist': [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
  'fashion_mnist': [6000] * 10,
}


class Dataset(NamedTuple):
  """A supervised data set of images.

  Attributes:
    name: one of `NAMES`.
    train: x [n, H, W, C] uint8, y [n] int32.
    test: the same of the test set.
    num_classes: labels are 0 .. num_classes - 1.
    max_value: the largest value that a pixel can have.
    owners: [n] int32, whose each training example is where the data have
      natural clients 0 .. K - 1, else None.
  """

  name: str
  train: Examples
  test: Examples
  num_classes: int
  max_value: float
  owners: np.ndarray | None = None

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Shape of one example."""
    return self.train.x.shape[1:]

  def pixel_statistics(self) -> tuple[float, float]:
    """Mean and standard deviation of all training pixels, scaled to [0, 1]."""
    values = np.arange(256) / self.max_value
    weights = np.bincount(self.train.x.ravel(), minlength=256)
    weights = weights / weights.sum()
    mean = float(weights @ values)
    return mean, float(np.sqrt(weights @ (values - mean) ** 2))


def load_dataset(name: str, data_dir: str = '') -> Dataset:
  """Loads a data set.

  Args:
    name: one of `NAMES`.
    data_dir: a folder with the four IDX files, gzipped or not; empty to get
      them through tensorflow-datasets (kept in `tfds_dir()`). For `cifar10` the
      folder with its six files. `digits` needs none.

  Raises:
    InputError: another name, or a file that is missing, cut short or wrong.
  """
  if name == 'digits':
    return _digits()
  if name not in NAMES:
    raise InputError(f'dataset = {name!r}: must be one of {", ".join(NAMES)}')
  # Unlike Path.expanduser, leaves the home of nobody as it is.
  folder = pathlib.Path(os.path.expanduser(data_dir)) if data_dir else None
  if name == 'cifar10':
    return _cifar10(folder)
  paths = _find_idx_files(folder or tfds_dir() / name)
  missing = [key for key in _IDX_FILES if key not in paths]
  if missing and folder:
    raise InputError(
      f'data_dir = {data_dir!r}: {folder / _IDX_FILES[missing[0]][0]}[.gz] is'
      ' missing; put the four original IDX files there, or leave data_dir'
      ' empty to download them'
    )
  if missing:
    paths = download_idx_files(name, tfds_dir())
  return _from_idx(name, paths)


def tfds_dir() -> pathlib.Path:
  """Where tensorflow-datasets keeps downloads: $TFDS_DATA_DIR/downloads."""
  home = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return pathlib.Path(home).expanduser() / 'downloads'


def download_idx_files(
  name: str, download_dir: pathlib.Path
) -> dict[tuple[str, str], pathlib.Path]:
  """Gets the four IDX files through tensorflow-datasets' download manager.

  It verifies size and SHA-256 against what tensorflow-datasets registers. The
  manager needs no TensorFlow, unlike the builder of these data sets, which
  decompresses and encodes every image with it. The verified files are linked
  under their own names into download_dir/NAME, where the next start finds them
  without tensorflow-datasets.

  Args:
    name: 'mnist' or 'fashion_mnist'.
    download_dir: where downloads are kept.

  Returns:
    Paths by (split, part).

  Raises:
    InputError: no network, no space, or a wrong checksum.
  """
  import requests
  import tensorflow_datasets as tfds  # Heavy, and needed once.
  from tensorflow_datasets.core.download import download_manager

  builder: Any = tfds.builder_cls(name)
  urls = {
    key: f'{builder.URL}{stem}.gz' for key, (stem, _, _) in _IDX_FILES.items()
  }
  try:
    # The manager would try for minutes; a machine without network knows now.
    requests.head(urls['test', 'y'], timeout=20, allow_redirects=True)
    manager = tfds.download.DownloadManager(
      download_dir=download_dir,
      url_infos=builder.url_infos,
      dataset_name=name,
      force_checksums_validation=True,
    )
    downloads: Any = manager.download(urls)
    return {
      key: _link(
        pathlib.Path(downloads[key]), download_dir / name / f'{stem}.gz'
      )
      for key, (stem, _, _) in _IDX_FILES.items()
    }
  except (
    OSError,  # Those of requests are OSErrors too.
    tfds.download.DownloadError,
    download_manager.NonMatchingChecksumError,
  ) as error:
    reason = f'{type(error).__name__}: {" ".join(str(error).split())}'[:160]
    raise InputError(
      f'dataset = {name!r}: tensorflow-datasets could not get it from'
      f' {builder.URL} into {download_dir} ({reason}); put the four original'
      ' IDX files in a folder and name it in data_dir'
    ) from error


def _find_idx_files(
  folder: pathlib.Path,
) -> dict[tuple[str, str], pathlib.Path]:
  """Those of the four IDX files that a folder has, as NAME or NAME.gz."""
  return {
    key: path
    for key, (stem, _, _) in _IDX_FILES.items()
    for path in (folder / f'{stem}.gz', folder / stem)
    if path.is_file()
  }


def _link(path: pathlib.Path, name: pathlib.Path) -> pathlib.Path:
  """Gives a file a second name; a copy where the file system has no links."""
  name.unlink(missing_ok=True)
  try:
    os.link(path, name)
  except OSError:
    shutil.copyfile(path, name)
  return name


def _from_idx(name, paths) -> Dataset:
  arrays = {}
  for key, (_, rank, rows) in _IDX_FILES.items():
    array = readers.read_idx(paths[key], (rows, 28, 28)[:rank])
    if rank == 1 and array.max() > 9:
      raise InputError(
        f'{paths[key]}: has a label {array.max()}, {name} has 0 to 9;'
        f' {readers.GET_ANEW}'
      )
    if key == ('train', 'y') and np.bincount(array).tolist() != _LABELS[name]:
      raise InputError(
        f'{paths[key]}: not the labels of {name}; name the data set that is in'
        ' this folder, or the folder that has this one'
      )
    arrays[key] = array
  train, test = (
    Examples(arrays[split, 'x'][..., None], arrays[split, 'y'].astype(np.int32))
    for split in ('train', 'test')
  )
  return Dataset(name, train, test, num_classes=10, max_value=255.0)


def _cifar10(folder: pathlib.Path | None) -> Dataset:
  """50,000 and 10,000 images of 32 x 32 in colour, in the files' order."""
  names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
  parts = []
  for name in names:
    if folder is None or not (folder / name).is_file():
      raise InputError(
        f'data_dir = {str(folder or "")!r}: {name} is missing; must name the'
        ' folder cifar-10-batches-bin, with its six files'
      )
    x, y = readers.read_cifar10(folder / name)
    if len(y) != 10_000:
      raise InputError(
        f'{folder / name}: holds {len(y):,} images, must hold 10,000;'
        f' {readers.GET_ANEW}'
      )
    parts.append(Examples(x, y))
  *train, test = parts
  return Dataset(
    'cifar10',
    train=Examples(*map(np.concatenate, zip(*train, strict=True))),
    test=test,
    num_classes=10,
    max_value=255.0,
  )


def _digits() -> Dataset:
  """Digits 0 to 9, shuffled once with a fixed seed: 1,500 train, 297 test."""
  from sklearn.datasets import load_digits  # Takes a second; used here alone.

  bunch: Any = load_digits()
  order = np.random.default_rng(0).permutation(len(bunch.target))
  x = bunch.images.astype(np.uint8)[order][..., None]
  y = bunch.target.astype(np.int32)[order]
  return Dataset(
    'digits',
    train=Examples(x[:1500], y[:1500]),
    test=Examples(x[1500:], y[1500:]),
    num_classes=10,
    max_value=16.0,
  )
