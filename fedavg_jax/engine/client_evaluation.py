"""What a model is worth to each client, before and after it trains on its own.

Before: one pass over all that clients have held out. After: every client trains
as in a round, and what it keeps at its end is the test of its local model.
Neither changes the global model or what clients keep.

Shape letters: K clients, H held-out examples of all, B examples of a batch.
"""

from collections.abc import Callable
import csv
import dataclasses
import functools
import pathlib
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from fedavg_jax.contracts import losses
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.model import Model
from fedavg_jax.core import rules
from fedavg_jax.core.client_data import NO_LABEL
from fedavg_jax.core.client_data import Clients
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import collectives
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import evaluation
from fedavg_jax.engine import examples
from fedavg_jax.engine.client_round import train_lanes
from fedavg_jax.engine.compiled_round import PLAN_SPECS
from fedavg_jax.engine.evaluation import TestMetrics
from fedavg_jax.engine.local_step import Array
from fedavg_jax.engine.local_step import Training
from fedavg_jax.engine.simulation import Simulation
from fedavg_jax.models import layers
from fedavg_jax.models import rewriting
from fedavg_jax.schedule.participation import EVERYBODY

_BATCH = 64


class ClientTests(NamedTuple):
  """Tests on every client's own held-out examples.

  Attributes:
    global_model: of the global model; correct, loss_sum and count are [K]. A
      client that holds nothing out has a count of 0.
    personal: of each client's own, after it has trained; None where it does
      not. A client whose numbers left the finite ones has a count of 0.
  """

  global_model: TestMetrics
  personal: TestMetrics | None


class _Held(NamedTuple):
  """Held-out examples of all clients, on every device.

  Attributes:
    x: [H, ...].
    y: [H, ...].
    offsets: [K + 1] int32, where each client's begin.
  """

  x: Array
  y: Array
  offsets: Array


class _Tested(NamedTuple):
  """What a client keeps: who it is, and how its own model did."""

  client: jax.Array
  metrics: TestMetrics


def build_client_tests(
  model: Model,
  simulation: Simulation,
  held: Clients,
  *,
  finetune: optax.GradientTransformation | None = None,
  epochs: int = 0,
) -> Callable[[compiled_round.ServerState], ClientTests]:
  """Compiles the tests of a simulation's clients.

  Args:
    model: that of the simulation.
    simulation: compiled; its lanes and devices serve here too.
    held: what its K clients hold out, some of them maybe nothing.
    finetune: trains the personal models, such as `optax.sgd(0.1)`.
    epochs: of a client over its training examples before its model is tested;
      0 tests the global model alone.

  Returns:
    server state -> tests, on the host.

  Raises:
    InputError: nobody holds anything out, or other clients do.
  """
  model = rewriting.fast_model(model)
  planner, mesh = simulation.planner, simulation.mesh
  number = len(planner.num_examples)
  if held.num_clients != number:
    raise InputError(
      f'held: {held.num_clients} clients, must be the {number} that train'
    )
  if not len(held.y):
    raise InputError(
      'holdout_fraction: leaves no client an example to be tested on'
    )
  rules.check_whole('epochs', epochs, 0)
  params = examples.init_shapes(model, planner.seed)
  held = examples.check_held(model, params, held)
  dealt = evaluation.place_held_out(held, mesh)
  test_all = evaluation.build_evaluate_clients(model.apply, number, mesh)
  with layers.for_platform(mesh.devices.flat[0].platform):
    test_all = test_all.lower(params, dealt).compile()
  train_and_test = None
  if epochs and planner.streamed:
    raise InputError(
      f'epochs = {epochs}: must be 0 where clients are streamed, because all of'
      ' them train'
    )
  if epochs:
    if finetune is None:
      raise InputError(f'epochs = {epochs}: must be 0 without finetune')
    train_and_test = _build_personal(model, simulation, held, finetune, epochs)

  def client_tests(state: compiled_round.ServerState) -> ClientTests:
    return jax.device_get(
      ClientTests(
        test_all(state.params, dealt),
        train_and_test(state) if train_and_test else None,
      )
    )

  return client_tests


def _build_personal(
  model: Model,
  simulation: Simulation,
  held: Clients,
  finetune: optax.GradientTransformation,
  epochs: int,
) -> Callable[[compiled_round.ServerState], TestMetrics]:
  """Compiles: server state -> metrics [K] of each client's own model."""
  mesh, number = simulation.mesh, held.num_clients
  everywhere = jax.P()
  replicated = jax.sharding.NamedSharding(mesh, everywhere)
  width = int(min(_BATCH, held.num_examples.max()))
  planner = dataclasses.replace(
    simulation.planner,
    participation=EVERYBODY,
    gathers=False,
    cohort_size=number,
    epochs=epochs,
  )

  def test_device(state, data, own, plan):
    training = Training(
      loss_fn=losses.cross_entropy(model.apply),
      algorithm=_testing(model.apply, finetune, own, width),
      augment=model.augment,
      step_examples=planner.step_examples,
      accumulates=planner.accumulates,
      skips_clients=True,  # One that diverges says nothing of the others.
      widths=planner.widths,
    )
    clients = jnp.arange(number, dtype=jnp.int32)
    nobody = _Tested(clients, _no_tests(clients.shape))
    sums = train_lanes(training, state, nobody, data, plan)
    return collectives.sum_over_devices(sums.client_states.metrics)

  @functools.partial(jax.jit, out_shardings=replicated)
  def train_and_test(state, data, own, plan) -> TestMetrics:
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

  own = collectives.put(
    _Held(held.x, held.y, held.offsets.astype(np.int32)), replicated
  )

  def personal(state) -> TestMetrics:
    number = int(state.round) + 1
    with layers.for_platform(mesh.devices.flat[0].platform):  # Traces once.
      return train_and_test(
        state,
        simulation.data([number]),
        own,
        compiled_round.place_plan(planner(number), mesh),
      )

  return personal


def _testing(
  apply: Callable,
  finetune: optax.GradientTransformation,
  held: _Held,
  width: int,
) -> Algorithm:
  """Returns what sends nothing, and keeps the test of each local model."""

  def message(ended):
    k = ended.client.client
    local = jax.tree.map(jnp.add, ended.global_params, ended.delta)
    first, stop = held.offsets[k], held.offsets[k + 1]

    def batch(i, sums):
      rows = first + i * width + jnp.arange(width)
      real = rows < stop
      rows = jnp.minimum(rows, len(held.y) - 1)
      y = held.y[rows]
      real = real.reshape(-1, *(1,) * (y.ndim - 1))
      metrics = evaluation.examples_metrics(
        apply, local, held.x[rows], jnp.where(real, y, NO_LABEL)
      )
      return jax.tree.map(lambda sum_, one: sum_ + one.sum(), sums, metrics)

    batches = -(-(stop - first) // width)
    return (), _Tested(k, lax.fori_loop(0, batches, batch, _no_tests(())))

  return Algorithm(
    client_optimizer=finetune,
    message=message,
    server_init=lambda params: (),
    server_update=lambda params, server, mean, share: (params, server),
    client_init=lambda params: (),  # All clients' states are given.
  )


def _no_tests(shape: tuple[int, ...]) -> TestMetrics:
  """Returns the metrics of nothing: a count of 0."""
  return TestMetrics(*(jnp.zeros(shape, jnp.float32) for _ in range(3)))


def describe(
  tests: TestMetrics, held: np.ndarray | jax.Array | None = None
) -> dict[str, float]:
  """How the clients fare, from their tests.

  Args:
    tests: of K clients.
    held: [K] examples that they hold out; clients without any do not count.
      One whose test is missing all the same has diverged: it has an accuracy of
      0. Left out, those that were tested.

  Returns:
    Of accuracies between 0 and 1: the mean over examples and over clients, the
    10th, 50th and 90th percentile of clients, the mean of their worst tenth (of
    one at least), the variance; the mean loss over the examples of those that
    did not diverge; how many clients there are, and how many diverged. Empty
    where no client has a test.
  """
  held = np.asarray(tests.count if held is None else held)
  counts = held > 0
  tested = counts & (tests.count > 0)
  if not tested.any():
    return {}
  weights = held[counts].astype(np.float64)
  accuracy = np.where(tested, tests.correct, 0.0)[counts] / weights
  worst = np.sort(accuracy)[: max(len(accuracy) // 10, 1)]
  few, middle, many = np.quantile(accuracy, (0.1, 0.5, 0.9))
  loss = tests.loss_sum[tested].sum() / tests.count[tested].sum()
  return {
    'accuracy_weighted': float(np.average(accuracy, weights=weights)),
    'accuracy_mean': float(accuracy.mean()),
    'accuracy_p10': float(few),
    'accuracy_p50': float(middle),
    'accuracy_p90': float(many),
    'accuracy_worst_tenth': float(worst.mean()),
    'accuracy_variance': float(accuracy.var()),
    'loss_weighted': float(loss),
    'tested': int(counts.sum()),
    'diverged': int((counts & ~tested).sum()),
  }


def line(tests: ClientTests) -> dict[str, float]:
  """What metrics.jsonl tells of the clients: `client_...`, `personal_...`."""
  told = {
    f'client_{name}': value
    for name, value in describe(tests.global_model).items()
  }
  if tests.personal is not None:
    told |= {
      f'personal_{name}': value
      for name, value in describe(
        tests.personal, tests.global_model.count
      ).items()
    }
  return told


def write_csv(
  path: pathlib.Path, num_examples: np.ndarray, tests: ClientTests
) -> None:
  """Writes a line per client: how much it has, and how it fares.

  Args:
    path: of the new file.
    num_examples: [K] that a client trains on.
    tests: of all clients.
  """
  columns: dict[str, Any] = {
    'client': np.arange(len(num_examples)),
    'train_examples': num_examples,
    'held_out': tests.global_model.count.astype(int),
  }
  for name, told in (
    ('client', tests.global_model),
    ('personal', tests.personal),
  ):
    if told is not None:
      columns[f'{name}_accuracy'] = _ratio(told.correct, told.count)
      columns[f'{name}_loss'] = _ratio(told.loss_sum, told.count)
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))


def _ratio(sums, counts) -> list[float | str]:
  """Sums over counts; nothing where nothing was counted."""
  return [
    float(a) / float(n) if n else '' for a, n in zip(sums, counts, strict=True)
  ]
