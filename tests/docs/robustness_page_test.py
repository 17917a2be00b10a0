"""The page's program shows an attack that the mean does not survive."""

import subprocess
import sys

import pytest

from tests.testing.pages import python_of


@pytest.mark.slow
def test_python_blocks(repository, tmp_path):
  process = subprocess.run(
    [sys.executable, '-c', python_of(repository / 'docs' / 'robustness.md')],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  median, mean = map(float, process.stdout.split())
  assert median > 0.85 and mean < 0.5
