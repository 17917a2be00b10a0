"""Exit codes say what could not be written."""

import contextlib

import pytest

from fedavg_jax.cli import command


def test_failing_to_print_is_a_failure(capsys):
  with open('/dev/full', 'w') as full, contextlib.redirect_stdout(full):
    assert command.print_all('what was asked for') == 1
  line = 'error: standard output: No space left on device\n'
  assert capsys.readouterr().err == line


@pytest.mark.parametrize(
  ('end', 'code'),
  [(lambda: command.fail('bad input'), 2), (command.interrupted, 130)],
)
def test_an_error_keeps_its_code_where_stderr_is_full(end, code):
  with open('/dev/full', 'w') as full, contextlib.redirect_stderr(full):
    assert end() == code
