"""Abandons rounds before their end, in three ways, and ends."""

import fedavg_jax as fa
from tests.testing import simulations

data = fa.load_dataset('digits')
parts = fa.partition.iid(1500, num_clients=20, seed=0)
clients = fa.build_clients(data.train, parts)
left = []
for options in ({}, {'examples_on': 'host'}, {'client_states_on': 'host'}):
  simulation = simulations.build_simulation(
    fa.build_model('2nn', data),
    clients,
    data.test,
    client_fraction=0.5,
    epochs=1,
    batch_size=10,
    algorithm=fa.scaffold(0.1),
    **({'rounds_per_call': 1} | options),
  )
  rounds = fa.simulate(simulation, rounds=50)
  for record in rounds:
    if record.round == 2:
      break
  left.append(rounds)  # Alive until the interpreter ends.
print('left')
