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
import socket
import time
from typing import Any
from typing import TypeVar

import jax
from jax import lax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from fedavg_jax import errors
from fedavg_jax.errors import AgreedError
from fedavg_jax.errors import InputError

_T = TypeVar('_T')
_MOST_JOINED = 2**20  # Numbers of an array that shares its reduction.
_MOST_TOLD = 4  # Of what differs, or is wrong, in one line.
_SHUTDOWN_SECONDS = 60  # For those that end a little later.
_told_processes: int | None = None  # That `connect` was given.


def connect(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  connect_seconds: int,
  heartbeat_seconds: int,
) -> None:
  """Joins the processes of a run, before JAX starts.

  What is None is found by `jax.distributed.initialize` where SLURM, Open MPI,
  Kubernetes or a TPU pod tell it.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: of the run.
    process_id: of this one, from 0.
    connect_seconds: to wait for the others.
    heartbeat_seconds: of silence after which a process counts as dead.

  Raises:
    InputError: what is given cannot be, or the coordinator cannot be reached.
  """
  global _told_processes
  _told_processes = num_processes
  if coordinator is not None and not re.fullmatch(r'.+:\d{1,5}', coordinator):
    raise InputError(f'--coordinator {coordinator}: must be HOST:PORT')
  if num_processes is not None and process_id is not None:
    if not 0 <= process_id < num_processes:
      raise InputError(
        f'--process_id {process_id}: must lie in 0 .. {num_processes - 1} with'
        f' --num_processes {num_processes}'
      )
  if coordinator is not None and process_id:
    _reach(coordinator, connect_seconds)
  try:
    jax.distributed.initialize(
      coordinator_address=coordinator,
      num_processes=num_processes,
      process_id=process_id,
      initialization_timeout=connect_seconds,
      heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except (OSError, RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise InputError(
      f'--distributed: this process cannot join the others ({reason}); give'
      ' --coordinator, --num_processes and --process_id where no cluster tells'
      ' them'
    ) from error


def _reach(coordinator: str, seconds: float) -> None:
  """Waits until somebody listens there."""
  host, port = coordinator.rsplit(':', 1)
  ends = time.monotonic() + seconds
  while True:
    try:
      with socket.create_connection((host.strip('[]'), int(port)), timeout=5):
        return
    except (OSError, OverflowError) as error:
      if time.monotonic() > ends:
        raise InputError(
          f'--coordinator {coordinator}: cannot be reached within'
          f' {seconds} s ({error}); process 0 must run there'
        ) from error
    time.sleep(0.2)


def several() -> bool:
  """Whether this process is one of several."""
  return jax.process_count() > 1


def leads() -> bool:
  """Whether this is the process that has the folder of the run."""
  return jax.process_index() == 0


def together(step: Callable[[], _T]) -> _T:
  """Runs a step on every process; what is wrong on one of them, all tell.

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
  told = {i: text for i, (text, _) in enumerate(everybody) if text}
  if told:
    lines = [f'process {i}: {text}' for i, text in told.items()][:_MOST_TOLD]
    # Hosts often miss the same thing.
    if len(set(told.values())) == 1 and len(told) == jax.process_count():
      lines = [next(iter(told.values()))]
    raise AgreedError(
      '; '.join(lines),
      machine=all(machine for text, machine in everybody if text),
    )
  return result  # type: ignore[return-value]


def first(step: Callable[[], _T]) -> _T | None:
  """Runs a step on process 0 alone; what is wrong there, all tell.

  Args:
    step: without collectives.

  Returns:
    What the step returns on process 0, None on the others.
  """
  return together(lambda: step() if leads() else None)


def describe() -> str:
  """How many processes share the devices, where several do."""
  return f' of {jax.process_count()} processes' if several() else ''


def tell(value: Any) -> Any:
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
  facts = {'--num_processes': _told_processes or jax.process_count(), **facts}
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
    more = len(differ) - _MOST_TOLD
    raise AgreedError(
      'the processes differ: '
      + '; '.join(differ[:_MOST_TOLD] + [f'{more} more'] * (more > 0))
      + '; every one of them must have the same'
    )


def least(number: int) -> int:
  """The smallest number that a process has."""
  return min(int(text) for text in _gather(str(number)))


def copy(tree: Any, like: Any) -> Any:
  """Arrays of process 0, on the host of every process.

  Args:
    tree: of process 0.
    like: their shapes, on every process.
  """
  if not several():
    return tree
  mine = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
  return multihost_utils.broadcast_one_to_all(tree if leads() else mine)


def put(tree: Any, shardings: Any) -> Any:
  """Arrays of the host on the devices of all processes.

  Args:
    tree: the same on every process, of which each places what its devices hold.
    shardings: one, or a tree of them.
  """
  leaves = jax.tree.leaves(tree)
  # Traced for its shape alone, it goes nowhere.
  if not several() or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
    return jax.device_put(tree, shardings)

  def one(array, sharding):
    if isinstance(array, jax.Array) and array.sharding == sharding:
      return array  # Is there: not down to the host and up again.
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda array: one(array, shardings), tree)
  return jax.tree.map(one, tree, shardings)


def sum_over_devices(tree: Any) -> Any:
  """`lax.psum` of all leaves, small ones of a dtype joined into one reduction.

  What a reduction costs beside its bytes, it costs once; what is large has no
  need of that, and would be copied.
  """
  leaves, structure = jax.tree.flatten(tree)
  # In the order of the leaves: a set's would differ from process to process.
  groups: dict[Any, list[int]] = {}
  for i, leaf in enumerate(leaves):
    joins = leaf.size <= _MOST_JOINED
    groups.setdefault((leaf.dtype, 'joined' if joins else i), []).append(i)
  summed = list(leaves)
  for own in groups.values():
    flat = jnp.concatenate([leaves[i].reshape(-1) for i in own])
    flat = lax.psum(flat, 'lanes')
    ends = np.cumsum([leaves[i].size for i in own])
    for i, part in zip(own, jnp.split(flat, ends[:-1]), strict=True):
      summed[i] = part.reshape(leaves[i].shape)
  return jax.tree.unflatten(structure, summed)


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
