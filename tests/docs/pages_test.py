"""The README's promises are run."""

import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys

import pytest

import fedavg_jax
from fedavg_jax.cli import dispatch
from fedavg_jax.cli import package_configs
from tests.testing import PROGRAMS
from tests.testing.pages import python_of


@pytest.fixture
def blocks(repository):
  """Returns the fenced blocks of the README: (language, content)."""
  text = (repository / 'README.md').read_text()
  return re.findall(r'^```(\w*)\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_first_command(repository, blocks, tmp_path):
  """It learns a non-IID federation without any network access."""
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
  """`.ci/run` takes the second block, which must run pytest."""
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


@pytest.mark.slow
@pytest.mark.parametrize(
  'page', ['README.md', 'docs/ten_minutes.md', 'docs/algorithms.md']
)
def test_python_blocks(repository, tmp_path, page):
  process = subprocess.run(
    [sys.executable, '-c', python_of(repository / page)],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  first, *of_sweep = process.stdout.splitlines()
  assert float(first) > 0.9
  if of_sweep:
    assert len(of_sweep) == 11 and of_sweep[-1].startswith('10 [0.')


def test_ten_lines_of_python(repository):
  lines = python_of(repository / 'README.md').splitlines()
  assert len([line for line in lines if line]) <= 10


def test_commands_name_files_and_keys_that_exist(repository):
  config = (repository / 'configs' / 'default.py').read_text()
  for page in (
    repository / 'README.md',
    repository / '.github' / 'CONTRIBUTING.md',
    *repository.glob('docs/*.md'),
  ):
    text = page.read_text()
    for content in re.findall(
      r'^```shell\n(.*?)^```', text, re.DOTALL | re.MULTILINE
    ):
      for name in re.findall(r'configs/(\w+)\.py', content):
        assert (repository / 'configs' / f'{name}.py').exists()
      for module in re.findall(
        r'-m ((?:fedavg_jax|experiments)[.\w]*)', content
      ):
        assert importlib.util.find_spec(module), module
      for name in re.findall(r'fedavg-jax ([a-z]+)', content):
        assert name in dispatch.COMMANDS, name
      for name in re.findall(
        r'fedavg-jax (?:run|sweep|partition) (\w+)', content
      ):
        assert name in package_configs.names(), name
    for key in re.findall(r'--(?:config\.|grid )([\w.]+)=', text):
      if key != 'KEY':
        assert f'config.{key} = ' in config, key


def test_links_have_targets(repository):
  for page in (
    *repository.glob('*.md'),
    *repository.glob('.github/*.md'),
    *repository.glob('docs/*.md'),
    *repository.glob('experiments/**/*.md'),
  ):
    for link in re.findall(r'\]\(([^)]+)\)', page.read_text()):
      if not link.startswith(('http', '#')):
        assert (page.parent / link.split('#')[0]).exists(), (page, link)


def public_names():
  """Returns the names of `import fedavg_jax as fa`, as in "losses.of_examples".

  A space of names has an `__all__`; types of annotations are not documented.
  """
  found = set()
  for name in fedavg_jax.__all__:
    value = getattr(fedavg_jax, name)
    if inspect.ismodule(value):
      inner = {own for own in value.__all__ if callable(getattr(value, own))}
      found |= {f'{name}.{own}' for own in inner - {'Loss'}}
    else:
      found.add(name)
  return found


def test_the_api_page_has_the_public_names_and_no_other(repository):
  page = (repository / 'docs' / 'api.md').read_text()
  documented = re.findall(r'^\.\. auto\w+:: fedavg_jax\.(\S+)$', page, re.M)
  assert len(set(documented)) == len(documented)
  assert set(documented) == public_names()


@pytest.mark.slow
def test_site_builds_without_a_warning(repository, tmp_path):
  process = subprocess.run(
    [
      *(sys.executable, '-m', 'sphinx', '-q', '-W', '-E'),
      *('-d', tmp_path / 'trees', 'docs', tmp_path / 'site'),
    ],
    cwd=repository,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  api = (tmp_path / 'site' / 'api.html').read_text()
  for name in (
    'build_simulation',
    'build_sweep',
    'dirichlet',
    'Participation',
    'fedprox',
  ):
    assert 'fedavg_jax.' in api and name in api
  # Default values are Python, and named tuples have attributes.
  assert '&lt;function' not in api and '&lt;factory' not in api
  assert 'Attributes<span' in api and 'Variables<span' not in api
  assert 'copybutton' in api


@pytest.mark.slow
def test_doctests():
  """All examples in docstrings are run; these modules must have some."""
  process = subprocess.run(
    [sys.executable, PROGRAMS / 'doctests.py'],
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stdout
