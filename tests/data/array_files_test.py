"""Arrays by client must hold what their headers promise."""

import io
import os
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from fedavg_jax.data import array_files
from fedavg_jax.data import stored
from tests.testing.conversions import convert
from tests.testing.conversions import refused


def arrays():
  x = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
  found = {'x': x, 'y': np.arange(6) % 3, 'client': np.array([7, 7, 3] * 2)}
  return found | {'x_test': x[:2], 'y_test': np.array([0, 2])}


def npy(array):
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


def header(descr, shape, by_columns=False):
  buffer = io.BytesIO()
  own = {'descr': descr, 'fortran_order': by_columns, 'shape': shape}
  np.lib.format.write_array_header_1_0(buffer, own)
  return buffer.getvalue()


def folder(place, **contents):
  """Makes a folder of valid files, except for those that are given."""
  place.mkdir()
  for name, array in arrays().items():
    (place / f'{name}.npy').write_bytes(contents.get(name, npy(array)))
  return place


def archive(members):
  buffer = io.BytesIO()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # zipfile warns of duplicate names.
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as file:
      for name, content in members:
        file.writestr(name, content)
  return buffer.getvalue()


GOOD = [(f'{name}.npy', npy(array)) for name, array in arrays().items()]


def npz_bytes():
  buffer = io.BytesIO()
  np.savez(buffer, **arrays())
  return buffer.getvalue()


@pytest.mark.parametrize(
  ('x', 'words'),
  [
    (npz_bytes(), 'x.npy: cannot be read (the magic string'),
    (header('|u1', (-6, 2, 2)) + bytes(24), 'x.npy has the shape (-6, 2, 2)'),
    (header('|u1', (True, 24)) + bytes(24), 'x.npy has the shape (True, 24)'),
    (
      header('|u1', (10**18,)) + bytes(8),
      'expected 1,000,000,000,000,000,000 bytes',
    ),
    (header('|u1', (2**63, 2)), 'expected 18,446,744,073,709,551,616 bytes'),
    (
      header('|u1', (6, 2, 2)) + bytes(23),
      'expected 24 bytes of values, got 23',
    ),
    (
      header('|u1', (6, 2, 2)) + bytes(30),
      'expected 24 bytes of values, got 30',
    ),
    (npy(arrays()['x']) * 2, 'expected 24 bytes of values, got'),
    (header('<U0', (10**9, 2)), 'x.npy: expected real numbers, got <U0'),
    (header('|V0', (6, 2)), 'x.npy: expected real numbers, got |V0'),
    (
      header('<M8[s]', (6,)) + bytes(48),
      'x.npy: expected real numbers, got datetime64[s]',
    ),
    (
      header('|O', (6,)) + bytes(48),
      'x.npy: expected real numbers, got object',
    ),
    (
      header('<c8', (6,)) + bytes(48),
      'x.npy: expected real numbers, got complex64',
    ),
    (b'\x93NUMPY\3\0' + bytes(90), 'x.npy has version 3 of .npy'),
    (header('|u1', (6, 0, 2)), 'client 0: x has the shape [2, 0, 2]'),
    (b'', 'x.npy: cannot be read'),
  ],
)
def test_arrays_in_a_folder_that_are_refused(x, words, tmp_path):
  refused('arrays', folder(tmp_path / 'in', x=x), tmp_path, words)


def test_capital_names_are_found_and_duplicates_refused(tmp_path):
  place = folder(tmp_path / 'in')
  os.rename(place / 'x.npy', place / 'X.NPY')
  (place / '._y.npy').write_bytes(b'a fork of the system')
  assert convert('arrays', place, tmp_path / 'out').clients.x.shape[0] == 6
  (place / 'x.npy').write_bytes(npy(arrays()['x']))
  refused('arrays', place, tmp_path, 'X.NPY and x.npy are both x')


@pytest.mark.parametrize('order', ['C', 'F'])
def test_row_and_column_order(order, tmp_path):
  place = folder(tmp_path / 'in', x=npy(np.asarray(arrays()['x'], order=order)))
  own = convert('arrays', place, tmp_path / 'out')
  rows = np.concatenate([arrays()['x'][[2, 5]], arrays()['x'][[0, 1, 3, 4]]])
  np.testing.assert_array_equal(np.asarray(own.clients.x)[..., 0], rows)


@pytest.mark.parametrize('kind', ['folder', 'npz'])
def test_clients_are_named_by_their_numbers(kind, tmp_path):
  place = tmp_path / 'in'
  if kind == 'npz':
    place.write_bytes(npz_bytes())
  else:
    folder(place)
  convert('arrays', place, tmp_path / 'out')
  assert stored.client_names(tmp_path / 'out') == ['3', '7']


def bomb(size):
  """Makes an archive of 100 bytes that promises an array of `size` bytes."""
  promise = header('|u1', (size, 1, 1))
  content = bytearray(archive([('x.npy', promise + bytes(50)), *GOOD[1:]]))
  total = struct.pack('<I', len(promise) + size)
  at = content.find(b'PK\1\2')
  content[at + 24 : at + 28] = content[22:26] = total
  return bytes(content)


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (bomb(2**31), 'x.npy declares 2,147,483,776 bytes in'),
    (archive([('x', b'hello'), *GOOD[1:]]), 'lacks x'),
    (archive([*GOOD, GOOD[0]]), 'has x.npy 2 times'),
    (
      archive([('x.npy', npy(np.array('text'))), *GOOD[1:]]),
      'x.npy: expected real numbers, got <U4',
    ),
    (archive([('x.npy', npy(np.uint8(1))), *GOOD[1:]]), 'x has the shape []'),
    (archive(GOOD[:3]), 'lacks x_test, y_test'),
    (archive([]), 'lacks x, y, client, x_test, y_test'),
  ],
)
def test_archives_that_are_refused(content, words, tmp_path):
  (tmp_path / 'in.npz').write_bytes(content)
  tracemalloc.start()
  try:
    refused('arrays', tmp_path / 'in.npz', tmp_path, words)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 2**24


def test_an_archive_of_zeros_is_read(tmp_path):
  """Zeros of a megabyte become a kilobyte by deflate."""
  found = arrays() | {'x': np.zeros((6, 500, 500), np.uint8)}
  found |= {'x_test': found['x'][:2]}
  np.savez_compressed(tmp_path / 'in.npz', **found)
  own = array_files.open_arrays(tmp_path / 'in.npz')
  assert own.x.shape == (6, 500, 500) and not own.x.any()
