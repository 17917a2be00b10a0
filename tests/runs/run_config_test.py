"""Configs are checked, and every config of the repository is valid."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import config_option
from fedavg_jax.runs import config_text
from fedavg_jax.runs import run_config
from fedavg_jax.runs.config_sections import ClientConfig
from fedavg_jax.runs.run_config import RunConfig

CONFIGS = [
  ('default', None),
  ('quickstart', None),
  ('mnist_2nn', 'iid'),
  ('mnist_2nn', 'noniid'),
  ('mnist_cnn', 'iid'),
  ('mnist_cnn', 'noniid'),
  ('flower_mnist', None),
  ('cifar10', None),
  ('shakespeare', 'natural'),
  ('shakespeare', 'iid'),
]


def load(repository, name, argument=None):
  path = repository / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*[argument] if argument else [])


@pytest.fixture
def quickstart(repository):
  return load(repository, 'quickstart')


def test_every_config_file_is_listed_here(repository):
  files = {path.stem for path in (repository / 'configs').glob('*.py')}
  assert files == {name for name, _ in CONFIGS}


@pytest.mark.parametrize(('name', 'argument'), CONFIGS)
def test_configs_are_valid_and_have_every_key(repository, name, argument):
  given = load(repository, name, argument).to_dict()
  read = run_config.from_dict(given)
  assert dict(run_config.flatten(read)) == dict(run_config.flatten(given))


@pytest.mark.parametrize('name', ['mnist_2nn', 'mnist_cnn'])
def test_the_two_federations_of_the_paper(repository, name):
  assert load(repository, name).partition == 'iid'
  assert load(repository, name, 'iid').partition == 'iid'
  noniid = load(repository, name, 'noniid')
  assert (noniid.partition, noniid.shards_per_client) == ('shards', 2)
  with pytest.raises(ValueError, match='use :iid or :noniid'):
    load(repository, name, 'niid')


# Key, value, and the rule in the message.
BAD_VALUES = [
  ('dataset', 'mnits', 'must be one of digits, mnist'),
  ('dataset', 3, 'must be of type str'),
  ('pixels', 'raw', 'must be one of'),
  ('model', '3nn', 'must be one of 2nn'),
  ('convolution', 'fft', 'must be one of auto'),
  ('partition', 'sorted', 'must be one of iid, shards'),
  ('shards_per_client', 0, '[1, 2147483647]'),
  ('num_clients', -1, '[0, 2147483647]'),
  ('num_clients', 2.5, 'type int'),
  ('num_clients', True, 'type int'),
  ('holdout_fraction', 1.0, '[0, 1)'),
  ('client_fraction', 1.01, '[0, 1]'),
  ('client_fraction', -0.1, '[0, 1]'),
  ('client_fraction', float('nan'), 'finite'),
  ('unavailable_fraction', -0.1, '[0, 1)'),
  ('unavailable_fraction', 1.0, '[0, 1)'),
  ('client.epochs', 0, '[1, 2147483647]'),
  ('client.epochs', -1, '[1, 2147483647]'),
  ('client.batch_size', -1, '[0, 2147483647]'),
  ('client.learning_rate', 0.0, '[1e-30, 1e+30]'),
  ('client.learning_rate', -0.1, '[1e-30, 1e+30]'),
  ('client.learning_rate', float('nan'), 'finite'),
  ('client.learning_rate', float('inf'), 'finite'),
  ('client.shuffle', 'never', 'must be one of epoch, round'),
  ('server.learning_rate', 0.0, '[1e-30, 1e+30]'),
  ('server.momentum', 1.0, '[0, 1)'),
  ('rounds', 0, '[1, 2147483647]'),
  ('eval_every', 0, '[1, 2147483647]'),
  ('target_accuracy', 97.0, '[0, 1]'),
  ('seed', -1, '[0, 2147483647]'),
  ('precision', 'float16', 'must be one of float32, tf32, bfloat16'),
  ('weighting', 'size', 'must be one of examples, uniform'),
  ('algorithm', 'fedsgd', 'must be one of fedavg, fedprox, scaffold'),
  ('client.proximal', -0.1, '[0, 1e+30]'),
  ('client.clip_norm', -1.0, '[0, 1e+30]'),
  ('server.optimizer', 'adamw', 'must be one of sgd, adagrad, adam, yogi'),
  ('server.second_momentum', 1.0, '[0, 1)'),
  ('server.adaptivity', 0.0, '[1e-15,'),
  ('lanes', -1, '[0, 2147483647]'),
  ('micro_batch', -1, '[0, 2147483647]'),
  ('rounds_per_call', -1, '[0, 4096]'),
  ('cpu_devices', -1, '[0, 1024]'),
  ('cpu_devices', 100_000, '[0, 1024]'),
  ('client.epochs', 10**22, '[1, 2147483647]'),
  ('client.learning_rate', 1e300, '[1e-30, 1e+30]'),
  ('client.learning_rate', 1e-320, '[1e-30, 1e+30]'),
]


@pytest.mark.parametrize(('key', 'value', 'rule'), BAD_VALUES)
def test_bad_values_are_reported_with_key_value_and_rule(
  quickstart, key, value, rule
):
  given = quickstart.to_dict()
  inner = given
  *parents, name = key.split('.')
  for parent in parents:
    inner = inner[parent]
  inner[name] = value
  with pytest.raises(InputError) as info:
    run_config.from_dict(given)
  message = str(info.value)
  assert message.startswith(f'{key} = {value!r}: ') or message.startswith(
    f'{key} = {value}: '
  )
  assert rule in message and '\n' not in message


def test_unknown_keys_are_refused_and_missing_ones_have_defaults(quickstart):
  given = quickstart.to_dict()
  given['client']['momentum'] = 0.9
  said = 'client.momentum: unknown key; did you mean server.momentum'
  with pytest.raises(InputError, match=said):
    run_config.from_dict(given)
  given = quickstart.to_dict()
  del given['server']['momentum']
  assert run_config.from_dict(given).server.momentum == 0.0
  given = quickstart.to_dict()
  given['client'] = 3
  with pytest.raises(InputError, match='client'):
    run_config.from_dict(given)


@pytest.mark.parametrize(
    ('client_fraction', 'unavailable_fraction', 'fits'),
    [(1.0, 0.0, True), (1.0, 0.1, False), (0.5, 0.5, True), (0.5, 0.6, False),
     (0.0, 0.9, True)],
)  # fmt: skip
def test_the_cohort_must_be_available(
  quickstart, client_fraction, unavailable_fraction, fits
):
  given = quickstart.to_dict()
  given['client_fraction'] = client_fraction
  given['unavailable_fraction'] = unavailable_fraction
  if fits:
    run_config.from_dict(given)
  else:
    with pytest.raises(InputError, match='unavailable_fraction.*fewer than'):
      run_config.from_dict(given)


def test_integers_are_valid_fractions(quickstart):
  given = quickstart.to_dict()
  given['client_fraction'] = 1
  assert isinstance(run_config.from_dict(given).client_fraction, float)


@pytest.mark.parametrize(
  ('section', 'name', 'value'),
  [
    ('server', 'optimizer', 'adam'),
    ('server', 'momentum', 0.9),
    ('client', 'clip_norm', 1.0),
  ],
)
def test_scaffold_is_plain_sgd(quickstart, section, name, value):
  given = quickstart.to_dict()
  given['algorithm'] = 'scaffold'
  run_config.from_dict(given)
  given[section][name] = value
  with pytest.raises(InputError, match=f"{section}.{name} = .*'scaffold'"):
    run_config.from_dict(given)


def test_default_config_is_generated(repository):
  """This is the output of `python -m fedavg_jax.runs.config_text`."""
  found = (repository / 'configs' / 'default.py').read_text()
  assert found == config_text.default_file()


def test_a_shown_config_is_the_config(repository, tmp_path):
  given = run_config.read(load(repository, 'shakespeare', 'iid'))
  path = tmp_path / 'shown.py'
  path.write_text(config_text.config_file(given, '"""Shown."""'))
  spec = importlib.util.spec_from_file_location('shown', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert run_config.read(module.get_config()) == given


def test_every_option_has_a_meaning_and_a_valid_default():
  for name, field in config_option.flat_fields(RunConfig):
    about = field.metadata['about']
    assert about.endswith('.') and len(about) > 10, name
    assert config_option.checked(name, field.default, field) == field.default
    assert f'--config.{name}=' in config_text.help_text()


def test_settings_are_checked_and_frozen():
  with pytest.raises(InputError, match='^client.epochs = 0: must be in'):
    ClientConfig(epochs=0)
  with pytest.raises(InputError, match='^client = 3: must be a ClientConfig'):
    RunConfig(client=3)
  with pytest.raises(dataclasses.FrozenInstanceError):
    RunConfig().rounds = 3
  with pytest.raises(
    InputError, match=r"pixels = 'units'.*did you mean unit\?"
  ):
    RunConfig(pixels='units')
  with pytest.raises(AttributeError, match='Did you mean "rounds"'):
    run_config.default_config().round = 3
  # NumPy's numbers are valid; traced values of a sweep are not checked.
  assert RunConfig(rounds=np.int64(3)).rounds == 3
  traced = []
  jax.jit(lambda value: traced.append(ClientConfig(decay=value)))(0.5)
  assert traced[0].epochs == 5
