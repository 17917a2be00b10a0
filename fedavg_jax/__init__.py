"""Federated Averaging, each round one compiled call.

From Python, in the order of use:

>>> import fedavg_jax as fa
>>> import optax
>>> data = fa.load_dataset('digits')
>>> parts = fa.partition.shards(
...     data.train.y, num_clients=30, shards_per_client=2, seed=0)
>>> clients = fa.build_clients(data.train, parts)
>>> model = fa.build_model('2nn', data)
>>> simulation = fa.build_simulation(
...     model, clients, data.test, client_fraction=0.2, epochs=5, batch_size=10,
...     algorithm=fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)))
>>> history = fa.run(simulation, rounds=10)
>>> bool(history['test_accuracy'][-1] > 0.6)
True
"""

from fedavg_jax import partition
from fedavg_jax.algorithms import Algorithm
from fedavg_jax.algorithms import Ended
from fedavg_jax.algorithms import adaptive
from fedavg_jax.algorithms import clip_delta
from fedavg_jax.algorithms import decayed_sgd
from fedavg_jax.algorithms import fedavg
from fedavg_jax.algorithms import fedprox
from fedavg_jax.algorithms import proximal
from fedavg_jax.algorithms import scaffold
from fedavg_jax.calls import make_schedule
from fedavg_jax.checkpoint import load_params
from fedavg_jax.clients import Clients
from fedavg_jax.clients import Examples
from fedavg_jax.clients import build_clients
from fedavg_jax.clients import stack
from fedavg_jax.datasets import Dataset
from fedavg_jax.datasets import load_dataset
from fedavg_jax.errors import DivergedError
from fedavg_jax.errors import InputError
from fedavg_jax.lanes import use_cpu_devices
from fedavg_jax.losses import cross_entropy
from fedavg_jax.models import Model
from fedavg_jax.models import build_model
from fedavg_jax.participation import Clock
from fedavg_jax.participation import Participation
from fedavg_jax.participation import Trace
from fedavg_jax.participation import draw_clock
from fedavg_jax.participation import read_trace
from fedavg_jax.plan import Plan
from fedavg_jax.plan import Planner
from fedavg_jax.readers import read_cifar10
from fedavg_jax.readers import read_leaf
from fedavg_jax.reference import build_reference_round
from fedavg_jax.round import RoundMetrics
from fedavg_jax.round import ServerState
from fedavg_jax.round import build_round
from fedavg_jax.round import init_client_states
from fedavg_jax.round import init_state
from fedavg_jax.round import lane_mesh
from fedavg_jax.round import place_examples
from fedavg_jax.rounds import Record
from fedavg_jax.rounds import run
from fedavg_jax.rounds import run_calls
from fedavg_jax.rounds import simulate
from fedavg_jax.simulation import Simulation
from fedavg_jax.simulation import build_simulation
from fedavg_jax.texts import read_authors
from fedavg_jax.texts import read_complete_works
from fedavg_jax.texts import read_play

__all__ = [
  'adaptive',
  'Algorithm',
  'build_clients',
  'build_model',
  'build_reference_round',
  'build_round',
  'build_simulation',
  'Clients',
  'clip_delta',
  'Clock',
  'cross_entropy',
  'Dataset',
  'decayed_sgd',
  'DivergedError',
  'draw_clock',
  'Ended',
  'Examples',
  'fedavg',
  'fedprox',
  'init_client_states',
  'init_state',
  'InputError',
  'lane_mesh',
  'load_dataset',
  'load_params',
  'make_schedule',
  'Model',
  'Participation',
  'partition',
  'place_examples',
  'Plan',
  'Planner',
  'proximal',
  'read_cifar10',
  'read_leaf',
  'read_authors',
  'read_complete_works',
  'read_play',
  'read_trace',
  'Record',
  'RoundMetrics',
  'run',
  'run_calls',
  'scaffold',
  'ServerState',
  'simulate',
  'Simulation',
  'stack',
  'Trace',
  'use_cpu_devices',
]
