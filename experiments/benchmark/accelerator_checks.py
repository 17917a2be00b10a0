"""Checks rounds of the engine on this accelerator against those on the CPU.

The rounds are of clients of unequal sizes, with float32 products: every
convolution method, many lanes, fewer lanes at the end, micro-batches, SCAFFOLD,
a sweep, streamed examples, CUDA graphs, and all devices together.
"""

from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmark import workloads
import fedavg_jax as fa

# With exact float32 products only the order of additions differs.
TOLERANCE = 1e-4
METHODS = ('patches', 'lax', 'canonical')
# They include a client of one example and short last batches.
UNEVEN = (1, 7, 25, 40, 13, 30, 11, 3, 20, 10)
# Convolutions are slow on a CPU that has few cores.
FEW = (1, 13, 7, 20)
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
  'lr': {'model': 'lr'},
  'simple_cnn': {'model': 'simple_cnn', 'sizes': FEW},
  'char_lstm': {'model': 'char_lstm'},
  'word_lstm': {'model': 'word_lstm'},
  **{
    f'cnn, {m}': {'model': 'cnn', 'convolution': m, 'sizes': FEW}
    for m in METHODS
  },
  'cifar_cnn, cropped': {'model': 'cifar_cnn', 'sizes': FEW},
  '2nn, graphs': {'model': '2nn', 'gpu_graphs': True},
  'word_lstm, graphs': {'model': 'word_lstm', 'gpu_graphs': True},
  **{
    f'{m}, graphs': {'model': m, 'sizes': FEW, 'gpu_graphs': True}
    for m in ('cnn', 'simple_cnn')
  },
}
# A known fault of CUDA graphs shows in the second run of a program.
_GRAPH_CALLS = 3
_SHAPES = {
  'char_lstm': (80,),
  'word_lstm': (10,),
  'cifar_cnn': (32, 32, 3),
  'simple_cnn': (32, 32, 3),
}
_CLASSES = {'char_lstm': 258, 'word_lstm': 10_000}


def one_round(
  devices, model, lanes, *, convolution='auto', begin, sizes=UNEVEN, **kwargs
):
  """Trains one round on some devices.

  With CUDA graphs it is trained `_GRAPH_CALLS` times, each from the same state.

  Returns:
    The state before it, and [state, client states] after each time.
  """
  workload = workloads.Workload(
    about='uneven',
    model=model,
    shape=_SHAPES.get(model, (28, 28, 1)),
    classes=_CLASSES.get(model, 10),
    sizes=sizes,
    cohort=len(sizes),
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
    'execution': fa.Execution(
      lanes=min(lanes, len(sizes)), devices=devices, **settings
    ),
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
  state, _ = simulation.init()
  begin = begin or jax.device_get(state)
  state = jax.device_put(begin, jax.tree.map(lambda a: a.sharding, state))
  schedule = fa.engine.make_schedule(
    simulation.planner, [1], simulation.rounds_per_call, lambda _: False
  )
  found = []
  for _ in range(_GRAPH_CALLS if settings.get('gpu_graphs') else 1):
    *states, _ = simulation.call(
      np.ones(len(simulation.sweep or ()) or (), bool),
      state,
      simulation.init()[1],  # The call takes them over.
      simulation.data([1]),
      simulation.test,
      schedule,
    )
    found.append(jax.device_get(states))
  return begin, found


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
    if k not in ('widths', 'micro_batch', 'examples_on', 'gpu_graphs')
  }
  begin, (expected,) = one_round(
    jax.devices('cpu')[:1],
    **plain | {'convolution': 'canonical'},
    lanes=1,
    begin=None,
  )
  lanes = 10 if len(devices) == 1 else 2 * len(devices)
  _, got = one_round(devices, **kwargs, lanes=lanes, begin=begin)
  differences = [
    jax.tree.map(lambda a, b: np.abs(a - b).max(), expected, own) for own in got
  ]
  largest = float(max(jax.tree.leaves(differences)))
  return {'largest_difference': largest, 'agrees': largest < TOLERANCE}
