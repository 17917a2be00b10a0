"""Evaluates global and personal models on clients' held-out examples.

The test of the global model is one pass over the held-out examples of all
clients. For the personal models every client trains as in a round, and its
client state at the end is the test of its local model. Neither changes the
global model or the client states of the run.

Shape letters: K clients, H held-out examples of all clients, B examples of a
batch.
"""

from collections.abc import Callable
import csv
import dataclasses
import functools
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.model import join
from fedavg_jax.contracts.task import Sums
from fedavg_jax.contracts.task import Task
from fedavg_jax.contracts.task import results
from fedavg_jax.core import rules
from fedavg_jax.core import trees
from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import arithmetic
from fedavg_jax.engine import collectives
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import evaluation
from fedavg_jax.engine import examples
from fedavg_jax.engine import held_out
from fedavg_jax.engine.client_round import train_lanes
from fedavg_jax.engine.compiled_round import PLAN_SPECS
from fedavg_jax.engine.local_step import Training
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.schedule.participation import EVERYBODY


class Tested(NamedTuple):
  """Holds the results of a model on each client's held-out examples.

  Attributes:
    values: name -> results of a metric, [K]; NaN where nothing was tested.
    count: [K] numbers of tested labels, or of examples if there are no labels.
    lower_is_better: the direction of the first metric.
  """

  values: dict[str, np.ndarray]
  count: np.ndarray
  lower_is_better: bool = False


class ClientTests(NamedTuple):
  """Holds the tests of all clients on their held-out examples.

  Attributes:
    global_model: the tests of the global model. A client without held-out
      examples has a count of 0.
    personal: the tests of each client's personal model: its own one in an
      algorithm with such models, else the global one after fine-tuning; None
      without either. A client whose model became NaN or infinite in fine-tuning
      has a count of 0.
  """

  global_model: Tested
  personal: Tested | None


def build_client_tests(
  simulation: Simulation,
  held: Clients,
  *,
  finetune: optax.GradientTransformation | None = None,
  epochs: int = 0,
) -> Callable[..., ClientTests]:
  """Compiles the tests of a simulation's clients.

  Args:
    simulation: the compiled simulation, whose model, lanes and devices are
      reused.
    held: the held-out examples of its K clients; some may have none.
    finetune: the optimizer of the personal models, such as `optax.sgd(0.1)`.
    epochs: the number of local epochs before a personal model is tested; 0
      tests the clients' own models, if the algorithm has any.

  Returns:
    A function (server state, client states) -> `ClientTests` on the host. Only
    the tests of own models need the client states.

  Raises:
    InputError: no client has a held-out example, the number of clients differs
      from the simulation's, or `epochs` does not fit the other arguments or the
      algorithm.
  """
  planner, mesh = simulation.planner, simulation.mesh
  number = len(planner.num_examples)
  if held.num_clients != number:
    raise InputError(
      f'held: expected {number} clients, as in training, got {held.num_clients}'
    )
  if not trees.num_rows(held.y):
    raise InputError(
      'holdout_fraction: no client has a held-out example to test on'
    )
  rules.check_whole('epochs', epochs, 0)
  task = simulation.task
  variables = examples.init_shapes(task.model, planner.seed)
  own = simulation.arithmetic
  with own.tracing():
    held = examples.check_held(task, variables, held)
    batch = evaluation.batch_size(task, Examples(held.x, held.y), mesh)
    dealt = evaluation.place_held_out(held, mesh, batch)
    test_all = evaluation.build_evaluate_clients(task, number, mesh)
    lowered = test_all.lower(variables, dealt)
  test_all = arithmetic.compiled(lowered, own.options())
  test_personal = None
  has_own = simulation.parts.trained.first.own_model is not None
  if epochs and has_own:
    raise InputError(
      f'epochs = {epochs}: must be 0 with an algorithm whose clients have their'
      ' own models, which are tested as they are'
    )
  if epochs and planner.streamed:
    raise InputError(
      f"epochs = {epochs}: is not supported with examples_on = 'host', because"
      ' every client trains'
    )
  if epochs:
    if finetune is None:
      raise InputError(f'epochs = {epochs}: must be 0 without finetune')
    test_personal = _build_personal(simulation, held, finetune, epochs)
  elif has_own:
    test_personal = held_out.build_own_models(simulation, held)

  def measure(sums: Sums) -> Tested:
    sums = jax.device_get(sums)
    return Tested(
      results(task, sums), sums.count, task.metrics[0].lower_is_better
    )

  def client_tests(
    state: compiled_round.ServerState, client_states: Any = None
  ) -> ClientTests:
    of_global, personal = measure(test_all(state.variables, dealt)), None
    if test_personal is not None:
      personal = measure(test_personal(state, client_states))
    return ClientTests(of_global, personal)

  return client_tests


def _build_personal(
  simulation: Simulation,
  held: Clients,
  finetune: optax.GradientTransformation,
  epochs: int,
) -> Callable[[compiled_round.ServerState, Any], Sums]:
  """Builds the function server state -> sums [K] of the fine-tuned models."""
  task, mesh, number = simulation.task, simulation.mesh, held.num_clients
  model = task.model
  if model.state_of == 'client':  # Each starts with the mean of the states.
    model = model._replace(state_of='everybody')
  width = held_out.batch_width(held)
  everywhere = jax.P()
  replicated = jax.sharding.NamedSharding(mesh, everywhere)
  planner = dataclasses.replace(
    simulation.planner,
    participation=EVERYBODY,
    gathers=False,
    cohort_size=number,
    concurrency=0,
    epochs=epochs,
  )

  def test_device(state, data, own, plan):
    no_sums = held_out.no_sums(task, state, own)
    training = Training(
      model=model,
      loss=task.loss,
      algorithm=_testing(task, finetune, own, width, no_sums),
      step_examples=planner.step_examples,
      accumulates=planner.accumulates,
      skips_clients=True,  # One that diverges does not affect the others.
      counts_bytes=False,
      widths=planner.widths,
    )
    client_states = jax.tree.map(
      lambda leaf: jnp.zeros((number, *leaf.shape), leaf.dtype), no_sums
    )
    sums = train_lanes(training, state, client_states, data, plan)
    return collectives.sum_over_devices(sums.client_states)

  @functools.partial(
    jax.jit,
    out_shardings=replicated,
    compiler_options=simulation.arithmetic.options(loops=True) or None,
  )
  def train_and_test(state, data, own, plan) -> Sums:
    tested = jax.shard_map(
      test_device,
      mesh=mesh,
      in_specs=(everywhere, everywhere, everywhere, PLAN_SPECS),
      out_specs=everywhere,
      check_vma=False,
    )(state, data, own, plan)
    # From the order of the cohort to that of all clients.
    return jax.tree.map(
      lambda leaf: jnp.zeros_like(leaf).at[plan.cohort].set(leaf), tested
    )

  own = held_out.place(held, replicated)

  def personal(state, client_states) -> Sums:
    del client_states
    number = int(state.round) + 1
    state = state._replace(earlier=())  # All start from the newest model.
    with simulation.arithmetic.tracing():  # Traces once.
      return train_and_test(
        state,
        simulation.data([number]),
        own,
        compiled_round.place_plan(planner(number), mesh),
      )

  return personal


def _testing(
  task: Task,
  finetune: optax.GradientTransformation,
  held: held_out.Held,
  width: int,
  no_sums: Sums,
) -> Algorithm:
  """Returns an algorithm whose client states are tests of the local models."""

  def client_finish(result):
    variables = join(result.params, result.model_state)
    k = result.context.client_id
    sums = held_out.client_sums(task, held, width, no_sums, variables, k)
    return ClientOutput((), sums)

  return Algorithm(
    client_optimizer=finetune,
    server_init=lambda params: (),
    server_update=lambda params, server, mean, context: (params, server),
    client_finish=client_finish,
  )


def describe(
  tests: Tested, held: np.ndarray | jax.Array | None = None
) -> dict[str, float]:
  """Summarises the tests of the clients.

  Args:
    tests: the tests of K clients.
    held: [K] numbers of held-out labels; clients without any do not count. A
      client that has some but no test has diverged: it counts as 0 if higher is
      better, else not at all. None takes `tests.count`.

  Returns:
    Statistics by name. For the first metric: the means over labels and over
    clients, the clients' 10th, 50th and 90th percentiles, the mean of their
    worst tenth (at least one client) and their variance. For each other metric:
    the mean over the labels of clients that did not diverge. 'tested' counts
    the clients, 'diverged' those that diverged. Empty if no client has a test.
  """
  held = np.asarray(tests.count if held is None else held)
  counts = held > 0
  tested = counts & (tests.count > 0)
  if not tested.any():
    return {}
  first, *others = tests.values
  measured = tested if tests.lower_is_better else counts
  weights = held[measured].astype(np.float64)
  values = np.where(tested, tests.values[first], 0.0)[measured]
  worst = np.sort(-values if tests.lower_is_better else values)
  worst = np.abs(worst[: max(len(values) // 10, 1)])
  p10, p50, p90 = np.quantile(values, (0.1, 0.5, 0.9))
  found = {
    f'{first}_weighted': float(np.average(values, weights=weights)),
    f'{first}_mean': float(values.mean()),
    f'{first}_p10': float(p10),
    f'{first}_p50': float(p50),
    f'{first}_p90': float(p90),
    f'{first}_worst_tenth': float(worst.mean()),
    f'{first}_variance': float(values.var()),
  }
  for name in others:
    values = tests.values[name][tested]
    weights = tests.count[tested].astype(np.float64)
    found[f'{name}_weighted'] = float(np.average(values, weights=weights))
  return found | {
    'tested': int(counts.sum()),
    'diverged': int((counts & ~tested).sum()),
  }


def line(tests: ClientTests) -> dict[str, float]:
  """Returns the fields `client_...` and `personal_...` of metrics.jsonl."""
  found = {
    f'client_{name}': value
    for name, value in describe(tests.global_model).items()
  }
  if tests.personal is not None:
    found |= {
      f'personal_{name}': value
      for name, value in describe(
        tests.personal, tests.global_model.count
      ).items()
    }
  return found


def write_csv(
  path: pathlib.Path, num_examples: np.ndarray, tests: ClientTests
) -> None:
  """Writes a line per client: its number of examples and its results.

  Args:
    path: the path of the new file.
    num_examples: [K] numbers of the clients' training examples.
    tests: the tests of all clients.
  """
  columns: dict[str, Any] = {
    'client': np.arange(len(num_examples)),
    'train_examples': num_examples,
    'held_out': tests.global_model.count.astype(int),
  }
  for who, tested in (
    ('client', tests.global_model),
    ('personal', tests.personal),
  ):
    if tested is not None:
      for name, values in tested.values.items():
        columns[f'{who}_{name}'] = _cells(values)
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))


def _cells(values: np.ndarray) -> list[float | str]:
  """Returns the cells of a CSV column, empty where nothing was tested."""
  return ['' if np.isnan(value) else float(value) for value in values]
