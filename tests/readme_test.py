"""What the README promises, run."""

import json
import re
import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def blocks(repository):
  """The fenced blocks of the README: (language, content)."""
  text = (repository / 'README.md').read_text()
  return re.findall(r'^```(\w*)\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def test_first_command(repository, blocks, tmp_path):
  """The main job learns a non-IID federation without any network."""
  first = next(content for kind, content in blocks if kind == 'shell')
  install, run = first.strip().splitlines()[-2:]
  assert install.endswith('pip install --quiet -e .')
  python, *arguments = run.split()
  assert python == '.venv/bin/python'
  shutil.copytree(repository / 'configs', tmp_path / 'configs')
  process = subprocess.run(
    [sys.executable, *arguments],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  (folder,) = (tmp_path / 'outputs').glob('*/*')
  config = json.loads((folder / 'config.json').read_text())['config']
  assert (config['dataset'], config['partition']) == ('digits', 'shards')
  summary = json.loads((folder / 'summary.json').read_text())
  assert summary['final_test_accuracy'] > 0.95
  assert 'round 200/200' in process.stdout


def test_second_command_is_what_runs_here(repository, blocks):
  """`.ci/run` takes the second block; it must be the one that runs pytest."""
  shell = [content for kind, content in blocks if kind == 'shell']
  assert shell[1].strip().endswith('.venv/bin/python -m pytest')
  awk = re.search(r"awk '(.*?)' README.md", _ci(repository), re.DOTALL)
  assert awk
  process = subprocess.run(
    ['awk', awk.group(1), 'README.md'],
    cwd=repository,
    capture_output=True,
    text=True,
    check=True,
  )
  assert process.stdout == shell[1]


def _ci(repository):
  return (repository / '.ci' / 'run').read_text()


def test_python_block(repository, blocks, tmp_path):
  code = '\n'.join(content for kind, content in blocks if kind == 'python')
  process = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  first, *of_sweep = process.stdout.splitlines()
  assert float(first) > 0.95
  assert len(of_sweep) == 11 and of_sweep[-1].startswith('10 [0.')


def test_other_commands_name_files_and_keys_that_exist(repository, blocks):
  for kind, content in blocks:
    if kind != 'shell':
      continue
    for name in re.findall(r'configs/(\w+)\.py', content):
      assert (repository / 'configs' / f'{name}.py').exists()
    for key in re.findall(r'--config\.([\w.]+)=', content):
      text = (repository / 'configs' / 'mnist_cnn.py').read_text()
      assert f'config.{key} = ' in text


def test_doctest_of_the_package():
  process = subprocess.run(
    [
      sys.executable,
      '-c',
      'import doctest, fedavg_jax, sys;'
      ' told = doctest.testmod(fedavg_jax);'
      ' sys.exit(told.failed or not told.attempted)',
    ],
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stdout
