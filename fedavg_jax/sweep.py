"""A grid of settings, each with several seeds: one folder, a table, a picture.

python -m fedavg_jax.sweep --config configs/quickstart.py --seeds 3
  --grid client.learning_rate=0.03,0.1,0.3 --grid client.epochs=1,5
  --workdir outputs/grid

Values that hold commas stand between semicolons: --grid "sizes=equal;600,900".
Settings that differ only in numbers such as the learning rate are trained
together, in the same compiled calls; the others in turn. Every run is a folder
of its own, as `fedavg_jax.main` leaves one. The same command goes on where it
was stopped; with further values or seeds it runs what is missing, and the table
tells of all.
"""

from collections.abc import Sequence
import contextlib
import copy
import hashlib
import itertools
import json
import pathlib
import shutil
import time
from typing import Any
from typing import NamedTuple
import urllib.parse

from absl import flags
import filelock
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from fedavg_jax import checkpoint
from fedavg_jax import command
from fedavg_jax import compare
from fedavg_jax import config as config_lib
from fedavg_jax import datasets
from fedavg_jax import loggers
from fedavg_jax import population
from fedavg_jax import resume
from fedavg_jax import train
from fedavg_jax.errors import DivergedError
from fedavg_jax.errors import InputError
from fedavg_jax.errors import StoppedError
from fedavg_jax.lanes import use_cpu_devices
from fedavg_jax.progress import say
from fedavg_jax.rounds import simulate
from fedavg_jax.signals import stop_on_signals
from fedavg_jax.simulation import place
from fedavg_jax.workdir import Workdir
from fedavg_jax.workdir import default_workdir
from fedavg_jax.workdir import whole

# Numbers that only the algorithm sees: plans do not depend on them.
_TOGETHER = (
  'client.learning_rate',
  'client.decay',
  'client.proximal',
  'server.learning_rate',
  'server.second_momentum',
  'server.adaptivity',
)
_MARK, _PARTS = 'sweep.json', 'parts'
_OVER = ('finished', 'target reached', 'diverged')
_SECONDS_BETWEEN_SAVES, _SECONDS_BETWEEN_LINES = 60.0, 10.0
_MOST_CURVES = 20  # In one picture.


class Job(NamedTuple):
  """One run of the sweep.

  Attributes:
    setting: key -> value, what the grid says of it.
    seed: of the run.
    config: the whole, a ConfigDict.
    cfg: the same, checked.
    folder: of the run.
  """

  setting: dict[str, Any]
  seed: int
  config: ml_collections.ConfigDict
  cfg: dict[str, Any]
  folder: pathlib.Path

  @property
  def name(self) -> str:
    """The setting, as one says it."""
    return ', '.join(f'{k}={v}' for k, v in self.setting.items()) or 'as it is'

  @property
  def key(self) -> list[Any]:
    """What it is known by, as JSON."""
    return [self.setting, self.seed]


def run_sweep(
  config: ml_collections.ConfigDict,
  grid: dict[str, list[str]],
  seeds: int,
  workdir: pathlib.Path,
) -> list[Job]:
  """Runs what is missing of a sweep, then writes its table and picture.

  Args:
    config: of all runs, but for the grid and the seed.
    grid: key -> values as text, of every setting one of each.
    seeds: how many, from that of the config on.
    workdir: a new folder, or that of a sweep with the same config.

  Returns:
    All runs of the folder, those of earlier commands first.

  Raises:
    InputError: a key, a value, the data, a folder; nothing was run.
    StoppedError: a signal; the same call goes on.
  """
  jobs = plan_jobs(config, grid, seeds, workdir)
  base = config_lib.read(config)
  if workdir.exists():
    earlier = _earlier(workdir, base)
    known = [job.key for job in earlier]
    jobs = earlier + [job for job in jobs if job.key not in known]
  _check_populations(jobs)
  workdir.mkdir(parents=True, exist_ok=True)
  try:
    held = filelock.FileLock(workdir.resolve() / '.lock').acquire(timeout=0)
  except filelock.Timeout:
    raise InputError(
      f'workdir = {workdir}: another process is at work in it'
    ) from None
  with held:
    told = {'config': base, 'runs': [job.key for job in jobs]}
    _replace(workdir / _MARK, json.dumps(told, indent=1) + '\n')
    while group := next_group(jobs, workdir):
      done = sum(map(_is_over, jobs))
      say(
        f'{done} of {len(jobs)} runs are over; seed {group[0].seed},'
        f' {"; ".join(job.name for job in group)}'
      )
      if len(group) > 1 or _parts(group[0], workdir).exists():
        _run_together(group, workdir)
      else:
        # That one setting diverges is a result of the sweep.
        with contextlib.suppress(DivergedError):
          train.train(group[0].config, group[0].folder)
    report(jobs, workdir)
  return jobs


def plan_jobs(
  config: ml_collections.ConfigDict,
  grid: dict[str, list[str]],
  seeds: int,
  workdir: pathlib.Path,
) -> list[Job]:
  """Every run of a grid, its config checked.

  Raises:
    InputError: a key that does not exist, a value that breaks its rule.
  """
  if seeds < 1:
    raise InputError(f'--seeds {seeds}: must be at least 1')
  base = config_lib.read(config)
  known = dict(config_lib.flatten(base))
  choices = []
  for key, texts in sorted(grid.items()):
    if key == 'seed':
      raise InputError('--grid seed: the seeds are those of --seeds')
    if key not in known:
      raise InputError(
        f'--grid {key}: there is no such key; known are {", ".join(known)}'
      )
    values = [_value(key, text, known[key]) for text in texts]
    if len(set(values)) < len(values):
      raise InputError(f'--grid {key}={",".join(texts)}: names a value twice')
    choices.append([(key, value) for value in values])
  return [
    _job(base, dict(setting), seed, workdir)
    for setting in itertools.product(*choices)
    for seed in range(base['seed'], base['seed'] + seeds)
  ]


def _job(base, setting, seed, workdir) -> Job:
  name = ','.join(f'{k}={v}' for k, v in setting.items()) or 'as it is'
  config = ml_collections.ConfigDict(base)
  config.update_from_flattened_dict(setting | {'seed': seed})
  return Job(
    setting,
    seed,
    config,
    config_lib.read(config),
    workdir / urllib.parse.quote(name, safe='=,. ') / f'seed_{seed}',
  )


def _earlier(workdir: pathlib.Path, base: dict[str, Any]) -> list[Job]:
  """The runs that a sweep's folder already has, or is to have."""
  mark = workdir / _MARK
  if not mark.is_file():
    if workdir.is_dir() and {p.name for p in workdir.iterdir()} <= {'.lock'}:
      return []  # Killed at once.
    raise InputError(
      f'workdir = {workdir}: exists already, and is no folder of a sweep; name'
      ' a new one, nothing is ever written over'
    )
  try:
    told = json.loads(mark.read_text())
    runs = [(dict(setting), int(seed)) for setting, seed in told['runs']]
    began = dict(told['config'])
  except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
    raise InputError(
      f'{mark}: cannot be read ({error}); put it back, or name a new workdir'
    ) from error
  if began | {'seed': base['seed']} != base:
    flat, now = dict(config_lib.flatten(began)), config_lib.flatten(base)
    differ = [
      f'{key} = {value!r} (was {flat.get(key)!r})'
      for key, value in now
      if flat.get(key) != value and key != 'seed'
    ]
    raise InputError(
      f'workdir = {workdir}: its sweep began with another config:'
      f' {", ".join(differ[:8])}; take those values, or name a new workdir'
    )
  return [_job(base, setting, seed, workdir) for setting, seed in runs]


def _check_populations(jobs: Sequence[Job]) -> None:
  """Raises InputError where the data cannot be divided as a run asks."""
  data: dict[tuple, Any] = {}
  seen = set()
  for job in jobs:
    cfg = job.cfg
    text = json.dumps(_common(job), sort_keys=True)
    if text in seen or _is_over(job):
      continue
    seen.add(text)
    source = (cfg['dataset'], cfg['data_dir'])
    if source not in data:
      data[source] = datasets.load_dataset(*source)
    sizes = [len(part) for part in population.divide(cfg, data[source])]
    population.participation(cfg, np.array(sizes))


def _value(key: str, text: str, like: Any) -> Any:
  """A value of the grid, of the type that the config has there."""
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
  """The runs to train next; none where all are over.

  Several where they can be trained together, and a group that was stopped as it
  was.
  """
  left = [job for job in jobs if not _is_over(job)]
  for first in left:
    if (begun := _parts(first, workdir) / _MARK).is_file():
      keys = json.loads(begun.read_text())
      return [job for job in jobs if job.key in keys]
  if not left:
    return []
  common = _common(left[0])
  return [
    job
    for job in left
    if _common(job) == common
    and (job is left[0] or not (job.folder.exists() or left[0].folder.exists()))
  ]


def _common(job: Job) -> dict[str, Any]:
  """What runs share that are trained together."""
  rest = {
    key: value
    for key, value in config_lib.flatten(job.cfg)
    if key not in _TOGETHER
  }
  if job.cfg['client_eval_every']:  # Of one model at a time.
    rest['folder'] = str(job.folder)
  return rest


def _parts(job: Job, workdir: pathlib.Path) -> pathlib.Path:
  """Where a group of runs keeps what is not over."""
  text = json.dumps(_common(job), sort_keys=True)
  return workdir / _PARTS / hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_over(job: Job) -> bool:
  try:
    summary = json.loads((job.folder / 'summary.json').read_text())
  except (OSError, ValueError):
    return False
  return isinstance(summary, dict) and summary.get('status') in _OVER


def _algorithm(jobs: Sequence[Job]):
  """Number of a run -> its algorithm; the number may be traced."""
  columns = {
    key: jnp.array(
      [dict(config_lib.flatten(job.cfg))[key] for job in jobs], jnp.float32
    )
    for key in _TOGETHER
  }

  def algorithm(number):
    cfg = copy.deepcopy(jobs[0].cfg)
    for key, column in columns.items():
      branch, name = key.split('.')
      cfg[branch][name] = column[number.astype(jnp.int32)]
    return train.build_algorithm(cfg)

  return algorithm


def _run_together(jobs: Sequence[Job], workdir: pathlib.Path) -> None:
  """Trains runs that differ in numbers of the algorithm, in the same calls.

  What they have done is kept in `parts`, until all are over and have folders.
  """
  folder = _parts(jobs[0], workdir)
  folder.mkdir(parents=True, exist_ok=True)
  _replace(folder / _MARK, json.dumps([job.key for job in jobs]) + '\n')
  cfg = jobs[0].cfg
  use_cpu_devices(cfg['cpu_devices'])
  with (
    stop_on_signals() as stop,
    contextlib.closing(checkpoint.Checkpoints(folder, keep=1)) as saved,
  ):
    federation = train.prepare(cfg)
    simulation = train.build(
      cfg,
      federation,
      _algorithm(jobs),
      lanes=cfg['lanes'],
      sweep=range(len(jobs)),
    )
    # lines: of every run the lines of its metrics.jsonl; status: why it ended.
    told: dict[str, Any] = {
      'round': 0,
      'lines': [[] for _ in jobs],
      'status': [''] * len(jobs),
    }
    start, newest = None, saved.newest()
    if newest is not None:
      like = resume.to_tree(*jax.eval_shape(simulation.init))
      start = resume.from_tree(
        place(checkpoint.restore(newest.leaves, like), simulation)
      )
      told = newest.told
      say(f'  goes on after round {told["round"]}')
    last = _simulate(cfg, simulation, told, saved, start, stop)
    if '' in told['status']:
      raise StoppedError(
        f'round {told["round"]} is saved; the same command with --workdir'
        f' {workdir} goes on from there',
        signum=stop.signum,
      )
    for g, job in enumerate(jobs):
      if not _is_over(job):  # A kill may have come between them.
        _write_run(job, federation, simulation, told, last, g)
  shutil.rmtree(folder)
  with contextlib.suppress(OSError):  # Other groups have theirs.
    folder.parent.rmdir()


def _simulate(cfg, simulation, told, saved, start, stopping):
  """Runs to the end, or until it is to stop; the last state at hand."""
  saved_at = said_at = time.monotonic()
  last, last_round, saved_round = start, told['round'], told['round']

  def due(number):
    del number
    return time.monotonic() - saved_at > _SECONDS_BETWEEN_SAVES

  if '' not in told['status']:
    return last
  for record in simulate(
    simulation,
    rounds=cfg['rounds'],
    eval_every=cfg['eval_every'],
    target_accuracy=cfg['target_accuracy'],
    start=start,
    wanted=due,
    stopping=stopping,
  ):
    told['round'] = record.round
    for g, status in enumerate(told['status']):
      if not status:
        told['status'][g] = _add_line(
          cfg, simulation, record, g, told['lines'][g]
        )
    now = time.monotonic()
    if now - said_at > _SECONDS_BETWEEN_LINES and record.round:
      said_at = now
      best = max(lines[-1].get('test_accuracy', 0) for lines in told['lines'])
      say(f'  round {record.round}/{cfg["rounds"]}  best {best:.4f}')
    if record.state is None or record.client_states is None:
      continue
    last, last_round = (record.state, record.client_states), record.round
    if due(record.round):
      saved.save(record.round, resume.to_tree(*last), told, None)
      saved_at, saved_round = time.monotonic(), record.round
  assert last_round == told['round']  # A call ends with what it leaves.
  if last is not start and last_round != saved_round:
    saved.save(last_round, resume.to_tree(*last), told, None)
  return last


def _add_line(cfg, simulation, record, g, lines) -> str:
  """Adds what a round told of run g. Returns why it ended, '' if it goes on."""
  finite = bool(record.finite[g])

  def own(value):
    return None if value is None else np.asarray(value)[g].item()

  mine = record._replace(
    **{
      name: own(getattr(record, name))
      for name in ('train_loss', 'examples', 'skipped', 'finite')
    },
    # A round that is not finite left the model of the one before.
    test_accuracy=own(record.test_accuracy) if finite else None,
    test_loss=own(record.test_loss) if finite else None,
    seconds=record.seconds / len(record.finite),
  )
  lines.append(train.to_line(mine, simulation.planner))
  if not finite:
    return 'diverged'
  if 0 < cfg['target_accuracy'] <= lines[-1].get('test_accuracy', -1.0):
    return 'target reached'
  return 'finished' if record.round == cfg['rounds'] else ''


def _write_run(job, federation, simulation, told, last, g) -> None:
  """The folder of run g, as if it had been trained by itself.

  It gets its name once it is whole.
  """
  *before, line = told['lines'][g]
  status = told['status'][g]
  state, client_states = jax.tree.map(lambda leaf: leaf[g], last)
  part = job.folder.with_name(f'.part.{job.folder.name}')
  shutil.rmtree(part, ignore_errors=True)  # Of a process that was killed.
  with Workdir(part) as folder:
    folder.begin(room=checkpoint.bytes_needed((state, client_states), 2))
    folder.config(train.to_begin(job.cfg, federation))
    train.draw_population(job.cfg, federation, folder)
    folder.open_metrics()
    for told_before in before:
      folder.line(told_before)
    seal = folder.seal()
    folder.line(line)
    diverged = status == 'diverged'
    at_hand = resume.AtHand(
      round=line['round'] - diverged,
      state=state,
      client_states=client_states,
      seal=seal if diverged else folder.seal(),
      lanes=simulation.planner.lanes,
      accuracy=None if diverged else line.get('test_accuracy'),
    )
    with contextlib.closing(
      checkpoint.Checkpoints(folder.path, keep=1)
    ) as checkpoints:
      at_hand.save(folder, checkpoints)
    for logger in loggers.open_loggers(job.cfg['log'], part, job.cfg, []):
      for each in (*before, line):
        logger.line(each)
      logger.close()
    train.finish(
      job.cfg,
      simulation,
      folder,
      [*before, line],
      status,
      simulation.planner.lanes,
    )
  job.folder.parent.mkdir(exist_ok=True)
  part.rename(job.folder)


def report(jobs: Sequence[Job], workdir: pathlib.Path) -> None:
  """Prints the table and writes it and the picture beside the runs."""
  runs: dict[str, list[compare.Run]] = {}
  for job in jobs:
    runs.setdefault(job.name, []).append(compare.read_run(job.folder))
  target = jobs[0].cfg['target_accuracy']
  rows = {
    name: [compare.row(run, target) for run in own]
    for name, own in runs.items()
  }
  best = min(rows, key=lambda name: _merit(rows[name], target))
  if np.isfinite(_merit(rows[best], target)[1]) and target:
    why = f'fewest rounds to {target:g}'
  else:
    why = 'highest mean of the best accuracy'
  text = (
    f'{_table(rows, target, best)}\n\nBest: {best}, {why}; chosen on the test'
    ' set, of which the best accuracy is the maximum over the rounds'
  )
  say(text)
  _replace(workdir / 'table.md', text + '\n')
  shown = sorted(rows, key=lambda name: _merit(rows[name], target))
  shown = [name for name in rows if name in shown[:_MOST_CURVES]]
  with whole(workdir / 'sweep.png') as part:
    compare.draw(part, {name: runs[name] for name in shown}, target)
  say(f'{workdir}/table.md, {workdir}/sweep.png')


def _merit(rows, target) -> tuple[float, float, float]:
  """Less is better: seeds that diverged, rounds to the target, accuracy."""
  diverged = float(sum(row['status'] == 'diverged' for row in rows))
  accuracy = -float(np.mean([row['best'] for row in rows]))
  reached = [
    np.inf if row['to_target'] is None else row['to_target'] for row in rows
  ]
  return diverged, float(np.median(reached)) if target else 0.0, accuracy


def _table(rows, target, best) -> str:
  head = ['setting', 'seeds', 'best accuracy: mean', 'lowest', 'highest']
  if target:
    head += [f'rounds to {target:g}: median', 'reached by']
  head += ['diverged', '']
  lines = [head, ['---'] * len(head)]
  for name, own in rows.items():
    accuracies = [row['best'] for row in own]
    cells = [
      name,
      f'{len(own)}',
      f'{np.mean(accuracies):.4f}',
      f'{min(accuracies):.4f}',
      f'{max(accuracies):.4f}',
    ]
    if target:
      median = _merit(own, target)[1]
      reached = sum(row['to_target'] is not None for row in own)
      cells += [f'{median:g}' if np.isfinite(median) else '—', f'{reached}']
    diverged = sum(row['status'] == 'diverged' for row in own)
    cells += [f'{diverged}' if diverged else '', '*' if name == best else '']
    lines.append(cells)
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _replace(path: pathlib.Path, text: str) -> None:
  """Writes a file that gets its name once it is whole."""
  with whole(path) as part:
    part.write_text(text)


def _parse(texts: Sequence[str]) -> dict[str, list[str]]:
  """'key=a,b' of every --grid."""
  grid: dict[str, list[str]] = {}
  for text in texts:
    key, equals, values = text.partition('=')
    separated = values.split(';' if ';' in values else ',')
    if not equals or not all(separated):
      raise InputError(f'--grid {text}: must be key=value,value,...')
    if key in grid:
      raise InputError(f'--grid {key}: named twice')
    grid[key] = separated
  return grid


def main() -> None:
  """Runs the sweep that the flags describe."""
  config, name = command.read_config()
  workdir = command.read_path('workdir', default_workdir(f'{name}_sweep'))
  grid = _parse(flags.FLAGS['grid'].value or [])
  seeds: Any = flags.FLAGS['seeds'].value
  run_sweep(config, grid, seeds, workdir)


if __name__ == '__main__':
  command.define_config()
  flags.DEFINE_multi_string('grid', None, 'key=value,value; once per key.')
  flags.DEFINE_integer('seeds', 1, 'Seeds of each setting.')
  flags.DEFINE_string(
    'workdir',
    None,
    'New folder, or that of a sweep, which goes on; default outputs/...',
  )
  command.start(main)
