"""A run from Python: the same rounds, in one call or in several."""

import jax
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import compare
from fedavg_jax.runs import train
from tests.testing import simulations
from tests.testing.run_folders import load

# Orbax and what it uses warn about their own future.
pytestmark = pytest.mark.filterwarnings('default')

CLIENTS_STAY = {'devices': {}, 'host': {'client_states_on': 'host'}}


def build(uneven_examples, **changes):
  """SCAFFOLD, whose server and clients keep something."""
  x, y, parts = uneven_examples
  return simulations.build(
    fa.build_clients(fa.Examples(x, y), parts),
    simulations.model(),
    **{'algorithm': fa.scaffold(0.1, 0.9)} | changes,
  )


@pytest.fixture(params=CLIENTS_STAY)
def simulation(request, uneven_examples):
  return build(uneven_examples, **CLIENTS_STAY[request.param])


def of(result):
  """What must be the same: the history but for times, and all states."""
  return [
    {k: v.tolist() for k, v in result.items() if k != 'seconds'},
    result.state,
    getattr(result.client_states, 'saved', lambda: result.client_states)(),
  ]


def check_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, of(a), of(b))


def test_in_parts_as_in_one(simulation):
  whole = fa.run(simulation, rounds=5)
  first = fa.run(simulation, rounds=2)
  assert first['round'].tolist() == [0, 1, 2]
  check_equal(fa.run(simulation, rounds=5, start=first), whole)
  with pytest.raises(InputError, match='another run has taken along'):
    fa.run(simulation, rounds=5, start=first)


def test_a_folder_is_saved_and_continued(simulation, tmp_path):
  whole = fa.run(simulation, rounds=5)
  folder = tmp_path / 'own'
  fa.run(simulation, rounds=2, folder=folder)
  check_equal(fa.run(simulation, rounds=5, folder=folder), whole)
  again, once_more = (
    fa.run(simulation, rounds=5, folder=folder) for _ in range(2)
  )
  check_equal(again, whole)
  # Times too: nothing was run anew.
  assert again['seconds'].tolist() == once_more['seconds'].tolist()
  jax.tree.map(
    np.testing.assert_array_equal, fa.load_params(folder), whole.params
  )


def test_interrupted_in_a_cell_and_continued(uneven_examples, tmp_path):
  simulation, folder = build(uneven_examples), tmp_path / 'own'

  def interrupt(record):
    if record.round == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fa.run(simulation, rounds=5, folder=folder, on_round=interrupt)
  seen = []
  result = fa.run(
    simulation,
    rounds=5,
    folder=folder,
    on_round=lambda record: seen.append(record.round),
  )
  assert seen == [4, 5]
  check_equal(result, fa.run(simulation, rounds=5))


def test_on_round_has_every_model_and_ends_the_run(uneven_examples):
  simulation, found = build(uneven_examples), {}

  def enough(record):
    assert record.client_states is not None
    found[record.round] = simulation.evaluate(record.state.variables)
    return record.round == 3

  result = fa.run(simulation, rounds=9, on_round=enough)
  assert list(found) == [0, 1, 2, 3] == result['round'].tolist()
  for number, test in found.items():
    assert test['loss'] == result['test_loss'][number]
  assert int(result.state.round) == 3


def test_the_best_model_is_that_of_its_round(uneven_examples, tmp_path):
  """By the first metric, the first of equal ones; a folder keeps it."""
  simulation = build(uneven_examples)
  models = {}
  result = fa.run(
    simulation,
    rounds=6,
    keep_best=True,
    folder=tmp_path / 'own',
    on_round=lambda r: models.update({r.round: r.state.params}),
  )
  accuracies = result['test_accuracy']
  best = int(np.argmax(accuracies))
  assert (result.best.round, result.best.value) == (best, accuracies[best])
  jax.tree.map(
    np.testing.assert_array_equal, result.best.variables, models[best]
  )
  again = fa.run(simulation, rounds=6, keep_best=True, folder=tmp_path / 'own')
  jax.tree.map(np.testing.assert_array_equal, again.best, result.best)
  x = simulation.test.x[0]
  np.testing.assert_array_equal(
    again.predict(x, best=True),
    simulation.task.model.apply(models[best], x),
  )


def test_the_smallest_error_is_the_best(uneven_examples):
  simulation = build(
    uneven_examples, metrics=(fa.metrics.mean_loss(fa.losses.cross_entropy),)
  )
  result = fa.run(simulation, rounds=3, keep_best=True)
  assert result.best.value == result['test_loss'].min()


def test_predict_is_the_model_in_any_number(uneven_examples):
  result = fa.run(build(uneven_examples), rounds=1)
  x = np.random.default_rng(0).integers(0, 256, (600, 3, 3, 1), np.uint8)
  expected = result.simulation.task.model.apply(result.params, x)
  np.testing.assert_allclose(result.predict(x), expected, rtol=1e-5, atol=1e-5)
  one = result.predict(x[:1])
  np.testing.assert_allclose(one, expected[:1], rtol=1e-5, atol=1e-5)


def test_a_sweep_has_a_history_per_value(uneven_examples, tmp_path):
  def sweep():
    return build(
      uneven_examples,
      algorithm=lambda eta: fa.scaffold(eta, 1.0),
      sweep=(0.1, 0.3),
    )

  whole = fa.run(sweep(), rounds=3)
  assert whole['test_loss'].shape == (4, 2)
  fa.run(sweep(), rounds=1, folder=tmp_path / 'own')
  check_equal(fa.run(sweep(), rounds=3, folder=tmp_path / 'own'), whole)


def test_a_bar_shows_rounds_and_the_first_metric(uneven_examples, capsys):
  fa.run(build(uneven_examples), rounds=2, progress=True)
  shown = capsys.readouterr().err
  assert '2/2' in shown and 'test accuracy=' in shown


@pytest.mark.parametrize(
  ('changes', 'options', 'said'),
  [
    ({'seed': 6}, {}, r'seed = 6: was 5 in folder = .*own; set it back'),
    ({'epochs': 3}, {}, 'epochs = 3: was 2'),
    ({'metrics': fa.metrics.of_classifier()}, {'keep_best': True}, 'keep_best'),
    ({'sweep': (0.1,)}, {}, r'sweep = \[0.1'),
    ({'loss': fa.losses.cross_entropy}, {'start': (1, 2)}, 'start: must be'),
  ],
)
def test_a_folder_of_another_run_is_refused(
  uneven_examples, tmp_path, changes, options, said
):
  folder = tmp_path / 'own'
  fa.run(build(uneven_examples), rounds=1, folder=folder)
  before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
  if 'sweep' in changes:
    changes = changes | {'algorithm': lambda eta: fa.scaffold(eta, 1.0)}
  with pytest.raises(InputError, match=said):
    fa.run(
      build(uneven_examples, **changes), rounds=2, folder=folder, **options
    )
  assert before == {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_other_data_are_refused(uneven_examples, tmp_path):
  folder = tmp_path / 'own'
  fa.run(build(uneven_examples), rounds=1, folder=folder)
  x, y, parts = uneven_examples
  with pytest.raises(InputError, match='before round 1 had the test'):
    fa.run(build((x[::-1].copy(), y, parts)), rounds=2, folder=folder)


def test_what_cannot_be_is_one_line(uneven_examples, tmp_path):
  simulation = build(uneven_examples)
  result = fa.run(simulation, rounds=1)
  for call, said in (
    (lambda: result.predict(np.zeros((2, 5))), r'x: is float32\[5\], but the'),
    (lambda: result.predict(result.simulation.test.x, best=True), 'keep_best'),
    (lambda: fa.run(simulation, rounds=1, start=3), 'start: is int'),
    (lambda: fa.run(simulation, rounds=0), 'rounds = 0'),
  ):
    with pytest.raises(InputError, match=said):
      call()
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.tex').touch()
  with pytest.raises(InputError, match='no folder of a run'):
    fa.run(simulation, rounds=1, folder=tmp_path / 'mine')


def test_commands_refuse_such_a_folder(uneven_examples, tmp_path, repository):
  folder = tmp_path / 'own'
  fa.run(build(uneven_examples), rounds=1, folder=folder)
  with pytest.raises(InputError, match='holds no config of a run'):
    compare.read_run(folder)
  with pytest.raises(InputError, match='must hold the config of a run'):
    train.train(load(repository, 'quickstart'), folder)
