"""The wheel is built without a network and installed in an empty folder."""

from importlib import metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import fedavg_jax

# A build may read these; the folders beside them must be left alone.
FILES = (
  *('LICENSE', 'MANIFEST.in', 'README.md', 'ARCHITECTURE.md', 'CHANGELOG.md'),
  *('pyproject.toml', 'setup.py'),
)
FOLDERS = ('configs', 'docs', 'experiments', 'fedavg_jax', 'tests')


def call(command, folder, **environment):
  """Executes a command, which must succeed; returns its stdout."""
  process = subprocess.run(
    [str(word) for word in command],
    cwd=folder,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert process.returncode == 0, process.stdout + process.stderr
  return process.stdout


def build(kind, source, out):
  """Builds an sdist, a wheel or an editable wheel; returns its path."""
  code = (
    'import sys; from setuptools import build_meta;'
    f' build_meta.build_{kind}(sys.argv[1])'
  )
  # The version is read, not imported: the package cannot be imported here.
  blocked = out / 'blocked'
  blocked.mkdir(parents=True)
  (blocked / 'etils.py').write_text('raise ImportError("the build imports")')
  command = [sys.executable, '-c', code, out]
  call(command, source, PYTHONPATH=str(blocked))
  (path,) = out.glob('fedavg_jax-*')
  return path


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
  """Copies the repository, so that nothing is built inside it."""
  repository = pathlib.Path(__file__).parents[2]
  folder = tmp_path_factory.mktemp('checkout')
  ignored = shutil.ignore_patterns('__pycache__', '_build', '*.png', '*.jsonl')
  for name in FOLDERS:
    shutil.copytree(repository / name, folder / name, ignore=ignored)
  for name in FILES:
    shutil.copyfile(repository / name, folder / name)
  return folder


@pytest.fixture(scope='module')
def source(checkout, tmp_path_factory):
  """Returns the folder of an unpacked source distribution."""
  major = int(metadata.version('setuptools').split('.')[0])
  assert major >= 77, "setuptools is too old: pip install -e '.[test]'"
  out = tmp_path_factory.mktemp('built')
  sdist = build('sdist', checkout, out / 'sdist')
  shutil.unpack_archive(sdist, out, filter='data')
  return out / sdist.name.removesuffix('.tar.gz')


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
  """Builds the wheel from the source distribution."""
  return build('wheel', source, tmp_path_factory.mktemp('built_wheel'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """Returns a folder that contains only the package."""
  folder = tmp_path_factory.mktemp('installed')
  call(
    [
      *(sys.executable, '-m', 'pip', 'install', '--quiet', '--no-index'),
      *('--no-deps', '--disable-pip-version-check', '--target', folder, wheel),
    ],
    folder,
  )
  return folder


def test_the_source_distribution_has_everything(source, checkout):
  """Tests, pages and experiments are in it too."""
  names = {
    path.relative_to(checkout)
    for path in checkout.rglob('*')
    if path.is_file() and '.egg-info' not in str(path)
  }
  assert len(names) > 300
  for name in names:
    assert (source / name).read_bytes() == (checkout / name).read_bytes(), name


def test_contents_of_the_wheel(wheel, repository):
  """The wheel has every module and config, byte for byte, and no more."""
  expected = {
    f'fedavg_jax/{path.relative_to(repository)}': path
    for path in (repository / 'configs').glob('*.py')
  } | {
    str(path.relative_to(repository)): path
    for path in (repository / 'fedavg_jax').rglob('*.py')
  }
  assert len(expected) > 80 and 'fedavg_jax/configs/quickstart.py' in expected
  for name in ('py.typed', 'data/digits.npz', 'data/digits.txt'):
    expected[f'fedavg_jax/{name}'] = repository / 'fedavg_jax' / name
  with zipfile.ZipFile(wheel) as file:
    names = {name for name in file.namelist() if '.dist-info/' not in name}
    assert names == set(expected)
    for name, path in expected.items():
      assert file.read(name) == path.read_bytes(), name
  assert wheel.name == f'fedavg_jax-{fedavg_jax.__version__}-py3-none-any.whl'


def test_metadata(installed, repository):
  (own,) = metadata.distributions(path=[str(installed)])
  project = tomllib.loads((repository / 'pyproject.toml').read_text())[
    'project'
  ]
  info = own.metadata
  assert (info['Name'], info['Version']) == (
    'fedavg_jax',
    fedavg_jax.__version__,
  )
  assert info['Summary'] == project['description']
  assert info['Author'] == 'The fedavg_jax authors'
  assert info['License-Expression'] == 'Apache-2.0'
  assert info['Requires-Python'] == '>=3.11'
  assert info['Description-Content-Type'] == 'text/markdown'
  assert info['Keywords'] == ','.join(project['keywords'])
  assert (
    info.get_payload().strip() == (repository / 'README.md').read_text().strip()
  )
  page = 'https://github.com/fedavg-jax/fedavg_jax'
  assert info.get_all('Project-URL') == [
    f'Homepage, {page}',
    f'Issues, {page}/issues',
    f'Changelog, {page}/blob/main/CHANGELOG.md',
  ]
  classifiers = info.get_all('Classifier')
  assert classifiers == project['classifiers']
  for version in ('3.11', '3.12', '3.13', '3.14'):
    assert f'Programming Language :: Python :: {version}' in classifiers
  assert 'Typing :: Typed' in classifiers
  always = [line for line in own.requires if 'extra ==' not in line]
  assert len(always) == len(project['dependencies'])
  assert own.read_text('top_level.txt').split() == ['fedavg_jax']
  assert [(e.name, e.value) for e in own.entry_points] == [
    ('fedavg-jax', 'fedavg_jax.cli.dispatch:main')
  ]
  (license,) = (path for path in own.files if path.name == 'LICENSE')
  assert license.read_text() == (repository / 'LICENSE').read_text()


@pytest.mark.slow
def test_it_runs_outside_of_the_repository(installed, repository, tmp_path):
  """It runs in an empty folder, with no configs/ beside the package."""
  script = installed / 'bin' / 'fedavg-jax'
  environment = {'PYTHONPATH': str(installed)}
  code = 'import fedavg_jax; print(fedavg_jax.__file__)'
  place = call([sys.executable, '-c', code], tmp_path, **environment).strip()
  assert place == str(installed / 'fedavg_jax' / '__init__.py')
  said = call([script, '--version'], tmp_path, **environment)
  assert said == f'fedavg_jax {fedavg_jax.__version__}\n'
  names = call([script, 'config', 'list'], tmp_path, **environment).split()
  assert names == sorted(
    path.stem for path in (repository / 'configs').glob('*.py')
  )
  assert list(tmp_path.iterdir()) == []
  command = [sys.executable, '-m', 'fedavg_jax', 'run', 'quickstart']
  command += ['--config.rounds=2', '--workdir=run']
  said = call(command, tmp_path, **environment)
  assert 'finished after 2 rounds' in said
  assert (tmp_path / 'run' / 'summary.json').is_file()


def test_an_editable_install_is_a_path(checkout, tmp_path):
  path = build('editable', checkout, tmp_path / 'editable')
  with zipfile.ZipFile(path) as file:
    (name,) = (n for n in file.namelist() if '.dist-info/' not in n)
    assert name.endswith('.pth')
    assert file.read(name).decode().strip() == str(checkout)
