"""Trains where the address space ends, then with room: prints both losses."""

import pathlib
import re
import resource

import numpy as np
import optax

import fedavg_jax as fa
from tests.testing import simulations

rng = np.random.default_rng(0)
n = 2048
examples = fa.Examples(
  rng.integers(0, 256, (n, 28, 28, 1)).astype(np.uint8),
  rng.integers(0, 10, n).astype(np.int32),
)
data = fa.Dataset('random', examples, examples, 10, max_value=255.0)
parts = fa.partition.iid(n, num_clients=512, seed=0)
simulation = simulations.build_simulation(
  fa.build_model('2nn', data),
  fa.build_clients(examples, parts),
  examples,
  client_fraction=1.0,
  epochs=1,
  batch_size=4,
  lanes=512,
  algorithm=fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
)
status = pathlib.Path('/proc/self/status').read_text()
now = int(re.search(r'VmSize:\s+(\d+) kB', status)[1]) * 1024
_, most = resource.getrlimit(resource.RLIMIT_AS)
needed = simulation.call.memory_analysis().temp_size_in_bytes
for limit in (now + int(0.75 * needed), most):
  resource.setrlimit(resource.RLIMIT_AS, (limit, most))
  losses = [r.test_loss for r in fa.simulate(simulation, rounds=2)]
  print('losses', *losses)
