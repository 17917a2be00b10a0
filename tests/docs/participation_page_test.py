"""The examples of docs/participation.md are run; each has its law."""

import numpy as np
import pytest

import fedavg_jax as fa
from tests.testing.pages import python_of


@pytest.fixture(scope='module')
def page(request):
  """Executes the Python of the page as one program; returns its names."""
  names = {}
  exec(python_of(request.config.rootpath / 'docs/participation.md'), names)
  return names


def make(page, participation, **changes):
  sizes = np.array([len(part) for part in page['parts']])
  options = {'cohort_size': 12, 'epochs': 5, 'batch_size': 10, 'seed': 0}
  return fa.engine.Planner(
    num_examples=sizes, participation=participation, **(options | changes)
  )


def test_clients_that_are_available_at_night(page):
  planner = page['simulation'].planner
  assert len(page['history']['test_accuracy']) == 4
  for t in range(1, 50):
    cohort = planner.cohort(t)
    assert len(cohort) == 12  # Of 16 that are available.
    assert ((t + cohort) % 24 < 8).all()
  assert {k for t in range(1, 50) for k in planner.cohort(t)} == set(range(48))


def test_power_of_choice(page):
  planner, score = make(page, page['by_labels']), page['score']
  for t in range(1, 20):
    candidates = np.random.default_rng([0, 1, t]).permutation(48)[:20]
    drawn = planner.cohort(t)
    assert set(drawn) <= set(candidates)
    others = np.setdiff1d(candidates, drawn)
    assert score[drawn].min() >= score[others].max()


def test_some_epochs(page):
  planner = make(page, page['partial_work'])
  epochs = []
  for t in range(1, 200):
    cohort, completed = planner.work(t)
    per_epoch = -(-planner.num_examples[cohort] // 10)
    assert (completed % per_epoch == 0).all()
    epochs += (completed // per_epoch).tolist()
  counts = np.bincount(epochs, minlength=6)[1:] / len(epochs)
  # 0.9 / 5 each, and 0.1 more of all five; four standard errors.
  expected = np.array([0.18, 0.18, 0.18, 0.18, 0.28])
  error = 4 * np.sqrt(expected * (1 - expected) / len(epochs))
  assert (np.abs(counts - expected) < error).all()
