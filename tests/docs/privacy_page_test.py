"""The page's program has an epsilon, and a tighter one."""

import subprocess
import sys

import pytest

from tests.testing.pages import python_of


@pytest.mark.slow
def test_python_blocks(repository, tmp_path):
  process = subprocess.run(
    [sys.executable, '-c', python_of(repository / 'docs' / 'privacy.md')],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  rdp, pld = map(float, process.stdout.split())
  assert 1 < pld < rdp < 5
