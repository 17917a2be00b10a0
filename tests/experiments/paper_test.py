"""Tables and figures of the paper are made from cells of digits."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.paper import cells
from experiments.paper import figures
from experiments.paper import published
from experiments.paper import results
from experiments.paper import sweeps
from experiments.paper import tables
import fedavg_jax as fa
from tests.testing import PROGRAMS


def start(repository, tmp_path, name, *args):
  script = PROGRAMS / 'two_cells.py'
  return subprocess.Popen(
    [
      *(sys.executable, script, '--results', tmp_path / name),
      *('--values', '3', *args),
    ],
    env={**os.environ, 'PYTHONPATH': str(repository), 'FEDAVG_DATA': ''},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  return out


def rows(path):
  """Returns the rows without their times."""
  lines = path.read_text().splitlines() if path.exists() else []
  found = [json.loads(line) for line in lines]
  for row in found:
    assert row.pop('seconds') >= 0
  return found


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """Returns the folder and the output of an uninterrupted run."""
  repository = pathlib.Path(__file__).parents[2]
  folder = tmp_path_factory.mktemp('plain')
  return folder, finish(start(repository, folder, 'plain.jsonl'))


@pytest.mark.slow
def test_a_table_from_end_to_end(plain):
  folder, out = plain
  found = rows(folder / 'plain.jsonl')
  assert len(found) == 6
  columns = {'table', 'model', 'dataset', 'partition', 'C', 'E', 'B', 'u'}
  columns |= {'target_accuracy', 'algorithm', 'learning_rate', 'seed'}
  columns |= {'rounds_to_target', 'rounds_to_target_paper_grid', 'rounds'}
  columns |= {'best_accuracy', 'curve', 'device', 'versions', 'commit'}
  assert all(columns <= row.keys() for row in found)
  assert [row['learning_rate'] for row in found[:3]] == [0.1, 0.215, 0.464]
  easy, hard = found[:3], found[3:]
  first = min(row['rounds_to_target'] or 99 for row in easy)
  assert 1 <= first <= 60
  for row in easy:  # The paper's grid ends the sweep.
    assert row['rounds'] in (first, math.ceil(first / 10) * 10)
    assert row['best_accuracy'] == max(row['curve'])
    assert len(row['curve']) == row['rounds'] + 1
  assert {row['status'] for row in hard} <= {'finished', 'diverged'}
  assert '| 20 | not in 60 |' in out and f'| 20 | {first} |' in out
  left = (folder / 'plain.parts').iterdir()
  assert {path.suffix for path in left} == {'.lock'}


@pytest.mark.slow
def test_finished_cells_are_not_run_again(repository, plain):
  folder, out = plain
  before = (folder / 'plain.jsonl').read_bytes()
  again = finish(start(repository, folder, 'plain.jsonl'))
  assert (folder / 'plain.jsonl').read_bytes() == before
  assert 'learning rates' not in again and '|' in again
  assert again.splitlines()[-1] == out.splitlines()[-1]


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_rows(repository, plain, tmp_path):
  """SIGKILL ends it after the first cell, then SIGTERM ends each slice."""
  process = start(repository, tmp_path, 'killed.jsonl')
  while not rows(tmp_path / 'killed.jsonl'):
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  slices = 0
  while len(rows(tmp_path / 'killed.jsonl')) < 6 and slices < 3:
    process = start(repository, tmp_path, 'killed.jsonl')
    for line in process.stdout:  # Until it trains, and a moment more.
      if 'learning rates' in line:
        break
    time.sleep(1.5 + 2 * slices)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    # The last signal may come after all is done and handlers are removed.
    ends = (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    assert process.returncode in ends, err
    slices += 1
  _, err = start(repository, tmp_path, 'killed.jsonl').communicate()
  assert not err
  found = rows(tmp_path / 'killed.jsonl')
  expected = rows(plain[0] / 'plain.jsonl')
  for a, b in zip(found, expected, strict=True):
    assert {**a, 'date': ''} == {**b, 'date': ''}


@pytest.mark.slow
def test_a_damaged_last_line_is_kept_reported_and_run_again(
  repository, plain, tmp_path
):
  lines = (plain[0] / 'plain.jsonl').read_bytes().splitlines(keepends=True)
  half = lines[2][: len(lines[2]) // 2]
  path = tmp_path / 'damaged.jsonl'
  path.write_bytes(b''.join(lines[:2]) + half)
  out = finish(start(repository, tmp_path, 'damaged.jsonl', '--cells', '1'))
  assert f'{path}: line 3 is damaged; it is kept' in out
  now = path.read_bytes().splitlines()
  assert now[:3] == [*(line.rstrip() for line in lines[:2]), half]
  # Only the lost run had overtaken the two others.
  again = [json.loads(line) for line in now[3:]]
  assert [row['learning_rate'] for row in again] == [0.1, 0.215, 0.464]
  assert again[2]['curve'] == json.loads(lines[2])['curve']


@pytest.mark.slow
@pytest.mark.parametrize(
  ('args', 'said'),
  [
    (('--cells', '3'), '--cells 3: must be in [1, 2]'),
    (('--cells', 'a'), '--cells a: must be in [1, 2]'),
    (('--seeds', '-1'), '--seeds -1: must be whole numbers from 0'),
    (('--learning-rates', '0.1,0'), '--learning-rates 0.1,0: must be positive'),
    (('--learning-rates', 'x'), '--learning-rates x: must be positive'),
    (('--rounds', '-5'), '--rounds -5: must be at least 0'),
    (('--minutes', 'nan'), '--minutes nan: must be above 0'),
    (('--values', '0'), '--values 0: must be at least 1'),
  ],
)
def test_bad_arguments(refusing, tmp_path, args, said):
  found = refusing.run(
    tmp_path,
    *('--results', 'none.jsonl', '--values', '3', *args),
    module='tests.testing.programs.two_cells',
  )
  assert found.code == 2
  assert found.err.startswith('error: ' + said)
  assert 'Traceback' not in found.err
  assert not list(tmp_path.iterdir())


def test_a_folder_instead_of_the_results(repository, tmp_path):
  (tmp_path / 'folder').mkdir()
  process = start(repository, tmp_path, 'folder')
  _, err = process.communicate(timeout=60)
  assert process.returncode == 2 and 'cannot be read' in err


# Cells.


def all_modules():
  from experiments.paper import figure2
  from experiments.paper import figure3
  from experiments.paper import figure4
  from experiments.paper import figure5
  from experiments.paper import figure6
  from experiments.paper import figure7
  from experiments.paper import figure8
  from experiments.paper import figure9
  from experiments.paper import figure10
  from experiments.paper import table1
  from experiments.paper import table2
  from experiments.paper import table3
  from experiments.paper import table4

  found = (figure2, figure3, figure4, figure5, figure6, figure7, figure8)
  return [table1, table2, table3, table4, *found, figure9, figure10]


def test_every_cell_of_the_paper_is_declared():
  by_table = [module.table() for module in all_modules()[:4]]
  assert [len(table) for table in by_table] == [40, 30, 9, 18]
  printed = [row for n in range(1, 5) for row in published.cells(n)]
  for cell, row in zip(sum(by_table, []), printed, strict=True):
    assert (cell.model, cell.partition) == (row['model'], row['partition'])
    assert str(cell.paper_rounds or '') == row['rounds']
    assert cell.rounds * cell.counted >= (cell.paper_rounds or 0)
    assert cell.grid(5, 3)[2] == pytest.approx(10**cell.middle, rel=3e-3)


@pytest.mark.parametrize(
  'module', all_modules(), ids=lambda module: module.__name__
)
def test_a_script_has_an_introduction(module):
  """It has a claim, what to look for, a command that works, and a time."""
  doc = module.__doc__
  name = module.__name__.rpartition('.')[2]
  assert 'What the paper claims' in doc and 'What to look for' in doc
  assert f'python -m experiments.paper.{name}' in doc
  assert 'GPU' in doc or 'CPU' in doc or 'as in Figure 5' in doc


def test_grids_are_the_papers():
  cell = all_modules()[3].table()[4]
  assert cell.grid(5, 3) == (0.0464, 0.1, 0.215, 0.464, 1.0)
  assert cell.grid(3, 6) == (0.147, 0.215, 0.316)
  fixed = all_modules()[5].panels()[0].curves[0].cell
  assert fixed.grid(5, 3) == (1.47,)


@pytest.mark.parametrize(
  'module', all_modules()[4:], ids=lambda module: module.__name__
)
def test_figures_are_drawn_without_a_run(module, tmp_path):
  """Every curve of the paper that a panel names is in its file."""
  store = results.Results(tmp_path / 'none.jsonl')
  figures.draw(tmp_path / 'figure.png', module.panels(), store)
  assert (tmp_path / 'figure.png').stat().st_size > 10_000
  for panel in module.panels():
    if panel.paper:
      read = figures.read_paper(panel.paper)
      assert {c.paper for c in panel.curves} - {''} == set(read)


def made(cell, **changes):
  """Makes a complete row of a cell."""
  row = {
    **cell.setting(),
    **{'seed': 0, 'status': 'overtaken', 'rounds': 3, 'seconds': 1.0},
    **{'diverged': False, 'num_devices': 2, 'versions': {'jax': '1'}},
    **dict.fromkeys(('date', 'device', 'processor'), 'x'),
    **changes,
  }
  return row | {'rounds': len(row['curve']) - 1}


def test_an_envelope_is_the_best_rate_and_round(tmp_path):
  cell = all_modules()[3].table()[0]
  store = results.Results(tmp_path / 'made.jsonl')
  store.append(
    [
      made(cell, learning_rate=0.1, curve=[0.1, 0.5, 0.4, 0.9]),
      made(cell, learning_rate=0.2, curve=[0.1, 0.3, 0.7]),
    ]
  )
  ((x, y),) = figures.lines(figures.tuned(cell), store, loss=False)
  assert x.tolist() == [1, 2, 3] and y.tolist() == [0.5, 0.7, 0.9]
  assert results.Results(store.path).rows == store.rows
  best = store.best(cell, 0)
  assert best.rounds is None and best.tried == 3
  store.append([made(cell, learning_rate=0.3, curve=[0.1, 0.95, 0.97])])
  best = store.best(cell, 0)
  assert (best.learning_rate, best.rounds, best.at_edge) == (0.3, 2, True)
  assert best.rounds_paper_grid == 2.0 and store.end(cell, 0) == 2
  # 0.1 and 0.2 have been run for as long; 0.4 has not been run.
  assert store.wanted(cell, 0, (0.1, 0.2, 0.3, 0.4)) == [0.4]
  assert store.wanted(cell, 1, (0.1,)) == [0.1]


def test_a_loss_envelope_falls(tmp_path):
  from experiments.paper import figure6

  cell = figure6.panels()[0].curves[0].cell
  store = results.Results(tmp_path / 'made.jsonl')
  row = made(cell, learning_rate=0.1, curve=[0.1] * 4)
  store.append([row | {'loss_curve': [2.3, 0.5, 0.7, 0.1]}])
  ((_, y),) = figures.lines(figures.tuned(cell), store, loss=True)
  assert y.tolist() == [0.5, 0.5, 0.1]


def test_a_crossing_between_rounds_of_the_grid_does_not_end_a_sweep(tmp_path):
  """Only round 12 is at the target: the best rate is wanted again."""
  cell = all_modules()[3].table()[0]
  store = results.Results(tmp_path / 'made.jsonl')
  lucky = [0.1] * 12 + [0.98] + [0.9] * 8
  store.append([made(cell, learning_rate=0.1, curve=lucky)])
  store.append([made(cell, learning_rate=0.2, curve=[0.1] * 21)])
  best = store.best(cell, 0)
  assert best.rounds == 12 and best.rounds_paper_grid is None
  assert store.end(cell, 0) is None
  assert store.wanted(cell, 0, (0.1, 0.2)) == [0.1]


def test_a_curve_of_one_rate_is_not_that_of_another(tmp_path):
  from experiments.paper import figure4

  cells_ = figures.cells_of(figure4.panels())
  store = results.Results(tmp_path / 'made.jsonl')
  assert 'Incomplete: 6 of 6' in figures.missing('figure4', cells_, store)
  curve = [0.1] * (3000 // 10 + 1)
  row = made(cells_[0], learning_rate=0.05, curve=curve) | {'rounds': 3000}
  store.append([row])
  text = figures.missing('figure4', cells_, store)
  assert 'Incomplete: 5 of 6' in text and 'lr=0.05' not in text


def test_speedups_are_those_of_the_paper(tmp_path):
  """They are computed from its rounds and compared with its numbers."""
  store = results.Results(tmp_path / 'none.jsonl')
  for number, module in enumerate(all_modules()[:4], 1):
    rendered = tables.render(module.__name__, module.table(), store)
    rows_ = [line.split('|') for line in rendered.splitlines()[2:]]
    for printed, cells_ in zip(published.cells(number), rows_, strict=False):
      if printed['speedup']:
        ours = float(cells_[10])
        assert ours == pytest.approx(float(printed['speedup']), abs=0.06)
      else:
        assert not cells_[10].strip() or not printed['rounds']


def test_the_pages_show_the_results(repository):
  """They are as `python -m experiments.paper.report` writes them."""
  from experiments.paper import report

  store = results.Results(results.DEFAULT)
  assert not store.damaged and store.rows
  for path in report.PAGES:
    text = path.read_text('utf-8')
    assert report.page(text, store) == text, path


@pytest.mark.parametrize(
  'line',
  [
    b'[]',
    b'3',
    b'{}',
    b'\xff\xfe',
    b'{"seed": 0}',
    b'[' * 10_000,
  ],
)
def test_invalid_lines_are_ignored(tmp_path, line):
  path = tmp_path / 'junk.jsonl'
  path.write_bytes(line + b'\n')
  store = results.Results(path)
  assert not store.rows and store.damaged == [1]
  cell = all_modules()[3].table()[0]
  for key, value in (('curve', [0.1, None]), ('seed', 'x'), ('curve', [])):
    row = made(cell, learning_rate=0.1, curve=[0.1]) | {key: value}
    path.write_text(json.dumps(row) + '\n')
    assert not results.Results(path).rows


def test_results_that_cannot_be_written(tmp_path):
  """The error is raised before training."""
  store = results.Results(pathlib.Path('/proc/nobody/results.jsonl'))
  with pytest.raises(fa.InputError, match='cannot be'):
    store.append([])
  with pytest.raises(fa.InputError, match='cannot be made'):
    sweeps.run(
      all_modules()[3].table()[0],
      (0.1,),
      0,
      store,
      data='',
      should_stop=lambda: False,
    )


# A sweep in slices.


def digits_cell(**changes):
  return cells.Cell(
    **{
      **{'table': 'test', 'model': '2nn', 'dataset': 'digits', 'C': 0.1},
      **{'partition': 'iid', 'E': 1, 'B': 10, 'algorithm': 'FedAvg'},
      **{'target_accuracy': 0.9, 'rounds': 40},
      **changes,
    }
  )


def run_sweep(path, cell, stop_after=(), rates=(0.05, 0.1)):
  """Returns the rows of a sweep that is stopped after these rounds."""
  store = results.Results(path)
  for stop in (*stop_after, 10**6):
    seen = []

    def stopping(stop=stop, seen=seen):
      seen.append(0)
      return len(seen) > stop

    sweeps.run(cell, rates, 0, store, data='', should_stop=stopping)
  return rows(path)


@pytest.mark.slow
def test_a_stop_between_the_crossing_and_the_papers_next_round(
  tmp_path, monkeypatch, capsys
):
  """A call has one round, so that any round can be the last of a slice."""
  short = fa.Execution(rounds_per_call=1)
  monkeypatch.setattr(
    cells.fa, 'build_sweep', functools.partial(fa.build_sweep, execution=short)
  )
  plain = run_sweep(tmp_path / 'plain.jsonl', digits_cell())
  first = min(r['rounds_to_target'] for r in plain if r['rounds_to_target'])
  end = plain[0]['rounds']
  assert first > 10 and end > first + 1  # Not on the paper's grid.
  capsys.readouterr()
  stopped = run_sweep(
    tmp_path / 'stopped.jsonl', digits_cell(), stop_after=(first + 1, 1, 2)
  )
  resumed = re.findall(r'resumes after round (\d+)', capsys.readouterr().out)
  assert any(first <= int(number) < end for number in resumed), resumed
  assert [r['curve'] for r in stopped] == [r['curve'] for r in plain]


@pytest.mark.slow
def test_fewer_rounds_than_were_run_cut_the_rows(tmp_path):
  """An interrupted sweep ends when fewer rounds are requested."""
  cell = digits_cell(target_accuracy=0.0, rounds=2000)
  path = tmp_path / 'rows.jsonl'
  store = results.Results(path)
  looks = []

  def stopping():
    looks.append(0)
    return len(looks) > 6

  assert not sweeps.run(cell, (0.1,), 0, store, data='', should_stop=stopping)
  assert not path.read_bytes()
  fewer = dataclasses.replace(cell, rounds=2)
  never = {'data': '', 'should_stop': lambda: False}
  assert sweeps.run(fewer, (0.1,), 0, store, **never)
  (row,) = rows(path)
  assert row['rounds'] == 2 and len(row['curve']) == 3


@pytest.mark.slow
def test_stopped_right_after_a_checkpoint(tmp_path, monkeypatch, capsys):
  """With a checkpoint of every round, the last is not written twice."""
  monkeypatch.setattr(sweeps, '_SECONDS_BETWEEN_SAVES', 0.0)
  cell = digits_cell(target_accuracy=0.0, rounds=2000)
  store = results.Results(tmp_path / 'rows.jsonl')
  looks = []

  def stopping():
    looks.append(0)
    return len(looks) > 6

  assert not sweeps.run(cell, (0.1,), 0, store, data='', should_stop=stopping)
  fewer = dataclasses.replace(cell, rounds=2)
  never = {'data': '', 'should_stop': lambda: False}
  assert sweeps.run(fewer, (0.1,), 0, store, **never)
  assert 'resumes after round' in capsys.readouterr().out


def test_another_process_at_the_same_cell(tmp_path, capsys):
  """A running cell is not started again, nor a finished one."""
  cell, path = digits_cell(rounds=2, target_accuracy=0.0), tmp_path / 'r.jsonl'
  other, store = results.Results(path), results.Results(path)
  never = {'data': '', 'should_stop': lambda: False}
  inner = []

  def stopping():
    if not inner:
      inner.append(0)
      assert not sweeps.run(cell, (0.1,), 0, other, **never)
    return False

  sweeps.run(cell, (0.1,), 0, store, data='', should_stop=stopping)
  assert 'another process is running this cell' in capsys.readouterr().out
  assert sweeps.run(cell, (0.1,), 0, other, **never)
  assert len(rows(path)) == 1


def test_runs_on_other_data_are_refused(tmp_path):
  cell, path = digits_cell(rounds=1, target_accuracy=0.0), tmp_path / 'r.jsonl'
  store = results.Results(path)
  never = {'data': '', 'should_stop': lambda: False}
  sweeps.run(cell, (0.1,), 0, store, **never)
  row = json.loads(path.read_text())
  path.write_text(json.dumps(row | {'data_sha256': 'other'}) + '\n')
  with pytest.raises(fa.InputError, match='runs of this cell on other data'):
    sweeps.run(cell, (0.2,), 0, store, **never)


def test_median_and_range():
  assert results.median_and_range([30]) == '30'
  assert results.median_and_range([35, 27, 30]) == '30 (27 to 35)'
  assert tables.duration(30) == '30 s' and tables.duration(7200) == '2.0 h'


@pytest.mark.slow
def test_a_cell_becomes_the_federation_that_it_names():
  """C, E, B and decay are those of the cell; plain SGD is one client."""
  dataset = fa.load_dataset('digits')
  cell = cells.Cell(
    table='test',
    model='2nn',
    dataset='digits',
    partition='centralized',
    C=0.0,
    E=1,
    B=100,
    algorithm='SGD',
    target_accuracy=0.9,
    rounds=3,
    decay=0.5,
    decay_rounds=2,
  )
  simulation = cells.build(cell, (0.1, 0.2), 0, dataset)
  planner = simulation.planner
  assert planner.num_examples.tolist() == [1500] and planner.batch_size == 100
  assert simulation.sweep == (0.1, 0.2)
  *_, record = fa.simulate(simulation, rounds=3)
  # The third round has half the rate, as has a run that starts there.
  plain = cells.build(
    dataclasses.replace(cell, decay=1.0),
    (0.05, 0.1),
    0,
    dataset,
  )
  before = [r for r in fa.simulate(simulation, rounds=2)][-1]
  *_, other = fa.simulate(plain, rounds=3, start=(before.state, ()))
  for a, b in zip(
    np.asarray(record.train_loss), np.asarray(other.train_loss), strict=True
  ):
    assert a == pytest.approx(b, rel=1e-5)
