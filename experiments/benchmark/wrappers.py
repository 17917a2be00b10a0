"""Times rounds with compressed or private messages against FedAvg's, in turns.

python -m experiments.benchmark.wrappers --workload 2nn --turns 5

Each turn runs some rounds of every algorithm in this process. It prints CPU
time per round, which other work on the machine changes little, and its median
ratio to FedAvg's.
"""

import argparse
import dataclasses
import statistics
import time

import optax

from experiments.benchmark import workloads
import fedavg_jax as fa


def algorithms(learning_rate: float, cohort: int) -> dict[str, fa.Algorithm]:
  """Returns FedAvg, FedAvg with each code and with privacy, and SCAFFOLD."""
  own = fa.experimental
  fedavg = fa.fedavg(optax.sgd(learning_rate), optax.sgd(1.0))
  return {
    'fedavg': fedavg,
    'qsgd(16)': own.compress(fedavg, own.qsgd(16)),
    'top_k(0.01)': own.compress(fedavg, own.top_k(0.01)),
    'top_k(0.01), error feedback': own.compress(
      fedavg, own.top_k(0.01), error_feedback=True
    ),
    'random_k(0.01)': own.compress(fedavg, own.random_k(0.01)),
    'scaled_sign()': own.compress(fedavg, own.scaled_sign()),
    'drive()': own.compress(fedavg, own.drive()),
    'privatize': own.privatize(
      fedavg, clip=0.5, noise_multiplier=1.0, denominator=cohort
    ),
    'privatize, adaptive clip': own.privatize(
      fedavg,
      clip=0.5,
      noise_multiplier=1.0,
      denominator=cohort,
      adaptive=own.AdaptiveClip(quantile=0.5, bit_noise=1.0),
    ),
    'scaffold': fa.scaffold(learning_rate),
  }


def build(
  workload: workloads.Workload, algorithm: fa.Algorithm
) -> fa.Simulation:
  """Returns the simulation of a workload, without tests."""
  data, clients = workloads.make_data(workload)
  federation = workloads.make_federation(workload, data, clients)
  if algorithm.mechanism is not None:
    federation = dataclasses.replace(
      federation, weighting='uniform', on_nan='skip_client'
    )
  return fa.build_simulation(
    workloads.make_model(workload, data),
    federation,
    algorithm,
    execution=fa.Execution(lanes=workload.lanes),
  )


def cpu_seconds(simulation: fa.Simulation, rounds: int) -> float:
  """Returns the CPU time of a round."""
  start = time.process_time()
  for _ in fa.simulate(simulation, rounds=rounds, eval_every=rounds):
    pass
  return (time.process_time() - start) / rounds


def main() -> None:
  """Prints the CPU time of a round, and its ratio to FedAvg's."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workload', choices=workloads.WORKLOADS, default='2nn')
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument('--only', default='', help='part of the names to time')
  parser.add_argument('--rounds', type=int, default=10, help='rounds of a turn')
  args = parser.parse_args()
  fa.use_cpu_devices(0)
  workload = workloads.WORKLOADS[args.workload]
  simulations = {
    name: build(workload, algorithm)
    for name, algorithm in algorithms(
      workload.learning_rate, workload.cohort
    ).items()
    if args.only in name or name == 'fedavg'
  }
  seconds = {name: [] for name in simulations}
  for turn in range(args.turns + 1):
    for name, simulation in simulations.items():
      found = cpu_seconds(simulation, args.rounds)
      if turn:  # The first one compiles.
        seconds[name].append(found)
  for name, own in seconds.items():
    ratios = [a / b for a, b in zip(own, seconds['fedavg'], strict=True)]
    print(f'{name:30} {min(own):8.4f} s {statistics.median(ratios):8.3f}')


if __name__ == '__main__':
  main()
