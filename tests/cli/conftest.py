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


@pytest.fixture
def command(_server, tmp_path):
  """Returns a function that runs `python -m fedavg_jax ARGS` in `tmp_path`."""
  return functools.partial(_server.run, tmp_path)
