"""What a run is resumed from: its checkpoint, its lines, its machine."""

import contextlib
from typing import Any
from typing import NamedTuple

from absl import logging
import jax

from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine.client_state_store import ClientStates
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs.progress import say
from fedavg_jax.runs.run_dir import Workdir

# In config.json: whether there was a checkpoint, and what else must be the same
# for the same bits.
_SAVED = 'saved'
_SAME_BITS = (
  *('versions', 'machine', 'processor'),
  *('platform', 'device', 'num_devices', 'num_processes'),
)


def newest(
  folder: Workdir, now: dict[str, Any]
) -> checkpoint.Checkpoint | None:
  """The checkpoint that an interrupted run goes on from, None to begin again.

  Args:
    folder: of the run.
    now: config.json of a run that would begin here and now.

  Raises:
    InputError: the data are others, no checkpoint is whole or they are gone, or
      metrics.jsonl is not what the checkpoint has seen.
  """
  assert folder.began is not None
  digest = folder.began.get('data_sha256')
  if digest != now['data_sha256']:
    raise InputError(
      f'workdir = {folder.path}: the data of its clients, or their division,'
      f' are not those it began with: SHA-256 was {str(digest)[:12]}..., is'
      f' {now["data_sha256"][:12]}...; bring the files back, or name a new'
      ' workdir'
    )
  check_numerics(folder.began.get('numerics'), now['numerics'])
  with contextlib.closing(
    checkpoint.Checkpoints(folder.path, keep=1)  # It saves none.
  ) as checkpoints:
    saved = checkpoints.newest()
  if saved is not None:
    folder.check_metrics(saved.told['metrics'])
    say(f'{folder.path}: goes on after round {saved.told["round"]}')
  elif folder.began.get(_SAVED):
    raise InputError(
      f'{folder.path / checkpoint.FOLDER}: the checkpoints are gone; put them'
      ' back, or name a new workdir'
    )
  else:
    say(f'{folder.path}: ended before its first checkpoint, begins again')
  return saved


def check_numerics(before: Any, now: dict[str, Any]) -> None:
  """Raises InputError where JAX is set to compute something else."""
  before = before if isinstance(before, dict) else {}
  for name, value in now.items():
    if before.get(name, value) != value:
      raise InputError(
        f'{name} = {value!r}: was {before[name]!r} when the run began, and'
        ' decides what is computed; set it back, or choose a new workdir'
      )


def continued(
  began: dict[str, Any],
  now: dict[str, Any],
  saved: checkpoint.Checkpoint | None,
) -> tuple[dict[str, Any], bool]:
  """config.json of a run that goes on, and whether to the same bits.

  A run tells of every machine that it was on: `resumed` lists the later ones.

  Args:
    began: what config.json holds.
    now: config.json of a run that would begin here and now.
    saved: that the run goes on from.
  """
  resumed = began.get('resumed', [])
  if not isinstance(resumed, list) or not all(
    isinstance(machine, dict) for machine in resumed
  ):
    raise InputError('config.json: resumed must list the machines of the run')
  last = [began, *resumed][-1]
  changed = [key for key in _SAME_BITS if last.get(key) != now[key]]
  continued = began | {'config': now['config']}
  if changed:
    number = saved.told['round'] if saved else 0
    logging.warning(
      'not the device or the versions (%s) that trained round %d: the same up'
      ' to rounding, not to the bit',
      ', '.join(changed),
      number,
    )
    here = {key: now[key] for key in _SAME_BITS}
    continued['resumed'] = [*resumed, {'round': number, **here}]
  return continued, not changed


def to_tree(state: compiled_round.ServerState, client_states: Any) -> Any:
  """What a checkpoint holds."""
  if isinstance(client_states, ClientStates):
    client_states = client_states.saved()
  return state._asdict() | {'clients': client_states}


def from_tree(tree: Any) -> tuple[compiled_round.ServerState, Any]:
  """What was saved, from what a checkpoint holds."""
  clients = tree['clients']
  server = {name: tree[name] for name in compiled_round.ServerState._fields}
  return compiled_round.ServerState(**server), clients


class AtHand(NamedTuple):
  """The last state that a run could be resumed from.

  Attributes:
    round: that it is after.
    state: of the server.
    client_states: of all clients, on the devices or the host.
    seal: of metrics.jsonl, up to this round.
    lanes: of all devices.
    accuracy: of its model, None where it was not tested.
    changes: that the clients' states had seen, on the host.
  """

  round: int
  state: compiled_round.ServerState
  client_states: Any
  seal: dict[str, Any]
  lanes: int
  accuracy: float | None
  changes: int = 0

  def is_there(self) -> bool:
    """Whether what the clients keep has not gone into a call meanwhile."""
    if isinstance(self.client_states, ClientStates):
      return self.client_states.changes == self.changes
    return not any(
      leaf.is_deleted() for leaf in jax.tree.leaves(self.client_states)
    )

  def save(self, folder: Workdir, checkpoints: checkpoint.Checkpoints) -> None:
    """Writes a checkpoint, behind the lines that it seals."""
    folder.sync()  # Never behind a checkpoint that has sealed it.
    tree = to_tree(self.state, self.client_states)
    told = {'round': self.round, 'lanes': self.lanes, 'metrics': self.seal}
    if isinstance(self.client_states, ClientStates):
      told['clients'] = len(tree['clients']['clients'])
    checkpoints.save(
      self.round,
      tree,
      told,
      self.accuracy,
    )
    assert folder.began is not None
    if not folder.began.get(_SAVED):
      folder.config(folder.began | {_SAVED: True})
