"""Plans the runs of a sweep: their names, groups, and those that ended."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
from typing import Any
from typing import NamedTuple
import urllib.parse

from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.runs import config_changes
from fedavg_jax.runs import config_privacy
from fedavg_jax.runs import metric_words
from fedavg_jax.runs import own_code
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import population
from fedavg_jax.runs import run_config
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.run_dir import check_format

# Numbers that only the algorithm uses; plans do not depend on them.
TOGETHER = (
  'client.learning_rate',
  'client.decay',
  'client.proximal',
  'client.regularization',
  'server.learning_rate',
  'server.second_momentum',
  'server.adaptivity',
  'server.fairness',
  'server.epsilon',
  'privacy.noise_multiplier',
)
_MOST_RUNS = 100_000
_LONGEST_NAME = 255  # The limit for folders on common systems.
MARK, _PARTS = 'sweep.json', 'parts'
# A model is checked against its data once for each value of these.
_FITS = (
  *('dataset', 'data_dir', 'model', 'loss', 'metrics', 'algorithm', 'options'),
  *('pixels', 'augmentation', 'convolution', 'precision', 'examples_on'),
  *('lanes', 'client_states_on', 'on_nan', 'target', 'target_accuracy'),
  *('partition', 'num_clients', 'client_fraction'),
)
_SECTIONS = (
  *('personal', 'compression', 'asynchronous', 'robust', 'attack', 'privacy'),
  *('local_privacy', 'secure'),
)
# These end a run at any number of rounds.
_EARLY_ENDS = ('target reached', 'diverged')

# The values of each key, as text.
Grid = Mapping[str, Sequence[str]]


class Job(NamedTuple):
  """Describes one run of the sweep.

  Attributes:
    setting: the value of every key of the grid.
    seed: the seed of the run.
    cfg: the config of the run.
    folder: the folder of the run.
  """

  setting: dict[str, Any]
  seed: int
  cfg: RunConfig
  folder: pathlib.Path

  @property
  def name(self) -> str:
    """Returns the setting as text, such as 'client.epochs=5'."""
    return name_of(self.setting)

  @property
  def key(self) -> list[Any]:
    """Returns setting and seed, which identify the run, as JSON."""
    return [self.setting, self.seed]


def plan_jobs(
  base: RunConfig,
  grid: Grid | Sequence[Grid],
  seeds: int,
  workdir: pathlib.Path,
) -> list[Job]:
  """Returns every run of a grid, or of several, with a checked config.

  Args:
    base: the config of all runs, except for the keys of the grids and the seed.
    grid: the values of each key, as text; a setting has one value of every key
      of one grid.
    seeds: the number of seeds per setting.
    workdir: the folder of the sweep.

  Raises:
    InputError: a key is unknown, a value breaks its rule, a setting occurs
      twice, or there are too many runs.
  """
  if not 1 <= seeds <= rules.MOST - base.seed:
    raise InputError(
      f'--seeds {seeds}: must be at least 1, and the last one, seed + {seeds} -'
      f' 1, at most {rules.MOST}'
    )
  grids = [grid] if isinstance(grid, Mapping) else list(grid)
  choices = [_choices(base, one) for one in grids]
  number = seeds * sum(math.prod(map(len, of_one)) for of_one in choices)
  if number > _MOST_RUNS:
    raise InputError(
      f'--grid and --seeds request {number:,} runs, must be at most'
      f' {_MOST_RUNS:,}'
    )
  settings = [
    setting for of_one in choices for setting in itertools.product(*of_one)
  ]
  if len(set(settings)) < len(settings):
    twice = next(one for one in settings if settings.count(one) > 1)
    raise InputError(
      f'--grid: {name_of(dict(twice))} occurs in two alternatives'
    )
  return [
    _job(base, dict(setting), seed, workdir)
    for setting in settings
    for seed in range(base.seed, base.seed + seeds)
  ]


def _choices(base: RunConfig, grid: Grid) -> list[list[tuple[str, Any]]]:
  """Returns the pairs (key, value) of each key of a grid, sorted by key."""
  known = dict(run_config.flatten(base))
  choices = []
  for key, texts in sorted(grid.items()):
    if key == 'seed':
      raise InputError('--grid seed: the seeds are those of --seeds')
    if key == 'cpu_devices':
      raise InputError(
        '--grid cpu_devices: a process cannot change its devices; must be the'
        ' same for all runs'
      )
    first = metric_words.split(base.metrics)[:1]
    if key == 'metrics' or (key == 'loss' and first in ([], ['loss'])):
      raise InputError(
        f'--grid {key}: the runs of a sweep are compared by one first metric;'
        ' config.metrics must name it, the same for all runs, and not the loss'
        ' of each'
      )
    if key not in known:
      raise InputError(f'--grid {key}: {run_config.unknown(key, known)}')
    values = [_value(key, text, known[key]) for text in texts]
    if len(set(values)) < len(values):
      raise InputError(f'--grid {key}={",".join(texts)}: duplicate value')
    choices.append([(key, value) for value in values])
  return choices


def _job(base, setting, seed, workdir) -> Job:
  """Makes the run of a setting and a seed."""
  cfg = base.replace(setting | {'seed': seed})
  return Job(setting, seed, cfg, run_folder(workdir, setting, seed))


def run_folder(
  workdir: pathlib.Path, setting: Mapping[str, Any], seed: int
) -> pathlib.Path:
  """Returns the folder of a run of a sweep.

  Raises:
    InputError: its name would be too long.
  """
  name = ','.join(f'{k}={v}' for k, v in setting.items()) or 'as it is'
  folder = urllib.parse.quote(name, safe='=,. ')
  if len(folder) > _LONGEST_NAME:
    raise InputError(
      f'--grid: {name[:60]}... would be the name of a folder of {len(folder)}'
      f' characters, must be at most {_LONGEST_NAME}; sweep fewer keys at once'
    )
  return workdir / folder / f'seed_{seed}'


def name_of(setting: Mapping[str, Any]) -> str:
  """Returns a setting as text, such as 'client.epochs=5'."""
  return ', '.join(f'{k}={v}' for k, v in setting.items()) or 'as it is'


def earlier_jobs(workdir: pathlib.Path, base: RunConfig) -> list[Job]:
  """Returns the runs that earlier commands have planned for a folder.

  Raises:
    InputError: the folder is not one of a sweep, or its config is another one.
  """
  mark = workdir / MARK
  if workdir.is_dir():
    names = {path.name for path in workdir.iterdir()}
    if names <= {'.lock', MARK}:
      return []  # No run began: another sweep may use the folder.
  if not mark.is_file():
    raise InputError(
      f'workdir = {workdir}: exists already, and is not the folder of a sweep;'
      ' choose a new path, existing files are never overwritten'
    )
  try:
    began = json.loads(mark.read_text())
    runs = [(dict(setting), int(seed)) for setting, seed in began['runs']]
    config = dict(began['config']) | {'seed': base.seed}
    known = dict(run_config.flatten(base))
    for key in itertools.chain.from_iterable(setting for setting, _ in runs):
      if key not in known:
        raise ValueError(f'a run has {key!r}, which is not an option')
  except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
    raise InputError(
      f'{mark}: cannot be read ({error}); restore it, or choose a new workdir'
    ) from error
  check_format(mark, began)
  jobs = [_job(base, setting, seed, workdir) for setting, seed in runs]
  differ = config_changes.differences(base, config)
  before = config.get('rounds', base.rounds)
  if 'rounds' in differ and base.rounds > before:
    _check_extension(workdir, differ.pop('rounds'), jobs, before)
  if differ:
    raise InputError(
      f'workdir = {workdir}: its sweep began with another config:'
      f' {config_changes.listed(differ)}; use those values, or choose a new'
      ' workdir'
    )
  return jobs


def _check_extension(
  workdir: pathlib.Path, difference: str, jobs: Sequence[Job], before: int
) -> None:
  """Raises InputError where runs cannot continue with more rounds.

  Args:
    workdir: the folder of the sweep.
    difference: the old and the new rounds, as text.
    jobs: the runs of the sweep.
    before: the number of rounds that it began with.
  """
  if (workdir / _PARTS).is_dir():  # What is saved there is for their rounds.
    raise InputError(
      f'workdir = {workdir}: {difference}: some of its runs were interrupted;'
      ' finish the sweep with the rounds that it began with, then extend it'
    )
  for job in jobs:
    if 'rounds' not in job.setting:
      config_privacy.check_resume(job.cfg, before)


def check_data(
  jobs: Sequence[Job], check_model: Callable[[RunConfig, Dataset], None]
) -> None:
  """Checks that the data of all runs can be divided and learned.

  Args:
    jobs: all runs; of those that have ended only the settings are checked.
    check_model: a function of a config and its data that raises InputError
      where they do not fit; called once for all runs that agree in `_FITS`.

  Raises:
    InputError: the data of a run do not fit its settings.
  """
  if len({job.cfg.measured_on for job in jobs}) > 1:
    raise InputError(
      '--grid validation_fraction: the runs of a sweep are compared by one'
      ' test; must be 0 for all of them, or for none'
    )
  data: dict[tuple, Dataset] = {}
  divided, fitted = set(), set()
  for job in jobs:
    cfg = job.cfg
    if is_over(job):
      _check_settings(job)
      continue
    text = json.dumps(_common(job), sort_keys=True)
    if text in divided:
      continue
    divided.add(text)
    options = json.dumps(cfg.options.get('dataset'), sort_keys=True)
    source = cfg.dataset, cfg.data_dir, options
    if source not in data:
      data[source] = own_parts.load_dataset(cfg)
    clients = population.build_population(cfg, data[source]).clients
    population.build_participation(cfg, clients.num_examples)
    fits = [getattr(cfg, name) for name in _FITS]
    fits += [dataclasses.asdict(getattr(cfg, name)) for name in _SECTIONS]
    kind = json.dumps([*fits, cfg.client.control], sort_keys=True)
    if kind not in fitted:
      fitted.add(kind)
      check_model(cfg, data[source])


def _value(key: str, text: str, like: Any) -> Any:
  """Converts a value of the grid to the type of the config's value."""
  if isinstance(like, bool):
    if text in ('True', 'False'):
      return text == 'True'
  elif isinstance(like, str):
    return text
  else:
    with contextlib.suppress(ValueError):
      return type(like)(text)
  raise InputError(
    f'--grid {key}={text}: must be of type {type(like).__name__}'
  )


def next_group(jobs: Sequence[Job], workdir: pathlib.Path) -> list[Job]:
  """Returns the runs to train next, together; none where all have ended.

  A group that was stopped comes first, with the same runs as before.
  """
  left = [job for job in jobs if not is_over(job)]
  for first in left:
    if (started := parts_of(first, workdir) / MARK).is_file():
      if group := [job for job in jobs if job.key in _keys(started)]:
        return group
  if not left:
    return []
  common = _common(left[0])
  return [
    job
    for job in left
    if _common(job) == common
    and (job is left[0] or not (job.folder.exists() or left[0].folder.exists()))
  ]


def _keys(path: pathlib.Path) -> list[Any]:
  """Reads the keys of the runs of a group that was started."""
  try:
    keys = json.loads(path.read_text(encoding='utf-8'))
    if not isinstance(keys, list):
      raise ValueError('must be a list')
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(
      f'{path}: cannot be read ({error}); delete its folder, its runs are'
      ' then trained again'
    ) from error
  return keys


def _check_settings(job: Job) -> None:
  """Raises InputError where a folder has a run with other settings."""
  path = job.folder / 'config.json'
  try:
    began = json.loads(path.read_text())
    check_format(path, began)
    found = config_changes.differences(job.cfg, began.get('config'))
    code = began.get('own_code_sha256')
  except (OSError, ValueError, AttributeError, RecursionError) as error:
    raise InputError(
      f'{path}: cannot be read ({error}); restore it, or move the folder away'
    ) from error
  differ = {
    key: text
    for key, text in found.items()
    if key not in config_changes.MACHINE_KEYS
  }
  if began['config'].get('rounds', 0) <= job.cfg.rounds:
    differ.pop('rounds', None)  # It ended early, or continues.
  if differ:
    raise InputError(
      f'{job.folder}: belongs to a run with other settings:'
      f' {config_changes.listed(differ)}; move it away'
    )
  own_parts.import_all(job.cfg)
  own_code.check(code, own_parts.code_sha256(job.cfg))


def _common(job: Job) -> dict[str, Any]:
  """Returns the settings that runs trained together must share."""
  rest = {
    key: value
    for key, value in run_config.flatten(job.cfg)
    if key not in TOGETHER
  }
  if job.cfg.client_eval_every:  # These tests take one model at a time.
    rest['folder'] = str(job.folder)
  return rest


def parts_of(job: Job, workdir: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a group whose runs have not all ended."""
  text = json.dumps(_common(job), sort_keys=True)
  return workdir / _PARTS / hashlib.sha256(text.encode()).hexdigest()[:16]


def is_over(job: Job) -> bool:
  """Returns whether a run has ended, according to its summary.

  One that has finished with fewer rounds than now asked for continues.
  """
  try:
    summary = json.loads((job.folder / 'summary.json').read_text())
    status, rounds = summary['status'], summary['rounds']
    finished = status == 'finished' and rounds >= job.cfg.rounds
  except (OSError, ValueError, TypeError, KeyError):
    return False
  return status in _EARLY_ENDS or finished
