"""Where data are that a config does not say, and what it probably meant."""

import os
import pathlib

from fedavg_jax.core.errors import InputError

# Folders of a data set in $FEDAVG_DATA, the first that exists.
_FOLDERS = {
  'mnist': ('mnist', 'MNIST'),
  'fashion_mnist': ('fashion_mnist', 'FashionMNIST'),
  'cifar10': ('cifar10', 'cifar-10-batches-bin'),
  'leaf': ('leaf', 'femnist_leaf'),
  'shakespeare': ('shakespeare',),
  'words': ('words',),
}
# By which a folder is known to hold the data, where others may have its name.
_SIGNS = {'cifar10': 'data_batch_1.bin'}


def shared_folder(name: str) -> pathlib.Path | None:
  """Returns where $FEDAVG_DATA has a data set, None where it has not.

  MNIST by writer is $FEDAVG_DATA itself, where mnist/ and qmnist_writers/ lie
  side by side.

  Raises:
    InputError: the variable names no folder.
  """
  home = os.environ.get('FEDAVG_DATA')
  if not home or name not in (*_FOLDERS, 'mnist_writers'):
    return None
  folder = pathlib.Path(os.path.expanduser(home))
  if not folder.is_dir():
    raise InputError(
      f'FEDAVG_DATA = {home!r}: must name a folder of data sets, or be unset;'
      ' there is no such folder'
    )
  if name == 'mnist_writers':
    return folder if (folder / 'qmnist_writers').is_dir() else None
  return _within(folder, name)


def did_you_mean(folder: pathlib.Path | None, name: str) -> str:
  """Returns a hint where a folder holds the one of a data set, else nothing."""
  found = _within(folder, name) if folder else None
  return f'; did you mean {found}?' if found else ''


def _within(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  for inner in _FOLDERS.get(name, ()):
    found = folder / inner
    if (found / _SIGNS[name] if name in _SIGNS else found).exists():
      return found
  return None
