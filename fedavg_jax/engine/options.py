"""Defines the settings of a simulation: federation, execution, placement."""

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
  """Describes the clients, their local training and how cohorts are drawn.

  Every attribute affects the results. Letters are those of McMahan et al. 2017
  (arXiv:1602.05629, Algorithm 1).

  Attributes:
    clients: the K clients and their examples, from `build_clients`.
    test: the central test set.
    client_fraction: C in [0, 1]; a cohort has max(int(C * K), 1) clients; with
      `Participation.poisson` each client is drawn with probability C.
    epochs: E, the local epochs of a client in a round, at least 1.
    batch_size: B, the examples of a minibatch; 0 makes all of a client's
      examples one minibatch.
    participation: the rules by which clients are drawn and how much work each
      completes, and the speeds of clients; it accepts user-defined functions.
    weighting: the weights of the mean, one of `choices.WEIGHTINGS`: 'examples'
      is n_k, 'uniform' is the same for all.
    shuffle: how often a client's examples are reordered, one of
      `choices.SHUFFLES`: every 'epoch' or every 'round'.
    on_nan: the reaction to NaN or Inf in a client's update, one of
      `choices.ON_NAN`: 'stop' ends the run, 'skip_client' drops the update.
    seed: the seed of initial weights, cohorts and orders.

  Raises:
    InputError: a value breaks its rule.

  >>> import numpy as np
  >>> import fedavg_jax as fa
  >>> data = fa.Examples(np.ones((30, 4), np.float32), np.arange(30) % 2)
  >>> clients = fa.build_clients(data, np.arange(30).reshape(3, 10))
  >>> fa.Federation(
  ...   clients, data, client_fraction=0.5, epochs=1, batch_size=10
  ... ).clients.num_clients
  3
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
          f'{name}: expected fa.{kind.__name__}, got {type(part).__name__}'
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
  """Describes how a federation is computed; affects only speed and rounding.

  Attributes:
    lanes: the number of clients that train in parallel, on all devices
      together; 0 chooses.
    widths: the numbers of a device's lanes that step together, descending; the
      first is all of them, and each next one applies once the other lanes are
      idle. None chooses.
    micro_batch: the largest number of examples of a step; a larger minibatch
      takes several steps and one update. 0 chooses.
    rounds_per_call: the largest number of rounds of a compiled call; 0 chooses.
      A call has fewer rounds where they are long.
    devices: the devices to run on; None takes all of JAX's default backend.
    precision: the least precision of matrix products and convolutions of
      float32 numbers, one of `choices.PRECISIONS`, for user-defined models too.
      'float32' is exact on every device, in several passes on a TPU. 'tf32' is
      the default of a GPU's tensor cores (10 bits of mantissa). 'bfloat16'
      takes one pass on a TPU (7 bits) and TF32 on a GPU; for products of
      bfloat16 numbers there, `build_model(precision='bfloat16')`. A CPU always
      computes float32. A precision that a layer of the model states stays.
    gpu_graphs: whether a GPU runs the loops of a round as one CUDA graph, in
      which no host reads a flag before every step. Compiled for an H100, not
      yet run on one; ignored on other devices.
    deterministic: whether a GPU has to use operations and algorithms whose
      results are equal in every run; ignored on other devices, where they are.

  Raises:
    InputError: a value breaks its rule.

  >>> import fedavg_jax as fa
  >>> fa.Execution(lanes=4).micro_batch
  0
  >>> try:
  ...   fa.Execution(devices=[])
  ... except fa.InputError as error:
  ...   print(error)
  devices = []: must hold at least one device
  """

  lanes: int = 0
  widths: Sequence[int] | None = None
  micro_batch: int = 0
  rounds_per_call: int = 0
  devices: Sequence[jax.Device] | None = None
  precision: str = 'float32'
  gpu_graphs: bool = False
  deterministic: bool = False

  def __post_init__(self) -> None:
    for name in ('lanes', 'micro_batch', 'rounds_per_call'):
      rules.check_whole(name, getattr(self, name), 0)
    choices.check_choice('precision', self.precision, choices.PRECISIONS)
    for name in ('gpu_graphs', 'deterministic'):
      if not isinstance(getattr(self, name), bool):
        raise InputError(f'{name} = {getattr(self, name)!r}: must be a bool')
    if self.devices is not None and not self.devices:
      raise InputError('devices = []: must hold at least one device')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Describes where clients' data are stored; results are equal bit for bit.

  Data on the host are copied to the devices for one cohort at a time, with one
  round per call.

  Attributes:
    examples_on: the place of the clients' examples, 'device' or 'host'. On the
      host the arrays may be memory maps, which threads prefetch.
    client_states_on: the place of client states such as SCAFFOLD's control
      variates, 'device' or 'host'.

  Raises:
    InputError: a value is neither 'device' nor 'host'.

  >>> import fedavg_jax as fa
  >>> fa.Placement(examples_on='host')
  Placement(examples_on='host', client_states_on='device')
  """

  examples_on: str = 'device'
  client_states_on: str = 'device'

  def __post_init__(self) -> None:
    for name in ('examples_on', 'client_states_on'):
      choices.check_choice(name, getattr(self, name), choices.EXAMPLES_ON)


def check_calls(execution: Execution, placement: Placement) -> None:
  """Raises InputError for several rounds per call with data on the host."""
  for name in ('examples_on', 'client_states_on'):
    where = getattr(placement, name)
    if execution.rounds_per_call > 1 and where != 'device':
      raise InputError(
        f'rounds_per_call = {execution.rounds_per_call}: must be 1 with'
        f' {name} = {where!r}, which loads one cohort per call'
      )
