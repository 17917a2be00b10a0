"""The settings of a run, typed: their defaults, meanings and rules.

This is the one source: `configs/default.py` and the help of the command are
made of it, `read` turns the config of a file into a `RunConfig`, and nothing
behind it sees a dictionary. Letters are those of McMahan et al. (2017).
"""

from collections.abc import Iterator
from collections.abc import Mapping
import copy
import dataclasses
import re
from typing import Any

from fedavg_jax.core import choices
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.suggest import did_you_mean
from fedavg_jax.runs import contradictions
from fedavg_jax.runs.config_option import ANYTHING
from fedavg_jax.runs.config_option import BELOW_ONE
from fedavg_jax.runs.config_option import Options
from fedavg_jax.runs.config_option import Rule
from fedavg_jax.runs.config_option import at_least
from fedavg_jax.runs.config_option import between
from fedavg_jax.runs.config_option import empty_or
from fedavg_jax.runs.config_option import fields
from fedavg_jax.runs.config_option import flat_fields
from fedavg_jax.runs.config_option import free
from fedavg_jax.runs.config_option import is_free
from fedavg_jax.runs.config_option import is_section
from fedavg_jax.runs.config_option import one_of
from fedavg_jax.runs.config_option import one_of_or_own
from fedavg_jax.runs.config_option import option
from fedavg_jax.runs.config_option import section
from fedavg_jax.runs.config_sections import CheckpointConfig
from fedavg_jax.runs.config_sections import ClientConfig
from fedavg_jax.runs.config_sections import ClockConfig
from fedavg_jax.runs.config_sections import ServerConfig
from fedavg_jax.runs.part_names import OWN_PARTS

_NUMBERS = re.compile(r'\s*\d+(\s*,\s*\d+)*\s*')
_SIZES = Rule(
  lambda value: (
    value in choices.SIZE_LAWS or bool(_NUMBERS.fullmatch(str(value)))
  ),
  f'must be one of {", ".join(choices.SIZE_LAWS)}, or whole numbers with commas'
  ' between them',
  choices.SIZE_LAWS,
)
_YES_OR_NO = ANYTHING


@dataclasses.dataclass(frozen=True)
class RunConfig(Options):
  """All settings of a run.

  >>> config = RunConfig(rounds=20, client=ClientConfig(epochs=1))
  >>> config.client.epochs, config.client.batch_size
  (1, 10)

  Raises:
    InputError: a value breaks its rule, or contradicts another one.
  """

  dataset: str = option(
    'digits', one_of_or_own(choices.DATASETS), 'Data set; see docs/data.md.'
  )
  data_dir: str = option(
    '',
    ANYTHING,
    'Folder or file of the data; empty searches, then downloads.',
  )
  pixels: str = option(
    'unit',
    one_of(choices.PIXELS),
    "'unit' scales to [0, 1]; 'standard' to mean 0, std 1 over the training"
    " set; 'image' to mean 0, std 1 of each image.",
  )
  augmentation: str = option(
    'none',
    one_of(choices.AUGMENTATIONS),
    "'tutorial' crops to 24 x 24 and changes colours at random.",
  )
  model: str = option(
    '2nn', one_of_or_own(choices.MODELS), 'Model; see docs/api.md.'
  )
  convolution: str = option(
    'auto',
    one_of(choices.CONVOLUTIONS),
    "How convolutions are computed; 'auto' takes the fastest known.",
  )
  precision: str = option(
    'float32',
    one_of(choices.PRECISIONS),
    "'bfloat16' computes products in bfloat16; weights stay float32.",
  )
  loss: str = option(
    '',
    empty_or(one_of_or_own(choices.LOSSES)),
    'What is learned by; empty is cross entropy.',
  )
  metrics: str = option(
    '',
    ANYTHING,
    'Of tests, with commas between them, such as'
    f' {", ".join(choices.METRICS)}, top_5; target, best and sweeps go by the'
    ' first one. Empty: accuracy and loss, or the mean of another loss.',
  )

  partition: str = option(
    'shards',
    one_of(choices.PARTITIONS),
    "How the data are divided; 'natural' takes the clients of the data.",
  )
  shards_per_client: int = option(
    2, at_least(1), "Of 'shards': 2 gives a client about two labels."
  )
  alpha: float = option(
    0.5,
    between(1e-30, 1e30),
    "Concentration of 'dirichlet' and 'inner_dirichlet'; small is skewed.",
  )
  min_size: int = option(
    10,
    at_least(0),
    "Fewest examples of a client in 'dirichlet'; and in 'few_labels', where"
    ' sizes is a law of the others.',
  )
  self_balancing: bool = option(
    False,
    _YES_OR_NO,
    "Of 'dirichlet': a client with n / K examples gets no more.",
  )
  classes_per_client: int = option(
    2, at_least(1), "Of 'pathological' and 'few_labels': labels of each client."
  )
  class_assignment: str = option(
    'random',
    one_of(choices.CLASS_ASSIGNMENTS),
    "Of 'pathological' and 'few_labels': which client has which labels.",
  )
  sizes: str = option(
    'equal',
    _SIZES,
    "Clients' sizes in 'iid', 'inner_dirichlet' and 'few_labels': a law, or"
    " '600,300,...', which in 'few_labels' may leave some examples to nobody.",
  )
  size_skew: float = option(
    1.0, between(0, 100), 'Exponent of power_law, sigma of log_normal.'
  )
  num_clients: int = option(
    50, at_least(0), "K: number of clients; 0 with partition 'natural'."
  )
  validation_fraction: float = option(
    0.0,
    BELOW_ONE,
    "Share of every client's examples taken out for a validation set: target,"
    ' best and sweeps go by it, and the test set is used once, at the end.',
  )
  holdout_fraction: float = option(
    0.0,
    BELOW_ONE,
    "Share of every client's examples that is kept for its own tests.",
  )

  client_fraction: float = option(
    0.5,
    between(0, 1),
    'C: a cohort has max(int(C * K), 1) clients; 0 is one client.',
  )
  unavailable_fraction: float = option(
    0.0, BELOW_ONE, 'Share of the clients out of reach in a round.'
  )
  availability_trace: str = option(
    '',
    ANYTHING,
    'CSV file of when clients are in reach: client, first and last round.',
  )
  sampling: str = option(
    'uniform',
    one_of(choices.SAMPLINGS),
    "'examples' draws clients in proportion to n_k; then weigh uniformly.",
  )
  straggler_fraction: float = option(
    0.0, between(0, 1), 'Share of a cohort that does only a part of its work.'
  )
  straggler_work: str = option(
    'minibatches',
    one_of(choices.STRAGGLER_WORK),
    "What a straggler does a part of: 'epochs' are whole ones, 1 to E - 1.",
  )
  stragglers: str = option(
    'keep',
    one_of(choices.STRAGGLERS),
    "'keep' uses their partial work, as FedProx does; 'drop' loses it.",
  )
  weighting: str = option(
    'examples',
    one_of(choices.WEIGHTINGS),
    "Weights of the mean: 'examples' is n_k, 'uniform' the same for all.",
  )
  algorithm: str = option(
    'fedavg',
    one_of_or_own(choices.ALGORITHMS),
    'Algorithm; see docs/algorithms.md.',
  )
  client: ClientConfig = section(ClientConfig)
  server: ServerConfig = section(ServerConfig)
  clock: ClockConfig = section(ClockConfig)

  on_nan: str = option(
    'stop',
    one_of(choices.ON_NAN),
    "Where a client's numbers are not finite: 'stop', or 'skip_client'.",
  )
  rounds: int = option(200, at_least(1), 'Number of communication rounds.')
  eval_every: int = option(1, at_least(1), 'Rounds between two evaluations.')
  client_eval_every: int = option(
    0,
    at_least(0),
    "Rounds between two tests on the clients' held-out examples; 0: none.",
  )
  finetune_epochs: int = option(
    0,
    between(0, 1000),
    'Local epochs before each client is tested a second time; 0: none.',
  )
  target_accuracy: float = option(
    0.0,
    between(0, 1),
    'Test accuracy at which the run ends; 0 runs all rounds.',
  )
  target: float = option(
    0.0,
    between(-1e30, 1e30),
    'Value of the first metric at which the run ends, at most that where'
    ' smaller is better; 0 runs all rounds.',
  )
  seed: int = option(
    0, at_least(0), 'Seed of partition, initial weights, cohorts and orders.'
  )

  lanes: int = option(
    0,
    at_least(0),
    'Clients that train side by side, over all devices; 0 chooses.',
  )
  micro_batch: int = option(
    0,
    at_least(0),
    'Largest number of examples in a step; larger B accumulates; 0 chooses.',
  )
  rounds_per_call: int = option(
    0, between(0, 4096), 'Most rounds in one compiled call; 0 chooses.'
  )
  cpu_devices: int = option(
    0, between(0, 1024), 'Virtual devices on CPU; 0 is one per core.'
  )
  examples_on: str = option(
    'device',
    one_of(choices.EXAMPLES_ON),
    "'host' streams each cohort's examples to the device.",
  )
  client_states_on: str = option(
    'device',
    one_of(choices.CLIENT_STATES_ON),
    "'host' or 'disk' streams what clients keep, as SCAFFOLD's do.",
  )
  log: str = option(
    '', ANYTHING, 'Loggers beside metrics.jsonl: csv, tensorboard, wandb.'
  )
  pictures: bool = option(
    True,
    ANYTHING,
    'Draws curves.png, partition.png and clients.png, a second or so a run.',
  )
  checkpoint: CheckpointConfig = section(CheckpointConfig)
  options: dict[str, Any] = free(
    'What your own functions take by name: config.options.model.width = 64;'
    ' see docs/bring_your_own.md.'
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    # Those of a sweep are traced, after its runs were checked each.
    if not any(rules.is_traced(value) for _, value in flatten(self)):
      contradictions.check(self)

  @property
  def measured_on(self) -> str:
    """What the model is tested on after rounds: 'validation' or 'test'."""
    return 'validation' if self.validation_fraction else 'test'

  @property
  def ends_at(self) -> float:
    """The value of the first metric at which the run ends; 0 is none."""
    return self.target or self.target_accuracy

  def to_dict(self) -> dict[str, Any]:
    """Returns the settings as JSON has them, sections within."""
    return dataclasses.asdict(self)

  def replace(self, changes: Mapping[str, Any]) -> 'RunConfig':
    """Returns the settings with others for some names, dots between parts.

    >>> RunConfig().replace({'client.epochs': 1, 'rounds': 9}).client.epochs
    1
    """
    own = {key: value for key, value in changes.items() if '.' not in key}
    for field in filter(is_section, fields(self)):
      inner = {
        key.removeprefix(f'{field.name}.'): value
        for key, value in changes.items()
        if key.startswith(f'{field.name}.')
      }
      now = getattr(self, field.name)
      own[field.name] = dataclasses.replace(now, **inner)
    for field in filter(is_free, fields(self)):
      own[field.name] = _merged(getattr(self, field.name), changes, field.name)
    return dataclasses.replace(self, **own)


def _merged(
  now: dict[str, Any], changes: Mapping[str, Any], name: str
) -> dict[str, Any]:
  """Returns free options with others for some of their names."""
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
  """Tells whether a name, with dots between its parts, is that of an option.

  >>> is_known('client.epochs'), is_known('options.model.width')
  (True, True)
  """
  return key in names() or key.startswith('options.')


def names() -> list[str]:
  """Returns the names of all options, with dots between their parts."""
  return [name for name, _ in flat_fields(RunConfig)]


def read(config: Any) -> RunConfig:
  """Turns a ConfigDict, or what `RunConfig` is already, into typed settings.

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
  """Makes typed settings of nested dictionaries; what is missing has defaults.

  Raises:
    InputError: a key is unknown, or a value breaks its rule.
  """
  flat, known = dict(flatten(config)), names()
  for key in flat:
    if not is_known(key):
      raise InputError(
        f'{key}: unknown key{did_you_mean(key, known)}; known are'
        f' {", ".join(known)}'
      )
  return RunConfig().replace(flat)


def default_config() -> Any:
  """Returns every option with its default, as a config file starts with.

  Returns:
    An `ml_collections.ConfigDict`; a key that it does not have is an error.

  >>> config = default_config()
  >>> config.client.learning_rate = 0.05
  >>> config.rounds
  200
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
  """Yields names, with dots between their parts, and their values."""
  content = config.to_dict() if isinstance(config, RunConfig) else config
  for key, value in content.items():
    if isinstance(value, Mapping):
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
