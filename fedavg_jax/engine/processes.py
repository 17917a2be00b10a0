"""Several processes, on one host or many, under JAX's own runtime.

Every process runs the same program on the same plan and trains its own lanes;
what they must agree on goes through the functions below, each of which every
process calls at the same place. With a single process all of them cost nothing.
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
from fedavg_jax.core.errors import AgreedError
from fedavg_jax.core.errors import InputError

_T = TypeVar('_T')
_MOST_LINES = 4  # Of what differs, or is wrong, in one line.


def several() -> bool:
  """Whether this process is one of several."""
  return jax.process_count() > 1


def leads() -> bool:
  """Whether this is the process that has the folder of the run."""
  return jax.process_index() == 0


def together(step: Callable[[], _T]) -> _T:
  """Runs a step on every process; an error on one of them is raised on all.

  Args:
    step: without collectives.

  Returns:
    What the step returns here.

  Raises:
    AgreedError: it raised InputError or OSError somewhere, on every process.
  """
  if not several():
    return step()
  result, wrong, machine = None, '', False
  try:
    result = step()
  except InputError as error:
    wrong = str(error)
  except OSError as error:
    wrong, machine = errors.describe(error), True
  everybody = [
    json.loads(text) for text in _gather(json.dumps([wrong, machine]))
  ]
  failed = {i: text for i, (text, _) in enumerate(everybody) if text}
  if failed:
    lines = [f'process {i}: {text}' for i, text in failed.items()][:_MOST_LINES]
    # Hosts often miss the same thing.
    if len(set(failed.values())) == 1 and len(failed) == jax.process_count():
      lines = [next(iter(failed.values()))]
    raise AgreedError(
      '; '.join(lines),
      machine=all(machine for text, machine in everybody if text),
    )
  return result  # type: ignore[return-value]


def first(step: Callable[[], _T]) -> _T | None:
  """Runs a step on process 0 alone; an error there is raised on all.

  Args:
    step: without collectives.

  Returns:
    What the step returns on process 0, None on the others.
  """
  return together(lambda: step() if leads() else None)


def describe() -> str:
  """How many processes share the devices, where several do."""
  return f' of {jax.process_count()} processes' if several() else ''


def broadcast(value: Any) -> Any:
  """The value of process 0, which JSON can hold, on every process."""
  if not several():
    return value
  return json.loads(_gather(json.dumps(value) if leads() else '')[0])


def agree(facts: Mapping[str, Any]) -> None:
  """Makes sure that every process has the same facts.

  Args:
    facts: JSON values by the names that a person knows them by.

  Raises:
    AgreedError: names those that differ, on every process.
  """
  if not several():
    return
  everybody = [json.loads(text) for text in _gather(json.dumps(facts))]
  ours, differ = everybody[0], []
  for key in sorted(set().union(*everybody)):
    for i, theirs in enumerate(everybody):
      if theirs.get(key) != ours.get(key):
        differ.append(
          f'{key} is {_short(ours.get(key))} on process 0,'
          f' {_short(theirs.get(key))} on process {i}'
        )
        break
  if differ:
    more = len(differ) - _MOST_LINES
    raise AgreedError(
      'the processes differ: '
      + '; '.join(differ[:_MOST_LINES] + [f'{more} more'] * (more > 0))
      + '; every one of them must have the same'
    )


def least(number: int) -> int:
  """The smallest number that a process has."""
  return min(int(text) for text in _gather(str(number)))


def lost(error: Exception) -> bool:
  """Whether a collective has failed: what it raises depends on its carrier."""
  return isinstance(error, jax.errors.JaxRuntimeError) or bool(
    re.search(r'Gloo|NCCL|collective|[Cc]oordination', str(error))
  )


def leave() -> None:
  """Waits for the others, who end too, where several are at work."""
  if jax.distributed.is_initialized():
    with contextlib.suppress(RuntimeError):
      jax.distributed.shutdown()


def _gather(text: str) -> list[str]:
  """The texts of all processes."""
  if not several():
    return [text]
  devices = collections.Counter(d.process_index for d in jax.devices())
  if len(set(devices.values())) > 1:
    raise AgreedError(
      'the processes have different numbers of devices,'
      f' {[devices[i] for i in range(jax.process_count())]}; every one must'
      ' have as many'
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
