"""When clients are in reach: traces, and files of them. NumPy only.

Shape letters: K clients, P periods of a trace.
"""

import csv
import dataclasses
import os
import pathlib
import re

import numpy as np

from fedavg_jax.core import text
from fedavg_jax.core.errors import InputError

# Of a trace.
_COLUMNS = ['client', 'first', 'last']
_WHOLE = re.compile(r'[+-]?[0-9]{1,18}')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
  """When clients are in reach; it begins again after its last round.

  Attributes:
    client: [P] integers, whom a period is about; without one, never in reach.
    first: [P] integers, the round that it begins with, from 1.
    last: [P] integers, the round that it ends with.
  """

  client: np.ndarray
  first: np.ndarray
  last: np.ndarray

  def available(self, round_number: int, num_clients: int) -> np.ndarray:
    """Whether each client is in reach in a round, [K] bool."""
    number = (round_number - 1) % int(self.last.max()) + 1
    now = (self.first <= number) & (number <= self.last)
    reach = np.zeros(num_clients, bool)
    reach[self.client[now]] = True
    return reach


def read_trace(path: str | pathlib.Path, num_clients: int) -> Trace:
  """Reads a CSV file with the columns client, first and last, and no other.

  Args:
    path: of the file; a line is a period in which a client is in reach.
    num_clients: K; clients are 0 to K - 1.

  Raises:
    InputError: names the line that breaks a rule.
  """
  # Unlike Path.expanduser, leaves the home of nobody as it is.
  path = pathlib.Path(os.path.expanduser(path))
  rows = []
  try:
    if path.exists() and not path.is_file():  # A pipe would never end.
      raise InputError(f'availability_trace {path}: must be a file')
    lines = text.split_lines(text.decode(path.read_bytes()))
    reader = csv.reader(lines, skipinitialspace=True)
    if [name.strip() for name in next(reader, [])] != _COLUMNS:
      raise InputError(
        f'availability_trace {path}: line 1 must be {",".join(_COLUMNS)}'
      )
    for row in reader:
      if any(map(str.strip, row)):
        rows.append(_period(path, reader.line_num, row, num_clients))
  except InputError:
    raise
  except (OSError, ValueError, csv.Error) as error:
    reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
    raise InputError(
      f'availability_trace {path}: cannot be read ({reason})'
    ) from error
  if not rows:
    raise InputError(
      f'availability_trace {path}: holds no period, must hold at least one'
    )
  client, first, last = np.array(rows).T
  return Trace(client=client, first=first, last=last)


def _period(
  path: pathlib.Path, line: int, row: list[str], num_clients: int
) -> list[int]:
  """Reads a line; Python's int would take 1_0 too, and any script's digits."""
  values = [value.strip() for value in row]
  if len(values) != len(_COLUMNS) or not all(map(_WHOLE.fullmatch, values)):
    raise InputError(
      f'availability_trace {path}: line {line} must hold three whole numbers,'
      f' holds {",".join(row)!r:.60}'
    )
  client, first, last = map(int, values)
  if not 0 <= client < num_clients:
    raise InputError(
      f'availability_trace {path}: line {line} names client {client}; there are'
      f' 0 to {num_clients - 1}'
    )
  if not 1 <= first <= last < 2**31:
    raise InputError(
      f'availability_trace {path}: line {line} has rounds {first} to {last};'
      ' must begin with 1 or later, and not end before'
    )
  return [client, first, last]


def check_trace(trace: Trace, num_clients: int) -> None:
  """Raises InputError unless a trace names some of K clients, in order."""
  columns = [
    np.asarray(column) for column in (trace.client, trace.first, trace.last)
  ]
  if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
    raise InputError('trace: client, first and last must have one shape, [P]')
  if not columns[0].size or any(
    column.dtype.kind not in 'iu' for column in columns
  ):
    raise InputError('trace: must hold whole numbers, one period at least')
  client, first, last = columns
  if client.min() < 0 or client.max() >= num_clients:
    raise InputError(
      f'trace: names clients {client.min()} to {client.max()}; there are 0 to'
      f' {num_clients - 1}'
    )
  if first.min() < 1 or (last < first).any():
    raise InputError(
      'trace: a period must begin in round 1 or later, and not end before'
    )
