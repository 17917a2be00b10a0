"""Reads and checks traces of when clients are available. NumPy only.

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

# The first line of a trace's file.
_COLUMNS = ['client', 'first', 'last']
_WHOLE = re.compile(r'[+-]?[0-9]{1,18}')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
  """Holds the periods of rounds in which clients are available.

  The trace repeats after its last round. A client without a period is never
  available.

  >>> import fedavg_jax as fa
  >>> trace = fa.schedule.Trace(
  ...   client=np.array([0, 2]), first=np.array([1, 2]), last=np.array([1, 2]))
  >>> trace.available(1, num_clients=3).tolist()
  [True, False, False]
  >>> trace.available(4, num_clients=3).tolist()  # Round 4 repeats round 2.
  [False, False, True]

  Attributes:
    client: [P] integers, the client of each period.
    first: [P] integers, the first round of the period; rounds count from 1.
    last: [P] integers, the last round of the period, included.
  """

  client: np.ndarray
  first: np.ndarray
  last: np.ndarray

  def available(self, round_number: int, num_clients: int) -> np.ndarray:
    """Returns whether each client is available in a round, [K] bool."""
    number = (round_number - 1) % int(self.last.max()) + 1
    now = (self.first <= number) & (number <= self.last)
    available = np.zeros(num_clients, bool)
    available[self.client[now]] = True
    return available


def read_trace(path: str | pathlib.Path, num_clients: int) -> Trace:
  r"""Reads a trace from a CSV file.

  Its columns are client, first and last, which the first line names.

  Args:
    path: the file; each line is a period in which a client is available.
    num_clients: K; clients are 0 to K - 1.

  Raises:
    InputError: the file cannot be read, has no periods, or a line breaks a
      rule; the message names the line.

  >>> import pathlib, tempfile
  >>> import fedavg_jax as fa
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder) / 'trace.csv'
  ...   _ = path.write_text('client,first,last\n0,1,2\n4,2,3\n')
  ...   trace = fa.schedule.read_trace(path, num_clients=5)
  >>> trace.client.tolist(), trace.last.tolist()
  ([0, 4], [2, 3])
  """
  # Unlike Path.expanduser, this does not fail for an unknown user.
  path = pathlib.Path(os.path.expanduser(path))
  rows = []
  try:
    if path.exists() and not path.is_file():  # A pipe would never end.
      raise InputError(f'availability_trace {path}: is not a regular file')
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
      f'availability_trace {path}: has no periods; must have at least one'
    )
  client, first, last = np.array(rows).T
  return Trace(client=client, first=first, last=last)


def _period(
  path: pathlib.Path, line: int, row: list[str], num_clients: int
) -> list[int]:
  """Reads a line: a client, its first and its last round."""
  values = [value.strip() for value in row]
  # Python's int would also accept 1_0 and the digits of any script.
  if len(values) != len(_COLUMNS) or not all(map(_WHOLE.fullmatch, values)):
    raise InputError(
      f'availability_trace {path}: line {line}: expected three whole numbers,'
      f' got {",".join(row)!r:.60}'
    )
  client, first, last = map(int, values)
  if not 0 <= client < num_clients:
    raise InputError(
      f'availability_trace {path}: line {line}: client = {client}: must be in'
      f' [0, {num_clients - 1}]'
    )
  if not 1 <= first <= last < 2**31:
    raise InputError(
      f'availability_trace {path}: line {line}: rounds {first} to {last}: must'
      ' have 1 <= first <= last < 2**31'
    )
  return [client, first, last]


def check_trace(trace: Trace, num_clients: int) -> None:
  """Raises InputError unless a trace has valid periods of K clients."""
  columns = [trace.client, trace.first, trace.last]
  if not all(isinstance(column, np.ndarray) for column in columns):
    raise InputError('trace: client, first and last must be arrays of NumPy')
  if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
    raise InputError('trace: client, first and last must have one shape, [P]')
  if not columns[0].size or any(
    column.dtype.kind not in 'iu' for column in columns
  ):
    raise InputError('trace: must have whole numbers, at least one period')
  client, first, last = columns
  if client.min() < 0 or client.max() >= num_clients:
    raise InputError(
      f'trace: has clients {client.min()} to {client.max()}; must be in'
      f' [0, {num_clients - 1}]'
    )
  if first.min() < 1 or (last < first).any():
    raise InputError('trace: each period must have 1 <= first <= last')
