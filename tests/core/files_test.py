"""A new file overwrites none, and errors of the machine are recognised."""

import errno
import os

import pytest

from fedavg_jax.core import files
from fedavg_jax.core.errors import InputError


@pytest.mark.parametrize('number', [errno.EIO, errno.ENOSPC, errno.EMFILE])
def test_errors_of_the_machine(number):
  assert files.is_of_machine(OSError(number, 'no'))


@pytest.mark.parametrize(
  'error',
  [
    OSError('image file is truncated'),  # Pillow's message.
    FileNotFoundError(errno.ENOENT, 'no'),
    IsADirectoryError(errno.EISDIR, 'no'),
    PermissionError(errno.EACCES, 'no'),
    ValueError('no'),
  ],
)
def test_errors_of_the_input(error):
  assert not files.is_of_machine(error)


@pytest.mark.parametrize('links', [True, False])
def test_a_new_file_overwrites_none(tmp_path, monkeypatch, links):
  """The first file wins, also where it was created during the write."""
  if not links:

    def no_links(*args):
      raise PermissionError(errno.EPERM, 'no')

    monkeypatch.setattr(os, 'link', no_links)
  path = tmp_path / ('a' * 251 + '.png')
  with files.atomic_write_new(path) as part:
    assert part.suffix == '.png'
    part.write_text('first')
  with pytest.raises(InputError, match='was created by another process'):
    with files.atomic_write_new(path) as part:
      part.write_text('second')
  with pytest.raises(ZeroDivisionError):
    with files.atomic_write_new(tmp_path / 'never.png') as part:
      part.write_text('half')
      _ = 1 / 0
  assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
    path.name: 'first'
  }
