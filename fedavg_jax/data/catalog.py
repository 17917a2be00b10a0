"""Files and packages to arrays. NumPy only; heavy imports happen on use.

* `digits`: 1,797 real handwritten digits of 8 x 8 that scikit-learn ships.
* `mnist`, `fashion_mnist`: the four original IDX files, from a folder or
  downloaded through tensorflow-datasets, which knows their checksums.
* `cifar10`: the six files of `cifar-10-batches-bin`, in the same two ways.
* `mnist_writers`: MNIST by the writers of its digits, with QMNIST's labels.
* `leaf`: LEAF's json by user, such as FEMNIST.
* `shakespeare`: characters by role of a play. `words`: a text by author.

The last four have natural clients, `Dataset.owners`.

* `stored`: a folder that `fedavg-jax convert` has written, whose
  clients stay on disk, `Dataset.clients`.
"""

import os
import pathlib

from fedavg_jax.core import choices
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import stored
from fedavg_jax.data.data_dirs import shared_folder
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.data.images import load_cifar10
from fedavg_jax.data.images import load_digits
from fedavg_jax.data.images import load_mnist
from fedavg_jax.data.leaf import load_leaf
from fedavg_jax.data.natural import load_shakespeare
from fedavg_jax.data.natural import load_words


def load_dataset(name: str, data_dir: str = '') -> Dataset:
  """Loads a data set.

  Args:
    name: one of `choices.DATASETS`.
    data_dir: what holds it; where it is empty, the data set's folder in
      $FEDAVG_DATA, such as mnist/, if there is one. For MNIST, Fashion-MNIST
      and CIFAR-10 a folder with their original files, gzipped or not; empty,
      and nothing in $FEDAVG_DATA, gets them through
      tensorflow-datasets (kept in `tfds_dir()`). `mnist_writers`: a folder with
      MNIST's files and QMNIST's `qmnist-train-labels-idx2-int`. `leaf`: a
      folder with json in train/ and test/. `shakespeare`: Project Gutenberg's
      eBook 100, a file or a folder with it, or a folder of plays. `words`: as
      `texts.read_authors` takes it. `digits` needs none.

  Raises:
    InputError: another name, or a file that is missing, cut short or wrong.
  """
  choices.check_choice('dataset', name, choices.DATASETS)
  # Unlike Path.expanduser, leaves the home of nobody as it is.
  folder = pathlib.Path(os.path.expanduser(data_dir)) if data_dir else None
  if folder is None:
    folder = shared_folder(name)
  if name == 'digits':
    return load_digits()
  if name in ('mnist', 'fashion_mnist', 'mnist_writers'):
    return load_mnist(name, folder)
  if name == 'cifar10':
    return load_cifar10(folder)
  if folder is None or not folder.exists():
    raise InputError(
      f'data_dir = {data_dir!r}: must name what holds {name}; there is no such'
      ' file or folder, and $FEDAVG_DATA has none'
    )
  return {
    'leaf': load_leaf,
    'shakespeare': load_shakespeare,
    'words': load_words,
    'stored': _stored,
  }[name](folder)


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
