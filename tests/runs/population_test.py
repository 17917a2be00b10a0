"""A config's clients can be divided, described and drawn by one command."""

import re
import subprocess
import sys

import numpy as np
import pytest

from fedavg_jax.data import catalog
from fedavg_jax.data import partition
from fedavg_jax.data import statistics
from fedavg_jax.runs import population
from fedavg_jax.runs import run_config


def digits_config(**changes):
  from configs import quickstart

  config = quickstart.get_config()
  config.update(changes)
  return run_config.read(config)


@pytest.mark.parametrize(
  ('changes', 'same'),
  [
    (
      {'partition': 'iid', 'sizes': 'square'},
      lambda y: partition.iid(
        1500,
        num_clients=50,
        seed=0,
        sizes=partition.sizes('square', 1500, num_clients=50, seed=0),
      ),
    ),
    (
      {'partition': 'dirichlet', 'alpha': 0.2, 'min_size': 3},
      lambda y: partition.dirichlet(
        y, num_clients=50, alpha=0.2, min_size=3, seed=0
      ),
    ),
    (
      {'partition': 'dirichlet', 'self_balancing': True, 'seed': 4},
      lambda y: partition.dirichlet(
        y, num_clients=50, alpha=0.5, self_balancing=True, seed=4
      ),
    ),
    (
      {
        **{'partition': 'inner_dirichlet', 'alpha': 0.1},
        **{'sizes': 'log_normal', 'size_skew': 0.4},
      },
      lambda y: partition.inner_dirichlet(
        y,
        sizes=partition.sizes(
          'log_normal', 1500, num_clients=50, skew=0.4, seed=0
        ),
        alpha=0.1,
        seed=0,
      ),
    ),
    (
      {
        **{'partition': 'pathological', 'classes_per_client': 3},
        'class_assignment': 'deterministic',
      },
      lambda y: partition.pathological(
        y,
        num_clients=50,
        classes_per_client=3,
        assignment='deterministic',
        seed=0,
      ),
    ),
    (
      {
        **{'partition': 'few_labels', 'classes_per_client': 3, 'min_size': 4},
        **{'sizes': 'log_normal', 'class_assignment': 'first_deterministic'},
        'size_skew': 1.5,
      },
      lambda y: partition.few_labels(
        y,
        sizes=partition.sizes(
          'log_normal', 1500, num_clients=50, skew=1.5, min_size=4, seed=0
        ),
        classes_per_client=3,
        assignment='first_deterministic',
        seed=0,
      ),
    ),
    (
      {
        **{'partition': 'few_labels', 'num_clients': 3, 'client_fraction': 1.0},
        'sizes': '100,7,40',
      },
      lambda y: partition.few_labels(
        y, sizes=np.array([100, 7, 40]), classes_per_client=2, seed=0
      ),
    ),
  ],
)
def test_a_config_names_every_partition(changes, same):
  dataset = catalog.load_dataset('digits')
  parts = population.divide(digits_config(**changes), dataset)
  for own, other in zip(parts, same(dataset.train.y), strict=True):
    np.testing.assert_array_equal(own, other)


def test_description_of_a_federation_by_hand():
  lines = statistics.describe(np.array([[3, 1], [0, 4], [8, 0]]))
  printed = dict(line.split('  ', 1) for line in lines)
  assert printed['training examples'].strip() == '16'
  assert printed['examples per client'].startswith('min 4, median 4, max 8;')
  # All have 11 and 5 of 16: |3/4 - 11/16| = 1/16, 11/16 and 5/16, weighted by
  # 4, 4 and 8 of 16.
  distance = (1 / 16 * 4 + 11 / 16 * 4 + 5 / 16 * 8) / 16
  assert f'by {distance:.2f} ' in printed['label mix']


def test_command(repository, tmp_path):
  command = [
    *(sys.executable, '-W', 'error::RuntimeWarning', '-m'),
    *('fedavg_jax', 'partition', '--config', 'configs/quickstart.py'),
    *('--config.partition=pathological', '--picture', tmp_path / 'p.png'),
  ]
  process = subprocess.run(
    command, cwd=repository, capture_output=True, text=True
  )
  assert process.returncode == 0, process.stderr
  assert 'clients              50' in process.stdout
  assert 'labels per client    min 2, median 2' in process.stdout
  picture = (tmp_path / 'p.png').read_bytes()
  assert picture.startswith(b'\x89PNG')
  again = subprocess.run(
    command, cwd=repository, capture_output=True, text=True
  )
  assert again.returncode == 2 and 'Traceback' not in again.stderr
  assert 'exists already' in again.stderr
  assert (tmp_path / 'p.png').read_bytes() == picture
  bad = {'p': 'must end with .png', 'no/p.png': 'does not exist'}
  for name, words in bad.items():
    bad = subprocess.run(
      [*command[:-1], tmp_path / name],
      cwd=repository,
      capture_output=True,
      text=True,
    )
    assert bad.returncode == 2 and words in bad.stderr
  assert [path.name for path in tmp_path.iterdir()] == ['p.png']


@pytest.mark.slow
def test_the_command_on_the_page(repository, tmp_path):
  page = (repository / 'docs' / 'data.md').read_text()
  (arguments,) = re.findall(
    r'bin/fedavg-jax (partition .*?)```', page, re.DOTALL
  )
  process = subprocess.run(
    [
      sys.executable,
      '-m',
      'fedavg_jax',
      *arguments.replace('\\\n', ' ').split(),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  assert (tmp_path / 'dirichlet.png').exists()
