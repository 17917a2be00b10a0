"""A user-defined loop ends a run by its macro F1, as one in NumPy does."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa

CLASSES = 4


def build():
  """Builds six uneven clients with noisy labels, some of which are rare."""
  rng = np.random.default_rng(2)
  sizes = (9, 1, 20, 6, 30, 14)
  x = rng.normal(size=(sum(sizes), 5)).astype(np.float32)
  scores = x @ rng.normal(size=(5, CLASSES)) + [2, 1, 0, -2]
  y = (scores + 2 * rng.gumbel(size=scores.shape)).argmax(axis=1)
  examples = fa.Examples(x, y.astype(np.int32))
  parts = np.split(np.arange(len(y)), np.cumsum(sizes)[:-1])
  model = fa.Model(
    'softmax',
    lambda key: {'w': jnp.zeros((5, CLASSES))},
    lambda params, x: x @ params['w'],
  )
  federation = fa.Federation(
    fa.build_clients(examples, parts),
    examples,
    client_fraction=0.5,
    epochs=2,
    batch_size=4,
    seed=3,
  )
  simulation = fa.build_simulation(
    model,
    federation,
    fa.fedavg(optax.sgd(0.3), optax.sgd(1.0)),
    metrics=[fa.metrics.accuracy(), fa.metrics.macro_f1()],
  )
  return simulation, examples


def macro_f1(w, examples):
  """Returns the mean over classes of 2 tp / (2 tp + fp + fn)."""
  found, scores = (examples.x @ np.asarray(w)).argmax(axis=1), []
  for label in range(CLASSES):
    mine, real = found == label, examples.y == label
    both = mine.sum() + real.sum()
    scores.append(2 * (mine & real).sum() / both if both else 0.0)
  return np.mean(scores)


@pytest.mark.parametrize('patience', [1, 2, 4])
def test_a_loop_ends_where_macro_f1_stops_improving(page, patience):
  simulation, examples = build()
  f1 = np.array(
    [
      macro_f1(record.state.params['w'], examples)
      for record in fa.simulate(
        simulation, rounds=40, needs_state=lambda number: True
      )
    ]
  )
  best = end = 0
  for end, value in enumerate(f1):
    if value > f1[best]:
      best = end
    if end - best == patience:
      break
  assert 0 < best < end < 40
  found, last = page.until_no_better(
    simulation, 'macro_f1', patience=patience, rounds=40
  )
  assert (found.round, last.round) == (best, end)
  assert found.test['macro_f1'] == pytest.approx(f1[best], rel=1e-6)
  assert macro_f1(found.state.params['w'], examples) == f1[best]
