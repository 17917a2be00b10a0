"""Checks the engine on this accelerator, then measures its speed there.

The checks compare rounds of clients of unequal sizes on the accelerator with
the same rounds on this machine's CPU, at exact matrix products: every
convolution method, many lanes, fewer lanes at the end, micro-batches, SCAFFOLD,
streamed examples, and all devices together. The first disagreement ends the
process. Then it measures the benchmark's workloads at JAX's default precision
over convolution methods, numbers of lanes and precisions; with several devices
also over 1, 2, 4, ... of them, with a fixed cohort and with one that grows with
the number of devices. It appends one JSON line per result and skips results
that the file already has, so that it can be stopped and started again.

Targets for one H100: `cnn_e5` at 60 ms per round, `pfl_cifar10` at 25 rounds
per second, a cost per client that is flat or falls from `cohort_10` to
`cohort_1000`.

python -m experiments.benchmark.accelerator
  --out experiments/benchmark/results/accelerator.jsonl
  [--seconds 540]
"""

import argparse
from collections.abc import Callable
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmark import worker
from experiments.benchmark import workloads
import fedavg_jax as fa
from fedavg_jax.core import choices
from fedavg_jax.runs import provenance

# With exact float32 products only the order of additions differs.
TOLERANCE = 1e-4
METHODS = ('patches', 'lax', 'canonical')
# They include a client of one example and short last batches.
UNEVEN = (1, 7, 25, 40, 13, 30, 11, 3, 20, 10)
ALGORITHMS = {
  'fedavg': fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
  'scaffold': fa.scaffold(0.1),
}
CHECKS: dict[str, dict[str, Any]] = {
  '2nn': {'model': '2nn'},
  '2nn, fewer lanes at the end': {'model': '2nn', 'widths': (10, 4, 1)},
  '2nn, B = inf in parts': {
    'model': '2nn',
    'batch_size': 0,
    'micro_batch': 8,
  },
  '2nn, scaffold': {'model': '2nn', 'algorithm': 'scaffold'},
  '2nn, a sweep': {'model': '2nn', 'sweep': (0.05, 0.1, 0.2)},
  '2nn, streamed': {'model': '2nn', 'examples_on': 'host'},
  '2nn, all devices': {'model': '2nn', 'all_devices': True},
  '2nn, all devices, streamed': {
    'model': '2nn',
    'all_devices': True,
    'examples_on': 'host',
    'algorithm': 'scaffold',
  },
  'char_lstm': {'model': 'char_lstm'},
  'word_lstm': {'model': 'word_lstm'},
  **{f'cnn, {m}': {'model': 'cnn', 'convolution': m} for m in METHODS},
  'cifar_cnn, cropped': {'model': 'cifar_cnn'},
}
_SHAPES = {'char_lstm': (80,), 'word_lstm': (10,), 'cifar_cnn': (32, 32, 3)}
_CLASSES = {'char_lstm': 258, 'word_lstm': 10_000}


def cells() -> list[tuple[str, dict[str, Any]]]:
  """Returns workloads and options, the most important ones first."""
  found: list[tuple[str, dict[str, Any]]] = [
    ('cnn_e5', {}),
    ('pfl_cifar10', {}),
    ('2nn', {}),
  ]
  found += [(f'cohort_{m}', {}) for m in workloads.COHORTS]
  for method in METHODS[1:]:  # 'auto' chooses the first.
    found += [
      ('cnn_e5', {'convolution': method, 'lanes': 10}),
      ('pfl_cifar10', {'convolution': method, 'lanes': 50}),
    ]
  found += [
    ('cnn_e5', {'precision': 'bfloat16', 'lanes': 10}),
    ('pfl_cifar10', {'precision': 'bfloat16', 'lanes': 50}),
  ]
  for lanes in (1, 2, 5, 10):
    found += [('cnn_e5', {'lanes': lanes}), ('2nn', {'lanes': lanes})]
  for lanes in (5, 10, 25, 50):
    found.append(('pfl_cifar10', {'lanes': lanes}))
  for lanes in (8, 32, 64, 128, 256):
    found.append(('cohort_1000', {'lanes': lanes}))
  found += [(name, {}) for name in ('roles', 'writers', 'log_normal_500')]
  for name in ('cifar', 'shakespeare', 'words'):
    found += [(name, {})] + [(name, {'lanes': n}) for n in (4, 16, 64)]
  number = 1
  while number <= jax.device_count() > 1:  # Strong and weak scaling.
    for name in ('cnn_e5', 'cohort_1000'):
      found += [
        (name, {'devices': number, 'times': times}) for times in {1, number}
      ]
    number *= 2
  for values in (1, 3, 5, 11):
    found += [(name, {'sweep': values}) for name in ('2nn', 'cnn_e5')]
  return found


def one_round(devices, model, lanes, *, convolution='auto', begin, **kwargs):
  """Trains one round on some devices.

  Returns:
    The state before it, and [state, client states] after it.
  """
  workload = workloads.Workload(
    about='uneven',
    model=model,
    shape=_SHAPES.get(model, (28, 28, 1)),
    classes=_CLASSES.get(model, 10),
    sizes=UNEVEN,
    cohort=len(UNEVEN),
  )
  data, clients = workloads.make_data(workload)
  settings: dict[str, Any] = {'batch_size': 10} | kwargs
  name, values = settings.pop('algorithm', 'fedavg'), settings.pop('sweep', ())
  placement = fa.Placement(examples_on=settings.pop('examples_on', 'device'))
  federation = fa.Federation(
    clients,
    data.test,
    client_fraction=1.0,
    epochs=2,
    batch_size=settings.pop('batch_size'),
  )
  options: Any = {
    'execution': fa.Execution(lanes=lanes, devices=devices, **settings),
    'placement': placement,
  }
  built = workloads.make_model(workload, data, convolution=convolution)
  if values:
    simulation = fa.build_sweep(
      built,
      federation,
      lambda rate: fa.fedavg(optax.sgd(rate), optax.sgd(1.0)),
      values,
      **options,
    )
  else:
    simulation = fa.build_simulation(
      built, federation, ALGORITHMS[name], **options
    )
  # Both runs start from the same weights: devices round draws differently.
  state, client_states = simulation.init()
  begin = begin or jax.device_get(state)
  state = jax.device_put(begin, jax.tree.map(lambda a: a.sharding, state))
  schedule = fa.engine.make_schedule(
    simulation.planner, [1], simulation.rounds_per_call, lambda _: False
  )
  *states, _ = simulation.call(
    np.ones(len(simulation.sweep or ()) or (), bool),
    state,
    client_states,
    simulation.data([1]),
    simulation.test,
    schedule,
  )
  return begin, jax.device_get(states)


def check(name: str) -> dict[str, Any]:
  """Compares the states after one round with those of a round on the CPU.

  Returns:
    `largest_difference`, absolute, and whether it `agrees` within `TOLERANCE`.
  """
  kwargs = dict(CHECKS[name])
  devices = jax.devices()[: None if kwargs.pop('all_devices', False) else 1]
  plain = {
    k: v
    for k, v in kwargs.items()
    if k not in ('widths', 'micro_batch', 'examples_on')
  }
  with jax.default_matmul_precision('highest'):
    begin, expected = one_round(
      jax.devices('cpu')[:1],
      **plain | {'convolution': 'canonical'},
      lanes=1,
      begin=None,
    )
    lanes = 10 if len(devices) == 1 else 2 * len(devices)
    _, got = one_round(devices, **kwargs, lanes=lanes, begin=begin)
  differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected, got)
  largest = float(max(jax.tree.leaves(differences)))
  return {'largest_difference': largest, 'agrees': largest < TOLERANCE}


def measure(name: str, options: dict[str, Any]) -> dict[str, Any]:
  """Measures the median seconds per round of seven turns, after two warm-ups.

  Returns:
    `seconds_per_round`, `seconds` of every turn, and derived figures.
  """
  workload = workloads.WORKLOADS[name]
  simulation, model = worker.build(workload, options)
  states: tuple[fa.engine.ServerState, Any] = simulation.init()
  done, rounds, seconds = 0, 1, []
  for turn in range(9):
    numbers = range(done + 1, done + rounds + 1)
    start = time.perf_counter()
    *_, record = fa.engine.run_calls(
      simulation, *states, numbers, evaluated=lambda _: False
    )
    assert record.state is not None  # The last round has the state.
    mine = (time.perf_counter() - start) / rounds
    states, done = (record.state, ()), done + rounds
    if turn < 2:
      rounds = max(1, round(1.0 / mine))
    else:
      seconds.append(mine)
  facts = worker.describe(workload, simulation, model)
  facts['reduce_seconds'] = worker.reduce_seconds(model, simulation.mesh)
  median = statistics.median(seconds)
  flops = facts['flops_per_example'] * facts['examples']
  return {
    'seconds_per_round': median,
    'seconds': seconds,
    'ms_per_client': 1000 * median / facts['clients'],
    'gflops': 1e-9 * flops / median,
    # A step reads a model at least twice and writes it once.
    'weights_gbytes': 1e-9
    * 12
    * facts['parameters']
    * facts['client_steps']
    / median,
    **facts,
  }


def main() -> None:
  """Performs the checks, then the measurements, that the file lacks."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument(
    '--seconds', type=float, default=1e9, help='start no cell after this time'
  )
  args = parser.parse_args()
  begin = time.monotonic()
  args.out.parent.mkdir(parents=True, exist_ok=True)
  device = jax.devices()[0].device_kind
  found = []
  if args.out.exists():
    found = [json.loads(line) for line in args.out.read_text().splitlines()]
  done = {row['key'] for row in found if row['device'] == device}
  assert set(METHODS) == set(choices.CONVOLUTIONS) - {'auto'}
  work: list[tuple[str, Callable, tuple]] = [
    (f'check {name}', check, (name,)) for name in CHECKS
  ]
  work.append(('peaks', worker.peaks, ()))
  work += [
    (' '.join(['measure', name, json.dumps(options)]), measure, (name, options))
    for name, options in cells()
  ]
  for key, function, arguments in work:
    if key in done:
      continue
    if time.monotonic() - begin > args.seconds:
      print(f'{key}: not started, time is up; run the command again')
      break
    try:
      row = {'key': key, **function(*arguments)}
    except (fa.InputError, jax.errors.JaxRuntimeError) as error:
      if function is check:
        raise
      # Too little memory for many lanes, for example, is a result as well.
      row = {'key': key, 'failed': str(error)[:500]}
    row |= provenance.environment()
    brief = ('agrees', 'largest_difference', 'seconds_per_round', 'gflops')
    brief += ('failed',)
    print(key, {k: row[k] for k in brief if k in row}, flush=True)
    if not row.get('agrees', True):
      sys.exit(f'{key}: wrong by {row["largest_difference"]}; no timing')
    with open(args.out, 'a', encoding='utf-8') as file:
      file.write(json.dumps(row) + '\n')


if __name__ == '__main__':
  main()
