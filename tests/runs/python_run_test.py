"""A run from Python has the same rounds in one call or in several."""

import functools
import json
import signal
import time
import types

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.engine import program
from fedavg_jax.runs import compare
from fedavg_jax.runs import signals
from fedavg_jax.runs import train
from tests import testing
from tests.testing import simulations
from tests.testing.run_folders import load

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')


def counting(algorithm):
  """Makes clients report the number of their updates."""

  def client_finish(result):
    info = {'steps': result.num_updates.astype(np.float32)}
    return algorithm.client_finish(result)._replace(info=info)

  return algorithm._replace(client_finish=client_finish)


BUILDS = {
  'plain': {},
  'on the host': {
    'client_states_on': 'host',
    'algorithm': counting(fa.scaffold(0.1, 0.9)),
  },
  'fedavg': {'algorithm': fa.fedavg(optax.sgd(0.1), optax.sgd(0.9))},
  'its number': {'algorithm': fa.scaffold(0.1, 0.8)},
  'by loss': {'metrics': (fa.metrics.mean_loss(fa.losses.cross_entropy),)},
  # The second value diverges.
  'sweep': {
    'algorithm': lambda eta: fa.scaffold(eta, 1.0),
    'sweep': (0.1, 1e30),
  },
}


def build(examples=None, own=None, **changes):
  """Builds a simulation of SCAFFOLD: server and clients have states."""
  x, y, parts = examples or testing.uneven_examples()
  return simulations.build(
    fa.build_clients(fa.Examples(x, y), parts),
    own or simulations.model(),
    **{'algorithm': fa.scaffold(0.1, 0.9)} | changes,
  )


@functools.cache
def built(name='plain'):
  """Returns a simulation that tests share: runs do not change it."""
  return build(**BUILDS[name])


@pytest.fixture(params=['plain', 'on the host'])
def simulation(request):
  return built(request.param)


def of(result):
  """Returns all that must be equal: the history without times, and states."""
  return [
    {k: v.tolist() for k, v in result.items() if k != 'seconds'},
    result.state,
    getattr(result.client_states, 'saved', lambda: result.client_states)(),
  ]


def check_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, of(a), of(b))


def test_in_parts_as_in_one(simulation):
  uninterrupted = fa.run(simulation, rounds=5)
  first = fa.run(simulation, rounds=2)
  assert first['round'].tolist() == [0, 1, 2]
  check_equal(fa.run(simulation, rounds=5, start=first), uninterrupted)
  with pytest.raises(InputError, match='another run has continued'):
    fa.run(simulation, rounds=5, start=first)


def test_info_of_clients_is_a_column():
  result = fa.run(built('on the host'), rounds=2)
  assert np.isnan(result['info_steps'][0])
  assert (result['info_steps'][1:] >= 1).all()


def test_a_folder_is_saved_and_continued(simulation, tmp_path):
  uninterrupted = fa.run(simulation, rounds=5)
  folder = tmp_path / 'own'
  fa.run(simulation, rounds=2, folder=folder)
  check_equal(fa.run(simulation, rounds=5, folder=folder), uninterrupted)
  again, once_more = (
    fa.run(simulation, rounds=5, folder=folder) for _ in range(2)
  )
  check_equal(again, uninterrupted)
  # Times are equal too: nothing was run again.
  assert again['seconds'].tolist() == once_more['seconds'].tolist()
  jax.tree.map(
    np.testing.assert_array_equal, fa.load_params(folder), uninterrupted.params
  )


def test_interrupted_in_a_cell_and_continued(tmp_path):
  simulation, folder = built(), tmp_path / 'own'

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


def test_on_round_has_every_model_and_ends_the_run():
  simulation, found = built(), {}

  def enough(record):
    assert record.client_states is not None
    found[record.round] = simulation.evaluate(record.state.variables)
    return record.round == 3

  result = fa.run(simulation, rounds=9, on_round=enough)
  assert list(found) == [0, 1, 2, 3] == result['round'].tolist()
  for number, test in found.items():
    assert test['loss'] == result['test_loss'][number]
  assert int(result.state.round) == 3


def test_the_best_model_is_that_of_its_round(tmp_path):
  """The first metric decides, the first of equal rounds; a folder keeps it."""
  simulation, models = built(), {}
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
  jax.tree.map(
    np.testing.assert_array_equal,
    fa.load_params(tmp_path / 'own', best=True),
    result.best.variables,
  )
  fa.run(simulation, rounds=1, folder=tmp_path / 'none')
  with pytest.raises(FileNotFoundError, match='saves it with keep_best=True'):
    fa.load_params(tmp_path / 'none', best=True)


def test_the_smallest_error_is_the_best():
  result = fa.run(built('by loss'), rounds=3, keep_best=True)
  assert result.best.value == result['test_loss'].min()


def test_predict_works_for_any_number_of_examples():
  result = fa.run(built(), rounds=1)
  x = np.random.default_rng(0).integers(0, 256, (600, 3, 3, 1), np.uint8)
  expected = result.simulation.task.model.apply(result.params, x)
  np.testing.assert_allclose(result.predict(x), expected, rtol=1e-5, atol=1e-5)
  one = result.predict(x[:1])
  np.testing.assert_allclose(one, expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_sweep_has_a_history_per_value(tmp_path):
  uninterrupted = fa.run(built('sweep'), rounds=3)
  assert uninterrupted['test_loss'].shape == (4, 2)
  fa.run(built('sweep'), rounds=1, folder=tmp_path / 'own')
  again = build(**BUILDS['sweep'])
  check_equal(fa.run(again, rounds=3, folder=tmp_path / 'own'), uninterrupted)


def test_a_value_that_diverges_is_marked():
  result = fa.run(built('sweep'), rounds=2)
  assert result['finite'].shape == (3, 2)
  assert result['finite'][0].all()
  assert result['finite'][-1].tolist() == [True, False]


def test_a_bar_shows_rounds_and_the_first_metric(capsys):
  fa.run(built(), rounds=2, progress=True)
  shown = capsys.readouterr().err
  assert '2/2' in shown and 'test accuracy=' in shown


def squared(outputs, batch, power=2):
  """Returns losses by functions that are the same for every number."""
  return jax.numpy.sum(outputs, axis=-1) ** power


def other_examples(examples, change):
  x, y, parts = examples
  return {
    'order': (x[::-1].copy(), y, parts),
    'labels': (x, y[::-1].copy(), parts),
    'division': (x, y, [parts[1], parts[0], *parts[2:]]),
  }[change]


REFUSED = {
  'seed': ({'seed': 6}, r'seed = 6: was 5 in folder = .*own; set it back'),
  'epochs': ({'epochs': 3}, 'epochs = 3: was 2'),
  'on_nan': ({'on_nan': 'skip_client'}, "on_nan = 'skip_client': was 'stop'"),
  'sweep': (BUILDS['sweep'], r'sweep = \[0.1'),
  'algorithm': (BUILDS['fedavg'], r'algorithm = .*fedavg.* was .*scaffold'),
  'its number': (BUILDS['its number'], 'algorithm: computes something else'),
  'loss': ({'loss': squared}, 'loss = .*squared.* was .*cross_entropy'),
  'metrics': ({'metrics': (fa.metrics.accuracy(),)}, 'metrics = .*accuracy'),
  'participation': (
    {'participation': fa.Participation(straggler_fraction=0.5)},
    'participation: its cohorts, or the work',
  ),
  'order': ({}, 'clients: their examples are not those of the run in folder'),
  'labels': ({}, 'clients: their examples are not'),
  'division': ({}, 'clients: their examples are not'),
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Returns the folder of a round of the plain simulation."""
  folder = tmp_path_factory.mktemp('finished') / 'own'
  fa.run(built(), rounds=1, folder=folder)
  return folder


@pytest.fixture
def uncompiled(monkeypatch):
  """Lets simulations be built that no round can be run with."""
  built()  # What tests share is compiled.
  nothing = types.SimpleNamespace(memory_analysis=lambda: None)
  monkeypatch.setattr(program.Program, 'compile', lambda self, lowered: nothing)


@pytest.mark.usefixtures('uncompiled')
@pytest.mark.parametrize('change', REFUSED)
def test_a_folder_of_another_run_is_refused(finished, change):
  """It is refused before a round is run."""
  before = {p: p.read_bytes() for p in finished.rglob('*') if p.is_file()}
  changes, said = REFUSED[change]
  examples = testing.uneven_examples()
  if not changes:
    examples = other_examples(examples, change)
  with pytest.raises(InputError, match=said):
    fa.run(build(examples, **changes), rounds=2, folder=finished)
  assert before == {
    p: p.read_bytes() for p in finished.rglob('*') if p.is_file()
  }


def test_keeping_the_best_model_is_another_run(finished):
  with pytest.raises(InputError, match='keep_best = True: was False'):
    fa.run(built(), rounds=2, folder=finished, keep_best=True)


@pytest.mark.slow
def test_a_loss_of_one_line_and_a_sweep_are_compared(tmp_path):
  """Two lambdas have the same name, two sweeps have the same values."""

  def run(factor, power):
    simulation = build(
      algorithm=lambda eta: fa.fedavg(optax.sgd(factor * eta), optax.sgd(1.0)),
      sweep=(0.1, 0.3),
      loss=lambda outputs, batch: squared(outputs, batch, power),
    )
    return fa.run(simulation, rounds=1, folder=tmp_path / 'own')

  run(1.0, 2)
  run(1.0, 2)
  with pytest.raises(InputError, match='loss: computes something else'):
    run(1.0, 4)
  with pytest.raises(InputError, match='algorithm: computes something else'):
    run(2.0, 2)


@pytest.mark.slow
def test_other_versions_have_other_programs(tmp_path):
  """Only names and examples are compared then; the next call compares all."""
  folder = tmp_path / 'own'
  fa.run(built(), rounds=1, folder=folder)
  path = folder / 'config.json'
  began = json.loads(path.read_text())
  began['from_python']['made_by']['optax'] = '0.0.1'
  began['from_python']['parts_sha256']['algorithm'] = 64 * '0'
  path.write_text(json.dumps(began))
  fa.run(built(), rounds=2, folder=folder)
  with pytest.raises(InputError, match='algorithm: computes something else'):
    fa.run(built('its number'), rounds=3, folder=folder)


def test_what_was_compiled_counts(tmp_path):
  """A number that has changed since a simulation was built is not in it."""
  factor, fedavg = [1.0], BUILDS['fedavg']

  def loss(outputs, batch):
    return factor[0] * fa.losses.cross_entropy(outputs, batch)

  before = build(loss=loss, **fedavg)
  factor[0] = 50.0
  fa.run(before, rounds=1, folder=tmp_path / 'own')
  with pytest.raises(InputError, match='simulation: was compiled with other'):
    fa.run(build(loss=loss, **fedavg), rounds=2, folder=tmp_path / 'own')
  fa.run(before, rounds=2, folder=tmp_path / 'own')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_is_raised(tmp_path, number):
  simulation, folder = built(), tmp_path / 'own'
  before = signal.getsignal(number)

  def send(record):
    if record.round == 3:
      signal.raise_signal(number)

  error = InterruptedRunError if number == signal.SIGTERM else KeyboardInterrupt
  with pytest.raises(error) as raised:
    fa.run(simulation, rounds=9, folder=folder, on_round=send)
  if error is InterruptedRunError:
    assert "round 3 is saved; the same call with folder='" in str(raised.value)
  assert signal.getsignal(number) is before
  result = fa.run(simulation, rounds=5, folder=folder)
  check_equal(result, fa.run(simulation, rounds=5))


def test_the_best_of_a_run_that_continues():
  """An earlier best counts where it was kept, by the current test."""
  simulation = built()
  first = fa.run(simulation, rounds=2, keep_best=True)
  assert fa.run(simulation, rounds=3, start=first).best is None
  state, kept = fa.run(simulation, rounds=2).to_start()
  result = fa.run(simulation, rounds=2, start=(state, kept), keep_best=True)
  assert result.best.round == 2
  first = fa.run(simulation, rounds=2, keep_best=True)
  result = fa.run(built('by loss'), rounds=3, start=first, keep_best=True)
  losses = result['test_loss']
  best = result.best
  assert losses.shape == (4,)
  assert best.value == losses[best.round]
  assert best.value <= min(losses[2:].min(), losses[first.best.round])


def test_the_best_of_an_interrupted_run_is_that_of_a_whole_one(tmp_path):
  """What it resumes from was not tested, and is no candidate."""
  simulation = built('by loss')
  options = {'rounds': 8, 'eval_every': 4, 'keep_best': True}

  def interrupt(record):
    if record.round == 5:
      raise KeyboardInterrupt

  whole = fa.run(simulation, **options)
  with pytest.raises(KeyboardInterrupt):
    fa.run(simulation, **options, folder=tmp_path / 'own', on_round=interrupt)
  result = fa.run(simulation, **options, folder=tmp_path / 'own')
  assert result.best.round == whole.best.round != 5
  jax.tree.map(np.testing.assert_array_equal, result.best, whole.best)


def test_a_second_interrupt_raises_and_saves(tmp_path, monkeypatch):
  """A kernel survives it; what was done is there."""
  monkeypatch.setattr(signals, '_SECONDS_OF_ONE_WISH', 0.0)
  folder = tmp_path / 'own'

  def ask(record):
    if record.round == 3:
      signal.raise_signal(signal.SIGINT)
      time.sleep(0.01)
      signal.raise_signal(signal.SIGINT)
      raise AssertionError('it is raised at once')

  with pytest.raises(KeyboardInterrupt):
    fa.run(built(), rounds=9, folder=folder, on_round=ask)
  assert len((folder / 'metrics.jsonl').read_text().splitlines()) == 4
  result = fa.run(built(), rounds=3, folder=folder)
  assert result['round'].tolist() == [0, 1, 2, 3]


def test_states_alone_start_a_run_that_starts_another():
  simulation = built()
  first = fa.run(simulation, rounds=2)
  alone = fa.run(simulation, rounds=2, start=first.to_start())
  assert not alone.history
  result = fa.run(simulation, rounds=3, start=alone)
  assert result['round'].tolist() == [3]


NARROW = simulations.model()._replace(
  init=lambda key: jax.tree.map(
    lambda leaf: leaf[tuple(slice(5 if n == 6 else n) for n in leaf.shape)],
    simulations.model().init(key),
  )
)


@pytest.mark.parametrize(
  ('other', 'said'),
  [
    (
      {'own': NARROW},
      r'start: server state: expected .*5\], got .*6\];',
    ),
    (BUILDS['fedavg'], 'start: '),
    (
      BUILDS['sweep'],
      r'server state: expected .round int32\[2\], got .round int32\[\];',
    ),
  ],
)
def test_a_start_of_another_simulation_is_refused(uncompiled, other, said):
  del uncompiled
  simulation = built()
  start = fa.run(simulation, rounds=1)
  with pytest.raises(InputError, match=said) as raised:
    fa.run(build(**other), rounds=2, start=start)
  assert len(str(raised.value).splitlines()) == 1
  with pytest.raises(
    InputError, match='client states: expected .* got nothing'
  ):
    fa.run(simulation, rounds=2, start=(start.state, None))


def test_invalid_arguments_are_refused(tmp_path):
  simulation = built()
  result = fa.run(simulation, rounds=1)
  for call, said in (
    (
      lambda: result.predict(np.zeros((2, 5))),
      r'x: expected .* as in the test set, got float32\[5\]',
    ),
    (lambda: result.predict(result.simulation.test.x, best=True), 'keep_best'),
    (lambda: fa.run(simulation, rounds=1, start=3), 'start: is int'),
    (lambda: fa.run(simulation, rounds=0), 'rounds = 0'),
    (lambda: fa.run(simulations.model(), rounds=1), 'simulation: .* got Model'),
    (lambda: fa.run(simulation, rounds=1, on_round=5), 'on_round: is int'),
    (lambda: fa.run(simulation, rounds=1, folder=5), 'folder: is int'),
    (lambda: fa.run(simulation, rounds=1, folder=b'a'), 'folder: is bytes'),
    (lambda: fa.run(simulation, rounds=1, keep_best=1), 'keep_best = 1: must'),
    *(
      (
        lambda own=own: fa.run(
          simulation, rounds=1, folder=tmp_path / 'none', **own
        ),
        f'{next(iter(own))} = ',
      )
      for own in ({'eval_every': 0}, {'target': 7.0}, {'target': 'x'})
    ),
    (lambda: fa.run(simulation, rounds=1, folder=''), "folder = '': must"),
    (lambda: next(fa.simulate(3, rounds=1)), 'simulation: .* got int'),
    (lambda: fa.train('quickstart', tmp_path / 'a'), 'config: is str, must be'),
    (lambda: fa.train(None, tmp_path / 'a'), 'config: is NoneType'),
    (
      lambda: fa.run(simulation, rounds=1, start=fa.run(simulation, rounds=3)),
      'rounds = 1: must be at least 3, the number of finished rounds',
    ),
  ):
    with pytest.raises(InputError, match=said):
      call()
  assert not (tmp_path / 'none').exists()
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.tex').touch()
  with pytest.raises(InputError, match='not the folder of a run'):
    fa.run(simulation, rounds=1, folder=tmp_path / 'mine')


def test_commands_refuse_such_a_folder(finished, repository):
  with pytest.raises(InputError, match='contains no config of a run'):
    compare.read_run(finished)
  with pytest.raises(InputError, match='must hold the config of a run'):
    train.train(load(repository, 'quickstart'), finished)
