"""A sweep is as many single runs."""

import re

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import hyperparameter_axis
from tests.testing import covering
from tests.testing import rest_slow
from tests.testing import simulations

ETAS = (0.03, 0.1, 0.3)


def fedavg(eta):
  return fa.fedavg(optax.sgd(eta), optax.sgd(1.0))


def build(uneven_examples, algorithm=fedavg, **kwargs):
  x, y, parts = uneven_examples
  examples = fa.Examples(x, y)
  data = fa.Dataset('uneven', examples, examples, 4, 255.0)
  settings = {'client_fraction': 0.6, 'epochs': 2, 'batch_size': 4} | kwargs
  return simulations.build_simulation(
    fa.build_model('2nn', data),
    fa.build_clients(examples, parts),
    examples,
    algorithm=algorithm,
    seed=1,
    **settings,
  )


def last(records):
  *_, record = records
  return record


@pytest.mark.parametrize(
  ('platform', 'batch_size'),
  rest_slow(1, covering(['gpu', 'cpu'], [4, 0]), several=True),
)
def test_a_sweep_is_as_many_single_runs(
  uneven_examples, monkeypatch, platform, batch_size
):
  """Values run one after another as on a CPU, or under vmap as on a GPU."""
  over = hyperparameter_axis.over
  monkeypatch.setattr(
    hyperparameter_axis, 'over', lambda fn, _: over(fn, platform)
  )
  settings = {'batch_size': batch_size, 'micro_batch': 3}
  sweep = build(uneven_examples, sweep=ETAS, **settings)
  together = list(fa.simulate(sweep, rounds=4))
  for g in (0, 2)[batch_size == 4 :]:  # The first and the last.
    eta = ETAS[g]
    alone = build(uneven_examples, fedavg(eta), **settings)
    for one, all_ in zip(fa.simulate(alone, rounds=4), together, strict=True):
      assert all_.test_accuracy[g] == one.test_accuracy
      if one.round:
        np.testing.assert_allclose(
          all_.train_loss[g], one.train_loss, rtol=1e-5
        )
        assert all_.examples[g] == one.examples
    for a, b in zip(
      jax.tree.leaves(together[-1].state.params),
      jax.tree.leaves(one.state.params),
      strict=True,
    ):
      np.testing.assert_allclose(a[g], b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_client_states_are_separate_for_each_value(uneven_examples):
  sweep = build(uneven_examples, fa.scaffold, sweep=ETAS)
  together = last(fa.simulate(sweep, rounds=3))
  alone = last(
    fa.simulate(build(uneven_examples, fa.scaffold(ETAS[1])), rounds=3)
  )
  for a, b in zip(
    jax.tree.leaves((together.state.params, together.client_states)),
    jax.tree.leaves((alone.state.params, alone.client_states)),
    strict=True,
  ):
    np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-6)


def test_a_value_that_diverges_ends_and_the_others_continue(uneven_examples):
  sweep = build(uneven_examples, sweep=(0.1, 1e20, 0.3))
  records = list(fa.simulate(sweep, rounds=5))
  assert [r.finite[1] for r in records[1:]] == [False] * 5
  assert all(r.finite[0] and r.finite[2] for r in records[1:])
  assert records[-1].state.round.tolist() == [5, 0, 5]
  first, *_, end = (jax.device_get(r.state) for r in records if r.state)
  for a, b in zip(
    jax.tree.leaves(first.params), jax.tree.leaves(end.params), strict=True
  ):
    np.testing.assert_array_equal(a[1], b[1])  # Unchanged.
  assert not records[-1].examples[1] and records[-1].examples[0]


@pytest.mark.slow
def test_a_sweep_resumes_from_a_state(uneven_examples):
  """A value that had ended before does not train again."""
  sweep = build(uneven_examples, sweep=(0.1, 1e20, 0.3), rounds_per_call=1)
  records = list(fa.simulate(sweep, rounds=5))
  begin = (records[2].state, ())
  again = list(fa.simulate(sweep, rounds=5, start=begin))
  assert [r.round for r in again] == [3, 4, 5]
  for a, b in zip(
    jax.tree.leaves(again[-1].state),
    jax.tree.leaves(records[-1].state),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_sweep_ends_when_each_value_has_reached_the_target(uneven_examples):
  sweep = build(uneven_examples, sweep=ETAS)
  full = list(fa.simulate(sweep, rounds=30))
  target = float(min(np.max([r.test_accuracy for r in full], axis=0)))
  curves = np.array([r.test_accuracy for r in full])  # [R, G]
  expected = max(int(np.argmax(curve >= target)) for curve in curves.T)
  records = list(fa.simulate(sweep, rounds=30, target=target))
  assert records[-1].round == expected


@pytest.mark.slow
def test_the_history_has_an_entry_for_each_value(uneven_examples):
  """It has them at round 0 too, and where one of the values has ended."""
  history = fa.run(build(uneven_examples, sweep=(0.1, 1e20)), rounds=3)
  assert history['round'].tolist() == [0, 1, 2, 3]
  for name in ('train_loss', 'examples', 'test_accuracy', 'test_loss'):
    assert history[name].shape == (4, 2)
  assert np.isnan(history['train_loss'][0]).all()
  assert np.isfinite(history['train_loss'][1:, 0]).all()


@pytest.mark.slow
def test_a_resumed_sweep_knows_which_values_reached_the_target(uneven_examples):
  """It is resumed in the very round in which one value reached it."""
  sweep = build(uneven_examples, sweep=ETAS, rounds_per_call=1)
  curves = np.array(
    [r.test_accuracy for r in fa.simulate(sweep, rounds=30)]
  ).T  # [G, R]
  target = float(curves.max(axis=1).min())
  plain = list(fa.simulate(sweep, rounds=30, target=target))
  stop = min(int(np.argmax(curve >= target)) for curve in curves)
  again = list(
    fa.simulate(sweep, rounds=30, target=target, start=(plain[stop].state, ()))
  )
  assert [r.round for r in again] == list(range(stop + 1, len(plain)))
  for a, b in zip(
    jax.tree.leaves(again[-1].state if again else plain[-1].state),
    jax.tree.leaves(plain[-1].state),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ('algorithm', 'sweep', 'said'),
  [
    (fedavg, (), 'values = ()'),
    (fedavg, None, 'algorithm: must be an Algorithm'),
  ],
)
def test_bad_sweeps(uneven_examples, algorithm, sweep, said):
  with pytest.raises(InputError, match=re.escape(said)):
    build(uneven_examples, algorithm, sweep=sweep)
