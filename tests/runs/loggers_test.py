"""Logs have the run's metrics, when read without the package's code."""

import csv
import json
import os
import pathlib
import struct
import subprocess
import sys

import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.runs import loggers
from fedavg_jax.runs import train
from tests.testing.run_folders import lines
from tests.testing.run_folders import load
from tests.testing.run_folders import signal_after

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')


def scalars(folder):
  """Reads event files: {tag: {step: the last value}}.

  A record is a length, a checksum, an event and a checksum.

  """
  from tensorboardX.proto import event_pb2

  found = {}
  for path in sorted(
    folder.glob('events.*'), key=lambda p: p.stat().st_mtime_ns
  ):
    content, at = path.read_bytes(), 0
    while at < len(content):
      (length,) = struct.unpack('<Q', content[at : at + 8])
      event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
      at += 16 + length
      if event.session_log.status == event_pb2.SessionLog.SessionStatus.Value(
        'START'
      ):  # Readers drop earlier values of this step and later ones.
        found = {
          tag: {s: v for s, v in steps.items() if s < event.step}
          for tag, steps in found.items()
        }
      for value in event.summary.value:
        steps = found.setdefault(value.tag, {})
        assert event.step not in steps, (value.tag, event.step)
        steps[event.step] = value.simple_value
  return found


@pytest.mark.slow
def test_csv_and_tensorboard_have_the_values_of_the_lines(repository, tmp_path):
  config = load(
    repository, 'quickstart', rounds=6, eval_every=2, log='csv, tensorboard'
  )
  train.train(config, tmp_path / 'run')
  records = lines(tmp_path / 'run')
  with open(tmp_path / 'run' / 'metrics.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 7
  for row, record in zip(rows, records, strict=True):
    for key, text in row.items():
      value = record.get(key)
      assert text == ('' if value is None else str(value))
  logged = scalars(tmp_path / 'run' / 'tensorboard')
  expected = {}
  for record in records:
    for key, value in record.items():
      if key != 'round' and value is not None:
        expected.setdefault(key, {})[record['round']] = value
  assert logged.keys() == expected.keys()
  for tag, values in expected.items():
    assert logged[tag] == pytest.approx(values, rel=1e-6)


@pytest.mark.slow
def test_a_resumed_run_logs_each_round_once(repository, tmp_path, monkeypatch):
  config = load(
    repository,
    'quickstart',
    rounds=8,
    rounds_per_call=1,
    log='csv,tensorboard',
  )
  with monkeypatch.context() as patch:
    signal_after(patch, 4, 15)
    with pytest.raises(InterruptedRunError):
      train.train(config, tmp_path / 'run')
  train.train(config, tmp_path / 'run')
  records = lines(tmp_path / 'run')
  with open(tmp_path / 'run' / 'metrics.csv', newline='') as file:
    rounds = [int(row['round']) for row in csv.DictReader(file)]
  assert rounds == list(range(9)) == [r['round'] for r in records]
  logged = scalars(tmp_path / 'run' / 'tensorboard')['test_accuracy']
  assert logged == pytest.approx(
    {r['round']: r['test_accuracy'] for r in records}
  )


def test_names():
  assert loggers.open_loggers('', pathlib.Path(), {}, []) == []
  loggers.check('csv,tensorboard')
  with pytest.raises(
    InputError,
    match='must be a comma-separated list of csv, tensorboard, wandb',
  ):
    loggers.check('csv,excel')


@pytest.mark.parametrize(
  ('name', 'package', 'install'),
  [
    ('tensorboard', 'tensorboardX', "'fedavg_jax.tensorboard.'"),
    ('wandb', 'wandb', 'wandb'),
  ],
)
def test_a_missing_library_is_one_line(monkeypatch, name, package, install):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(
    InputError, match=f'{package} cannot be imp.*: pip install {install}$'
  ) as info:
    loggers.check(name)
  assert '\n' not in str(info.value)


def test_nothing_is_written_into_a_folder_of_another_process(tmp_path):
  (tmp_path / 'metrics.csv').write_text('of another run')

  def check():
    raise InputError('another has it')

  (logger,) = loggers.open_loggers('csv', tmp_path, {}, [], check)
  logger.line({'round': 0})
  with pytest.raises(InputError, match='another has it'):
    logger.close()
  assert (tmp_path / 'metrics.csv').read_text() == 'of another run'


def test_a_missing_wandb_is_reported(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(InputError, match='wandb cannot be imported'):
    loggers.check('wandb')


def test_a_folder_has_one_run_of_wandb(tmp_path):
  """A moved folder has the same run; another folder has another run."""
  made = loggers._wandb_id(tmp_path / 'a' / 'run_id')
  (tmp_path / 'a').rename(tmp_path / 'b')
  assert loggers._wandb_id(tmp_path / 'b' / 'run_id') == made
  assert loggers._wandb_id(tmp_path / 'a' / 'run_id') != made


def test_wandb_without_a_login_is_one_line(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  for name in ('WANDB_API_KEY', 'WANDB_MODE'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  with pytest.raises(InputError, match="log = 'wandb': .*; log in, or") as info:
    loggers.open_loggers('wandb', tmp_path, {}, [])
  assert '\n' not in str(info.value)


def test_wandb_has_the_rounds(repository, tmp_path):
  pytest.importorskip('wandb')
  process = subprocess.run(
    [
      *(sys.executable, '-m', 'fedavg_jax.main'),
      *('--config', repository / 'configs' / 'quickstart.py'),
      *('--config.rounds=3', '--config.log=wandb', '--workdir=run'),
    ],
    cwd=tmp_path,
    env=os.environ | {'WANDB_MODE': 'offline'},
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  (folder,) = (tmp_path / 'run' / 'wandb').glob('offline-run-*')
  (path,) = folder.glob('*.wandb')
  content = path.read_bytes()  # Numbers are stored as JSON.
  for record in lines(tmp_path / 'run'):
    assert json.dumps(record['test_loss']).encode() in content
