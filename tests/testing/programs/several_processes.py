"""Trains what several processes share; process 0 writes the models.

several_processes.py NUMBER INDEX PORT OUT

All numbers of processes have 4 devices in all, so that lanes are the same.

"""

import sys

import jax
import numpy as np
import optax

import fedavg_jax as fa
from fedavg_jax.engine import client_evaluation
from fedavg_jax.runs import distributed
from tests.testing import simulations

number, i, port, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
jax.config.update('jax_num_cpu_devices', 4 // number)
if number > 1:
  distributed.connect(
    f'localhost:{port}', number, i, connect_seconds=60, heartbeat_seconds=30
  )
rng = np.random.default_rng(7)
sizes = [1, 7, 4, 9, 2, 3, 1, 12]
x = rng.integers(0, 256, (39, 3, 3, 1)).astype(np.uint8)
y = rng.integers(0, 4, 39).astype(np.int32)
parts = np.split(rng.permutation(39), np.cumsum(sizes)[:-1])
clients = fa.build_clients(fa.Examples(x, y), parts)
models = {}
read = []


class Watched(simulations.Watched):
  def __len__(self):
    return len(self.array)

  def __getitem__(self, rows):
    if rows.start is None:  # The test set.
      return self.array[rows]
    read.append(len(range(rows.start, rows.stop)))
    return super().__getitem__(rows)


for name, changes in {
  'fedavg': {},
  'one client': {'client_fraction': 0.0},
  'everybody, all at once': {
    'client_fraction': 1.0,
    'batch_size': 0,
    'micro_batch': 2,
  },
  'scaffold, in eight lanes': {'algorithm': fa.scaffold(0.1, 1.0), 'lanes': 8},
  'streamed, augmented': {'examples_on': 'host'},
}.items():
  own = simulations.model(simulations.noise if 'augmented' in name else None)
  population = clients
  if 'streamed' in name:
    population = clients._replace(x=Watched(clients.x))
  simulation = simulations.build(population, own, **changes)
  records = list(fa.simulate(simulation, rounds=5))
  leaves = jax.tree.leaves((records[-1].state, records[-1].client_states))
  for j, leaf in enumerate(leaves):
    models[f'{name} {j}'] = np.asarray(leaf)
  models[f'{name} metrics'] = np.array(
    [[r.train_loss or 0, r.test_accuracy, r.test_loss] for r in records]
  )
held_out = fa.build_clients(fa.Examples(x, y), parts)
tests = client_evaluation.build_client_tests(
  simulations.build(clients, own),
  held_out,
  finetune=optax.sgd(0.1),
  epochs=1,
)(records[0].state)
models['client tests'] = np.stack(
  [
    *tests.global_model.values.values(),
    tests.global_model.count,
    *tests.personal.values.values(),
    tests.personal.count,
  ]
)
models['read'] = np.array(sum(read))
if i == 0:
  np.savez(out, **models)
else:
  np.savez(out + f'.{i}', read=models['read'])
