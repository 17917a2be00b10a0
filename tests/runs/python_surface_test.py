"""Python code in the docs has the results of the command, to the bit."""

import asyncio
import concurrent.futures
import re

import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.runs import train
from tests.testing import simulations
from tests.testing.run_folders import lines
from tests.testing.run_folders import load

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')


@pytest.mark.slow
def test_the_lines_of_the_docs_are_the_command(repository, tmp_path):
  page = (repository / 'docs' / 'algorithms.md').read_text()
  (block,) = [
    block
    for block in re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    if 'fa.partition.shards' in block
  ]
  assert 'rounds=200' in block and 'use_cpu_devices(0)' in block
  # The tests have their own devices.
  block = re.sub('.*use_cpu_devices.*\n', '', block)
  found = {}
  exec(block.replace('rounds=200', 'rounds=4'), found)  # pylint: disable=W0122
  history = found['history']
  train.train(
    load(repository, 'quickstart', rounds=4, cpu_devices=2), tmp_path / 'run'
  )
  records = lines(tmp_path / 'run')
  assert [r['round'] for r in records] == history['round'].tolist()
  for name in ('train_loss', 'test_loss', 'test_accuracy', 'examples'):
    got = history[name][1:].tolist()
    assert [r[name] for r in records[1:]] == got, name


def history(seed):
  """Trains a little; returns the history without times, as text."""
  data = fa.load_dataset('digits')
  parts = fa.partition.iid(len(data.train.y), num_clients=7, seed=seed)
  simulation = simulations.build_simulation(
    fa.build_model('2nn', data),
    fa.build_clients(data.train, parts),
    data.test,
    client_fraction=0.4,
    epochs=1,
    batch_size=50,
    algorithm=fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
    seed=seed,
  )
  found = fa.run(simulation, rounds=3)
  # In text, a NaN equals itself.
  return str({k: v.tolist() for k, v in found.items() if k != 'seconds'})


@pytest.mark.slow
def test_threads_do_not_disturb_each_other():
  with concurrent.futures.ThreadPoolExecutor(2) as threads:
    together = list(threads.map(history, (0, 1)))
  assert together == [history(0), history(1)]


@pytest.mark.slow
def test_within_an_event_loop_as_in_a_notebook(repository, tmp_path):
  """Two runs are in threads of a loop at once, and one in the loop itself."""

  def train_to(name):
    config = load(repository, 'quickstart', rounds=2, num_clients=9)
    train.train(config, tmp_path / name)
    return [line | {'seconds': 0} for line in lines(tmp_path / name)]

  async def all_of_them():
    both = [asyncio.to_thread(train_to, name) for name in ('a', 'b')]
    return [*await asyncio.gather(*both), train_to('c')]

  a, b, c = asyncio.run(all_of_them())
  assert a == b == c and len(a) == 3
