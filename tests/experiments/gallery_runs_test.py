"""Cells of the gallery are run once, resumed, claimed, kept and reported."""

import contextlib
import json
import math
import signal
import threading

import filelock
import numpy as np
import pytest

from experiments.gallery import __main__ as command
from experiments.gallery import catalog
from experiments.gallery import fedprox_synthetic
from experiments.gallery import niid_bench
from experiments.gallery import pictures
from experiments.gallery import report
from experiments.gallery import training
from experiments.gallery.cell import BEST
from experiments.gallery.cell import Cell
from experiments.gallery.cell import Published
from experiments.gallery.cell import Source
from experiments.gallery.cell import mean_of_last
import fedavg_jax as fa
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.runs.config_sections import ClientConfig
from fedavg_jax.runs.signals import stop_on_signals

SOURCE = Source('tiny', 'Tiny', 'nowhere', 'within one point', 'none')
CELL = Cell(
  'tiny/digits',
  SOURCE,
  fa.RunConfig(
    num_clients=10,
    client_fraction=0.2,
    rounds=6,
    eval_every=2,
    rounds_per_call=1,
    client=ClientConfig(epochs=1, batch_size=50),
  ),
  BEST,
  minutes=0.1,
  published=Published(0.5),
)


def row_of(cell, seed, curve=(0.1, 0.3, 0.2)):
  """Returns a complete row of results."""
  return {
    'cell': cell.name,
    'seed': seed,
    'value': max(curve),
    'curves': {'accuracy': list(curve)},
    'eval_every': cell.config.eval_every,
    'rounds': cell.config.rounds,
    'seconds': 1.5,
    'config_sha256': cell.digest(seed),
    'data_sha256': 'd',
    'commit': 'c',
    'date': '2026-01-02',
    'device': 'cpu',
    'processor': 'p',
    'num_devices': 1,
    'versions': {'jax': '1'},
  }


def train(cell, seed, folder):
  """Stands for training: leaves a folder and returns a row."""
  folder.mkdir(parents=True)
  return row_of(cell, seed)


@pytest.fixture
def without_training(monkeypatch):
  """Replaces the training of cells."""
  monkeypatch.setattr(training, 'row_of', train)


@pytest.mark.usefixtures('without_training')
def test_a_cell_runs_once_per_seed_and_setting(tmp_path):
  store = training.opened(tmp_path, SOURCE)
  assert training.run(CELL, 0, store) == 'done'
  assert training.run(CELL, 0, store) == 'was done'
  assert training.run(CELL, 1, store) == 'done'
  changed = CELL._replace(config=CELL.config.replace({'rounds': 7}))
  assert training.run(changed, 0, store) == 'done'
  again = training.opened(tmp_path, SOURCE)
  assert sorted(training.rows_of(CELL, again)) == [0, 1]
  assert sorted(training.rows_of(changed, again)) == [0]
  assert not [
    path for path in (tmp_path / 'tiny.parts').iterdir() if path.is_dir()
  ]


@pytest.mark.parametrize(
  'damage',
  ['{"cell": "tiny/di', '[]', json.dumps(row_of(CELL, 0) | {'curves': {}})],
)
@pytest.mark.usefixtures('without_training')
def test_a_damaged_line_is_kept_and_its_cell_is_run_again(
  tmp_path, damage, capsys
):
  """The last line may lack its end, as after a full disk."""
  path = tmp_path / 'tiny.jsonl'
  path.write_text(damage)
  with stop_on_signals() as stop:
    command.run([CELL], [0], tmp_path, stop)
  assert 'line 1 is damaged; it is kept' in capsys.readouterr().out
  first, second = path.read_text().splitlines()
  assert first == damage and json.loads(second) == row_of(CELL, 0)


def test_two_at_once_take_different_cells(tmp_path, monkeypatch):
  """The second runs while the first trains; both lines are whole."""
  other = CELL._replace(name='tiny/other')
  outcomes = []

  def train_first(cell, seed, folder):
    monkeypatch.setattr(training, 'row_of', train)
    store = training.opened(tmp_path, SOURCE)

    def second():
      for each in (CELL, other):
        outcomes.append(training.run(each, 0, store))

    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
    return train(cell, seed, folder)

  store = training.opened(tmp_path, SOURCE)
  monkeypatch.setattr(training, 'row_of', train_first)
  assert training.run(CELL, 0, store) == 'done'
  assert outcomes == ['another process has it', 'done']
  assert training.run(other, 0, store) == 'was done'
  assert not store.damaged and len(store.rows) == 2


@pytest.mark.usefixtures('without_training')
def test_a_claim_ends_with_its_process(tmp_path):
  """A lock file that a killed process has left claims nothing."""
  parts = tmp_path / 'tiny.parts'
  parts.mkdir()
  (parts / 'tiny-digits-0.lock').touch()
  store = training.opened(tmp_path, SOURCE)
  with filelock.FileLock(parts / 'tiny-digits-0.lock'):
    found = training.run(CELL, 0, store)
  assert found == 'another process has it'
  assert training.run(CELL, 0, store) == 'done'


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path):
  """It is stopped in round 4 of 6, as --max-seconds or a signal does."""
  stops = []

  def everything(rng, work):
    if work.round_number == 4:
      stops.append(None)
      if len(stops) == 1:
        flag.signum = signal.SIGTERM
    return work.updates

  cell = CELL._replace(completion=everything)
  store = training.opened(tmp_path, SOURCE)
  with stop_on_signals() as flag, pytest.raises(InterruptedRunError):
    training.run(cell, 0, store)
  assert not store.rows
  (folder,) = (tmp_path / 'tiny.parts').glob('tiny-digits-0/')
  assert folder.is_dir()
  with stop_on_signals() as flag:
    assert training.run(cell, 0, store) == 'done'
    assert not folder.exists()
    (row,) = store.rows
    comparison = training.again(cell, row)
  assert comparison.difference == 0
  assert 'all curves are equal' in comparison.describe()
  assert len(row['curves']['accuracy']) == 4  # Rounds 0, 2, 4 and 6.
  assert row['value'] == max(row['curves']['accuracy'])
  assert row['seed'] == 0 and row['config_sha256'] == cell.digest(0)


@pytest.mark.slow
def test_the_curve_of_a_diverged_run_ends_before(tmp_path):
  """The number is that of the rounds before; later ones count as 0."""
  config = CELL.config.replace({'client.learning_rate': 1e25, 'eval_every': 1})
  cell = CELL._replace(config=config)
  store = training.opened(tmp_path, SOURCE)
  assert training.run(cell, 0, store) == 'done'
  (row,) = store.rows
  curve = row['curves']['accuracy']
  assert 1 <= len(curve) < 7 and row['value'] == max(curve)
  later = cell._replace(reading=mean_of_last(1))
  assert training.value_of(later, row['curves']) == 0


def test_a_check_compares_every_curve(tmp_path, monkeypatch, capsys):
  """The accuracies are equal; the losses differ in their sixth digit."""
  kept = row_of(CELL, 0)
  kept['curves']['loss'] = [2.0, 1.0, math.nan]
  again = kept | {'num_devices': 2}
  store = training.opened(tmp_path, SOURCE)
  store.append([kept])
  monkeypatch.setattr(catalog, 'sources', lambda: [SOURCE])
  monkeypatch.setattr(catalog, 'of', lambda source: [CELL])
  monkeypatch.setattr(training, 'row_of', lambda *args: again)
  command.check(1, tmp_path)
  said = capsys.readouterr().out
  assert 'all curves are equal in their six digits (on 1 device(s)' in said
  for loss, words in (
    ([2.0, 1.00001, math.nan], 'differ by up to 1e-05'),
    ([2.0, 1.0, 0.5], 'differ by up to inf'),
    ([2.0, 1.0], 'differ by up to inf'),
  ):
    again['curves'] = kept['curves'] | {'loss': loss}
    with pytest.raises(SystemExit):
      command.check(1, tmp_path)
    assert words in capsys.readouterr().out


def test_the_end_of_the_time_is_no_signal():
  with command.limited(1e-6) as limit:
    assert limit.over.wait(10)
    assert limit.stop()
  with command.limited(float('inf')) as limit:
    assert not limit.stop() and not limit.over.is_set()


def test_missing_data_name_their_folder_and_how_to_make_it(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('FEDAVG_DATA', str(tmp_path))
  for name, words in (
    ('niid_bench/cifar10/iid/fedavg', ('cifar-10-batches-bin/', 'tar -xzf')),
    ('flute/lr_mnist', ('mnist/', 'the four IDX files')),
  ):
    (cell,) = catalog.named(name)
    with pytest.raises(fa.InputError) as error:
      training.check_data(cell)
    assert all(word in str(error.value) for word in (name, *words))
  (tmp_path / 'mnist').mkdir()
  training.check_data(catalog.named('flute/lr_mnist')[0])


# --- The page.


@pytest.fixture
def results(tmp_path):
  """Returns a folder with two seeds of one cell and one of another."""
  first, second = niid_bench.CELLS[:2]
  store = training.opened(tmp_path, niid_bench.SOURCE)
  store.append(
    [
      row_of(first, 0, (0.5, 0.9905)),
      row_of(first, 1, (0.5, 0.9925)),
      row_of(second, 0, (0.5, 0.9875)),
    ]
  )
  return tmp_path


def test_arithmetic_of_the_tables(results):
  """FedAvg's mean is 0.06 above 99.09 ± 0.05, SCAFFOLD's 0.31 below its own."""
  (line,) = (
    line for line in report.table(results).splitlines() if 'ten clients' in line
  )
  assert line == (
    '| NIID-Bench, ten clients | 26 | 2 | 1 of 2 | `--run niid_bench` |'
  )
  detail = report.detail(results)
  for expected in (
    '| mnist/iid/fedavg | best over rounds | 99.09 ± 0.05 | 99.15 |'
    ' 99.05, 99.25 | inside |',
    '| mnist/iid/scaffold | best over rounds | 99.06 ± 0.15 | 98.75 | 98.75 |'
    ' outside |',
  ):
    assert expected in detail.splitlines()
  assert '- 3 runs on 1 device(s) of kind cpu (p), jax 1, commit c' in detail
  assert detail.count('<details>') == 1  # Sources without results are absent.
  missing = report.missing(results)
  assert missing.count('\n- ') == len(catalog.CELLS) - 2
  assert 'mnist/iid/fedavg`' not in missing
  assert '0.9915, 2 seed(s), inside' in report.listing(results)


def test_a_number_without_a_verdict_is_not_counted(tmp_path):
  (cell,) = catalog.named('niid_bench/mnist/1_label/fedprox')
  training.opened(tmp_path, niid_bench.SOURCE).append([row_of(cell, 0, (0.1,))])
  assert '| 26 | 1 | 0 of 0 |' in report.table(tmp_path)
  assert '| 51.79 ± 26.75 | 10.00 | 10.00 | no verdict |' in report.detail(
    tmp_path
  )
  assert '1 seed(s), no verdict' in report.listing(tmp_path)


def test_a_report_describes_only_the_kept_results(tmp_path, monkeypatch):
  """Another folder, or a picture that fails, leaves the page as it is."""
  for name in ('PAGE', 'MISSING'):
    (tmp_path / name).write_text('<!-- table -->\n<!-- end -->')
    monkeypatch.setattr(report, name, tmp_path / name)
  with pytest.raises(fa.InputError, match='--report describes only .*results'):
    command.write_report(tmp_path)

  def fail(folder):
    raise OSError

  monkeypatch.setattr(pictures, 'draw', fail)
  with pytest.raises(OSError):
    command.write_report(report.RESULTS)
  for name in ('PAGE', 'MISSING'):
    assert (tmp_path / name).read_text() == '<!-- table -->\n<!-- end -->'


def test_the_page_has_the_results(repository):
  text = report.PAGE.read_text('utf-8')
  assert report.page(text, report.RESULTS) == text
  assert report.MISSING.read_text('utf-8') == report.missing(report.RESULTS)


def test_the_pictures_show_the_results():
  image = pytest.importorskip('PIL.Image')
  for name, shown in (
    (pictures.NUMBERS, pictures.numbers(report.RESULTS)),
    (pictures.SYNTHETIC, pictures.synthetic(report.RESULTS)),
  ):
    with contextlib.closing(image.open(report.RESULTS / name)) as picture:
      assert picture.text['Description'] == pictures.digest(shown)


def test_the_picture_shows_the_cells_of_every_claim(monkeypatch):
  pytest.importorskip('matplotlib')
  drawn = set()
  curves_of_seeds = report.curves_of_seeds

  def record(outcome, name):
    drawn.add((outcome.cell.name, name))
    return curves_of_seeds(outcome, name)

  monkeypatch.setattr(report, 'curves_of_seeds', record)
  monkeypatch.setattr(pictures, '_save', lambda *args: None)
  pictures.draw(report.RESULTS)
  source = fedprox_synthetic.SOURCE
  assert drawn >= {
    (f'{source.key}/{cell}', claim.curve)
    for claim in source.claims
    for cell in (claim.lower, claim.higher)
  }


def test_values_are_read_from_the_curves():
  """Each kept number is its cell's reading of the kept curve."""
  for source in catalog.sources():
    store = training.opened(report.RESULTS, source)
    assert not store.damaged
    for cell in catalog.of(source):
      for row in training.rows_of(cell, store).values():
        assert row['value'] == training.value_of(cell, row['curves'])
        tested = len(training.tested_rounds(cell))
        assert 1 <= len(row['curves']['accuracy']) <= tested
        assert np.isfinite(row['value']) and '+' not in row['commit']
