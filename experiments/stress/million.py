"""Measures a run over a million clients that do not fit in memory.

It generates a federation of images, trains rounds of it from disk, and prints
the peak memory of the process, the time that the device was idle waiting for
the disk, and the time of planning a cohort. The page cache is emptied of the
federation's files before the run, and does not keep what the run reads, so that
rounds read from the disk.

python -m experiments.stress.million --folder build/million
python -m experiments.stress.million --folder build/million --out FILE
python -m experiments.stress.million --folder build/million --scaffold

21 GB are generated once; the folder can be reused, and deleted. Images are
28 x 28 and consist of a pattern of their label plus noise, so that a model can
learn. All draws are seeded. `--scaffold` trains logistic regression with
SCAFFOLD, whose control variates, one for each client, are in a file.
"""

import argparse
from collections.abc import Iterator
import json
import os
import pathlib
import resource
import statistics
import sys
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import fedavg_jax as fa
from fedavg_jax.core.client_data import Examples
from fedavg_jax.data import stored
from fedavg_jax.data import stored_writer
from fedavg_jax.engine import devices
from fedavg_jax.runs import provenance

_BLOCK = 1000  # Clients that are drawn together.
_CLASSES = 10
_PATTERNS = np.random.default_rng(0).integers(0, 60, (_CLASSES, 28, 28, 1))


def _draw(rng: np.random.Generator, number: int) -> Examples:
  y = rng.integers(0, _CLASSES, number).astype(np.int32)
  # Random bytes are the fastest noise; shifted, they leave room for a pattern.
  noise = np.frombuffer(rng.bytes(number * 784), np.uint8) >> 2
  x = noise.reshape(number, 28, 28, 1) + _PATTERNS[y].astype(np.uint8)
  return Examples(x, y)


def generate(num_clients: int, mean: int) -> Iterator[Examples]:
  """Yields clients of 1 to 2 `mean` - 1 examples each."""
  for block in range(-(-num_clients // _BLOCK)):
    rng = np.random.default_rng([1, block])
    sizes = rng.integers(1, 2 * mean, _BLOCK)
    block_examples = _draw(rng, int(sizes.sum()))
    ends = np.cumsum(sizes)
    for i in range(min(_BLOCK, num_clients - block * _BLOCK)):
      mine = slice(ends[i] - sizes[i], ends[i])
      yield Examples(block_examples.x[mine], block_examples.y[mine])


def write(folder: pathlib.Path, num_clients: int, mean: int) -> None:
  """Writes the federation, or resumes writing it."""
  with tqdm(total=num_clients, unit=' clients', file=sys.stdout) as bar:

    def wrote(clients: int, size: int) -> None:
      bar.set_postfix_str(f'{size / 1e9:.1f} GB', refresh=False)
      bar.update(clients - bar.n)

    stored_writer.write(
      folder,
      generate(num_clients, mean),
      _draw(np.random.default_rng(2), 2000),
      num_classes=_CLASSES,
      max_value=255.0,
      source={'experiments.million': [num_clients, mean]},
      wrote=wrote,
    )


def forget(folder: pathlib.Path) -> None:
  """Drops the files from the operating system's page cache."""
  for path in folder.glob('*.npy'):
    with open(path, 'rb') as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _logistic_regression() -> fa.Model:
  def init(key):
    del key
    return {'w': jnp.zeros((784, _CLASSES)), 'b': jnp.zeros(_CLASSES)}

  def apply(params, x):
    x = x.reshape(-1, 784).astype(jnp.float32) / 255
    return x @ params['w'] + params['b'][None]

  return fa.Model('lr', init, apply)


def measure(
  folder: pathlib.Path, rounds: int, cohort: int, epochs: int, scaffold: bool
) -> dict[str, object]:
  """Trains from disk; returns the measurements.

  Args:
    folder: the folder of the federation.
    rounds: the number of rounds.
    cohort: the number of clients per round.
    epochs: local epochs.
    scaffold: whether to train with SCAFFOLD instead of FedAvg.
  """
  begin = time.perf_counter()
  on_disk = stored.read(folder)
  opened = time.perf_counter() - begin
  dataset = fa.Dataset(
    'stored',
    Examples(on_disk.clients.x, on_disk.clients.y),
    on_disk.test,
    num_classes=on_disk.num_classes,
    max_value=on_disk.max_value,
    statistics=on_disk.statistics,
  )
  model = fa.build_model('2nn', dataset)
  algorithm = fa.fedavg(optax.sgd(0.05), optax.sgd(1.0))
  if scaffold:
    model, algorithm = _logistic_regression(), fa.scaffold(0.05)
  federation = fa.Federation(
    on_disk.clients,
    on_disk.test,
    client_fraction=cohort / on_disk.clients.num_clients,
    epochs=epochs,
    batch_size=10,
  )
  placement = fa.Placement(
    examples_on='host', client_states_on='host' if scaffold else 'device'
  )
  simulation = fa.build_simulation(
    model, federation, algorithm, placement=placement
  )
  ready = time.perf_counter() - begin
  planning, drawing = [], []
  for number in range(1, 12):
    start = time.perf_counter()
    simulation.planner.cohort(number)
    drawn = time.perf_counter()
    simulation.planner(number)
    planning.append(time.perf_counter() - start)
    drawing.append(drawn - start)
  source: Any = simulation.data  # It is a `prefetch.Stream`.
  waits, seconds, accuracy = [], [], []
  forget(folder)
  before = 0.0
  states = None
  if simulation.host_states is not None:
    states = simulation.host_states(folder)
  for record in fa.simulate(
    simulation, rounds=rounds, eval_every=rounds, host_states=states
  ):
    waited = source.waited
    if record.round:
      seconds.append(record.seconds)
      waits.append(waited - before)
    before = waited
    if record.test_accuracy is not None:
      accuracy.append(record.test_accuracy)
  # The first rounds fill the queue, as nothing was prefetched before them.
  share = sum(waits[2:]) / sum(seconds[2:])
  read = [
    float(on_disk.clients.num_examples[simulation.planner.cohort(t)].sum())
    for t in range(1, rounds + 1)
  ]
  row = on_disk.clients.x.nbytes / len(on_disk.clients.x) + 4
  return {
    'clients': on_disk.clients.num_clients,
    'examples': len(on_disk.clients.y),
    'gigabytes': (on_disk.clients.x.nbytes + on_disk.clients.y.nbytes) / 1e9,
    'cohort': cohort,
    'epochs': epochs,
    'rounds': rounds,
    'open_seconds': opened,
    'start_seconds': ready,
    'compile_seconds': simulation.compile_seconds,
    'cohort_milliseconds': 1000 * statistics.median(drawing),
    'plan_milliseconds': 1000 * statistics.median(planning),
    'round_seconds': statistics.median(seconds[2:]),
    'megabytes_a_round': statistics.mean(read) * row / 1e6,
    'waited_share': share,
    'first_wait_seconds': waits[0],
    'peak_mebibytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    'accuracy': accuracy,
    'model': model.name,
    'algorithm': 'scaffold' if scaffold else 'fedavg',
    'clients_with_states': len(states.clients) if states else 0,
    'lanes': simulation.planner.lanes,
  }


def main() -> None:
  """Generates the federation if it does not exist, then measures a run."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--folder',
    type=pathlib.Path,
    required=True,
    help='folder of the federation, generated if it does not exist',
  )
  parser.add_argument('--clients', type=int, default=1_000_000)
  parser.add_argument(
    '--mean', type=int, default=27, help='mean examples per client'
  )
  parser.add_argument(
    '--cohort', type=int, default=1000, help='clients per round'
  )
  parser.add_argument('--epochs', type=int, default=5, help='local epochs')
  parser.add_argument('--rounds', type=int, default=40)
  parser.add_argument(
    '--scaffold',
    action='store_true',
    help='train logistic regression with SCAFFOLD, instead of the 2NN',
  )
  parser.add_argument('--out', type=pathlib.Path, help='appends a JSON line')
  args = parser.parse_args()
  if not (args.folder / 'federation.json').exists():
    # In another process, so that peak memory is that of training alone.
    if (child := os.fork()) == 0:
      write(args.folder, args.clients, args.mean)
      os._exit(0)
    if os.waitpid(child, 0)[1]:
      sys.exit(
        f'{args.folder}: the generation was interrupted; rerun the same command'
        ' to resume'
      )
  devices.use_cpu_devices(0)
  row = measure(
    args.folder, args.rounds, args.cohort, args.epochs, args.scaffold
  )
  row |= {
    'command': ' '.join(
      ['python -m experiments.stress.million', *sys.argv[1:]]
    ),
    'date': time.strftime('%Y-%m-%d'),
    **provenance.environment(),
  }
  for key, value in row.items():
    shown = f'{value:.4g}' if isinstance(value, float) else value
    print(f'{key:22} {shown}')
  if args.out:
    with open(args.out, 'a', encoding='utf-8') as file:
      file.write(json.dumps(row) + '\n')


if __name__ == '__main__':
  main()
