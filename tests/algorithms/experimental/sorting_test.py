"""A network of comparisons is tested on all inputs of zeros and ones."""

import itertools

import numpy as np
import pytest

from fedavg_jax.algorithms.experimental import sorting


def sorted_by_network(rows):
  """Applies the network's comparisons in NumPy."""
  for partner, lower in zip(*sorting.network(len(rows)), strict=True):
    assert (partner[partner] == np.arange(len(rows))).all()
    small = np.minimum(rows, rows[partner])
    large = np.maximum(rows, rows[partner])
    rows = np.where(lower[:, None], small, large)
  return rows


@pytest.mark.parametrize('size', [*range(1, 13)])
def test_it_sorts_all_zeros_and_ones(size):
  """All numbers are sorted by a network that does so (Knuth, 5.3.4)."""
  rows = np.array(list(itertools.product([0, 1], repeat=size))).T
  np.testing.assert_array_equal(sorted_by_network(rows), np.sort(rows, axis=0))


@pytest.mark.parametrize('size', [25, 64, 100])
def test_it_sorts_many_rows(size):
  rows = np.random.default_rng(size).normal(size=(size, 50))
  np.testing.assert_array_equal(sorted_by_network(rows), np.sort(rows, axis=0))


def test_a_matrix_of_infinities_and_numbers():
  rows = np.random.default_rng(0).normal(size=(6, 3, 2)).astype(np.float32)
  rows[2] = np.inf
  found = sorting.sort_rows(rows)
  np.testing.assert_array_equal(found, np.sort(rows, axis=0))
