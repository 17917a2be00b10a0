"""Exit codes say what could not be written."""

import sys

import pytest

from fedavg_jax.cli import command


@pytest.fixture(params=['stdout', 'stderr'])
def full(request, monkeypatch, capsys):
  """A stream of this process is on a device that has no room."""
  del capsys  # Before it, or it would take its place.
  with open('/dev/full', 'w') as stream:
    monkeypatch.setattr(sys, request.param, stream)
    yield request.param


def test_what_cannot_be_printed_is_a_failure(full, capsys):
  code = {'stdout': 1, 'stderr': 0}[full]
  assert command.print_all('what was asked for') == code
  if code:
    line = 'error: standard output: No space left on device\n'
    assert capsys.readouterr().err == line


def test_an_error_keeps_its_code_where_nobody_reads_it(full):
  assert command.fail('bad input') == 2
  assert command.interrupted() == 130
