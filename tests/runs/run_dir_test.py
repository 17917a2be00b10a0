"""A run's folder belongs to one process, and no file is half written."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import run_dir
from fedavg_jax.runs.run_dir import Workdir
from tests.testing import PROGRAMS


def started(path):
  folder = Workdir(path)
  folder.begin(room=0)
  folder.config({'config': {}})
  folder.open_metrics()
  return folder


def test_lines_are_json_and_sealed(tmp_path):
  with started(tmp_path / 'a' / 'run') as folder:
    folder.line({'round': 0, 'train_loss': float('nan')})
    seal = folder.seal()
    folder.line({'round': np.int64(1), 'train_loss': np.float32(0.5)})
    expected = [{'round': 0, 'train_loss': None}]
    expected.append({'round': 1, 'train_loss': 0.5})
    assert folder.lines() == expected
    folder.summary({'nested': {'values': [np.float64(1), None]}})
    assert folder.last_summary() == {'nested': {'values': [1.0, None]}}
  content = (folder.path / 'metrics.jsonl').read_bytes()
  assert content[: seal['bytes']] == b'{"round": 0, "train_loss": null}\n'


def test_a_torn_line_is_removed_and_sealed_lines_stay(tmp_path):
  with started(tmp_path / 'run') as folder:
    folder.line({'round': 0})
    seal = folder.seal()
    folder.line({'round': 1})
  path = tmp_path / 'run' / 'metrics.jsonl'
  path.write_bytes(path.read_bytes() + b'{"roun')
  with Workdir(tmp_path / 'run') as folder:
    folder.check_metrics(seal)
    assert path.read_bytes().endswith(b'{"roun')  # Only resuming removes it.
    folder.open_metrics()
    folder.line({'round': 1, 'again': True})
    assert folder.lines() == [{'round': 0}, {'round': 1, 'again': True}]
  assert path.read_text() == '{"round": 0}\n{"round": 1, "again": true}\n'


def test_an_incomplete_line_on_a_full_disk_is_not_read(tmp_path):
  with started(tmp_path / 'run') as folder:
    folder.line({'round': 0})
    with open(tmp_path / 'run' / 'metrics.jsonl', 'ab') as file:
      file.write(b'{"round": 1, "trai')
    assert folder.lines() == [{'round': 0}]


@pytest.mark.parametrize('content', [b'{"round": 7}\n', b'', None])
def test_metrics_that_differ_from_the_seal(tmp_path, content):
  with started(tmp_path / 'run') as folder:
    folder.line({'round': 0})
    seal = folder.seal()
  path = tmp_path / 'run' / 'metrics.jsonl'
  path.unlink() if content is None else path.write_bytes(content)
  with Workdir(tmp_path / 'run') as folder:
    with pytest.raises(InputError, match=r'metrics.jsonl: does not begin with'):
      folder.check_metrics(seal)
  assert content is None or path.read_bytes() == content


def test_one_process_at_a_time(tmp_path):
  """The other process may also have been killed while it had the folder."""

  def other():
    return subprocess.run(
      [sys.executable, PROGRAMS / 'take_folder.py', tmp_path / 'run'],
      capture_output=True,
      text=True,
    )

  with started(tmp_path / 'run'):
    assert 'is in use by another process' in other().stdout
  assert other().returncode == -9  # It was killed with the folder locked.
  with Workdir(tmp_path / 'run') as folder:
    assert folder.began == {'format': run_dir.FORMAT, 'config': {}}


def test_a_folder_made_in_the_meantime(tmp_path):
  first, second = Workdir(tmp_path / 'run'), Workdir(tmp_path / 'run')
  first.begin(room=0)
  with pytest.raises(InputError, match='was created by another process'):
    second.begin(room=0)
  first.close()


def test_a_run_that_started_while_we_waited_for_the_lock(tmp_path, monkeypatch):
  """Another process starts and ends between our check and our lock."""
  acquire = run_dir.filelock.FileLock.acquire

  def late(self, *args, **kwargs):
    (tmp_path / 'config.json').write_text(
      '{"format": 2, "config": {"theirs": 1}}'
    )
    (tmp_path / 'metrics.jsonl').write_text('{"round": 0}\n')
    return acquire(self, *args, **kwargs)

  monkeypatch.setattr(run_dir.filelock.FileLock, 'acquire', late)
  with Workdir(tmp_path) as folder:
    assert folder.began == {'format': 2, 'config': {'theirs': 1}}


def test_an_empty_folder_stays_empty_where_no_run_starts(tmp_path):
  with Workdir(tmp_path) as folder:
    assert folder.began is None
    assert os.listdir(tmp_path) == ['.lock']
  assert os.listdir(tmp_path) == []


def test_a_name_that_is_not_utf_8(tmp_path):
  with pytest.raises(InputError, match='workdir = .*must be a name in UTF-8'):
    Workdir(tmp_path / os.fsdecode(b'\xff'))


def test_files_of_a_kill_before_config_json(tmp_path):
  (tmp_path / '.lock').touch()
  (tmp_path / '.part.config.json').write_text('{"con')
  with Workdir(tmp_path) as folder:
    assert folder.began is None
    folder.begin(room=0)
    folder.config({'config': {}})
  written = json.loads((tmp_path / 'config.json').read_text())
  assert written == {'format': run_dir.FORMAT, 'config': {}}
  assert not (tmp_path / '.part.config.json').exists()


def test_other_folders_are_not_touched(tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  with pytest.raises(
    InputError, match='exists already.*not the folder of a run'
  ):
    Workdir(tmp_path)
  assert os.listdir(tmp_path) == ['mine.txt']
  with pytest.raises(InputError, match='mine.txt: is not a directory'):
    Workdir(tmp_path / 'mine.txt')
  with pytest.raises(InputError, match='cannot be created'):
    Workdir(tmp_path / 'mine.txt' / 'run').begin(room=0)
  (tmp_path / 'dangling').symlink_to(tmp_path / 'nowhere')
  with pytest.raises(InputError, match='dangling: is not a directory'):
    Workdir(tmp_path / 'dangling')


def test_not_enough_space(tmp_path):
  with pytest.raises(InputError, match='MiB are free, a run needs 1048576.0'):
    Workdir(tmp_path / 'run').begin(room=2**40)
  assert not (tmp_path / 'run').exists()


def test_a_file_is_replaced_atomically(tmp_path):
  with started(tmp_path / 'run') as folder:
    folder.summary({'rounds': 1})
    with pytest.raises(ZeroDivisionError):
      with folder.replacing('summary.json') as part:
        part.write_text('half')
        raise ZeroDivisionError
    assert folder.last_summary() == {'rounds': 1}
    (folder.path / 'summary.json').write_text('{"rou')
    assert folder.last_summary() == {}
    assert not list(folder.path.glob('.part*'))


def test_default_workdirs_differ(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  first = run_dir.default_workdir('quickstart')
  first.mkdir(parents=True)
  second = run_dir.default_workdir('quickstart')
  assert first != second and first.name.endswith('_quickstart')
  assert first.parts[0] == 'outputs' and len(first.parts) == 3


def replaced(folder):
  """Replaces the folder by one of another run; returns its files."""
  shutil.rmtree(folder.path)
  with started(folder.path) as theirs:
    theirs.line({'round': 0, 'theirs': True})
  return {p.name: p.read_bytes() for p in folder.path.iterdir()}


@pytest.mark.parametrize(
  'write',
  [
    lambda folder: folder.line({'round': 1}),
    lambda folder: folder.sync(),
    lambda folder: folder.summary({'status': 'ours'}),
    lambda folder: folder.config({'config': 'ours'}),
    lambda folder: folder.open_metrics(),
    lambda folder: folder.replacing('curves.png').__enter__(),
  ],
)
def test_nothing_is_written_into_the_folder_of_another_run(tmp_path, write):
  folder = started(tmp_path / 'run')
  folder.line({'round': 0})
  theirs = replaced(folder)
  with pytest.raises(InputError, match='was deleted or replaced by another'):
    write(folder)
  folder.close()
  assert theirs == {p.name: p.read_bytes() for p in folder.path.iterdir()}


@pytest.mark.parametrize('name', ['x' * 300, 'file/run', 'a\0b'])
def test_invalid_folders_are_refused_at_once(tmp_path, name):
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='cannot be created'):
    Workdir(tmp_path / name)
