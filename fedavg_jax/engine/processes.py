"""Makes several processes agree, on one host or many, under JAX's runtime.

Every process runs the same program on the same plan and trains its own lanes.
Processes agree by the functions below, which all of them must call at the same
place. With a single process the functions cost nothing.
"""

import collections
from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import json
import re
from typing import Any
from typing import TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from fedavg_jax.core import errors
from fedavg_jax.core.errors import DistributedInputError
from fedavg_jax.core.errors import InputError

_T = TypeVar('_T')
_MOST_LINES = 4  # The most differences or errors in one message.


def is_distributed() -> bool:
  """Returns whether this process is one of several."""
  return jax.process_count() > 1


def is_primary() -> bool:
  """Returns whether this is process 0, which owns the run folder."""
  return jax.process_index() == 0


def on_every_process(step: Callable[[], _T]) -> _T:
  """Executes a step on every process; an error on one of them is raised on all.

  Args:
    step: the function to run, which must not use collectives.

  Returns:
    The result of the step on this process.

  Raises:
    DistributedInputError: some process raised InputError or OSError.
  """
  if not is_distributed():
    return step()
  result, wrong, machine = None, '', False
  try:
    result = step()
  except InputError as error:
    wrong = str(error)
  except OSError as error:
    wrong, machine = errors.describe(error), True
  gathered = [
    json.loads(text) for text in _gather(json.dumps([wrong, machine]))
  ]
  failed = {i: text for i, (text, _) in enumerate(gathered) if text}
  if failed:
    lines = [f'process {i}: {text}' for i, text in failed.items()][:_MOST_LINES]
    # All hosts often fail for the same reason: report it once.
    if len(set(failed.values())) == 1 and len(failed) == jax.process_count():
      lines = [next(iter(failed.values()))]
    raise DistributedInputError(
      '; '.join(lines),
      machine=all(machine for text, machine in gathered if text),
    )
  return result  # type: ignore[return-value]


def on_primary(step: Callable[[], _T]) -> _T | None:
  """Executes a step on process 0 alone; an error there is raised on all.

  Args:
    step: the function to run, which must not use collectives.

  Returns:
    The result of the step on process 0, None on the others.

  Raises:
    DistributedInputError: the step raised InputError or OSError.
  """
  return on_every_process(lambda: step() if is_primary() else None)


def describe() -> str:
  """Returns ' of N processes' for messages, or '' for a single process."""
  return f' of {jax.process_count()} processes' if is_distributed() else ''


def broadcast(value: Any) -> Any:
  """Returns the value of process 0, a JSON value, on every process."""
  if not is_distributed():
    return value
  return json.loads(_gather(json.dumps(value) if is_primary() else '')[0])


def check_equal(facts: Mapping[str, Any]) -> None:
  """Checks that every process has the same facts.

  Args:
    facts: JSON values by the names that messages use.

  Raises:
    DistributedInputError: some values differ, which every process names.
  """
  if not is_distributed():
    return
  gathered = [json.loads(text) for text in _gather(json.dumps(facts))]
  ours, differ = gathered[0], []
  for key in sorted(set().union(*gathered)):
    for i, theirs in enumerate(gathered):
      if theirs.get(key) != ours.get(key):
        differ.append(
          f'{key} is {_short(ours.get(key))} on process 0,'
          f' {_short(theirs.get(key))} on process {i}'
        )
        break
  if differ:
    more = len(differ) - _MOST_LINES
    raise DistributedInputError(
      'the processes differ: '
      + '; '.join(differ[:_MOST_LINES] + [f'{more} more'] * (more > 0))
      + '; must be the same on all processes'
    )


def smallest(number: int) -> int:
  """Returns the smallest of all processes' numbers."""
  return min(int(text) for text in _gather(str(number)))


def is_collective_error(error: Exception) -> bool:
  """Returns whether an error is that of a collective, of any backend."""
  return isinstance(error, jax.errors.JaxRuntimeError) or bool(
    re.search(r'Gloo|NCCL|collective|[Cc]oordination', str(error))
  )


def disconnect() -> None:
  """Disconnects from the other processes, and waits until they do too."""
  if jax.distributed.is_initialized():
    with contextlib.suppress(RuntimeError):
      jax.distributed.shutdown()


def _gather(text: str) -> list[str]:
  """Returns the texts of all processes.

  Raises:
    DistributedInputError: processes have different numbers of devices.
  """
  if not is_distributed():
    return [text]
  devices = collections.Counter(d.process_index for d in jax.devices())
  if len(set(devices.values())) > 1:
    raise DistributedInputError(
      'the processes have different numbers of devices,'
      f' {[devices[i] for i in range(jax.process_count())]}; must be the same'
      ' on all processes'
    )
  mine = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(mine.size))
  padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
  padded[: mine.size] = mine
  return [
    bytes(row[:length]).decode()
    for row, length in zip(
      multihost_utils.process_allgather(padded), lengths, strict=True
    )
  ]


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
