"""Seconds per round on this machine, beside other systems in the same run.

The paper's MNIST settings with random pixels: 100 clients of 600 examples,
C = 0.1, E = 1, B = 10, so a round is 600 client steps. All systems take turns,
one round each, so that a machine whose speed drifts is fair to all. The first
rounds, which compile and warm up, do not count.

python -m experiments.benchmark
python -m experiments.benchmark --peers torch --rounds 15 --out results.jsonl
"""

import argparse
from collections.abc import Callable
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any
import venv

import numpy as np
import optax

import fedavg_jax as fa
from fedavg_jax import metrics
from fedavg_jax import models

NUM_CLIENTS, COHORT, EXAMPLES, BATCH = 100, 10, 600, 10
STEPS = COHORT * EXAMPLES // BATCH
WORKLOADS = ('cnn', '2nn')
PEERS = pathlib.Path(__file__).parent / 'peers'
# How a peer's worker is started, and under which name: every way it could run.
PEER_MODES = {
  'torch': {
    'torch, 2 processes x 1 thread': ('2', '1'),
    'torch, 1 process x 2 threads': ('1', '2'),
  }
}

# A system in a race: runs one round, returns its seconds.
Racer = Callable[[], float]


def our_racer(workload: str, lanes: int) -> tuple[Racer, dict[str, Any]]:
  """The engine as `main` runs it: plan, call, wait; no evaluation."""
  rng = np.random.default_rng(0)
  n = NUM_CLIENTS * EXAMPLES
  examples = fa.Examples(
    rng.integers(0, 256, (n, 28, 28, 1)).astype(np.uint8),
    rng.integers(0, 10, n).astype(np.int32),
  )
  test = fa.Examples(examples.x[:125], examples.y[:125])
  data = fa.Dataset('random', examples, test, num_classes=10, max_value=255.0)
  parts = fa.partition.iid(n, num_clients=NUM_CLIENTS, seed=0)
  simulation = fa.build_simulation(
    fa.build_model(workload, data),
    fa.build_clients(data.train, parts),
    data.test,
    client_fraction=COHORT / NUM_CLIENTS,
    epochs=1,
    batch_size=BATCH,
    algorithm=fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
    lanes=lanes,
  )
  records = fa.simulate(simulation, rounds=10**6, eval_every=10**6)
  initial = next(records)
  told = {
    'lanes': simulation.planner.lanes,
    'devices': simulation.planner.num_devices,
    'compile_seconds': simulation.compile_seconds,
    'parameters': models.num_parameters(initial.state.params),
  }
  return (lambda: next(records).seconds), told


def peer_racer(peer: str, workload: str, arguments: tuple[str, ...]) -> Racer:
  """Starts a peer's worker in its own environment, made where it is missing."""
  home = pathlib.Path('build') / 'peers' / peer
  python = home / 'bin' / 'python'
  if not python.exists():
    venv.create(home, with_pip=True)
    requirements = PEERS / peer / 'requirements.txt'
    install = [python, '-m', 'pip', 'install', '-q', '-r', requirements]
    subprocess.run(install, check=True)
  worker = subprocess.Popen(
    [python, PEERS / peer / 'worker.py', workload, *arguments],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )

  def race() -> float:
    assert worker.stdin and worker.stdout
    worker.stdin.write('round\n')
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())['seconds']

  return race


def main() -> None:
  """Races every system on every workload; prints and appends the figures."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workloads', nargs='+', default=WORKLOADS)
  parser.add_argument('--peers', nargs='*', default=(), choices=PEER_MODES)
  parser.add_argument('--rounds', type=int, default=11)
  parser.add_argument('--lanes', type=int, default=0)
  parser.add_argument('--out', type=pathlib.Path)
  args = parser.parse_args()
  fa.use_cpu_devices(0)
  for workload in args.workloads:
    ours, told = our_racer(workload, args.lanes)
    racers = {'fedavg_jax': ours}
    for peer in args.peers:
      try:
        for name, arguments in PEER_MODES[peer].items():
          racers[name] = peer_racer(peer, workload, arguments)
      except (OSError, subprocess.CalledProcessError) as error:
        print(f'{peer}: cannot be installed here, left out: {error}')
    times: dict[str, list[float]] = {name: [] for name in racers}
    for number in range(args.rounds + 2):
      for name, race in racers.items():
        seconds = race()
        if number >= 2:
          times[name].append(seconds)
    report(workload, told, times, args.out)


def report(
  workload: str,
  told: dict[str, Any],
  times: dict[str, list[float]],
  out: pathlib.Path | None,
) -> None:
  """Prints a table; appends a JSON line per system."""
  command = ' '.join(['python -m experiments.benchmark', *sys.argv[1:]])
  ours = statistics.median(times['fedavg_jax'])
  print(f'\n{workload}: {STEPS} client steps a round, B = {BATCH}')
  heads = ('s a round', 'min', 'max', 'ms a step', 'ratio')
  print(f'{"":32}' + ''.join(f'{head:>11}' for head in heads))
  for name, seconds in times.items():
    median = statistics.median(seconds)
    print(
      f'{name:32}{median:11.4f}{min(seconds):11.4f}{max(seconds):11.4f}'
      f'{1000 * median / STEPS:11.3f}{median / ours:11.2f}'
    )
    row = {
      'workload': workload,
      'system': name,
      'seconds_per_round': median,
      'seconds': seconds,
      'client_steps': STEPS,
      'ratio_to_ours': median / ours,
      **(told if name == 'fedavg_jax' else _requirements(name)),
      'date': time.strftime('%Y-%m-%d'),
      'command': command,
      **metrics.environment(),
    }
    if out:
      with open(out, 'a', encoding='utf-8') as file:
        file.write(json.dumps(row) + '\n')


def _requirements(system: str) -> dict[str, Any]:
  """The versions that a peer was installed with."""
  peer = system.split(',')[0]
  text = (PEERS / peer / 'requirements.txt').read_text()
  return {'requirements': text.split('\n')[:-1]}


if __name__ == '__main__':
  main()
