"""Finds data sets in $FEDAVG_DATA, and suggests folders for error messages."""

import os
import pathlib

from fedavg_jax.core.errors import InputError

# Names of a data set's folder in $FEDAVG_DATA; the first that exists is used.
_FOLDERS = {
  'mnist': ('mnist', 'MNIST'),
  'fashion_mnist': ('fashion_mnist', 'FashionMNIST'),
  'cifar10': ('cifar10', 'cifar-10-batches-bin'),
  'leaf': ('leaf', 'femnist_leaf'),
  'shakespeare': ('shakespeare',),
  'words': ('words',),
}
# A file that the folder must contain, because the name alone is ambiguous.
_SIGNS = {'cifar10': 'data_batch_1.bin'}


def shared_folder(name: str) -> pathlib.Path | None:
  """Returns the folder of a data set in $FEDAVG_DATA, or None.

  That of MNIST by writer is $FEDAVG_DATA itself, which has both mnist/ and
  qmnist_writers/.

  Raises:
    InputError: the variable is not a directory.
  """
  home = os.environ.get('FEDAVG_DATA')
  if not home or name not in (*_FOLDERS, 'mnist_writers'):
    return None
  folder = pathlib.Path(os.path.expanduser(home))
  if not folder.is_dir():
    raise InputError(
      f'FEDAVG_DATA = {home!r}: is not a directory; must be a folder of data'
      ' sets, or unset'
    )
  if name == 'mnist_writers':
    return folder if (folder / 'qmnist_writers').is_dir() else None
  return _within(folder, name)


def did_you_mean(folder: pathlib.Path | None, name: str) -> str:
  """Returns a hint if a folder contains that of a data set, else ''."""
  found = _within(folder, name) if folder else None
  return f'; did you mean {found}?' if found else ''


def _within(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  for inner in _FOLDERS.get(name, ()):
    found = folder / inner
    if (found / _SIGNS[name] if name in _SIGNS else found).exists():
      return found
  return None
