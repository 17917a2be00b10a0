"""`import fedavg_jax` has all public names, and imports JAX only for some."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import fedavg_jax

# These import what they export when it is first used.
LAZY = [
  'fedavg_jax',
  'fedavg_jax.data',
  'fedavg_jax.engine',
  'fedavg_jax.schedule',
]


@pytest.mark.parametrize('space', LAZY)
def test_every_name_is_there(space):
  module = importlib.import_module(space)
  assert len(set(module.__all__)) == len(module.__all__)
  for name in module.__all__:
    assert name in dir(module)
    value = getattr(module, name)
    assert value.__name__.rpartition('.')[2] == name


@pytest.mark.parametrize('space', LAZY)
def test_every_name_that_is_imported_is_public(space):
  module = importlib.import_module(space)
  tree = ast.parse(inspect.getsource(module))
  (block,) = (node for node in tree.body if isinstance(node, ast.With))
  names = [alias.name for node in block.body for alias in node.names]
  assert sorted(names) == sorted(module.__all__)


def test_a_star_imports_them_all():
  names = {}
  exec('from fedavg_jax import *', names)
  del names['__builtins__']
  assert sorted(names) == sorted(fedavg_jax.__all__)
  assert names['run'] is fedavg_jax.run


def test_unknown_names_are_refused():
  assert not hasattr(fedavg_jax, 'no_such')


def test_start_without_jax():
  """JAX is imported when a name that needs it is first used."""
  code = """
import sys
import fedavg_jax
names = ['fedavg_jax']
for name in ('core', 'data', 'schedule'):
  names.append(f'fedavg_jax.{name}')
  __import__(names[-1])
  assert 'jax' not in sys.modules, names[-1]
for value in (
  *(fedavg_jax.load_dataset, fedavg_jax.partition.shards),
  *(fedavg_jax.build_clients, fedavg_jax.engine.Planner),
):
  assert callable(value) and 'jax' not in sys.modules, value
assert callable(fedavg_jax.engine.build_round) and 'jax' in sys.modules
"""
  process = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert process.returncode == 0, process.stderr


def test_a_type_checker_sees_the_names(repository, tmp_path):
  """The checker knows the names, though they are imported lazily."""
  (tmp_path / 'theirs.py').write_text("""
from typing import reveal_type
import fedavg_jax as fa
reveal_type(fa.load_dataset('digits'))
reveal_type(fa.partition.shards)
fa.no_such
fa.run(3, rounds=1)
""")
  process = subprocess.run(
    [
      *(sys.executable, '-m', 'pyrefly', 'check', 'theirs.py'),
      *('--preset', 'default', '--min-severity', 'info'),
      *('--search-path', repository, '--output-format', 'min-text'),
      *('--python-interpreter-path', sys.executable),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  found = [line for line in process.stdout.splitlines() if 'theirs.py' in line]
  assert process.returncode == 1 and len(found) == 4, process.stdout
  for line, words in zip(
    found,
    [
      'revealed type: Dataset',
      'shards_per_client: int',
      'No attribute `no_such` in module `fedavg_jax`',
      'parameter `simulation` with type `Simulation`',
    ],
    strict=True,
  ):
    assert words in line
