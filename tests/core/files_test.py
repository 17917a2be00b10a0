"""Whose fault it is that a file cannot be read."""

import errno

import pytest

from fedavg_jax.core import files


@pytest.mark.parametrize('number', [errno.EIO, errno.ENOSPC, errno.EMFILE])
def test_of_the_machine(number):
  assert files.is_of_machine(OSError(number, 'no'))


@pytest.mark.parametrize(
  'error',
  [
    OSError('image file is truncated'),  # As Pillow says it.
    FileNotFoundError(errno.ENOENT, 'no'),
    IsADirectoryError(errno.EISDIR, 'no'),
    PermissionError(errno.EACCES, 'no'),
    ValueError('no'),
  ],
)
def test_of_what_was_handed_over(error):
  assert not files.is_of_machine(error)
