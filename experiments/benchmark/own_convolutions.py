"""Measures what convolutions of `flax.linen` cost next to the package's layers.

It times rounds of the paper's CNN in three forms, which take turns: with the
package's layers; in `flax.linen`, as the engine rewrites it; in `flax.linen`,
not rewritten. It prints a JSON line per form: the median seconds per round, and
their ratio to the first form.

python -m experiments.benchmark.own_convolutions
  [--clients 20,100] [--examples 60] [--turns 5] [--lanes 0]
"""

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.benchmark import workloads
import fedavg_jax as fa
from fedavg_jax.runs import provenance


class LinenCnn(nn.Module):
  """Defines the paper's MNIST CNN in plain flax; 1,663,370 parameters."""

  classes: int

  @nn.compact
  def __call__(self, x):
    for features in (32, 64):
      x = nn.relu(nn.Conv(features, (5, 5))(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.relu(nn.Dense(512)(x.reshape(x.shape[0], -1)))
    return nn.Dense(self.classes)(x)


def linen_model(workload: workloads.Workload) -> fa.Model:
  """Returns the CNN in `flax.linen`, for uint8 images."""
  module = LinenCnn(workload.classes)

  def apply(params, x) -> Any:
    return module.apply({'params': params}, x.astype(jnp.float32) / 255)

  def init(key):
    return module.init(key, jnp.zeros((1, *workload.shape)))['params']

  return fa.Model('linen_cnn', init, apply)


class Rounds:
  """Times a simulation one round at a time."""

  def __init__(self, simulation: fa.Simulation):
    self._simulation = simulation
    self._states: tuple[fa.engine.ServerState, Any] = simulation.init()
    self._done = 0
    self.seconds: list[float] = []

  def run(self) -> None:
    """Trains one more round and appends its seconds."""
    self._done += 1
    start = time.perf_counter()
    *_, record = fa.engine.run_calls(
      self._simulation,
      *self._states,
      range(self._done, self._done + 1),
      evaluated=lambda _: False,
    )
    self.seconds.append(time.perf_counter() - start)
    assert record.state is not None  # The last round has the state.
    self._states = record.state, ()


def compare(
  workload: workloads.Workload, turns: int
) -> dict[str, dict[str, Any]]:
  """Times the three forms; the first turn of each is not counted.

  Args:
    workload: a workload of the paper's CNN.
    turns: the number of timed rounds of each form.

  Returns:
    For each form `seconds_per_round`, the median, `seconds` of every turn and
    `ratio_to_ours`, the ratio to the package's layers.
  """
  data, clients = workloads.make_data(workload)
  federation = workloads.make_federation(workload, data, clients)
  linen = linen_model(workload)
  rate = workload.learning_rate
  forms = {
    name: Rounds(
      fa.build_simulation(
        model,
        federation,
        fa.fedavg(optax.sgd(rate), optax.sgd(1.0)),
        execution=fa.Execution(lanes=workload.lanes),
      )
    )
    for name, model in (
      ('layers', workloads.make_model(workload, data)),
      ('linen', linen),
      ('linen_as_written', linen._replace(as_written=True)),
    )
  }
  for _ in range(turns + 1):
    for rounds in forms.values():
      rounds.run()
  medians = {
    name: statistics.median(rounds.seconds[1:])
    for name, rounds in forms.items()
  }
  return {
    name: {
      'seconds_per_round': medians[name],
      'ratio_to_ours': medians[name] / medians['layers'],
      'seconds': rounds.seconds[1:],
    }
    for name, rounds in forms.items()
  }


def main() -> None:
  """Prints the times of each form, for every number of clients."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--clients', default='20,100', help='numbers of clients; all are drawn'
  )
  parser.add_argument(
    '--examples', type=int, default=60, help='examples per client'
  )
  parser.add_argument('--turns', type=int, default=5, help='timed rounds')
  parser.add_argument(
    '--lanes', type=int, default=0, help='number of lanes; 0 is automatic'
  )
  args = parser.parse_args()
  fa.use_cpu_devices(0)
  for clients in map(int, args.clients.split(',')):
    workload = dataclasses.replace(
      workloads.WORKLOADS['cnn'],
      sizes=(args.examples,) * clients,
      cohort=clients,
      lanes=args.lanes,
    )
    for form, facts in compare(workload, args.turns).items():
      row = {'clients': clients, 'form': form, **facts}
      print(json.dumps(row | {'device': jax.devices()[0].device_kind}))
  print(json.dumps(provenance.environment()))


if __name__ == '__main__':
  main()
