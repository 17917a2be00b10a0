"""The repository's style, types, imports and words are checked."""

import ast
import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
  'command',
  [
    ('ruff', 'check', '.'),
    ('ruff', 'format', '--check', '.'),
    ('pyrefly', 'check', '--python-interpreter-path', sys.executable),
  ],
)
def test_dialect_and_types(repository, command):
  process = subprocess.run(
    [sys.executable, '-m', *command],
    cwd=repository,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stdout


def test_folders_import_those_below_them(repository):
  """The two contracts of pyproject.toml are satisfied, indirectly too."""
  process = subprocess.run(
    [
      *(sys.executable, '-c'),
      'from importlinter.cli import lint_imports_command as c; c()',
      '--no-cache',
    ],
    cwd=repository,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stdout
  assert 'Contracts: 2 kept, 0 broken' in process.stdout


def imported(path):
  """Returns the modules that a file imports, at its top or inside."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {node.module}
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def test_flax_and_configs_are_imported_where_they_belong(repository):
  for path in (repository / 'fedavg_jax').rglob('*.py'):
    names = {name.split('.')[0] for name in imported(path)}
    assert ('flax' in names) == (path.name == 'zoo.py'), path
    assert 'ml_collections' not in names or path.parent.name in (
      'runs',
      'cli',
    ), path


def test_the_engine_does_not_import_data(repository):
  for path in (repository / 'fedavg_jax' / 'engine').glob('*.py'):
    for name in imported(path):
      assert not name.startswith('fedavg_jax.data'), (path, name)


def test_no_test_imports_another(repository):
  for path in (repository / 'tests').rglob('*.py'):
    for name in imported(path):
      assert not name.split('.')[-1].endswith('_test'), (path, name)


# Phrases that no reader would search for; the field has its own words.
BANNED = re.compile(
  r'\b(told|goes on|went on|looked at|is whole|holds no more|written over'
  r'|life story|whose numbers left|at work in it|must lie|as asked|at hand'
  r"|is no (file|folder|run|commit|directory)|a value twice|one's own"
  r"|there is no such|a person('s)?|s a round|clients a round|fills no more"
  r'|as it went in|must not be asked|by itself|go(es)? by|says? so)\b',
  re.IGNORECASE,
)


FOLDERS = (
  'fedavg_jax',
  'configs',
  'experiments',
  'docs',
  'tests',
  '.github',
  '.',
)


def test_prose_has_the_words_of_the_field(repository):
  found = []
  for folder in FOLDERS:
    pattern = '*' if folder == '.' else '**/*'
    for path in (repository / folder).glob(pattern):
      if path.suffix not in ('.py', '.md') or 'results' in path.parts:
        continue
      if path.name == 'lint_test.py':  # It has the list.
        continue
      for number, line in enumerate(path.read_text().splitlines(), 1):
        # The name of checkpoints' metadata on disk, from the first version.
        if BANNED.search(re.sub(r"'told'|told/metadata", '', line)):
          found.append(f'{path.relative_to(repository)}:{number}: {line}')
  assert not found, '\n'.join(found)
