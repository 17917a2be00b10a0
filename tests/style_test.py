"""The dialect, the types and the direction of imports."""

import ast
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
  'command', [['ruff', 'check', '.'], ['ruff', 'format', '--check', '.']]
)
def test_dialect(repository, command):
  process = subprocess.run(
    [sys.executable, '-m', *command],
    cwd=repository,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stdout


def test_types(repository):
  process = subprocess.run(
    [
      sys.executable,
      *('-m', 'pyrefly', 'check'),
      *('--python-interpreter-path', sys.executable),
    ],
    cwd=repository,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stdout


def imported(path):
  """Modules of the package that a file imports, at its top or inside."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module == 'fedavg_jax':
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      parts = node.module.split('.')
      if parts[0] == 'fedavg_jax':
        names.add(parts[1])
  return names


def packages(path):
  """First names of everything that a file imports."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names.add(node.module.split('.')[0])
  return names


def test_imports_point_one_way(repository):
  """Commands -> train -> everything else; nothing else imports those."""
  package = repository / 'fedavg_jax'
  for path in package.rglob('*.py'):
    names = imported(path)
    if path.stem not in ('__init__', 'main', 'sweep'):
      assert 'train' not in names and 'main' not in names, path
  for leaf in (
    *('errors', 'layers', 'losses', 'paper', 'plots', 'checkpoint', 'signals'),
    *('workdir', 'augment'),
  ):
    assert imported(package / f'{leaf}.py') <= {'errors', 'clients'}, leaf
  for leaf in (
    *('plan', 'partition/__init__', 'population', 'clients', 'datasets'),
    *('readers', 'texts', 'participation', 'stored', 'convert'),
  ):
    assert packages(package / f'{leaf}.py').isdisjoint({'jax', 'flax'}), leaf


def test_flax_and_configs_stay_where_they_belong(repository):
  for path in (repository / 'fedavg_jax').rglob('*.py'):
    names = packages(path)
    assert ('flax' in names) == (path.stem == 'models'), path
    assert 'ml_collections' not in names or path.stem in (
      'command',
      'sweep',
      'train',
    )
