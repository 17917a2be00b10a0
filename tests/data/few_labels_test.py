"""Clients have given sizes and numbers of labels where a theorem allows."""

import itertools
import re

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from fedavg_jax.core import choices
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import partition

MNIST = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)


def labels_of(counts, *, gap=1, seed=3):
  """Returns labels 0, gap, 2 gap, ... so many times each, in random order."""
  labels = np.repeat(gap * np.arange(len(counts)), counts)
  return np.random.default_rng(seed).permutation(labels)


def assert_law(labels, parts, sizes, numbers):
  rows = np.concatenate(parts)
  assert len(np.unique(rows)) == len(rows)  # No example occurs twice.
  assert 0 <= rows.min() and rows.max() < len(labels)
  assert [len(part) for part in parts] == list(sizes)
  assert [len(set(labels[part])) for part in parts] == list(
    np.broadcast_to(numbers, len(parts))
  )


def is_feasible(available, sizes, sets):
  """Decides by Gale's theorem (1957) whether there are enough examples.

  There are, unless clients need more examples of a set of labels than it has:
  all of a client's examples where it has no other label, else one of each.

  """
  names = range(len(available))
  for some in itertools.chain.from_iterable(
    itertools.combinations(names, r) for r in range(1, len(available) + 1)
  ):
    needed = sum(
      size if own <= set(some) else len(own & set(some))
      for size, own in zip(sizes, sets, strict=True)
    )
    if needed > sum(available[label] for label in some):
      return False
  return True


@settings(deadline=None, max_examples=300)
@given(
  counts=st.lists(st.integers(1, 30), min_size=1, max_size=5), data=st.data()
)
def test_exact_wherever_labels_suffice(counts, data):
  """Labels are assigned in turn, so that the theorem decides."""
  clients = data.draw(st.integers(1, 7))
  numbers = data.draw(
    st.lists(st.integers(1, len(counts)), min_size=clients, max_size=clients)
  )
  sizes = [number + data.draw(st.integers(0, 25)) for number in numbers]
  labels = labels_of(counts, gap=3)
  sets = [
    {(k + i) % len(counts) for i in range(number)}
    for k, number in enumerate(numbers)
  ]

  def divide():
    return partition.few_labels(
      labels,
      sizes=sizes,
      classes_per_client=numbers,
      assignment='deterministic',
      seed=1,
    )

  if is_feasible(counts, sizes, sets):
    parts = divide()
    assert_law(labels, parts, sizes, numbers)
    assert [set(labels[part] // 3) for part in parts] == sets
  else:
    with pytest.raises(InputError, match='^sizes: '):
      divide()


@settings(deadline=None)
@given(
  counts=st.lists(st.integers(20, 60), min_size=2, max_size=6),
  assignment=st.sampled_from(choices.CLASS_ASSIGNMENTS),
  seed=st.integers(0, 2**31 - 1),
  data=st.data(),
)
def test_small_clients_always_have_their_labels(counts, assignment, seed, data):
  """Each label has 20 examples; at most ten clients need at most two each."""
  clients = data.draw(st.integers(1, 10))
  number = data.draw(st.integers(1, 2))
  sizes = np.array(
    data.draw(
      st.lists(st.integers(number, 2), min_size=clients, max_size=clients)
    )
  )
  labels = labels_of(counts)

  def divide(seed):
    return partition.few_labels(
      labels,
      sizes=sizes,
      classes_per_client=number,
      assignment=assignment,
      seed=seed,
    )

  parts = divide(seed)
  assert_law(labels, parts, sizes, number)
  for own, other in zip(parts, divide(seed), strict=True):
    np.testing.assert_array_equal(own, other)


@settings(deadline=None)
@given(
  counts=st.lists(st.integers(1, 30), min_size=1, max_size=5), data=st.data()
)
def test_all_labels_and_all_examples(counts, data):
  """Clients that have every label can use every example."""
  total, number = sum(counts), len(counts)
  clients = data.draw(st.integers(1, min(counts)))
  cuts = data.draw(
    st.lists(
      st.integers(0, total - clients * number),
      min_size=clients - 1,
      max_size=clients - 1,
    )
  )
  bounds = [0, *sorted(cuts), total - clients * number]
  sizes = number + np.diff(bounds)
  labels = labels_of(counts)
  parts = partition.few_labels(
    labels, sizes=sizes, classes_per_client=number, seed=0
  )
  assert_law(labels, parts, sizes, number)
  np.testing.assert_array_equal(
    np.sort(np.concatenate(parts)), np.arange(total)
  )


@pytest.mark.parametrize('law', ['power_law', 'log_normal'])
@pytest.mark.parametrize('assignment', choices.CLASS_ASSIGNMENTS)
def test_a_thousand_clients_of_fedprox(law, assignment):
  """All of MNIST's 60,000 examples are used; a client has at least ten."""
  labels = labels_of(MNIST)
  sizes = partition.sizes(
    law,
    60_000,
    num_clients=1000,
    skew={'power_law': 0.6, 'log_normal': 2.0}[law],
    min_size=10,
    seed=2,
  )
  assert sizes.sum() == 60_000 and sizes.min() >= 10
  assert sizes.max() > 15 * np.median(sizes)
  parts = partition.few_labels(
    labels, sizes=sizes, classes_per_client=2, assignment=assignment, seed=2
  )
  assert_law(labels, parts, sizes, 2)


def test_labels_are_divided_evenly_where_there_are_enough():
  labels = labels_of([500] * 6)
  sizes = np.arange(3, 43)
  parts = partition.few_labels(
    labels, sizes=sizes, classes_per_client=3, seed=0
  )
  for row in partition.label_counts(labels, parts, 6):
    own = row[row > 0]
    assert own.max() - own.min() <= 1


def test_random_labels_are_drawn_in_proportion_to_their_examples():
  """A label with three times as many examples has three times as many clients.

  Labels are drawn in proportion to what is left, so the counts are closer than
  those of independent draws, whose standard deviation is 13.7.

  """
  labels = labels_of([3000, 1000])
  parts = partition.few_labels(
    labels, sizes=np.full(1000, 4), classes_per_client=1, seed=0
  )
  assert [
    sum(labels[part[0]] == label for part in parts) for label in (0, 1)
  ] == [*(750, 250)]
  labels = labels_of([3000] * 10)
  parts = partition.few_labels(
    labels, sizes=np.full(1500, 10), classes_per_client=2, seed=0
  )
  counts = partition.label_counts(labels, parts, 10) > 0
  np.testing.assert_allclose(counts.sum(axis=0), 300, atol=62)
  together = counts.T.astype(int) @ counts
  pairs = together[np.triu_indices(10, 1)]  # 45 pairs, each of 1500 / 45.
  assert pairs.min() > 33.3 - 5 * 5.8 and pairs.max() < 33.3 + 5 * 5.8


def test_first_deterministic_labels():
  labels = labels_of([300] * 5)
  parts = partition.few_labels(
    labels,
    sizes=np.full(50, 9),
    classes_per_client=2,
    assignment='first_deterministic',
    seed=0,
  )
  others = set()
  for k, part in enumerate(parts):
    own = set(labels[part])
    assert k % 5 in own
    others |= own - {k % 5}
  assert others == set(range(5))


def test_seeds_change_labels_and_examples():
  labels = labels_of([40] * 5)

  def divide(seed, assignment):
    return partition.few_labels(
      labels,
      sizes=[20, 5, 31],
      classes_per_client=2,
      assignment=assignment,
      seed=seed,
    )

  same, other = divide(0, 'deterministic'), divide(1, 'deterministic')
  for own, theirs in zip(same, other, strict=True):
    assert set(labels[own]) == set(labels[theirs]) and set(own) != set(theirs)
  sets = {
    tuple(tuple(sorted(set(labels[part]))) for part in divide(seed, 'random'))
    for seed in range(5)
  }
  assert len(sets) > 1


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'classes_per_client': 4}, 'classes_per_client = 4: must be in [1, 3]'),
    ({'classes_per_client': 0}, 'classes_per_client = 0: must be in [1, 3]'),
    ({'classes_per_client': 1.5}, 'classes_per_client = 1.5: must be a whole'),
    ({'classes_per_client': [1, 2]}, 'one for each of 3 clients'),
    ({'classes_per_client': [1, 2, 4]}, 'must be in [1, 3]'),
    (
      {'sizes': [5, 1, 5]},
      'sizes: client 1 has 1 examples; must have at least',
    ),
    ({'sizes': [20, 11, 0]}, 'sizes: has 0; must be at least 1'),
    ({'sizes': [20, 11, 30]}, 'add up to 61; must add up to at most 60'),
    ({'sizes': [2.0, 2.0, 2.0]}, 'must be whole numbers'),
    ({'sizes': []}, 'must be whole numbers, at least one'),
    ({'assignment': 'x'}, "class_assignment = 'x': must be one of"),
    ({'seed': -1}, 'seed = -1'),
    (
      # Client 0 has labels 0 and 1, with 30 and 20 examples; the other clients
      # need one example of each of their labels, 1 and 2, 2 and 0.
      {'sizes': [55, 2, 2], 'assignment': 'deterministic'},
      'sizes: need 57 examples of labels 0, 1, only 50 are available; must be'
      ' smaller,',
    ),
    (
      {'sizes': [31, 3, 3], 'classes_per_client': 1},
      'sizes: need in each of 100 draws, last 31 examples of labels 0, only',
    ),
  ],
)
def test_refusals(changes, words):
  options = {'sizes': [10, 6, 4], 'classes_per_client': 2, 'seed': 0}
  labels = labels_of([30, 20, 10])
  with pytest.raises(InputError, match=re.escape(words)) as error:
    partition.few_labels(labels, **(options | changes))
  assert '\n' not in str(error.value)


# Sizes of clients.


@settings(deadline=None)
@given(
  law=st.sampled_from(choices.SIZE_LAWS),
  least=st.integers(0, 9),
  data=st.data(),
)
def test_a_minimum_size_precedes_the_law(law, least, data):
  clients = data.draw(st.integers(1, 30))
  number = data.draw(st.integers(clients * (least + 2), 2000))
  own, others = (
    partition.sizes(law, n, num_clients=clients, skew=2.0, min_size=m, seed=0)
    for n, m in ((number, least), (number - least * clients, 0))
  )
  assert own.sum() == number and own.min() >= max(least, 1)
  if least and others.min() > 1:  # No client was raised to one.
    np.testing.assert_array_equal(own - least, others)


def test_sizes_that_leave_a_remainder():
  for rest in (False, True):
    if rest:
      own = partition.sizes('5,1', 10, num_clients=2, rest=rest, seed=0)
      assert own.tolist() == [5, 1]
    else:
      with pytest.raises(InputError, match='add up to 6; must add up to 10,'):
        partition.sizes('5,1', 10, num_clients=2, rest=rest, seed=0)
  with pytest.raises(InputError, match='min_size = 4: must be in .0, 3'):
    partition.sizes('equal', 10, num_clients=3, min_size=4, seed=0)
