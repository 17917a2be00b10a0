"""Is the engine right on this accelerator, and which convolution is fastest?

Checks first: a round of the CNN and one of the 2NN, computed by the accelerator
in every way to convolve and by this machine's CPU, must agree with exact
products; it ends where they do not. Then it measures, at JAX's own precision,
seconds per round of the paper's MNIST settings (100 clients of 600 random
examples, C = 0.1, B = 10) over ways to convolve, lanes and E. It appends a JSON
line per finding, skips what the file has already, and so can be stopped and
started again.

python -m experiments.accelerator --out experiments/results/accelerator.jsonl
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
import optax

import fedavg_jax as fa
from fedavg_jax import layers
from fedavg_jax import metrics

# Float32 with exact products: what differs then is the order of additions.
TOLERANCE = 1e-4
METHODS = ('patches', 'lax', 'canonical')


def make_simulation(model_name, method, devices, lanes, epochs, uneven=False):
  """The paper's setting on some devices; the data is random."""
  rng = np.random.default_rng(0)
  sizes = [600] * 100
  if uneven:  # A client of one example, short last batches.
    sizes = [1, 7, 25, 40, 13, 30, 11, 3, 20, 10]
  n = sum(sizes)
  examples = fa.Examples(
    rng.integers(0, 256, (n, 28, 28, 1)).astype(np.uint8),
    rng.integers(0, 10, n).astype(np.int32),
  )
  data = fa.Dataset('random', examples, examples, 10, max_value=255.0)
  parts = np.split(np.arange(n), np.cumsum(sizes)[:-1])
  return fa.build_simulation(
    fa.build_model(model_name, data, convolution=method),
    fa.build_clients(examples, parts),
    fa.Examples(examples.x[:125], examples.y[:125]),
    algorithm=fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
    client_fraction=10 / len(sizes),
    epochs=epochs,
    batch_size=10,
    lanes=lanes,
    devices=devices,
  )


def check(model_name: str, method: str) -> dict[str, Any]:
  """Largest difference of a round's new model from the CPU's."""
  cpu = jax.devices('cpu')[:1]
  models, begin = [], None
  for devices, how, lanes in (
    (cpu, 'canonical', 1),
    (jax.devices()[:1], method, 10),
  ):
    with jax.default_matmul_precision('highest'):
      simulation = make_simulation(
        model_name, how, devices, lanes, epochs=2, uneven=True
      )
      # One beginning for both: devices draw weights with other roundings.
      state, client_states = simulation.init()
      begin = begin or jax.device_get(state)
      state = jax.device_put(begin, jax.tree.map(lambda a: a.sharding, state))
      rounds = fa.run_calls(
        simulation, state, client_states, range(1, 2), evaluated=bool
      )
      (record,) = rounds
    models.append(jax.device_get(record.state.params))
  differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), *models)
  largest = float(max(jax.tree.leaves(differences)))
  return {'largest_difference': largest, 'agrees': largest < TOLERANCE}


def measure(
  model_name: str, method: str, lanes: int, epochs: int
) -> dict[str, Any]:
  """Median seconds a round of seven runs of eight, after one to warm up."""
  simulation = make_simulation(
    model_name, method, jax.devices()[:1], lanes, epochs
  )
  states = simulation.init()
  seconds = []
  for number in range(8):
    first = 8 * number + 1
    start = time.perf_counter()
    *_, record = fa.run_calls(
      simulation, *states, range(first, first + 8), evaluated=lambda _: False
    )
    seconds.append((time.perf_counter() - start) / 8)
    states = record.state, ()
  return {
    'seconds_per_round': statistics.median(seconds[1:]),
    'seconds': seconds[1:],
    'compile_seconds': simulation.compile_seconds,
  }


def main() -> None:
  """Checks, then measures, what the file does not have yet."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  args.out.parent.mkdir(parents=True, exist_ok=True)
  device = jax.devices()[0].device_kind
  rows = []
  if args.out.exists():
    rows = [json.loads(line) for line in args.out.read_text().splitlines()]
  done = {row['key'] for row in rows if row['device'] == device}
  assert set(METHODS) == set(layers.METHODS) - {'auto'}
  cells: list[tuple[Any, ...]] = [('check', '2nn', 'patches')]
  cells += [('check', 'cnn', method) for method in METHODS]
  for epochs in (1, 5):
    for lanes in (10, 5, 2, 1):
      cells.append(('measure', '2nn', 'patches', lanes, epochs))
      cells += [('measure', 'cnn', m, lanes, epochs) for m in METHODS]
  for kind, *arguments in cells:
    key = ' '.join(map(str, [kind, *arguments]))
    if key in done:
      continue
    found = check(*arguments) if kind == 'check' else measure(*arguments)
    row = {'key': key, **found, **metrics.environment()}
    print(key, {k: v for k, v in found.items() if k != 'seconds'}, flush=True)
    if not found.get('agrees', True):
      sys.exit(f'{key}: wrong by {found["largest_difference"]}; no timing')
    with open(args.out, 'a', encoding='utf-8') as file:
      file.write(json.dumps(row) + '\n')


if __name__ == '__main__':
  main()
