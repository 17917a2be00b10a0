"""Describes the call of a federation, to be lowered or compiled.

A `Program` is built from shapes alone: its devices may be absent, and nothing
is placed on them. `simulation.py` compiles it; `lower` and `export` return what
XLA receives, for devices of any kind.

Shape letters: R, the most rounds of a call; the others as in `planning.py`.
"""

from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.task import Task
from fedavg_jax.engine import arithmetic
from fedavg_jax.engine import client_state_store
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import evaluation
from fedavg_jax.engine import examples
from fedavg_jax.engine import prefetch
from fedavg_jax.engine import superstep
from fedavg_jax.engine.arithmetic import Arithmetic
from fedavg_jax.engine.hyperparameter_axis import Trained
from fedavg_jax.engine.options import Federation
from fedavg_jax.schedule import planning

# Limits of one call: its rounds, and the bytes of their plans.
_MOST_ROUNDS, _MOST_PLAN_BYTES = 64, 2**24
# With this analysis XLA:CPU updates more arrays of a loop in place: a step of
# the CNN is 8 % faster, one of the 2NN 5 %.
_CPU: dict[str, bool | str] = {
  'xla_cpu_copy_insertion_use_region_analysis': True
}


class Program(NamedTuple):
  """Holds everything that determines what a call computes, and where.

  Attributes:
    task: the model, its loss and the metrics of tests.
    federation: the federation, with checked examples.
    trained: the algorithm, or those of a sweep.
    planner: the planner, with lanes for the mesh.
    mesh: the devices, which may be absent.
    platform: the kind of the devices, as in `jax.Device.platform`.
    rounds_per_call: R, the largest number of rounds of a call.
    counts_bytes: True if the bytes of messages depend on their values.
    precision: the attribute of `Execution`.
    gpu_graphs: the attribute of `Execution`.
    deterministic: the attribute of `Execution`.
  """

  task: Task
  federation: Federation
  trained: Trained
  planner: planning.Planner
  mesh: jax.sharding.Mesh
  platform: str
  rounds_per_call: int
  counts_bytes: bool
  precision: str = 'float32'
  gpu_graphs: bool = False
  deterministic: bool = False

  @property
  def arithmetic(self) -> Arithmetic:
    """Returns how the program computes on its devices."""
    return Arithmetic(
      self.platform, self.precision, self.deterministic, self.gpu_graphs
    )

  def init(self) -> tuple[compiled_round.ServerState, Any]:
    """Returns the server state and the client states before round 1."""
    return self.trained.init(self._init_of)

  def _init_of(self, algorithm: Algorithm):
    variables = self.first_variables()
    state = compiled_round.init_state(
      variables, algorithm, self.mesh, self.planner.num_models
    )
    if self.planner.gathers:
      return state, ()
    number = len(self.planner.num_examples)
    return state, compiled_round.init_client_states(
      variables, algorithm, number, self.mesh, self.task.model.state_of
    )

  def first_variables(self) -> Any:
    """Returns the initial weights, with the model's state if it has one."""
    return self.task.model.init(jax.random.key(self.planner.seed))

  def host_states(self, folder=None) -> client_state_store.ClientStates:
    """Returns the store of client states on the host, before round 1.

    Args:
      folder: the directory of the store's file; None stores them in memory.
    """
    first = functools.partial(
      compiled_round.first_states,
      self.trained.first,
      self.task.model.state_of,
    )
    return client_state_store.ClientStates(
      functools.partial(jax.jit(first), self.first_variables()),
      len(self.planner.num_examples),
      folder,
    )

  def test_batch(self) -> int:
    """Returns the examples of a batch of the test set."""
    with self.arithmetic.tracing():
      return evaluation.batch_size(
        self.task,
        self.federation.test,
        self.mesh,
        len(self.trained.values or (0,)),
      )

  def evaluate(self) -> Any:
    """Returns the jitted evaluation, (variables, test) -> `Sums`."""
    one = evaluation.build_evaluate(self.task, self.mesh)
    return self.trained.evaluate(one, self.platform)

  def call(self) -> jax.stages.Wrapped:
    """Returns the jitted call, from `superstep.build_call`."""

    def round_of(algorithm: Algorithm):
      return compiled_round.build_round(
        self.task.model,
        algorithm,
        self.planner,
        self.mesh,
        loss=self.task.loss,
        on_nan=self.federation.on_nan,
        counts_bytes=self.counts_bytes,
      )

    return superstep.build_call(
      self.trained.round(round_of, self.platform),
      self.evaluate(),
      self.task.reached,
      self.mesh,
      jax.P('lanes') if self.planner.streamed else jax.P(),
    )

  def arguments(self) -> tuple[Any, ...]:
    """Returns the call's arguments, with shapes in place of states and data."""
    states, kept = jax.eval_shape(self.init)
    if self.planner.gathers:
      kept = self.host_states().shapes(self.planner.cohort_size)['states']
    clients = self.federation.clients
    if self.planner.streamed:
      data = prefetch.shapes(clients, self.planner)
    else:
      data = jax.tree.map(_shape, compiled_round.Examples(*clients[:2]))
    batch = self.test_batch()
    test = jax.eval_shape(
      lambda: evaluation.place_test_set(self.federation.test, self.mesh, batch)
    )
    schedule = superstep.make_schedule(
      self.planner, [1], self.rounds_per_call, lambda number: True
    )
    return self.trained.going, states, kept, data, test, schedule

  def lower(self, arguments: Sequence[Any] = ()) -> jax.stages.Lowered:
    """Lowers the call for the devices of the mesh.

    Args:
      arguments: the arguments of the call, if available; () takes their shapes.

    Raises:
      InputError: the model cannot be trained on such examples.
    """
    x = self.federation.clients.x
    with self.arithmetic.tracing():
      with examples.lowering(self.task.model, x):
        return self.call().lower(*(arguments or self.arguments()))

  def export(self, target: str) -> jax.export.Exported:
    """Lowers the call for a platform, which may be absent.

    Args:
      target: the platform, 'cuda', 'rocm' or 'tpu', as in `jax.export`.

    Raises:
      InputError: the platform does not have the precision.
    """
    own = self._replace(platform='tpu' if target == 'tpu' else 'gpu')
    arithmetic.check(own.arithmetic)
    with own.arithmetic.tracing():
      return jax.export.export(own.call(), platforms=[target])(*own.arguments())

  def compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles what `lower` returns, with compiler options for the platform.

    Raises:
      InputError: the compiler does not know an option of a setting.
    """
    options = _CPU if self.platform == 'cpu' else {}
    return arithmetic.compiled(
      lowered, options | self.arithmetic.options(loops=True)
    )


def rounds_per_call(planner: planning.Planner) -> int:
  """Returns the most rounds of a call, limited by the size of their plans."""
  plan_bytes = sum(np.asarray(array).nbytes for array in planner(1))
  return max(1, min(_MOST_ROUNDS, _MOST_PLAN_BYTES // plan_bytes))


def _shape(array: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(array.shape, array.dtype)
