"""What several tests use, and the programs that they start."""

from collections.abc import Iterable
import pathlib
from typing import Any

import pytest

PROGRAMS = pathlib.Path(__file__).parent / 'programs'


def rest_slow(fast: int, cases: Iterable[Any]) -> list[Any]:
  """Cases of one parameter, of which all but the first few are slow."""
  return [
    case if i < fast else pytest.param(case, marks=pytest.mark.slow)
    for i, case in enumerate(cases)
  ]
