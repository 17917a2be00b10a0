"""Builds the federations of `fedavg-jax bench` and times their rounds."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedavg_jax as fa
from fedavg_jax.cli.workloads import Workload

_WARM_UPS, _TURN_SECONDS = 2, 1.0


def measure(name: str, workload: Workload, turns: int) -> dict[str, Any]:
  """Compiles a workload and times its rounds.

  Args:
    name: the name of the workload.
    workload: the workload.
    turns: the number of turns that count, at least 1.

  Returns:
    A row, which is a line of the output: seconds of a round in every turn, with
    their median and range, and the work that is done per second. Clients of
    uneven sizes count with their mean.
  """
  data, clients = make_data(workload)
  simulation = fa.build_simulation(
    make_model(workload, data),
    make_federation(workload, data, clients),
    fa.fedavg(optax.sgd(workload.learning_rate), optax.sgd(1.0)),
    execution=fa.Execution(lanes=workload.lanes),
  )
  planner = simulation.planner
  seconds, rounds = timed_turns(simulation, turns)
  median = statistics.median(seconds)
  steps = float(planner.steps(planner.num_examples).mean())
  examples = workload.epochs * float(planner.num_examples.mean())
  return {
    'workload': name,
    'about': workload.about,
    'seconds_per_round': median,
    'fastest_seconds': min(seconds),
    'slowest_seconds': max(seconds),
    'seconds': seconds,
    'rounds_per_turn': rounds,
    'rounds_per_second': 1 / median,
    'clients_per_second': planner.cohort_size / median,
    'steps_per_second': planner.cohort_size * steps / median,
    'examples_per_second': planner.cohort_size * examples / median,
    'lanes': planner.lanes,
    'devices': planner.num_devices,
    'compile_seconds': simulation.compile_seconds,
  }


def timed_turns(
  simulation: fa.Simulation, turns: int
) -> tuple[list[float], int]:
  """Trains turn after turn, as a run does: plans, queued calls and metrics.

  Returns:
    The seconds per round of each turn that counts, and its number of rounds.
  """
  state, client_states = simulation.init()
  seconds: list[float] = []
  done, rounds = 0, 1
  for turn in range(-_WARM_UPS, turns):
    begin = time.perf_counter()
    *_, last = fa.engine.run_calls(
      simulation,
      state,
      client_states,
      range(done + 1, done + rounds + 1),
      evaluated=lambda number: False,
    )
    per_round = (time.perf_counter() - begin) / rounds
    state, client_states = last.state or state, last.client_states
    done += rounds
    if turn >= 0:
      seconds.append(per_round)
    else:
      rounds = max(1, round(_TURN_SECONDS / per_round))
  return seconds, rounds


def make_data(workload: Workload) -> tuple[fa.Dataset, fa.Clients]:
  """Draws random pixels and labels; divides them by the workload's sizes."""
  rng, n = np.random.default_rng(0), sum(workload.sizes)
  x = rng.integers(0, 256, (n, *workload.shape), np.uint8)
  y = rng.integers(0, workload.classes, n, np.int32)
  return divide(workload, fa.Examples(x, y))


def divide(
  workload: Workload, examples: fa.Examples, padding: int | None = None
) -> tuple[fa.Dataset, fa.Clients]:
  """Divides examples into the clients of a workload.

  Args:
    workload: the workload.
    examples: x and y of all clients, one after another.
    padding: the token that pads sequences, as in `fa.Dataset`.
  """
  tested = slice(0, max(workload.tested, 1))
  test = fa.Examples(examples.x[tested], examples.y[tested])
  data = fa.Dataset(
    'random', examples, test, workload.classes, 255.0, padding=padding
  )
  parts = np.split(np.arange(len(examples.y)), np.cumsum(workload.sizes)[:-1])
  return data, fa.build_clients(examples, parts)


def make_federation(
  workload: Workload, data: fa.Dataset, clients: fa.Clients, cohort: int = 0
) -> fa.Federation:
  """Returns the federation of a workload.

  Args:
    workload: the workload.
    data: its data set, of `make_data`.
    clients: its clients, of `make_data`.
    cohort: the clients of a round; 0 means the workload's.
  """
  return fa.Federation(
    clients,
    data.test,
    client_fraction=(cohort or workload.cohort) / len(workload.sizes),
    epochs=workload.epochs,
    batch_size=workload.batch,
    weighting=workload.weighting,
  )


def make_model(
  workload: Workload,
  data: fa.Dataset,
  *,
  convolution: str = 'auto',
  precision: str = 'float32',
) -> fa.Model:
  """Builds the model of a workload.

  Args:
    workload: the workload.
    data: its data set, of `make_data`.
    convolution: the form of convolutions, one of `fa.build_model`.
    precision: the precision, one of `fa.build_model`.
  """
  if workload.model == 'lr':
    return _logistic_regression(workload, precision)
  return fa.build_model(
    workload.model, data, convolution=convolution, precision=precision
  )


def _logistic_regression(workload: Workload, precision: str) -> fa.Model:
  """Builds softmax(x W + b) of x / 255 [B, I]; 7,850 parameters on MNIST."""
  dtype = 'bfloat16' if precision == 'bfloat16' else 'float32'

  def init(key):
    shape = (int(np.prod(workload.shape)), workload.classes)
    kernel = jax.nn.initializers.lecun_normal()(key, shape)
    return {'kernel': kernel, 'bias': jnp.zeros(workload.classes)}

  def apply(params, x):
    x = x.reshape(x.shape[0], -1).astype(jnp.float32) / 255
    params, x = jax.tree.map(lambda a: a.astype(dtype), (params, x))
    logits = fa.layers.matmul(x, params['kernel']) + params['bias'][None]
    return logits.astype(jnp.float32)

  return fa.Model('lr', init, apply)
