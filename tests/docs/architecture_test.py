"""ARCHITECTURE.md is a page whose picture names the modules that exist."""

import re

import pytest


@pytest.fixture
def page(repository):
  return (repository / 'ARCHITECTURE.md').read_text()


def section(page, folder):
  """Returns the words of the picture that describe a folder."""
  found = re.search(
    rf'^  {folder}/(.*?)^(?:  \w+/|  ─|configs/)', page, re.M | re.S
  )
  assert found, folder
  return set(re.findall(r'\w+', found[1]))


FOLDERS = [
  *('cli', 'runs', 'engine', 'algorithms', 'models', 'contracts'),
  *('schedule', 'data', 'core'),
]


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_picture_names_every_module(repository, page, folder):
  modules = {
    path.stem
    for path in (repository / 'fedavg_jax' / folder).glob('*.py')
    if path.stem != '__init__'
  }
  assert modules <= section(page, folder), modules - section(page, folder)


def test_files_that_the_text_names_exist(repository, page):
  text = page.split('```')[2]
  folders = [repository, repository / 'fedavg_jax']
  folders += [repository / 'fedavg_jax' / own for own in FOLDERS]
  for name in re.findall(r'`([\w/]+\.(?:py|toml))`', text):
    assert any((folder / name).exists() for folder in folders), name


def test_folders_are_in_the_order_of_imports(repository, page):
  """The order is that of the contract in pyproject.toml."""
  contract = (repository / 'pyproject.toml').read_text()
  layers = re.search(r'^layers = \[(.*?)\]', contract, re.M | re.S)
  assert layers
  order = re.findall(r'"(\w+)"', layers[1])
  drawn = re.findall(r'^  (\w+)/ ', page, re.M)
  assert drawn == order


def test_it_is_one_page(page):
  assert len(page.splitlines()) <= 120
