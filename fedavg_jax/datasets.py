"""Files and packages to arrays. NumPy only; heavy imports happen on use.

* `digits`: 1,797 real handwritten digits of 8 x 8 that scikit-learn ships.
* `mnist`, `fashion_mnist`: the four original IDX files, from a folder or
  downloaded through tensorflow-datasets, which knows their checksums.
* `cifar10`: the six files of `cifar-10-batches-bin`, in the same two ways.
* `mnist_writers`: MNIST by the writers of its digits, with QMNIST's labels.
* `leaf`: LEAF's json by user, such as FEMNIST.
* `shakespeare`: characters by role of a play. `words`: a text by author.

The last four have natural clients, `Dataset.owners`.

* `stored`: a folder that `python -m fedavg_jax.convert` has written, whose
  clients stay on disk, `Dataset.clients`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
import shutil
import tarfile
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from fedavg_jax import clients as clients_lib
from fedavg_jax import readers
from fedavg_jax import stored
from fedavg_jax import texts
from fedavg_jax.clients import Clients
from fedavg_jax.clients import Examples
from fedavg_jax.errors import InputError

NAMES = (
  *('digits', 'mnist', 'fashion_mnist', 'cifar10'),
  *('mnist_writers', 'leaf', 'shakespeare', 'words', 'stored'),
)
# Unrolled time steps, words of the vocabulary and most words of an author, all
# of McMahan et al. 2017; every tenth author is kept for the test.
_LINE, _PHRASE = 80, 10
_VOCABULARY, _MOST_WORDS, _TEST_AUTHORS = 10_000, 5000, 10
_CIFAR_TRAIN = [f'data_batch_{i}.bin' for i in range(1, 6)]
_CIFAR_FILES = (*_CIFAR_TRAIN, 'test_batch.bin')
_WRITERS = 'qmnist-train-labels-idx2-int'

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
  """A supervised data set of images, or of sequences of tokens.

  Attributes:
    name: one of `NAMES`.
    train: x [n, H, W, C] uint8, y [n] int32; of sequences x [n, T] int32 and
      y [n, T] int32, the token that follows, `losses.NO_LABEL` for none.
    test: the same of the test set.
    num_classes: labels are 0 .. num_classes - 1.
    max_value: the largest value that a pixel can have.
    owners: [n] int32, whose each training example is where the data have
      natural clients 0 .. K - 1, else None.
    padding: token behind the end of a sequence, None where all are full.
    clients: natural clients of a federation on disk, whose `train` is theirs.
    statistics: mean and standard deviation of all its pixels, in [0, 1].
    sha256: of all its files, in hexadecimal.
  """

  name: str
  train: Examples
  test: Examples
  num_classes: int
  max_value: float
  owners: np.ndarray | None = None
  padding: int | None = None
  clients: Clients | None = None
  statistics: tuple[float, float] | None = None
  sha256: str = ''

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Shape of one example."""
    return self.train.x.shape[1:]

  def pixel_statistics(self) -> tuple[float, float]:
    """Mean and standard deviation of all training pixels, scaled to [0, 1]."""
    if self.statistics is not None:
      return self.statistics
    if self.train.x.dtype != np.uint8:
      scaled = self.train.x.astype(np.float64) / self.max_value
      return float(scaled.mean()), float(scaled.std())
    values = np.arange(256) / self.max_value
    weights = np.bincount(self.train.x.ravel(), minlength=256)
    weights = weights / weights.sum()
    mean = float(weights @ values)
    return mean, float(np.sqrt(weights @ (values - mean) ** 2))


def load_dataset(name: str, data_dir: str = '') -> Dataset:
  """Loads a data set.

  Args:
    name: one of `NAMES`.
    data_dir: what holds it. For MNIST, Fashion-MNIST and CIFAR-10 a folder with
      their original files, gzipped or not; empty to get them through
      tensorflow-datasets (kept in `tfds_dir()`). `mnist_writers`: a folder with
      MNIST's files and QMNIST's `qmnist-train-labels-idx2-int`. `leaf`: a
      folder with json in train/ and test/. `shakespeare`: Project Gutenberg's
      eBook 100, a file or a folder with it, or a folder of plays. `words`: as
      `texts.read_authors` takes it. `digits` needs none.

  Raises:
    InputError: another name, or a file that is missing, cut short or wrong.
  """
  if name not in NAMES:
    raise InputError(f'dataset = {name!r}: must be one of {", ".join(NAMES)}')
  # Unlike Path.expanduser, leaves the home of nobody as it is.
  folder = pathlib.Path(os.path.expanduser(data_dir)) if data_dir else None
  if name == 'digits':
    return _digits()
  if name in ('mnist', 'fashion_mnist', 'mnist_writers'):
    return _mnist(name, folder)
  if name == 'cifar10':
    return _cifar10(folder)
  if folder is None or not folder.exists():
    raise InputError(
      f'data_dir = {data_dir!r}: must name what holds {name}; there is no such'
      ' file or folder'
    )
  return {
    'leaf': _leaf,
    'shakespeare': _shakespeare,
    'words': _words,
    'stored': _stored,
  }[name](folder)


def in_memory(dataset: Dataset) -> Dataset:
  """A data set whose clients are on disk, read into memory: as all others."""
  if dataset.clients is None:
    return dataset
  sizes = dataset.clients.num_examples
  return dataset._replace(
    train=Examples(*map(np.asarray, dataset.train)),
    owners=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
    clients=None,
  )


def tfds_dir() -> pathlib.Path:
  """Where tensorflow-datasets keeps downloads: $TFDS_DATA_DIR/downloads."""
  home = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return pathlib.Path(home).expanduser() / 'downloads'


def download(
  name: str, files: Mapping[str, str], download_dir: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Gets files through tensorflow-datasets' download manager.

  It verifies size and SHA-256 against what tensorflow-datasets registers. The
  manager needs no TensorFlow, unlike the builders of these data sets, which
  encode every image with it. The verified files are linked under their own
  names into download_dir/NAME, where the next start finds them without
  tensorflow-datasets.

  Args:
    name: of the data set there.
    files: file name -> address.
    download_dir: where downloads are kept.

  Returns:
    File name -> path.

  Raises:
    InputError: no network, no space, or a wrong checksum.
  """
  import requests
  import tensorflow_datasets as tfds  # Heavy, and needed once.
  from tensorflow_datasets.core.download import download_manager

  builder: Any = tfds.builder_cls(name)
  try:
    # The manager would try for minutes; a machine without network knows now.
    requests.head(
      min(files.values(), key=len), timeout=20, allow_redirects=True
    )
    manager = tfds.download.DownloadManager(
      download_dir=download_dir,
      url_infos=builder.url_infos,
      dataset_name=name,
      force_checksums_validation=True,
    )
    downloads: Any = manager.download(dict(files))
    return {
      file: _link(pathlib.Path(downloads[file]), download_dir / name / file)
      for file in files
    }
  except (
    OSError,  # Those of requests are OSErrors too.
    tfds.download.DownloadError,
    download_manager.NonMatchingChecksumError,
  ) as error:
    reason = f'{type(error).__name__}: {" ".join(str(error).split())}'[:160]
    raise InputError(
      f'dataset = {name!r}: tensorflow-datasets could not get it from'
      f' {min(files.values(), key=len)} into {download_dir} ({reason}); put the'
      ' original files in a folder and name it in data_dir'
    ) from error


def _addresses(name: str) -> dict[str, str]:
  """File name -> address of an image data set's files."""
  import tensorflow_datasets as tfds

  builder: Any = tfds.builder_cls(name)
  if name == 'cifar10':
    return {url.rpartition('/')[2]: url for url in builder.url_infos}
  stems = [stem for stem, _, _ in _IDX_FILES.values()]
  return {f'{stem}.gz': f'{builder.URL}{stem}.gz' for stem in stems}


def _mnist(name: str, folder: pathlib.Path | None) -> Dataset:
  """MNIST and what has its four files."""
  files = 'mnist' if name == 'mnist_writers' else name
  paths = _find_idx_files(folder or tfds_dir() / files)
  if folder and name == 'mnist_writers':  # They may lie side by side.
    paths = _find_idx_files(folder / files) | paths
  missing = [key for key in _IDX_FILES if key not in paths]
  if missing and folder:
    raise InputError(
      f'data_dir = {str(folder)!r}: {folder / _IDX_FILES[missing[0]][0]}[.gz]'
      ' is missing; put the four original IDX files there, or leave data_dir'
      ' empty to download them'
    )
  if missing:
    download(files, _addresses(files), tfds_dir())
    paths = _find_idx_files(tfds_dir() / files)
  dataset = _from_idx(files, paths)
  if name == files:
    return dataset
  owners = _writers(folder, dataset.train.y)
  return dataset._replace(name=name, owners=owners)


def _writers(folder: pathlib.Path | None, labels: np.ndarray) -> np.ndarray:
  """Whose every training digit is; writers are numbered by their ids."""
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
      " QMNIST's file beside MNIST's four"
    )
  digits, writers = readers.read_qmnist_writers(found[0])
  if not np.array_equal(digits, labels):
    raise InputError(
      f"{found[0]}: its labels are not those of MNIST's training digits;"
      f' {readers.GET_ANEW}'
    )
  _, owners = np.unique(writers, return_inverse=True)
  return owners.astype(np.int32)


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
  place = folder or tfds_dir() / 'cifar10'
  if not folder and not all((place / name).is_file() for name in _CIFAR_FILES):
    (archive,) = download('cifar10', _addresses('cifar10'), tfds_dir()).values()
    _unpack(archive, _CIFAR_FILES)
  parts = []
  for name in _CIFAR_FILES:
    if not (place / name).is_file():
      raise InputError(
        f'data_dir = {str(folder or "")!r}: {name} is missing; must name the'
        ' folder cifar-10-batches-bin, with its six files, or be empty to'
        ' download them'
      )
    x, y = readers.read_cifar10(place / name)
    if len(y) != 10_000:
      raise InputError(
        f'{place / name}: holds {len(y):,} images, must hold 10,000;'
        f' {readers.GET_ANEW}'
      )
    parts.append(Examples(x, y))
  *train, test = parts
  return Dataset(
    'cifar10', clients_lib.join(train), test, num_classes=10, max_value=255.0
  )


def _unpack(archive: pathlib.Path, names: Sequence[str]) -> None:
  """Copies files of an archive beside it, whatever folder they are in there."""
  with tarfile.open(archive) as tar:
    for member in tar:
      name = pathlib.PurePosixPath(member.name).name
      content = tar.extractfile(member) if name in names else None
      if content is not None:
        part = archive.parent / f'{name}.part'
        part.write_bytes(content.read())
        part.replace(archive.parent / name)  # Never half of it.


def leaf_files(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
  """The json of a split, 'train' or 'test', of LEAF's.

  Raises:
    InputError: there is none.
  """
  files = sorted(
    path
    for path in (folder / split).glob('*')
    if path.name.endswith(('.json', '.json.gz'))
  )
  if not files:
    raise InputError(
      f'data_dir = {str(folder)!r}: {split}/ holds no json; must be a folder'
      " of LEAF's, with train/ and test/"
    )
  return files


def with_channels(x: np.ndarray) -> np.ndarray:
  """LEAF's inputs [n, ...] as images [n, H, W, C]."""
  shape = x.shape[1:]
  if len(shape) == 1:  # Rows of pixels, most often of a square image.
    side = int(np.sqrt(shape[0]))
    shape = (side, side) if side**2 == shape[0] else (shape[0], 1)
  if len(shape) == 2:
    shape = (*shape, 1)
  return x.reshape(len(x), *shape)


def _leaf(folder: pathlib.Path) -> Dataset:
  """LEAF's users as clients: those with training examples, in their order."""
  train, test = (
    [
      own
      for file in leaf_files(folder, split)
      for own in readers.read_leaf(file).values()
      if len(own.y)
    ]
    for split in ('train', 'test')
  )
  shapes = {own.x.shape[1:] for own in train + test}
  if not train or not test or len(shapes) > 1:
    raise InputError(
      f'data_dir = {str(folder)!r}: inputs have the shapes {sorted(shapes)};'
      ' train and test must both have examples, of one shape'
    )
  joined = [clients_lib.join(split) for split in (train, test)]
  return Dataset(
    'leaf',
    *(own._replace(x=with_channels(own.x)) for own in joined),
    num_classes=int(max(own.y.max() for own in joined)) + 1,
    max_value=1.0,
    owners=_owners(train),
  )


def _shakespeare(path: pathlib.Path) -> Dataset:
  """Lines of the roles of plays that have two at least."""
  parts = [
    [texts.encode_lines(lines, _LINE) for lines in texts.split_lines(lines)]
    for play in _plays(path).values()
    for lines in play.values()
    if len(lines) >= 2
  ]
  if not parts:
    raise InputError(f'{path}: no role has two lines')
  train, test = zip(*parts, strict=True)
  return Dataset(
    'shakespeare',
    clients_lib.join(train),
    clients_lib.join(test),
    num_classes=texts.NUM_CHARACTERS,
    max_value=1.0,
    owners=_owners(train),
    padding=texts.PADDING,
  )


def _plays(path: pathlib.Path) -> dict[str, dict[str, list[str]]]:
  """The plays of the eBook, or of a folder with one in each file."""
  if path.is_file():
    return texts.read_complete_works(path)
  files = sorted(path.glob('*.txt')) + sorted(path.glob('*.zip'))
  whole = [file for file in files if file.stem in ('100-0', 'pg100', '100')]
  if whole:
    return texts.read_complete_works(whole[0])
  plays, poems = {}, []
  for file in files:
    try:
      plays[file.stem] = texts.read_play(file)
    except InputError as error:
      poems.append(error)
  if not plays and poems:
    raise poems[0]
  if not plays:
    raise InputError(
      f'data_dir = {str(path)!r}: holds neither 100-0.txt nor 100-0.zip of'
      ' Project Gutenberg nor plays, NAME.txt'
    )
  for error in poems:
    logging.info('left out: %s', error)
  return plays


def _words(path: pathlib.Path) -> Dataset:
  """Words of authors; every tenth in alphabetical order is tested on."""
  authors = [words[:_MOST_WORDS] for words in texts.read_authors(path).values()]
  every = min(_TEST_AUTHORS, len(authors))
  test = authors[every - 1 :: every]
  train = [words for i, words in enumerate(authors, 1) if i % every]
  tokens = texts.vocabulary(train, _VOCABULARY)
  parts = [
    [texts.encode_words(words, tokens, _PHRASE) for words in split]
    for split in (train, test)
  ]
  parts = [[own for own in split if len(own.y)] for split in parts]
  if not all(parts):
    raise InputError(f'{path}: must have two authors of two words at least')
  return Dataset(
    'words',
    *map(clients_lib.join, parts),
    num_classes=_VOCABULARY,
    max_value=1.0,
    owners=_owners(parts[0]),
  )


def _stored(folder: pathlib.Path) -> Dataset:
  """A federation on disk; its clients are opened, not read."""
  own = stored.read(folder)
  return Dataset(
    'stored',
    train=Examples(own.clients.x, own.clients.y),
    test=own.test,
    num_classes=own.num_classes,
    max_value=own.max_value,
    padding=own.padding,
    clients=own.clients,
    statistics=own.statistics,
    sha256=own.sha256,
  )


def _owners(parts: Sequence[Examples]) -> np.ndarray:
  """Client i for each example of part i."""
  sizes = [len(part.y) for part in parts]
  return np.repeat(np.arange(len(parts), dtype=np.int32), sizes)


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
