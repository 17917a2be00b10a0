"""User-defined data, models and algorithms are named in a config."""

import hashlib
import json
import signal

import numpy as np
import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import InterruptedRunError
from fedavg_jax.runs import grid
from fedavg_jax.runs import grid_training
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import run_config
from fedavg_jax.runs import train
from fedavg_jax.runs.run_config import RunConfig
from tests.testing import own_modules
from tests.testing.run_folders import lines

MODULE = """
import jax.numpy as jnp
import numpy as np
import optax

import fedavg_jax as fa


def points(number, classes=2):
    rng = np.random.default_rng(0)
    y = np.arange(number, dtype=np.int32) % classes
    x = (y[:, None] + 0.1 * rng.normal(size=(number, 3))).astype(np.float32)
    half = number // 2
    return fa.Dataset('points', fa.Examples(x[:half], y[:half]),
                      fa.Examples(x[half:], y[half:]), classes, None)


def linear(dataset, scale=0.0):
    shape = dataset.train.x.shape[1], dataset.num_classes
    return fa.Model('linear', lambda key: {'w': scale * jnp.eye(*shape)},
                    lambda params, x: x @ params['w'])


def nesterov(config, momentum):
    rate = config.server.learning_rate
    return fa.fedavg(
        optax.sgd(config.client.learning_rate),
        optax.sgd(rate, momentum=momentum, nesterov=True))


def nothing(config):
    return None


def fails(dataset):
    raise KeyError('of mine')


number = 3
"""


@pytest.fixture
def module(tmp_path):
  with own_modules.importable(tmp_path, MODULE) as name:
    yield name


def settings(module, **changes):
  config = run_config.default_config()
  config.dataset = f'{module}:points'
  config.options.dataset.number = 40
  config.model = f'{module}:linear'
  config.options.model.scale = 0.5
  config.algorithm = f'{module}:nesterov'
  config.options.algorithm.momentum = 0.5
  config.partition, config.num_clients, config.rounds = 'iid', 4, 3
  config.log, config.cpu_devices = '', 2
  for key, value in changes.items():
    config[key] = value
  return config


def test_a_run_of_custom_parts_resumes_and_records_their_code(module, tmp_path):
  folder = tmp_path / 'run'
  train.train(settings(module), folder)
  began = json.loads((folder / 'config.json').read_text())
  code = (tmp_path / f'{module}.py').read_bytes()
  assert began['own_code_sha256'][module] == hashlib.sha256(code).hexdigest()
  assert began['config']['options']['model'] == {'scale': 0.5}
  train.train(settings(module, rounds=5), folder, extend=True)
  other = tmp_path / 'other'
  train.train(settings(module, rounds=5), other)

  def timeless(records):
    return [record | {'seconds': 0} for record in records]

  assert timeless(lines(folder)) == timeless(lines(other))
  began['own_code_sha256'][module] = 64 * '0'
  (folder / 'summary.json').unlink()
  (folder / 'config.json').write_text(json.dumps(began))
  with pytest.raises(InputError, match=f'{module}: its code is not that'):
    train.train(settings(module), folder)
  with pytest.raises(InputError, match='options.model.scale = 0.25'):
    changed = settings(module, rounds=5)
    changed.options.model.scale = 0.25
    train.train(changed, folder)


@pytest.mark.slow
def test_a_sweep_over_an_option_of_a_custom_model(module, tmp_path):
  jobs = grid.run_sweep(
    settings(module),
    {
      'options.model.scale': ['0.0', '0.5'],
      'client.learning_rate': ['0.1', '0.2'],
    },
    1,
    tmp_path / 'sweep',
  )
  assert len(jobs) == 4
  losses = {tuple(job.setting.values()): lines(job.folder) for job in jobs}
  assert len({records[-1]['train_loss'] for records in losses.values()}) == 4
  alone = tmp_path / 'alone'
  train.train(settings(module), alone)
  np.testing.assert_allclose(
    losses[0.1, 0.5][-1]['train_loss'],
    lines(alone)[-1]['train_loss'],
    rtol=1e-5,
  )


@pytest.mark.slow
@pytest.mark.parametrize('ended', [True, False])
def test_a_sweep_has_one_version_of_code(module, tmp_path, monkeypatch, ended):
  """Finished runs and stopped groups do not resume with other code."""
  folder, rates = tmp_path / 'sweep', ['0.1', '0.2']
  simulate = grid_training.simulate

  def interrupted(*args, **kwargs):
    for record in simulate(*args, **kwargs):
      if record.round == 2:
        signal.raise_signal(signal.SIGTERM)
      yield record

  def sweep(*rates):
    config = settings(module, rounds_per_call=1)
    grid.run_sweep(config, {'client.learning_rate': [*rates]}, 1, folder)

  with monkeypatch.context() as patch:
    if ended:
      sweep(*rates)
    else:
      patch.setattr(grid_training, 'simulate', interrupted)
      with pytest.raises(InterruptedRunError):
        sweep(*rates)
  path = tmp_path / f'{module}.py'
  path.write_text(path.read_text().replace('0.1 *', '0.2 *'))
  with pytest.raises(InputError, match=f'{module}: its code is not that'):
    sweep(*rates, '0.3')
  path.write_text(path.read_text().replace('0.2 *', '0.1 *'))
  sweep(*rates, '0.3')
  assert len(list(folder.glob('*/seed_0/summary.json'))) == 3


def test_configs_without_custom_parts_have_no_code():
  assert own_parts.code_sha256(RunConfig()) == {}


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'model': 'cnm'}, "model = 'cnm': must be one of 2nn.*did you mean cnn"),
    ({'model': 'MODULE:'}, "model = '.*:': must be one of"),
    ({'model': 'no_such_module:build'}, 'ModuleNotFoundError'),
    ({'model': 'MODULE:none'}, 'must be module:function .AttributeError'),
    ({'model': 'MODULE:number'}, 'number is int, must be a function'),
    ({'model': 'MODULE:fails'}, "model = '.*fails': fails .KeyError: 'of mine"),
    (
      {'algorithm': 'MODULE:nothing'},
      "algorithm = '.*:nothing': returns NoneType, must return a Algorithm",
    ),
    ({'model': 'MODULE:points'}, 'fails .TypeError'),
  ],
)
def test_invalid_parts_are_refused(module, tmp_path, changes, said):
  changes = {k: v.replace('MODULE', module) for k, v in changes.items()}
  config = settings(module, **changes)
  for part in changes:
    config.options[part] = {}
  with pytest.raises(InputError, match=said):
    train.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'modle': {'a': 1}}, 'options.modle: must be below one of dataset'),
    ({'model': {'a': 1}}, "options.model: must be empty with model = '2nn'"),
    ({'model': {'a': object()}}, 'options.model.a = <object.*must be a finite'),
    ({'model': {1: 2}}, 'options.model: has the key 1, must have names'),
    ({'model': {'a': float('nan')}}, 'options.model.a = nan: must be a finite'),
    ('wide', "options = 'wide': must be a dictionary"),
  ],
)
def test_invalid_options_are_refused(options, said):
  with pytest.raises(InputError, match=said):
    RunConfig(options=options)
