"""New contributors need the workflow, hooks, citation and changelog."""

import importlib.util
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version
import pytest
import yaml

import fedavg_jax
from fedavg_jax.cli import dispatch
from fedavg_jax.cli import package_configs


@pytest.fixture
def workflow(repository):
  path = repository / '.github' / 'workflows' / 'tests.yml'
  return yaml.safe_load(path.read_text())


@pytest.fixture
def project(repository):
  return tomllib.loads((repository / 'pyproject.toml').read_text())['project']


def test_the_workflow_has_the_oldest_jax_and_none_that_is_excluded(
  workflow, project
):
  (allowed,) = (
    own.specifier
    for own in map(Requirement, project['dependencies'])
    if own.name == 'jax'
  )
  (oldest,) = (own.version for own in allowed if own.operator == '>=')
  rows = workflow['jobs']['linux']['strategy']['matrix']['include']
  pins = {row['name']: Requirement(row['jax']).specifier for row in rows}
  assert oldest in pins['oldest'] and '0.10.2' not in pins['oldest']
  assert [str(pins['newest']), len(pins)] == ['', 3]
  between = [Version(f'0.{minor}.0') for minor in range(99)]
  assert any(own in allowed and own in pins['current'] for own in between)
  pythons = [f'Programming Language :: Python :: {r["python"]}' for r in rows]
  assert set(pythons) <= set(project['classifiers'])
  assert f'>={rows[0]["python"]}' == project['requires-python']


def test_every_command_of_the_workflow_exists(workflow):
  steps = [s for job in workflow['jobs'].values() for s in job['steps']]
  commands = [step['run'] for step in steps if 'run' in step]
  for command in commands:
    if module := re.match(r'python -m (\w+)', command):
      assert importlib.util.find_spec(module[1]), command
    else:
      name, *words = command.split()
      assert name == 'fedavg-jax' and words[0] in dispatch.COMMANDS
      if words[0] in ('run', 'sweep'):
        assert words[1] in package_configs.names(), command
  assert any('quickstart' in command for command in commands)


def test_hooks_are_the_checks_of_the_tests(repository):
  process = subprocess.run(
    [
      *(sys.executable, '-m', 'pre_commit', 'validate-config'),
      repository / '.pre-commit-config.yaml',
    ],
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stdout
  config = yaml.safe_load((repository / '.pre-commit-config.yaml').read_text())
  hooks = [hook['entry'] for repo in config['repos'] for hook in repo['hooks']]
  lint = (repository / 'tests' / 'lint_test.py').read_text()
  for hook in hooks:
    tool = hook.removeprefix('python -m ').split()[0].replace('-', '_')
    assert tool in lint, hook


def test_the_citation_has_the_last_release(repository):
  citation = yaml.safe_load((repository / 'CITATION.cff').read_text())
  changelog = (repository / 'CHANGELOG.md').read_text()
  releases = re.findall(r'^## \[([\d.]+)\] - ([\d-]+)$', changelog, re.M)
  assert releases[0] == (
    citation['version'],
    str(citation['date-released']),
  )
  assert Version(fedavg_jax.__version__) >= Version(citation['version'])
  assert changelog.index('## [Unreleased]') < changelog.index(releases[0][0])


def test_each_section_of_the_changelog_occurs_once(repository):
  changelog = (repository / 'CHANGELOG.md').read_text()
  for release in changelog.split('\n## ')[1:]:
    kinds = re.findall(r'^### (\w+)$', release, re.M)
    assert len(set(kinds)) == len(kinds) > 0
    assert set(kinds) <= {'Added', 'Changed', 'Fixed', 'Removed'}
