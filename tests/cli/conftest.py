"""The commands run here without JAX until they import it themselves."""

import functools

import pytest

from fedavg_jax.cli import dispatch
from tests.testing.commands import CommandServer


@pytest.fixture(scope='session')
def _server(tmp_path_factory):
  modules = [f'fedavg_jax.cli.{name}' for name in dispatch.COMMANDS]
  server = CommandServer(tmp_path_factory.mktemp('commands'), modules)
  yield server
  server.close()


@pytest.fixture(scope='session')
def training_server(tmp_path_factory):
  """Returns a server whose commands find JAX and the engine imported."""
  home = tmp_path_factory.mktemp('home')
  server = CommandServer(
    home,
    ('fedavg_jax.runs.grid', 'orbax.checkpoint'),
    TFDS_DATA_DIR=str(home / 'tfds'),
  )
  yield server
  server.close()


@pytest.fixture
def command(_server, tmp_path):
  """Returns a function that runs `python -m fedavg_jax ARGS` in `tmp_path`."""
  return functools.partial(_server.run, tmp_path)
