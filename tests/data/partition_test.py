"""Every example is used exactly once, and each partition has its law."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from fedavg_jax.core import choices
from fedavg_jax.core.errors import InputError
from fedavg_jax.data import partition


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
  """There are 200 shards of 300, two per client, each of few digits."""
  labels = np.random.default_rng(0).integers(0, 10, 60_000)
  parts = partition.shards(labels, num_clients=100, shards_per_client=2, seed=0)
  assert {len(part) for part in parts} == {600}
  counts = partition.label_counts(labels, parts, 10)
  assert counts.sum() == 60_000
  np.testing.assert_array_equal(counts.sum(axis=0), np.bincount(labels))
  # Nine borders between ten digits cut at most nine shards.
  assert ((counts > 0).sum(axis=1) > 2).sum() <= 9
  assert (counts.sum(axis=0) > 0).all()  # All ten digits occur.


def test_real_mnist_has_all_ten_labels_and_600_each(mnist_dir):
  from fedavg_jax.data import catalog

  labels = catalog.load_dataset('mnist', str(mnist_dir)).train.y
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


def test_hold_out_takes_a_fraction_of_every_client():
  parts = [np.arange(600), np.arange(600, 601), np.arange(601, 612)]
  kept, held = partition.hold_out(parts, fraction=0.1, seed=0)
  assert [len(part) for part in kept] == [540, 1, 10]
  for before, after, out in zip(parts, kept, held, strict=True):
    assert set(after) <= set(before) and len(set(after)) == len(after)
    np.testing.assert_array_equal(
      np.sort(np.concatenate([after, out])), np.sort(before)
    )
  other, _ = partition.hold_out(parts, fraction=0.1, seed=1)
  assert set(kept[0]) != set(other[0])  # The seed decides which.
  everything, _ = partition.hold_out(parts, fraction=0.0, seed=0)
  for before, after in zip(parts, everything, strict=True):
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


def test_natural_clients_keep_their_examples_in_order():
  parts = partition.by_owner(np.array([2, 0, 2, 1, 0, 2]))
  assert [part.tolist() for part in parts] == [[1, 4], [3], [0, 2, 5]]


def random_labels(number=6000, classes=10, seed=3):
  return np.random.default_rng(seed).integers(0, classes, number)


def mixes(labels, parts):
  """Returns the fraction of every label at each client, [K, classes]."""
  counts = partition.label_counts(labels, parts, labels.max() + 1)
  return counts / counts.sum(axis=1, keepdims=True)


@settings(deadline=None)
@given(
  labels=st.lists(st.integers(0, 5), min_size=1, max_size=120),
  alpha=st.sampled_from([1e-30, 0.05, 1.0, 1e6]),
  self_balancing=st.booleans(),
  data=st.data(),
)
def test_dirichlet_covers(labels, alpha, self_balancing, data):
  labels = np.array(labels)
  clients = data.draw(st.integers(1, len(labels)))
  parts = partition.dirichlet(
    labels,
    num_clients=clients,
    alpha=alpha,
    min_size=0,
    self_balancing=self_balancing,
    seed=1,
  )
  assert len(parts) == clients
  assert_exact_cover(parts, len(labels))


def test_dirichlet_fractions_have_the_moments_of_their_law():
  """Dir(a) over K clients has mean 1/K, variance (K - 1) / (K^2 (K a + 1))."""
  labels = np.repeat(np.arange(400), 2000)  # 400 draws, one for each class.
  for alpha in (0.1, 1.0, 10.0):
    parts = partition.dirichlet(
      labels, num_clients=5, alpha=alpha, min_size=0, seed=0
    )
    counts = partition.label_counts(labels, parts, 400)  # [5, 400]
    shares = counts / 2000
    variance = 4 / (25 * (5 * alpha + 1))
    # Four standard errors of a mean of 400 draws.
    np.testing.assert_allclose(
      shares.mean(axis=1), 0.2, atol=4 * (variance / 400) ** 0.5
    )
    np.testing.assert_allclose(shares.var(axis=1).mean(), variance, rtol=0.15)


def test_dirichlet_takes_an_alpha_for_every_client():
  labels = np.repeat(np.arange(300), 1000)
  parts = partition.dirichlet(
    labels, num_clients=3, alpha=[1.0, 2.0, 5.0], min_size=0, seed=0
  )
  sizes = np.array([len(part) for part in parts])
  np.testing.assert_allclose(
    sizes / sizes.sum(), np.array([1, 2, 5]) / 8, atol=0.04
  )


def test_dirichlet_gives_every_client_its_minimum():
  labels = random_labels()
  for seed in range(5):
    parts = partition.dirichlet(
      labels, num_clients=50, alpha=0.3, min_size=10, seed=seed
    )
    assert min(len(part) for part in parts) >= 10
    assert_exact_cover(parts, 6000)


def test_self_balancing_levels_the_sizes():
  labels = random_labels()
  spread = {False: 0.0, True: 0.0}
  for seed in range(20):
    for balanced in spread:
      parts = partition.dirichlet(
        labels,
        num_clients=10,
        alpha=0.1,
        min_size=0,
        self_balancing=balanced,
        seed=seed,
      )
      own = [len(part) for part in parts]
      spread[balanced] += np.std(own)
      if balanced:  # Below n / K no client gets more than one class at once.
        assert max(own) < 600 + np.bincount(labels).max()
  assert spread[True] < 0.85 * spread[False]


@settings(deadline=None)
@given(
  labels=st.lists(st.integers(0, 5), min_size=1, max_size=120),
  alpha=st.sampled_from([1e-30, 0.05, 1.0, 1e6]),
  data=st.data(),
)
def test_inner_dirichlet_covers_with_the_given_sizes(labels, alpha, data):
  labels = np.array(labels)
  cuts = data.draw(st.sets(st.integers(1, max(1, len(labels) - 1)), max_size=9))
  cuts = sorted(cut for cut in cuts if cut < len(labels))
  sizes = np.diff([0, *cuts, len(labels)])
  parts = partition.inner_dirichlet(labels, sizes=sizes, alpha=alpha, seed=2)
  assert [len(part) for part in parts] == sizes.tolist()
  assert_exact_cover(parts, len(labels))


def deal_one_by_one(labels, number, size, alpha, rng):
  """Draws inner Dirichlet in plain loops, one example at a time.

  Returns:
    The counts of every label at each client, [K, classes].

  """
  left = np.bincount(labels).astype(float)
  mixes = rng.dirichlet(np.full(len(left), alpha), size=number)
  counts = np.zeros((number, len(left)))
  for k in rng.permutation(np.repeat(np.arange(number), size)):
    mix = np.where(left > 0, mixes[k], 0.0)
    mix = mix / mix.sum() if mix.sum() else (left > 0) / (left > 0).sum()
    label = rng.choice(len(left), p=mix)
    counts[k, label] += 1
    left[label] -= 1
  return counts


@pytest.mark.parametrize('alpha', [0.1, 1.0])
def test_inner_dirichlet_is_the_law_of_dealing_one_by_one(alpha):
  """The mixes' mean sum of p^2 is compared: 20 equal clients, 60 seeds."""
  labels = np.repeat(np.arange(5), 120)

  def concentration(counts):
    return ((counts / counts.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)

  ours, theirs = [], []
  for seed in range(60):
    parts = partition.inner_dirichlet(
      labels, sizes=np.full(20, 30), alpha=alpha, seed=seed
    )
    ours.append(concentration(partition.label_counts(labels, parts, 5)))
    if seed < 20:
      rng = np.random.default_rng([9, seed])
      theirs.append(concentration(deal_one_by_one(labels, 20, 30, alpha, rng)))
  ours, theirs = np.array(ours), np.array(theirs)

  def error(values):  # Standard error; clients of one seed are dependent.
    return values.mean(axis=1).std() / np.sqrt(len(values))

  assert abs(ours.mean() - theirs.mean()) < 4 * np.hypot(
    error(ours), error(theirs)
  )
  # The client's number does not matter.
  assert abs(ours[:, :5].mean() - ours[:, -5:].mean()) < 4 * np.hypot(
    error(ours[:, :5]), error(ours[:, -5:])
  )


@settings(deadline=None)
@given(
  clients=st.integers(1, 12),
  classes=st.integers(1, 6),
  assignment=st.sampled_from(choices.CLASS_ASSIGNMENTS),
  data=st.data(),
)
def test_pathological_clients_have_exactly_so_many_classes(
  clients, classes, assignment, data
):
  labels = np.repeat(np.arange(classes) * 3, 12)  # Labels may have gaps.
  least = -(-classes // clients)
  number = data.draw(st.integers(least, classes))
  parts = partition.pathological(
    labels,
    num_clients=clients,
    classes_per_client=number,
    assignment=assignment,
    seed=4,
  )
  assert_exact_cover(parts, len(labels))
  holds = [sorted(set(labels[part])) for part in parts]
  assert {len(own) for own in holds} == {number}
  sharing = {
    label: [np.sum(labels[part] == label) for part in parts if label in own]
    for label in np.unique(labels)
    for own in [set(labels[np.concatenate(parts)])]
  }
  for sizes in sharing.values():
    sizes = [count for count in sizes if count]
    assert max(sizes) - min(sizes) <= 1
  if assignment == 'deterministic' and clients * number >= classes:
    if clients >= classes or number >= classes:
      for k, own in enumerate(holds):
        assert own == sorted(3 * ((k + i) % classes) for i in range(number))
  if assignment == 'first_deterministic' and clients >= classes * 2:
    assert all(3 * (k % classes) in own for k, own in enumerate(holds))


def test_pathological_draws_every_class_equally_often():
  labels = np.repeat(np.arange(10), 3000)
  parts = partition.pathological(
    labels, num_clients=1500, classes_per_client=2, seed=0
  )
  counts = partition.label_counts(labels, parts, 10) > 0
  # 1500 draws with probability 1/5: mean 300, standard deviation 15.5.
  np.testing.assert_allclose(counts.sum(axis=0), 300, atol=62)


@settings(deadline=None)
@given(
  law=st.sampled_from(choices.SIZE_LAWS), data=st.data(), skew=st.floats(0, 3)
)
def test_sizes_add_up_and_are_positive(law, data, skew):
  number = data.draw(st.integers(1, 5000))
  clients = data.draw(st.integers(1, min(number, 60)))
  own = partition.sizes(law, number, num_clients=clients, skew=skew, seed=0)
  assert len(own) == clients and own.sum() == number and own.min() >= 1
  parts = partition.iid(number, num_clients=clients, seed=0, sizes=own)
  assert [len(part) for part in parts] == own.tolist()
  assert_exact_cover(parts, number)


@pytest.mark.parametrize(
  ('law', 'shares'),
  [
    ('equal', np.ones(8)),
    ('linear', np.arange(1, 9)),
    ('square', np.arange(1, 9) ** 2),
    ('exponential', np.exp(np.arange(1, 9))),
    ('power_law', np.arange(1, 9) ** -1.5),
  ],
)
def test_sizes_follow_their_law(law, shares):
  own = partition.sizes(law, 10**6, num_clients=8, skew=1.5, seed=0)
  assert np.abs(own - 10**6 * shares / shares.sum()).max() < 1


def test_log_normal_sizes_have_the_given_spread():
  own = partition.sizes('log_normal', 10**9, num_clients=4000, skew=0.8, seed=0)
  logs = np.log(own)
  np.testing.assert_allclose(logs.std(), 0.8, rtol=4 / np.sqrt(2 * 4000))
  assert abs(np.mean(((logs - logs.mean()) / logs.std()) ** 3)) < 0.16


def test_explicit_sizes():
  assert partition.sizes('5, 1,4', 10, num_clients=3, seed=0).tolist() == [
    *(5, 1, 4)
  ]


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (
      lambda y: partition.dirichlet(y, num_clients=3, alpha=0.0, seed=0),
      'alpha = 0.0: must be above 0',
    ),
    (
      lambda y: partition.dirichlet(y, num_clients=3, alpha=[1.0], seed=0),
      'alpha: has 1 numbers; must be one, or as many as num_clients = 3',
    ),
    (
      lambda y: partition.dirichlet(
        y, num_clients=3, alpha=1.0, min_size=21, seed=0
      ),
      'min_size = 21',
    ),
    (
      lambda y: partition.dirichlet(
        y, num_clients=4, alpha=1e-9, min_size=15, seed=0
      ),
      'must be larger, or min_size smaller',
    ),
    (
      lambda y: partition.inner_dirichlet(y, sizes=[30, 31], alpha=1.0, seed=0),
      'add up to 61; must add up to 60',
    ),
    (
      lambda y: partition.inner_dirichlet(y, sizes=[60, 0], alpha=1.0, seed=0),
      'sizes: has 0; must be at least 1',
    ),
    (
      lambda y: partition.inner_dirichlet(
        y, sizes=[30, 30], alpha=[1.0, -1.0, 1.0], seed=0
      ),
      'must be above 0',
    ),
    (
      lambda y: partition.pathological(
        y, num_clients=3, classes_per_client=4, seed=0
      ),
      'classes_per_client = 4: must be in .1, 3., the number of labels',
    ),
    (
      lambda y: partition.pathological(
        y, num_clients=2, classes_per_client=1, seed=0
      ),
      'leaves some of the 3 labels without a client',
    ),
    (
      lambda y: partition.pathological(
        y, num_clients=60, classes_per_client=3, seed=0
      ),
      '60 of them would share the 20 examples',
    ),
    (
      lambda y: partition.pathological(
        y, num_clients=6, classes_per_client=1, assignment='x', seed=0
      ),
      "class_assignment = 'x'",
    ),
    (
      lambda y: partition.sizes('1,2', 60, num_clients=3, seed=0),
      'sizes: has 2 numbers; must have one for each of num_clients = 3',
    ),
    (
      lambda y: partition.sizes('1,2,3', 60, num_clients=3, seed=0),
      'add up to 6; must add up to 60',
    ),
    (
      lambda y: partition.iid(60, num_clients=2, seed=0, sizes=[30.5, 29.5]),
      'must be whole numbers',
    ),
    (
      lambda y: partition.inner_dirichlet(y, sizes=[], alpha=1.0, seed=0),
      'must be whole numbers, at least one',
    ),
    (
      lambda y: partition.sizes(
        '9223372036854775807,9223372036854775807', 60, num_clients=2, seed=0
      ),
      'add up to 18446744073709551614',
    ),
    (
      lambda y: partition.sizes('cubic', 60, num_clients=3, seed=0),
      "sizes = 'cubic'",
    ),
  ],
)
def test_refusals_of_laws(call, message):
  with pytest.raises(InputError, match=message):
    call(np.arange(60) % 3)


def test_partitions_depend_on_the_seed():
  labels = random_labels(1000)
  for make in (
    lambda seed: partition.dirichlet(
      labels, num_clients=7, alpha=0.5, seed=seed
    ),
    lambda seed: partition.inner_dirichlet(
      labels, sizes=[500, 300, 200], alpha=0.5, seed=seed
    ),
    lambda seed: partition.pathological(
      labels, num_clients=7, classes_per_client=3, seed=seed
    ),
  ):
    one, same, other = (np.concatenate(make(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
