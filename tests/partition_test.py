"""Every example exactly once, and each partition's own law."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from fedavg_jax import partition
from fedavg_jax.errors import InputError


def assert_exact_cover(parts, num_examples):
  np.testing.assert_array_equal(
    np.sort(np.concatenate(parts)), np.arange(num_examples)
  )


@settings(deadline=None)
@given(
  num_examples=st.integers(1, 200),
  data=st.data(),
  seed=st.integers(0, 2**31 - 1),
)
def test_iid_covers_and_is_balanced(num_examples, data, seed):
  clients = data.draw(st.integers(1, num_examples))
  parts = partition.iid(num_examples, num_clients=clients, seed=seed)
  assert len(parts) == clients
  assert_exact_cover(parts, num_examples)
  sizes = [len(part) for part in parts]
  assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(
  labels=st.lists(st.integers(0, 9), min_size=4, max_size=200),
  shards_per_client=st.integers(1, 4),
  data=st.data(),
)
def test_shards_cover_and_are_contiguous_in_label(
  labels, shards_per_client, data
):
  labels = np.array(labels)
  clients = data.draw(st.integers(1, len(labels) // shards_per_client))
  parts = partition.shards(
    labels, num_clients=clients, shards_per_client=shards_per_client, seed=0
  )
  assert len(parts) == clients
  assert_exact_cover(parts, len(labels))
  sizes = [len(part) for part in parts]
  assert max(sizes) - min(sizes) <= shards_per_client
  by_label = np.argsort(labels, kind='stable')
  rank = np.empty_like(by_label)
  rank[by_label] = np.arange(len(labels))
  for part in parts:  # At most s runs of neighbours in the sorted order.
    assert (np.diff(np.sort(rank[part])) > 1).sum() < shards_per_client


def test_shards_of_the_paper():
  """200 shards of 300, two per client, and few digits for most clients."""
  labels = np.random.default_rng(0).integers(0, 10, 60_000)
  parts = partition.shards(labels, num_clients=100, shards_per_client=2, seed=0)
  assert {len(part) for part in parts} == {600}
  counts = partition.label_counts(labels, parts, 10)
  assert counts.sum() == 60_000
  np.testing.assert_array_equal(counts.sum(axis=0), np.bincount(labels))
  # Nine borders between digits cut nine shards at most.
  assert ((counts > 0).sum(axis=1) > 2).sum() <= 9
  assert (counts.sum(axis=0) > 0).all()  # All ten digits are there.


def test_real_mnist_has_all_ten_labels_and_600_each(mnist_dir):
  from fedavg_jax import datasets

  labels = datasets.load_dataset('mnist', str(mnist_dir)).train.y
  for parts in (
    partition.shards(labels, num_clients=100, shards_per_client=2, seed=0),
    partition.iid(60_000, num_clients=100, seed=0),
  ):
    assert {len(part) for part in parts} == {600}
    np.testing.assert_array_equal(
      partition.label_counts(labels, parts, 10).sum(axis=0),
      [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    )


def test_seeds():
  labels = np.arange(100) % 10

  def both(seed):
    return np.concatenate(
      partition.iid(100, num_clients=7, seed=seed)
      + partition.shards(labels, num_clients=7, shards_per_client=2, seed=seed)
    )

  np.testing.assert_array_equal(both(1), both(1))
  assert (both(1) != both(2)).any()


def test_hold_out_takes_a_share_of_every_client():
  parts = [np.arange(600), np.arange(600, 601), np.arange(601, 612)]
  kept = partition.hold_out(parts, fraction=0.1, seed=0)
  assert [len(part) for part in kept] == [540, 1, 10]
  for before, after in zip(parts, kept, strict=True):
    assert set(after) <= set(before) and len(set(after)) == len(after)
  other = partition.hold_out(parts, fraction=0.1, seed=1)
  assert set(kept[0]) != set(other[0])  # At random, by the seed.
  whole = partition.hold_out(parts, fraction=0.0, seed=0)
  for before, after in zip(parts, whole, strict=True):
    np.testing.assert_array_equal(before, np.sort(after))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: partition.iid(5, num_clients=6, seed=0), 'num_clients = 6'),
    (lambda: partition.iid(5, num_clients=0, seed=0), 'num_clients = 0'),
    (
      lambda: partition.shards(
        np.zeros(5, int), num_clients=3, shards_per_client=2, seed=0
      ),
      '6 shards',
    ),
    (
      lambda: partition.shards(
        np.zeros(5, int), num_clients=3, shards_per_client=0, seed=0
      ),
      'shards_per_client = 0',
    ),
  ],
)
def test_refusals(call, message):
  with pytest.raises(InputError, match=message):
    call()


def test_natural_clients_keep_their_own_in_order():
  parts = partition.by_owner(np.array([2, 0, 2, 1, 0, 2]))
  assert [part.tolist() for part in parts] == [[1, 4], [3], [0, 2, 5]]
