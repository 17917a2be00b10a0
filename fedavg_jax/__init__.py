"""Simulates Federated Averaging; each round is one compiled call.

The names, in the order of use:

>>> import fedavg_jax as fa
>>> import optax
>>> data = fa.load_dataset('digits')
>>> parts = fa.partition.shards(
...     data.train.y, num_clients=30, shards_per_client=2, seed=0)
>>> clients = fa.build_clients(data.train, parts)
>>> model = fa.build_model('2nn', data)
>>> federation = fa.Federation(
...     clients, data.test, client_fraction=0.2, epochs=5, batch_size=10)
>>> simulation = fa.build_simulation(
...     model, federation, fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)))
>>> history = fa.run(simulation, rounds=10)
>>> bool(history['test_accuracy'][-1] > 0.6)
True
"""

import pathlib as _pathlib

from etils import epy as _epy

__version__ = '0.2.0'

# Modules of earlier commands, each of which names its successor.
__path__.append(str(_pathlib.Path(__file__).parent / 'cli' / 'ended'))

# Each name below is imported when it is first used.
with _epy.lazy_api_imports(globals()):
  from fedavg_jax import data
  from fedavg_jax import engine
  from fedavg_jax import schedule
  from fedavg_jax.algorithms import adaptive
  from fedavg_jax.algorithms import clip_delta
  from fedavg_jax.algorithms import decayed_sgd
  from fedavg_jax.algorithms import experimental
  from fedavg_jax.algorithms import fedavg
  from fedavg_jax.algorithms import fedprox
  from fedavg_jax.algorithms import proximal
  from fedavg_jax.algorithms import scaffold
  from fedavg_jax.algorithms import scheduled_sgd
  from fedavg_jax.contracts import losses
  from fedavg_jax.contracts import metrics
  from fedavg_jax.contracts.aggregation import Aggregator
  from fedavg_jax.contracts.aggregation import gathered
  from fedavg_jax.contracts.aggregation import weighted_mean
  from fedavg_jax.contracts.algorithm import Algorithm
  from fedavg_jax.contracts.algorithm import ClientContext
  from fedavg_jax.contracts.algorithm import ClientOutput
  from fedavg_jax.contracts.algorithm import ClientResult
  from fedavg_jax.contracts.algorithm import ServerContext
  from fedavg_jax.contracts.metrics import Metric
  from fedavg_jax.contracts.model import Batch
  from fedavg_jax.contracts.model import Model
  from fedavg_jax.contracts.model import Variables
  from fedavg_jax.core.client_data import Clients
  from fedavg_jax.core.client_data import Examples
  from fedavg_jax.core.client_data import build_clients
  from fedavg_jax.core.client_data import stack
  from fedavg_jax.core.errors import DivergedError
  from fedavg_jax.core.errors import InputError
  from fedavg_jax.data import partition
  from fedavg_jax.data.catalog import load_dataset
  from fedavg_jax.data.dataset import Dataset
  from fedavg_jax.engine.devices import use_cpu_devices
  from fedavg_jax.engine.driver import simulate
  from fedavg_jax.engine.options import Execution
  from fedavg_jax.engine.options import Federation
  from fedavg_jax.engine.options import Placement
  from fedavg_jax.engine.simulation import Simulation
  from fedavg_jax.engine.simulation import build_simulation
  from fedavg_jax.engine.simulation import build_sweep
  from fedavg_jax.engine.simulation import lower_simulation
  from fedavg_jax.models import layers
  from fedavg_jax.models.zoo import build_model
  from fedavg_jax.runs.accountant import epsilon
  from fedavg_jax.runs.checkpoint import load_params
  from fedavg_jax.runs.python_run import run
  from fedavg_jax.runs.result import Result
  from fedavg_jax.runs.run_config import RunConfig
  from fedavg_jax.runs.run_config import default_config
  from fedavg_jax.runs.train import train
  from fedavg_jax.schedule.participation import Participation

__all__ = [
  'adaptive',
  'Aggregator',
  'Algorithm',
  'Batch',
  'build_clients',
  'build_model',
  'build_simulation',
  'build_sweep',
  'ClientContext',
  'ClientOutput',
  'ClientResult',
  'Clients',
  'clip_delta',
  'data',
  'Dataset',
  'decayed_sgd',
  'default_config',
  'DivergedError',
  'engine',
  'epsilon',
  'Examples',
  'Execution',
  'experimental',
  'fedavg',
  'Federation',
  'fedprox',
  'gathered',
  'InputError',
  'layers',
  'load_dataset',
  'load_params',
  'losses',
  'lower_simulation',
  'Metric',
  'metrics',
  'Model',
  'Participation',
  'partition',
  'Placement',
  'proximal',
  'Result',
  'run',
  'RunConfig',
  'scaffold',
  'schedule',
  'scheduled_sgd',
  'ServerContext',
  'simulate',
  'Simulation',
  'stack',
  'train',
  'use_cpu_devices',
  'Variables',
  'weighted_mean',
]
