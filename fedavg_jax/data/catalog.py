"""Loads data sets from files and packages by name.

NumPy only; heavy packages are imported when they are used.

* `digits`: 1,797 real handwritten digits of 8 x 8, in the package.
* `mnist`, `fashion_mnist`: the four original IDX files, from a folder or
  downloaded through tensorflow-datasets, which knows their checksums.
* `cifar10`: the six files of `cifar-10-batches-bin`, in the same two ways.
* `mnist_writers`: MNIST by the writers of its digits, with QMNIST's labels.
* `leaf`: LEAF's json by user, such as FEMNIST.
* `shakespeare`: characters by role of a play. `words`: a text by author.

The last four have natural clients, `Dataset.owners`.

* `stored`: a folder that `fedavg-jax convert` has written, whose
  clients stay on disk, `Dataset.clients`.
* `hf:NAME`, `tfds:NAME`, `parquet`: by other libraries, see `libraries`.
"""

import os
import pathlib

from fedavg_jax.core import choices
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import libraries
from fedavg_jax.data import stored
from fedavg_jax.data.data_dirs import shared_folder
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.data.images import load_cifar10
from fedavg_jax.data.images import load_digits
from fedavg_jax.data.images import load_mnist
from fedavg_jax.data.leaf import load_leaf
from fedavg_jax.data.natural import load_shakespeare
from fedavg_jax.data.natural import load_words
from fedavg_jax.data.tables import Columns


def load_dataset(
  name: str,
  data_dir: str = '',
  columns: Columns = Columns(),  # noqa: B008
) -> Dataset:
  """Loads a data set by name.

  * MNIST, Fashion-MNIST and CIFAR-10 need a folder with their original files,
    gzipped or not. Without a folder they are downloaded through
    tensorflow-datasets to `tfds_dir()`.
  * `mnist_writers` needs a folder with MNIST's files and QMNIST's
    `qmnist-train-labels-idx2-int` (Yadav and Bottou 2019).
  * `leaf` needs a folder with json in train/ and test/ (Caldas et al. 2018).
  * `shakespeare` needs Project Gutenberg's eBook 100, as a file or in a folder,
    or a folder of plays.
  * `words` needs a folder or file of `texts.read_authors`.
  * `stored` needs a folder that `fedavg-jax convert` has written.
  * `hf:NAME`, `tfds:NAME` and `parquet` need a library and the names of the
    columns, see `libraries`.
  * `digits` needs nothing.

  Args:
    name: one of `choices.DATASETS`, or `hf:NAME` or `tfds:NAME`.
    data_dir: the folder or file with the data. Where it is empty, the data
      set's folder in $FEDAVG_DATA, such as mnist/, is used if it exists.
    columns: the names of columns and splits of a library's data set.

  Raises:
    InputError: the name is unknown, or a file is missing, cut short or wrong.

  >>> import tempfile
  >>> import fedavg_jax as fa
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   for name in ('ann.txt', 'bob.txt'):
  ...     _ = (pathlib.Path(folder) / name).write_text('to be or not')
  ...   data = fa.load_dataset('words', folder)
  >>> data.train.x.shape, data.client_names  # Ann trains, Bob is tested.
  ((1, 10), ('ann',))
  """
  if not choices.is_of_library(name):
    choices.check_choice('dataset', name, choices.DATASETS)
  # Unlike Path.expanduser, this does not fail for an unknown user.
  folder = pathlib.Path(os.path.expanduser(data_dir)) if data_dir else None
  if folder is None:
    folder = shared_folder(name)
  if choices.is_of_library(name):
    return libraries.load(name, folder, columns)
  if name == 'digits':
    return load_digits()
  if name in ('mnist', 'fashion_mnist', 'mnist_writers'):
    return load_mnist(name, folder)
  if name == 'cifar10':
    return load_cifar10(folder)
  if folder is None or not folder.exists():
    raise InputError(
      f'data_dir = {data_dir!r}: must be a file or folder with {name}; it does'
      ' not exist, and $FEDAVG_DATA has none'
    )
  return {
    'leaf': load_leaf,
    'shakespeare': load_shakespeare,
    'words': load_words,
    'stored': _stored,
  }[name](folder)


def _stored(folder: pathlib.Path) -> Dataset:
  """Opens a federation on disk; its clients' examples are not read."""
  found = stored.read(folder)
  return Dataset(
    'stored',
    train=Examples(found.clients.x, found.clients.y),
    test=found.test,
    num_classes=found.num_classes,
    max_value=found.max_value,
    padding=found.padding,
    clients=found.clients,
    statistics=found.statistics,
    sha256=found.sha256,
  )
