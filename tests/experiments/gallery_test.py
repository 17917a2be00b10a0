"""The gallery's setups are those of their publications."""

import json

import numpy as np
import pytest

from experiments.gallery import fedprox_stragglers
import fedavg_jax as fa

# Label counts of MNIST's training set.
LABELS = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
# Examples by label of clients 0 to 9, as the documentation of Flower's
# DistributionPartitioner prints them for the seed 2024.
PRINTED = (
  {0: 40, 1: 5},
  {2: 36, 1: 5},
  {3: 52, 2: 7},
  {3: 14, 4: 6},
  {4: 47, 5: 28},
  {6: 30, 5: 5},
  {6: 19, 7: 11},
  {8: 22, 7: 11},
  {9: 11, 8: 5},
  {0: 124, 9: 13},
)


def test_clients_of_the_straggler_figure_are_those_of_flower():
  labels = np.repeat(np.arange(10), LABELS)
  parts = fedprox_stragglers.divide(labels, seed=2024)
  for part, printed in zip(parts, PRINTED, strict=False):
    names, counts = np.unique(labels[part], return_counts=True)
    assert dict(zip(names, counts, strict=True)) == printed
  assert sorted(np.concatenate(parts)) == list(range(len(labels)))
  for part, own in zip(
    parts, fedprox_stragglers.to_train_on(parts), strict=True
  ):
    assert len(own) == 9 * len(part) // 10 and set(own) < set(part)


def test_stragglers_do_one_to_nine_epochs():
  """Each number of epochs has its probability, to four deviations."""
  number = 20_000
  work = fa.schedule.WorkContext(
    round_number=1,
    clients=np.arange(number),
    num_examples=np.full(number, 25),
    epochs=10,
    updates_per_epoch=np.full(number, 3),
    in_time=np.full(number, 30),
  )
  done = fedprox_stragglers.some_epochs(np.random.default_rng(0), work)
  epochs, rest = np.divmod(done, 3)
  assert not rest.any()
  found = np.bincount(epochs, minlength=11)
  assert found[0] == 0 and found.sum() == number
  np.testing.assert_allclose(
    found[1:] / number, 0.1, atol=4 * (0.1 * 0.9 / number) ** 0.5
  )


@pytest.mark.parametrize('kept', [0, 4])
def test_results_in_the_file_are_not_run_again(tmp_path, kept):
  """There are two seeds of three settings; a damaged line is not changed."""
  path, trained = tmp_path / 'results.jsonl', []
  wanted = [
    (seed, setting.name)
    for seed in range(2)
    for setting in fedprox_stragglers.SETTINGS
  ]
  before = '{"seed": 0, "sett\n' + ''.join(
    json.dumps({'seed': seed, 'setting': name, 'curve': [0.5] * 101}) + '\n'
    for seed, name in wanted[:kept]
  )
  path.write_text(before)

  def train(setting, seed):
    trained.append((seed, setting.name))
    return np.arange(101) / 100

  store = fedprox_stragglers.results_in(path)
  fedprox_stragglers.run_missing(store, 2, train, {'commit': 'a'})
  assert trained == wanted[kept:]
  assert path.read_text().startswith(before)
  found = fedprox_stragglers.results_in(path).rows
  assert [(row['seed'], row['setting']) for row in found] == wanted
  for row in found[kept:]:  # Rounds 81 to 100.
    assert row['accuracy'] == pytest.approx(0.905) and row['commit'] == 'a'
