"""docs/private_parts.md runs as written."""

import subprocess
import sys

import pytest

from tests.testing.pages import python_of


@pytest.mark.slow
def test_the_page(repository, tmp_path):
  """Models learn, and the measured epsilon is below the proven one."""
  process = subprocess.run(
    [sys.executable, '-c', python_of(repository / 'docs/private_parts.md')],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert process.returncode == 0, process.stderr
  *accuracies, measured, proven = map(float, process.stdout.split())
  assert len(accuracies) == 4 and min(accuracies) > 0.5
  assert 0 < measured < proven
