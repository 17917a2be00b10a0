"""A child process has a parent that reads a pipe."""

import os

import pytest

from fedavg_jax.runs import supervisor


@pytest.mark.parametrize('value', ['abc', '', '1', '999', '1' + 40 * '0'])
def test_an_invalid_pipe_is_no_parent(monkeypatch, value):
  monkeypatch.setenv('FEDAVG_JAX_CHILD', value)
  assert not supervisor.is_child()


def test_an_open_pipe_is_a_parent(monkeypatch):
  reading, writing = os.pipe()
  monkeypatch.setenv('FEDAVG_JAX_CHILD', str(writing))
  assert supervisor.is_child()
  os.close(writing)
  assert not supervisor.is_child()
  os.close(reading)
