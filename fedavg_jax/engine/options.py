"""What a simulation is built of: federation, execution, placement."""

from collections.abc import Sequence
import dataclasses

import jax

from fedavg_jax.core import choices
from fedavg_jax.core import rules
from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule import sampling
from fedavg_jax.schedule.participation import EVERYBODY
from fedavg_jax.schedule.participation import Participation


@dataclasses.dataclass(frozen=True, eq=False)
class Federation:
  """Who trains on what, how much, and how the cohorts are drawn.

  All that it says decides what is computed. Letters are those of McMahan et al.

  Attributes:
    clients: K clients and their examples, from `build_clients`.
    test: the central test set.
    client_fraction: C in [0, 1]; a cohort has max(int(C * K), 1) clients.
    epochs: E, over the local data a round.
    batch_size: B, 0 for all local examples at once.
    participation: who is drawn, how much work each completes, and how fast
      clients are; it takes functions of your own.
    weighting: one of `choices.WEIGHTINGS`: 'examples' is n_k, 'uniform' the
      same for all.
    shuffle: one of `choices.SHUFFLES`: a new order every 'epoch' or 'round'.
    on_nan: one of `choices.ON_NAN`: where a client's numbers are not finite,
      'stop' or 'skip_client'.
    seed: of initial weights, cohorts and orders.

  Raises:
    InputError: a value breaks its rule.
  """

  clients: Clients
  test: Examples
  _: dataclasses.KW_ONLY
  client_fraction: float
  epochs: int
  batch_size: int
  participation: Participation = EVERYBODY
  weighting: str = 'examples'
  shuffle: str = 'epoch'
  on_nan: str = 'stop'
  seed: int = 0

  def __post_init__(self) -> None:
    for name, part, kind in (
      ('clients', self.clients, Clients),
      ('test', self.test, Examples),
    ):
      if not isinstance(part, kind):
        raise InputError(
          f'{name}: is {type(part).__name__}, must be fa.{kind.__name__}'
        )
    rules.check_seed(self.seed)
    rules.check_whole('epochs', self.epochs, 1)
    rules.check_whole('batch_size', self.batch_size, 0)
    choices.check_choice('weighting', self.weighting, choices.WEIGHTINGS)
    choices.check_choice('shuffle', self.shuffle, choices.SHUFFLES)
    choices.check_choice('on_nan', self.on_nan, choices.ON_NAN)
    sampling.cohort_size(self.clients.num_clients, self.client_fraction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
  """How a federation is computed: it changes nothing but rounding and speed.

  Attributes:
    lanes: clients that train side by side, on all devices together; 0 chooses.
    widths: lanes of a device that step together, the first of them all, the
      next once the others are idle; None chooses.
    micro_batch: most examples of a step; a larger minibatch takes several steps
      and one update. 0 chooses.
    rounds_per_call: most rounds of a compiled call; 0 chooses, and a call has
      fewer where rounds are long.
    devices: to run on; None takes all of JAX's default backend.

  Raises:
    InputError: a value breaks its rule.
  """

  lanes: int = 0
  widths: Sequence[int] | None = None
  micro_batch: int = 0
  rounds_per_call: int = 0
  devices: Sequence[jax.Device] | None = None

  def __post_init__(self) -> None:
    for name in ('lanes', 'micro_batch', 'rounds_per_call'):
      rules.check_whole(name, getattr(self, name), 0)
    if self.devices is not None and not self.devices:
      raise InputError('devices = []: must hold at least one device')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Where the data of clients are; the bits are the same wherever they are.

  What stays on the host goes to the devices for one cohort at a time, one round
  a call.

  Attributes:
    examples_on: 'device' or 'host'. On the host the clients' arrays may be
      memory maps, which threads read ahead.
    client_states_on: 'device' or 'host': what clients keep between rounds, such
      as SCAFFOLD's control variates.

  Raises:
    InputError: a value is another word.
  """

  examples_on: str = 'device'
  client_states_on: str = 'device'

  def __post_init__(self) -> None:
    for name in ('examples_on', 'client_states_on'):
      choices.check_choice(name, getattr(self, name), choices.EXAMPLES_ON)


def check_calls(execution: Execution, placement: Placement) -> None:
  """Raises InputError where a call is to have rounds that it cannot have."""
  for name in ('examples_on', 'client_states_on'):
    where = getattr(placement, name)
    if execution.rounds_per_call > 1 and where != 'device':
      raise InputError(
        f'rounds_per_call = {execution.rounds_per_call}: must be 1 with'
        f" {name} = {where!r}, where a device has the cohort's alone"
      )
