"""Clients' own noise and secure sums of a config are those of the wrappers."""

import json

import pytest

import fedavg_jax as fa
from fedavg_jax.contracts.aggregation import weighted_mean
from fedavg_jax.runs import algorithm_builder
from fedavg_jax.runs.run_config import RunConfig

# Orbax and its dependencies raise DeprecationWarnings.
pytestmark = pytest.mark.filterwarnings('default')

own = fa.experimental
LOCAL = {'unit': 'client', 'noise_multiplier': 2.0}


def config(local=(), secure=(), **changes):
  nested = {name.replace('__', '.'): value for name, value in changes.items()}
  nested |= {f'local_privacy.{key}': v for key, v in dict(local).items()}
  nested |= {f'secure.{key}': v for key, v in dict(secure).items()}
  return RunConfig().replace(nested)


def test_nothing_is_added_without_the_options():
  plain = algorithm_builder.build_algorithm(config())
  assert plain.aggregate == weighted_mean()
  assert plain.client_gradient is None and plain.num_bytes is None


@pytest.mark.slow
@pytest.mark.parametrize('unit', ['client', 'example'])
def test_lines_have_the_epsilon_of_the_noise(tmp_path, unit):
  local = LOCAL | {'unit': unit, 'noise_multiplier': 30.0, 'delta': 1e-4}
  cfg = config(
    local,
    {'max_abs': 0.5},
    rounds=3,
    pictures=False,
    client__epochs=2,
    client_fraction=0.1,
  )
  fa.train(cfg, tmp_path / 'run')
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line)['local_epsilon'] for line in lines]
  for number, epsilon in enumerate(found):
    expected = own.local_epsilon(30.0, 1e-4, number)
    if unit == 'example':
      expected = own.example_epsilon(30.0, 1e-4, number, epochs=2)
    assert epsilon == pytest.approx(expected)
  assert found[0] == 0 < found[1] < found[3]
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert summary['local_epsilon'] == found[-1] and summary['unit'] == unit
  # 32 bits for each number of the model and for the weight.
  sent = 4 * (64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10 + 1)
  line = json.loads(lines[-1])
  assert line['bytes_up'] == sent * line['clients']


REFUSED = [
  (
    {'unit': 'person', 'noise_multiplier': 1.0},
    {},
    {},
    'must be empty, one of client',
  ),
  ({'unit': 'client'}, {}, {}, 'noise_multiplier = 0.0: must be above 0 with'),
  ({'noise_multiplier': 1.0}, {}, {}, 'noise_multiplier = 1.0: must be 0 with'),
  (LOCAL | {'clip': 0.0}, {}, {}, 'local_privacy.clip = 0.0: must be in'),
  (LOCAL | {'delta': 1.0}, {}, {}, 'local_privacy.delta = 1.0: must be in'),
  (
    LOCAL | {'unit': 'example'},
    {},
    {'client__batch_size': 0},
    "unit = 'example': must be 'client' or empty with client.batch_size = 0",
  ),
  (
    LOCAL,
    {},
    {'validation_fraction': 0.1},
    'validation_fraction = 0.1: must be 0 with local_privacy.unit',
  ),
  (
    {},
    {'max_abs': 1.0, 'value_bits': 20, 'bits': 16},
    {},
    'at most secure',
  ),
  ({}, {'rounding': 'up'}, {}, 'secure.rounding = .up.: must be one of'),
]


@pytest.mark.parametrize(('local', 'secure', 'changes', 'said'), REFUSED)
def test_contradictions_are_one_line(local, secure, changes, said):
  with pytest.raises(fa.InputError, match=said) as info:
    config(local, secure, **changes)
  assert '\n' not in str(info.value)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'robust__rule': 'median'},
      'secure_aggregation: the algorithm',
    ),
    ({'compression__scheme': 'qsgd'}, 'encoded already'),
    ({'algorithm': 'scaffold'}, 'beside the delta'),
  ],
)
def test_what_sums_cannot_do_is_one_line(changes, said):
  cfg = config({}, {'max_abs': 1.0}, **changes)
  with pytest.raises(fa.InputError, match=said) as info:
    algorithm = algorithm_builder.build_algorithm(cfg, 50, 10)
    data = fa.load_dataset('digits')
    parts = fa.partition.iid(1500, num_clients=50, seed=0)
    fa.build_simulation(
      fa.build_model('2nn', data),
      fa.Federation(
        fa.build_clients(data.train, parts),
        data.test,
        client_fraction=0.1,
        epochs=1,
        batch_size=10,
      ),
      algorithm,
    )
  assert '\n' not in str(info.value)
