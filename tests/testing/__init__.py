"""Holds helpers of several tests, and the programs that tests start."""

from collections.abc import Callable
from collections.abc import Iterable
import pathlib
from typing import Any

import numpy as np
import pytest

from fedavg_jax.core.errors import InputError

PROGRAMS = pathlib.Path(__file__).parent / 'programs'


def check_refused(build: Callable[[], Any], words: str) -> None:
  """Calls a function that must raise InputError: one line, with these words."""
  with pytest.raises(InputError) as caught:
    build()
  assert words in str(caught.value) and '\n' not in str(caught.value)


def uneven_examples() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
  """Returns 23 images of 3 x 3 pixels and their division among 5 clients.

  One client has a single example; sizes are no multiples of the batch sizes.
  """
  rng = np.random.default_rng(7)
  x = rng.integers(0, 256, (23, 3, 3, 1)).astype(np.uint8)
  y = rng.integers(0, 4, 23).astype(np.int32)
  return x, y, np.split(rng.permutation(23), [1, 8, 12, 21])


def rest_slow(
  fast: int, cases: Iterable[Any], several: bool = False
) -> list[Any]:
  """Marks all but the first few cases as slow.

  Args:
    fast: how many cases stay in the fast tier.
    cases: values of a parameter, or of `several` at once as tuples.
    several: whether a case has the values of several parameters.
  """
  return [
    case
    if i < fast
    else pytest.param(*(case if several else [case]), marks=pytest.mark.slow)
    for i, case in enumerate(cases)
  ]


def covering(*parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
  """Pairs the values of several parameters so that each occurs.

  For laws that hold whatever the pair: their product would prove little more.

  >>> covering('abc', [1, 2])
  [('a', 1), ('b', 2), ('c', 1)]
  """
  lists = [list(values) for values in parameters]
  return [
    tuple(values[i % len(values)] for values in lists)
    for i in range(max(map(len, lists)))
  ]
