"""Defines the typed settings of a run: their defaults, meanings and rules.

`configs/default.py` and the help of the command are generated from them. `read`
turns the config of a file into a `RunConfig`, so that the code after it sees no
dictionary. Letters are those of McMahan et al. (2017).
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import copy
import dataclasses
from typing import Any

from fedavg_jax.core import choices
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.suggest import did_you_mean
from fedavg_jax.runs import contradictions
from fedavg_jax.runs.config_compression import CompressionConfig
from fedavg_jax.runs.config_option import ANYTHING
from fedavg_jax.runs.config_option import BELOW_ONE
from fedavg_jax.runs.config_option import at_least
from fedavg_jax.runs.config_option import between
from fedavg_jax.runs.config_option import fields
from fedavg_jax.runs.config_option import flat_fields
from fedavg_jax.runs.config_option import free
from fedavg_jax.runs.config_option import is_free
from fedavg_jax.runs.config_option import is_section
from fedavg_jax.runs.config_option import one_of
from fedavg_jax.runs.config_option import one_of_or_own
from fedavg_jax.runs.config_option import option
from fedavg_jax.runs.config_option import section
from fedavg_jax.runs.config_personal import PersonalConfig
from fedavg_jax.runs.config_privacy import PrivacyConfig
from fedavg_jax.runs.config_private_parts import LocalPrivacyConfig
from fedavg_jax.runs.config_private_parts import SecureConfig
from fedavg_jax.runs.config_robust import AttackConfig
from fedavg_jax.runs.config_robust import RobustConfig
from fedavg_jax.runs.config_sections import AsynchronousConfig
from fedavg_jax.runs.config_sections import CheckpointConfig
from fedavg_jax.runs.config_sections import ClientConfig
from fedavg_jax.runs.config_sections import ClockConfig
from fedavg_jax.runs.config_sections import ServerConfig
from fedavg_jax.runs.config_task import TaskOptions
from fedavg_jax.runs.part_names import OWN_PARTS


@dataclasses.dataclass(frozen=True)
class RunConfig(TaskOptions):
  """Holds all settings of a run, which `configs/default.py` describes.

  >>> import fedavg_jax as fa
  >>> config = fa.RunConfig(rounds=20, client_fraction=0.1)
  >>> config.rounds, config.client.epochs, config.client.batch_size
  (20, 5, 10)

  Raises:
    InputError: a value breaks its rule, or two values contradict each other.
  """

  client_fraction: float = option(
    0.5,
    between(0, 1),
    'C: a cohort has max(int(C * K), 1) clients; 0 is one client.',
  )
  unavailable_fraction: float = option(
    0.0, BELOW_ONE, 'Fraction of clients that are unavailable in a round.'
  )
  availability_trace: str = option(
    '',
    ANYTHING,
    'CSV file of availability: client, first and last round; empty: always.',
  )
  sampling: str = option(
    'uniform',
    one_of(choices.SAMPLINGS),
    "Probability of drawing client k: 'uniform' | 'examples' (in proportion to"
    " n_k, its number of examples; use weighting 'uniform' with it) | 'poisson'"
    ' (C, independently of the others, so that cohorts differ in size).',
  )
  straggler_fraction: float = option(
    0.0, between(0, 1), 'Mean fraction of a cohort that does partial work.'
  )
  straggler_work: str = option(
    'minibatches',
    one_of(choices.STRAGGLER_WORK),
    "Work that a straggler completes, drawn uniformly: 'minibatches' (1 to all"
    " but one) | 'epochs' (1 to E - 1 full ones).",
  )
  stragglers: str = option(
    'keep',
    one_of(choices.STRAGGLERS),
    "Partial work of stragglers: 'keep' (averaged, as in FedProx) | 'drop'"
    ' (left out, as in FedAvg).',
  )
  weighting: str = option(
    'examples',
    one_of(choices.WEIGHTINGS),
    "Weight of client k in the mean: 'examples' (n_k, its number of examples) |"
    " 'uniform' (equal for all).",
  )
  algorithm: str = option(
    'fedavg',
    one_of_or_own(choices.ALGORITHMS),
    'Algorithm, or your function as module:function; see docs/algorithms.md.',
  )
  client: ClientConfig = section(ClientConfig)
  server: ServerConfig = section(ServerConfig)
  clock: ClockConfig = section(ClockConfig)
  asynchronous: AsynchronousConfig = section(AsynchronousConfig)
  robust: RobustConfig = section(RobustConfig)
  attack: AttackConfig = section(AttackConfig)
  compression: CompressionConfig = section(CompressionConfig)
  personal: PersonalConfig = section(PersonalConfig)
  privacy: PrivacyConfig = section(PrivacyConfig)
  local_privacy: LocalPrivacyConfig = section(LocalPrivacyConfig)
  secure: SecureConfig = section(SecureConfig)

  on_nan: str = option(
    'stop',
    one_of(choices.ON_NAN),
    "Reaction to a client update with NaN or infinity: 'stop' (ends the run) |"
    " 'skip_client' (drops the update).",
  )
  rounds: int = option(200, at_least(1), 'Number of communication rounds.')
  eval_every: int = option(1, at_least(1), 'Rounds between two evaluations.')
  client_eval_every: int = option(
    0,
    at_least(0),
    "Rounds between two tests on the clients' held-out examples; 0: no tests.",
  )
  finetune_epochs: int = option(
    0,
    between(0, 1000),
    'Local epochs before a second test of each client; 0: no fine-tuning.',
  )
  target_accuracy: float = option(
    0.0,
    between(0, 1),
    'Test accuracy at which the run ends; 0: after all rounds.',
  )
  target: float = option(
    0.0,
    between(-1e30, 1e30),
    'Value of the first metric that ends the run when reached, from above where'
    ' smaller is better; 0: after all rounds.',
  )
  seed: int = option(
    0, at_least(0), 'Seed of partition, initial weights, cohorts and orders.'
  )

  lanes: int = option(
    0,
    at_least(0),
    'Clients that train at the same time, on all devices; 0: automatic.',
  )
  micro_batch: int = option(
    0,
    at_least(0),
    'Most examples computed at once; a larger B accumulates; 0: automatic.',
  )
  rounds_per_call: int = option(
    0, between(0, 4096), 'Most rounds in one compiled call; 0: automatic.'
  )
  cpu_devices: int = option(
    0, between(0, 1024), 'Number of virtual CPU devices; 0: one per core.'
  )
  gpu_graphs: bool = option(
    False,
    ANYTHING,
    'Whether a GPU runs the loops of a round as one CUDA graph; not yet run.',
  )
  deterministic: bool = option(
    False,
    ANYTHING,
    'Whether a GPU uses only operations with the same bits in every run.',
  )
  examples_on: str = option(
    'device',
    one_of(choices.EXAMPLES_ON),
    "Location of the examples: 'device' | 'host' (streams each cohort's).",
  )
  client_states_on: str = option(
    'device',
    one_of(choices.CLIENT_STATES_ON),
    "Location of the client states, which SCAFFOLD has: 'device' | 'host' |"
    " 'disk' (the last two stream each cohort's to the device).",
  )
  log: str = option(
    '', ANYTHING, 'Additional loggers, with commas: csv, tensorboard, wandb.'
  )
  pictures: bool = option(
    True,
    ANYTHING,
    'Whether to draw curves.png, partition.png and clients.png (about 1 s).',
  )
  checkpoint: CheckpointConfig = section(CheckpointConfig)
  options: dict[str, Any] = free(
    'Arguments of your functions, such as config.options.model.width = 64; see'
    ' docs/bring_your_own.md.'
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    # A sweep traces values, and has checked the config of each run before.
    if not any(rules.is_traced(value) for _, value in flatten(self)):
      contradictions.check(self)

  @property
  def measured_on(self) -> str:
    """Returns the set that evaluates the model: 'validation' or 'test'."""
    return 'validation' if self.validation_fraction else 'test'

  @property
  def ends_at(self) -> float:
    """Returns the first metric's value at which the run ends; 0 is none."""
    return self.target or self.target_accuracy

  def to_dict(self) -> dict[str, Any]:
    """Returns the settings as nested dictionaries, as JSON stores them."""
    return dataclasses.asdict(self)

  def replace(self, changes: Mapping[str, Any]) -> 'RunConfig':
    """Returns a copy with new values for some keys, dots between their parts.

    >>> RunConfig().replace({'client.epochs': 1, 'rounds': 9}).client.epochs
    1
    """
    new = {key: value for key, value in changes.items() if '.' not in key}
    for field in filter(is_section, fields(self)):
      inner = {
        key.removeprefix(f'{field.name}.'): value
        for key, value in changes.items()
        if key.startswith(f'{field.name}.')
      }
      now = getattr(self, field.name)
      new[field.name] = dataclasses.replace(now, **inner)
    for field in filter(is_free, fields(self)):
      new[field.name] = _merged(getattr(self, field.name), changes, field.name)
    return dataclasses.replace(self, **new)


def _merged(
  now: dict[str, Any], changes: Mapping[str, Any], name: str
) -> dict[str, Any]:
  """Returns a copy of free options with new values for some of their keys."""
  merged = copy.deepcopy(now)
  for key, value in changes.items():
    if key.startswith(f'{name}.'):
      *parents, last = key.split('.')[1:]
      inner = merged
      for parent in parents:
        inner = inner.setdefault(parent, {})
      inner[last] = value
  return merged


def is_known(key: str) -> bool:
  """Returns whether a key, with dots between its parts, names an option.

  >>> is_known('client.epochs'), is_known('options.model.width')
  (True, True)
  """
  return key in names() or key.startswith('options.')


def names() -> list[str]:
  """Returns the keys of all options, with dots between their parts."""
  return [name for name, _ in flat_fields(RunConfig)]


def unknown(key: str, known: Iterable[str]) -> str:
  """Returns what a message says of a key that is none of the known ones."""
  return (
    f'unknown key{did_you_mean(key, known)}; `fedavg-jax config show default`'
    ' lists all'
  )


def read(config: Any) -> RunConfig:
  """Turns a ConfigDict into typed settings; a RunConfig is returned as it is.

  Raises:
    InputError: a key is unknown, or a value breaks its rule.
  """
  if isinstance(config, RunConfig):
    return config
  if not hasattr(config, 'to_dict'):
    raise InputError(
      f'config: is {type(config).__name__}, must be a ConfigDict, such as that'
      ' of configs/default.py'
    )
  try:
    return from_dict(config.to_dict())
  except RecursionError:
    raise InputError('config: contains itself; must end') from None


def from_dict(config: Mapping[str, Any]) -> RunConfig:
  """Makes typed settings of nested dictionaries; missing keys have defaults.

  Raises:
    InputError: a key is unknown, or a value breaks its rule.
  """
  flat, known = dict(flatten(config)), names()
  for key in flat:
    if not is_known(key):
      raise InputError(f'{key}: {unknown(key, known)}')
  return RunConfig().replace(flat)


def default_config() -> Any:
  """Returns all options with their defaults, for a config file to change.

  Returns:
    An `ml_collections.ConfigDict`, locked: setting an unknown key is an error.

  >>> import fedavg_jax as fa
  >>> config = fa.default_config()
  >>> config.client.epochs = 1
  >>> config.rounds, config.client.epochs
  (200, 1)
  """
  import ml_collections

  config = ml_collections.ConfigDict(RunConfig().to_dict())
  config.options = {part: {} for part in OWN_PARTS}
  config.lock()
  config.options.unlock()
  return config


def flatten(
  config: RunConfig | Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """Yields every key, with dots between its parts, and its value."""
  content = config.to_dict() if isinstance(config, RunConfig) else config
  for key, value in content.items():
    if isinstance(value, Mapping):
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
