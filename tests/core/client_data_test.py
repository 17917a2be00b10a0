"""Clients of every accepted form are stored back to back."""

import re

import numpy as np
import pytest

from fedavg_jax.core import client_data
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import partition


def test_back_to_back_and_stacked(uneven_examples):
  x, y, parts = uneven_examples
  population = client_data.build_clients(client_data.Examples(x, y), parts)
  assert population.num_clients == 5
  np.testing.assert_array_equal(population.num_examples, [1, 7, 4, 9, 2])
  assert population.x.dtype == np.uint8 and len(population.y) == 23
  ids = [3, 0, 1]
  stacked_x, stacked_y, mask = client_data.stack(population, ids)
  assert stacked_x.shape == (3, 9, 3, 3, 1) and stacked_x.dtype == np.uint8
  assert stacked_y.shape == mask.shape == (3, 9)
  for row, k in enumerate(ids):
    np.testing.assert_array_equal(stacked_x[row][mask[row]], x[parts[k]])
    np.testing.assert_array_equal(stacked_y[row][mask[row]], y[parts[k]])
    assert not stacked_x[row][~mask[row]].any()


PARTS = [[3, 1], [], [0, 2]]


def examples(x_dtype=np.float32, y_dtype=np.int32):
  x = np.arange(8).reshape(4, 2).astype(x_dtype)
  return client_data.Examples(x, np.array([0, 1, 2, 1], y_dtype))


@pytest.mark.parametrize(
  'parts',
  [
    PARTS,
    [np.array(part) for part in PARTS],  # The empty one is float64.
    tuple(tuple(part) for part in PARTS),
    {'ann': [3, 1], 'bob': (), 'cid': np.uint8([0, 2])},
    [np.uint64([3, 1]), np.zeros(0), range(0, 3, 2)],
    iter(PARTS),
  ],
)
def test_accepted_forms_of_parts(parts):
  clients = client_data.build_clients(examples(), parts)
  assert clients.num_examples.tolist() == [2, 0, 2]
  assert clients.x[:, 0].tolist() == [6, 2, 0, 4]
  assert clients.y.tolist() == [1, 1, 0, 2] and clients.y.dtype == np.int32


@pytest.mark.parametrize('dtype', ['u1', '>i2', 'u4', 'i8', 'u8'])
def test_labels_of_any_integer_dtype(dtype):
  own = client_data.Examples(np.zeros((2, 1)), np.array([0, 1], dtype))
  clients = client_data.build_clients(own, [[1, 0]])
  assert clients.y.dtype == np.int32 and clients.y.tolist() == [1, 0]
  assert clients.x.dtype == np.float32


def test_other_targets_stay_what_they_are():
  """A regression has such targets; a user-defined loss reads them."""
  own = client_data.Examples(np.zeros((2, 1)), np.array([[0.5, 1], [2, 3]]))
  y = client_data.build_clients(own, [[1, 0]]).y
  assert y.dtype == np.float32 and y.tolist() == [[2, 3], [0.5, 1]]


def test_a_seed_gives_the_order_of_hold_out():
  """The command has the same order, also where nothing is held out."""
  parts = [np.arange(4), np.arange(4, 9)]
  own = client_data.Examples(np.arange(9)[:, None], np.zeros(9, int))
  kept, held = partition.hold_out(parts, fraction=0.0, seed=5)
  expected = client_data.build_clients(own, kept)
  got = client_data.build_clients(own, parts, seed=5)
  np.testing.assert_array_equal(got.x, expected.x)
  assert not sum(map(len, held)) and (got.x[:, 0] != np.arange(9)).any()


@pytest.mark.parametrize(
  ('parts', 'words'),
  [
    ([], 'parts: must hold at least one client'),
    ({}, 'parts: must hold at least one client'),
    ([[0, 1], [1]], 'parts: row 1 occurs 2 times, in client 0 and 1'),
    ([[2, 2]], 'parts: row 2 occurs 2 times, in client 0;'),
    ([[0], [-1]], 'parts: client 1 has rows -1 to -1, must be in [0, 3]'),
    ([[4]], 'parts: client 0 has rows 4 to 4'),
    ([[0.5]], 'parts: client 0 has float64 [1]'),
    ([[[0, 1]]], 'parts: client 0 has int64 [1, 2]'),
    ([[True, False, True, True]], 'parts: client 0 has bool [4]'),
    ([['a']], 'parts: client 0 has <U1 [1]'),
  ],
)
def test_parts_that_are_refused(parts, words):
  with pytest.raises(InputError, match=re.escape(words)):
    client_data.build_clients(examples(), parts)


@pytest.mark.parametrize(
  ('x', 'y', 'words'),
  [
    (np.zeros((3, 2)), np.zeros(4, int), '3 inputs, but 4 labels'),
    (np.zeros((1, 2)), np.array([2**31]), 'y: holds 2147483648'),
    (np.zeros((1, 2)), np.array([-(2**31) - 1]), 'y: holds -2147483649'),
    (np.zeros((1, 2)), ([1], [2]), 'y: is a tuple of lists, one array or'),
    (([1, 2], [3, 4]), np.zeros(2, int), 'x: is a tuple of lists'),
    (
      {1: np.zeros(2), 'b': np.zeros(2)},
      np.zeros(2, int),
      'x: has the keys [1',
    ),
    ({}, np.zeros(2, int), 'x: its arrays have no rows'),
    (np.zeros((1, 2)), np.array(['a']), 'y: is <U1'),
    (np.zeros((1, 2)), 3, 'y: is a single number'),
    (np.full((1, 2), 1e300), np.zeros(1, int), 'x: holds 1e+300'),
    (np.full((1, 2), 2**40), np.zeros(1, int), 'x: holds 1099511627776'),
  ],
)
def test_examples_that_are_refused(x, y, words):
  with pytest.raises(InputError, match=re.escape(words)):
    client_data.build_clients(client_data.Examples(x, y), [[0]])


@pytest.mark.parametrize('seed', [-1, 2**32, 0.5])
def test_seeds_that_are_refused(seed):
  with pytest.raises(InputError, match=f'seed = {seed}'):
    client_data.build_clients(examples(), [[0]], seed=seed)


@pytest.mark.parametrize(
  ('y', 'part', 'words'),
  [
    (np.ma.array([0, 1, 7], mask=[0, 1, 0]), [0, 1], 'y: has 1 masked value'),
    ([0, 1, 2], np.ma.array([0, 1], mask=[0, 1]), 'parts: client 0: has 1'),
    ([[0], [1, 2], [3]], [0], 'y: must be an array of numbers'),
    ([0, 1, 2], [[0], [1, 2]], 'parts: client 0: must be an array'),
  ],
)
def test_masked_or_ragged_values_are_refused(y, part, words):
  x = np.zeros((3, 2), np.float32)
  with pytest.raises(InputError, match=words):
    client_data.build_clients(client_data.Examples(x, y), [part])


@pytest.mark.parametrize(
  ('examples', 'parts', 'said'),
  [
    (client_data.Examples(np.zeros(2), np.zeros(2)), 5, 'parts: is int'),
    (
      client_data.Examples(np.zeros(2), np.zeros(2)),
      None,
      'parts: is NoneType',
    ),
    ((np.zeros(2), np.zeros(2)), [[0]], 'examples: is tuple, must be'),
  ],
)
def test_arguments_of_another_kind(examples, parts, said):
  with pytest.raises(InputError, match=said):
    client_data.build_clients(examples, parts)
