"""Commands that are refused are forks of a process that has imported much."""

import pytest

from tests.testing.commands import CommandServer


@pytest.fixture(scope='session')
def refusing(tmp_path_factory):
  """Returns a server of commands of experiments/, which trains nothing."""
  server = CommandServer(
    tmp_path_factory.mktemp('experiments'),
    ('experiments.benchmark.race', 'experiments.paper.tables'),
    FEDAVG_DATA='',
  )
  yield server
  server.close()
