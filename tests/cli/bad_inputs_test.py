"""Every bad input is one line and an exit code; no file changes."""

import hashlib
import os
import pathlib
import shutil

import pytest

from tests.testing import hostile_data
from tests.testing import hostile_inputs

CASES = hostile_inputs.CASES | hostile_data.CASES


@pytest.fixture(scope='module')
def server(training_server):
  """Executes `python -m fedavg_jax run ARGS` in a folder."""
  return lambda folder, args: training_server.run(folder, 'run', *args)[:3]


@pytest.fixture(scope='module')
def places(server, tmp_path_factory, repository_path):
  """Returns folders to copy: an interrupted run, and files like MNIST's."""
  from tests.testing.idx_files import make_files

  folder = tmp_path_factory.mktemp('places')
  (folder / 'data').mkdir()
  make_files(folder / 'data', 'mnist')
  args = [
    f'--config={repository_path / "configs" / "quickstart.py"}',
    '--config.rounds=4',
    '--config.checkpoint.rounds=2',
    '--workdir=run',
  ]
  assert server(folder, args)[0] == 0
  shutil.rmtree(folder / 'run' / 'checkpoints' / '4')
  (folder / 'run' / 'summary.json').unlink()
  return folder


@pytest.fixture(scope='module')
def repository_path():
  return pathlib.Path(__file__).parents[2]


def snapshot(folder):
  """Returns every name below a folder and its content, except bytecode."""
  found = {}
  for path in sorted(folder.rglob('*')):
    if '__pycache__' in path.parts:
      continue
    content = None
    if path.is_symlink():
      content = os.readlink(path)
    elif path.is_file():
      content = hashlib.sha256(path.read_bytes()).hexdigest()
    found[str(path.relative_to(folder))] = content
  return found


def test_there_are_enough():
  assert len(CASES) >= 250
  assert all(case.words and case.code for case in CASES.values())


@pytest.mark.parametrize('name', CASES)
def test_one_line_and_nothing_changed(
  server, places, repository_path, tmp_path, name
):
  case = CASES[name]
  configs = repository_path / 'configs'
  if name.startswith('run: '):
    shutil.copytree(places / 'run', tmp_path / 'run')
  if name.startswith('data: '):
    shutil.copytree(places / 'data', tmp_path / 'data', copy_function=os.link)
  case.prepare(tmp_path)
  args = [arg.replace('{configs}', str(configs)) for arg in case.args]
  defaults = [f'--config={configs / "quickstart.py"}', '--workdir=new']
  if name.startswith('run: '):
    defaults += ['--config.rounds=4', '--config.checkpoint.rounds=2']
  given = {arg.split('=')[0] for arg in args}
  args = [d for d in defaults if d.split('=')[0] not in given] + args
  before = snapshot(tmp_path)
  code, out, err = server(tmp_path, args)
  assert 'Traceback' not in out + err
  assert code == case.code, err
  (line,) = err.splitlines()
  assert line.startswith('error: ') and len(line) < 1200
  for word in case.words:
    assert word in line
  assert snapshot(tmp_path) == before
