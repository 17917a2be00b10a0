"""What hosts the site and what makes the image name things that exist.

Neither a host of documentation nor Docker is here to run them.
"""

import re
import tomllib

import pytest
import yaml

import fedavg_jax


@pytest.fixture
def project(repository):
  return tomllib.loads((repository / 'pyproject.toml').read_text())['project']


def test_read_the_docs_builds_the_site_with_its_extra(repository, project):
  config = yaml.safe_load((repository / '.readthedocs.yaml').read_text())
  assert config['version'] == 2
  assert (repository / config['sphinx']['configuration']).exists()
  (install,) = config['python']['install']
  assert install['method'] == 'pip' and install['path'] == '.'
  assert set(install['extra_requirements']) <= {
    *project['optional-dependencies']
  }
  supported = [line.rpartition(' ')[2] for line in project['classifiers']]
  assert config['build']['tools']['python'] in supported
  # The extra has each extension and the theme.
  conf = (repository / 'docs' / 'conf.py').read_text()
  extra = ' '.join(project['optional-dependencies']['docs'])
  for name in re.findall(r"^  '((?:myst|sphinx)_\w+)',$", conf, re.MULTILINE):
    assert name.replace('_', '-') in extra, name
  theme = re.search(r"html_theme = '(\w+)'", conf)
  assert theme and theme[1] in extra


@pytest.fixture
def dockerfile(repository):
  """Returns the instructions of the Dockerfile, (word, arguments)."""
  text = (repository / 'docs' / 'Dockerfile').read_text()
  lines = [line for line in text.splitlines() if not line.startswith('#')]
  return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_image_installs_this_package(repository, project, dockerfile):
  words = [word for word, _ in dockerfile]
  assert words[0] == 'FROM' and set(words) == {
    *('FROM', 'ARG', 'WORKDIR', 'COPY', 'RUN', 'ENTRYPOINT', 'CMD')
  }
  python = re.fullmatch(r'python:([\d.]+)-slim', dockerfile[0][1])
  supported = [line.rpartition(' ')[2] for line in project['classifiers']]
  assert python and python[1] in supported
  copied = set()
  for word, arguments in dockerfile:
    if word == 'COPY':
      *sources, target = arguments.split()
      copied |= set(sources)
      assert all((repository / source).exists() for source in sources)
      # The contents of a folder are copied, not the folder.
      assert target == ('./' if len(sources) > 1 else sources[0])
  # What a build reads: the metadata's files, the package and the configs.
  needed = {'pyproject.toml', 'setup.py', 'configs', 'fedavg_jax'}
  assert needed | {project['readme'], *project['license-files']} == copied
  arguments = dict(dockerfile)
  name, extra = arguments['ARG'].split('=')
  assert extra in project['optional-dependencies']
  assert f'".[${name}]"' in arguments['RUN']
  command = yaml.safe_load(arguments['ENTRYPOINT'])
  assert command == [*project['scripts']]


def test_kubernetes_has_the_image(repository):
  """The Dockerfile says how to build what the job names, in this version."""
  _, job = yaml.safe_load_all(
    (repository / 'docs' / 'kubernetes.yaml').read_text()
  )
  (container,) = job['spec']['template']['spec']['containers']
  image = container['image']
  assert image.endswith(f'/fedavg_jax:{fedavg_jax.__version__}')
  text = (repository / 'docs' / 'Dockerfile').read_text()
  assert f'docker build -f docs/Dockerfile -t {image} .' in text
  assert 'NOT RUN' in text
