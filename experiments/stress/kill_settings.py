"""Defines the commands that are killed, and the results to compare."""

from collections.abc import Callable
import contextlib
import hashlib
import json
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.data import stored
from fedavg_jax.runs import checkpoint

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'
_CLOCKS = ('seconds', 'rounds_per_second', 'compile_seconds', 'start_seconds')
_ROUNDS = 40
_COMMON = (
  f'--config.rounds={_ROUNDS}',
  '--config.num_clients=20',
  '--config.client.epochs=1',
  '--config.eval_every=3',
  '--config.checkpoint.rounds=5',
  '--config.checkpoint.keep=2',
)


class Setting(NamedTuple):
  """Describes a command that writes its results to a folder.

  Attributes:
    command: the subcommand of `fedavg-jax`.
    args: its arguments; FOLDER is replaced by the folder of its results, DATA
      by the folder of `make_data`.
    results: a function from a folder to the results that must be equal.
  """

  command: str
  args: tuple[str, ...]
  results: Callable[[pathlib.Path], Any]


def run_results(folder: pathlib.Path) -> dict[str, Any]:
  """Reads the results of a run that do not depend on time or kills."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  results = {
    'arrays': checkpoint.digest(last_checkpoint(folder).leaves),
    'metrics': [_timeless(json.loads(line)) for line in lines],
    'summary': _timeless(json.loads((folder / 'summary.json').read_text())),
  }
  if (folder / 'clients.csv').exists():
    results['clients'] = (folder / 'clients.csv').read_text()
  return results


def last_checkpoint(folder: pathlib.Path) -> checkpoint.Checkpoint:
  """Reads the last checkpoint of a run."""
  with contextlib.closing(
    checkpoint.Checkpoints(folder, keep=2)
  ) as checkpoints:
    saved = checkpoints.newest()
  assert saved is not None
  return saved


def converted_results(folder: pathlib.Path) -> dict[str, str]:
  """Verifies a federation; returns the SHA-256 of each of its files."""
  stored.verify(folder)
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.iterdir()
  }


def debris(folder: pathlib.Path, *, ended: bool) -> list[str]:
  """Lists the files of a folder that are half written.

  Args:
    folder: the folder of a command that was killed, or has ended.
    ended: whether it has ended; after a kill temporary files are allowed.
  """
  found = []
  for path in folder.rglob('*'):
    inside = path.relative_to(folder)
    if ended and (path.name.startswith('.part.') or 'tmp' in path.name):
      found.append(str(inside))
    if path.suffix == '.json' and not any('tmp' in p for p in inside.parts):
      try:
        if not path.name.startswith('.part.'):
          json.loads(path.read_text())
      except (ValueError, FileNotFoundError):
        found.append(str(inside))
  return sorted(found)


def _timeless(content: dict[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in content.items() if k not in _CLOCKS}


def _run(*args: str) -> Setting:
  config = (f'--config={CONFIG}', '--workdir=FOLDER')
  return Setting('run', (*config, *_COMMON, *args), run_results)


def _convert(kind: str, path: str) -> Setting:
  args = (f'--source={kind}', f'--path={path}', '--out=FOLDER', '--shard_mib=1')
  return Setting('convert', args, converted_results)


_SCAFFOLD = ('--config.algorithm=scaffold',)
_CLIENT_TESTS = (
  '--config.holdout_fraction=0.3',
  '--config.client_eval_every=9',
)
SETTINGS = {
  'fedavgm': _run(
    '--config.server.momentum=0.9', '--config.server.learning_rate=0.3'
  ),
  'scaffold, uneven clients': _run(
    *_SCAFFOLD, '--config.partition=dirichlet', '--config.min_size=1'
  ),
  'scaffold, option I with momentum': _run(
    *_SCAFFOLD,
    '--config.client.control=gradient',
    '--config.client.momentum=0.5',
  ),
  'feddyn': _run(
    '--config.algorithm=feddyn', '--config.client.regularization=0.3'
  ),
  'mimelite, stragglers': _run(
    '--config.algorithm=mimelite',
    '--config.server.momentum=0.8',
    '--config.client.learning_rate=0.03',
    '--config.straggler_fraction=0.4',
  ),
  'fednova, momentum on both sides': _run(
    '--config.algorithm=fednova_prox',
    '--config.client.momentum=0.5',
    '--config.server.momentum=0.5',
    '--config.server.nesterov=True',
    '--config.client.schedule=cosine',
    '--config.client.decay=0.2',
    '--config.client.decay_rounds=30',
  ),
  'fedadam': _run(
    '--config.server.optimizer=adam',
    '--config.server.learning_rate=0.03',
    '--config.server.momentum=0.9',
  ),
  'stragglers, a deadline': _run(
    '--config.straggler_fraction=0.4',
    '--config.clock.examples_per_second=30.0',
    '--config.clock.speed_spread=0.5',
    '--config.clock.deadline=6.0',
    '--config.checkpoint.minutes=0.005',
  ),
  'asynchronous': _run(
    '--config.asynchronous.buffer=4',
    '--config.clock.examples_per_second=30.0',
    '--config.clock.speed_spread=1.5',
    '--config.server.momentum=0.5',
  ),
  'streamed': _run(
    '--config.dataset=stored',
    '--config.data_dir=DATA/federation',
    '--config.partition=natural',
    '--config.num_clients=0',
    '--config.client_fraction=0.02',
    '--config.examples_on=host',
  ),
  'client states on disk': _run(*_SCAFFOLD, '--config.client_states_on=disk'),
  'personal tests': _run(*_CLIENT_TESTS, '--config.finetune_epochs=1'),
  'own heads': _run('--config.personal.method=fedper', *_CLIENT_TESTS),
  'own models on disk': _run(
    '--config.personal.method=ditto',
    '--config.client_states_on=disk',
    *_CLIENT_TESTS,
  ),
  'mixed models': _run(
    '--config.personal.method=apfl',
    '--config.personal.alpha_rate=0.01',
    '--config.client_states_on=host',
    *_CLIENT_TESTS,
  ),
  'centred clipping, noise': _run(
    '--config.robust.rule=centred_clipping',
    '--config.robust.clip=1.0',
    '--config.attack.kind=gaussian_noise',
  ),
  'krum on buckets, collusion': _run(
    '--config.robust.rule=krum',
    '--config.robust.attackers=1',
    '--config.robust.bucket_size=2',
    '--config.attack.kind=little_is_enough',
    '--config.partition=dirichlet',
    '--config.min_size=1',
  ),
  'top-k, error feedback': _run(
    '--config.compression.scheme=top_k',
    '--config.compression.error_feedback=True',
    '--config.partition=dirichlet',
    '--config.min_size=1',
  ),
  'scaffold, qsgd, states on disk': _run(
    *_SCAFFOLD,
    '--config.compression.scheme=qsgd',
    '--config.compression.error_feedback=True',
    '--config.compression.per_leaf=True',
    '--config.client_states_on=disk',
  ),
  'private, an adaptive clip': _run(
    '--config.client_fraction=0.2',
    '--config.sampling=poisson',
    '--config.weighting=uniform',
    '--config.on_nan=skip_client',
    '--config.privacy.clip=0.5',
    '--config.privacy.noise_multiplier=0.8',
    '--config.privacy.delta=0.01',
    '--config.privacy.quantile=0.5',
    '--config.privacy.bit_noise=2.0',
  ),
  'loggers': _run('--config.log=csv, tensorboard'),
  'skipped clients': _run(
    '--config.on_nan=skip_client', '--config.client.learning_rate=0.3'
  ),
  'sweep': Setting(
    'sweep',
    (
      f'--config={CONFIG}',
      '--workdir=FOLDER',
      '--grid=client.learning_rate=0.03,0.1',
      '--seeds=2',
      *_COMMON,
    ),
    lambda folder: [
      run_results(path) for path in sorted(folder.glob('*/seed_*'))
    ],
  ),
  'convert leaf': _convert('leaf', 'DATA/leaf'),
  'convert arrays': _convert('arrays', 'DATA/clients.npz'),
  'convert generator': _convert('generator', 'killed_clients:clients'),
}
_GENERATOR = '''"""Generates clients."""

import numpy as np


def clients(first):
  """Yields clients from number `first` on; number -1 is the test set."""
  for k in range(first, 300):
    rng = np.random.default_rng(k + 1)
    size = 20 + k % 30
    yield (
      rng.integers(0, 256, (size, 28, 28), np.uint8),
      rng.integers(0, 10, size),
    )
'''


def make_data(folder: pathlib.Path) -> None:
  """Writes the data that the commands read."""
  (folder / 'killed_clients.py').write_text(_GENERATOR)
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (9000, 28, 28), np.uint8)
  y = rng.integers(0, 10, len(x))
  np.savez(
    folder / 'clients.npz',
    x=x,
    y=y,
    client=rng.integers(0, 200, len(x)),
    x_test=x[:50],
    y_test=y[:50],
  )
  for split, files in (('train', 6), ('test', 1)):
    (folder / 'leaf' / split).mkdir(parents=True)
    for number in range(files):
      users = [f'user {number}-{k}' for k in range(20)]
      data = {
        user: {
          'x': rng.random((30, 64)).round(3).tolist(),
          'y': rng.integers(0, 10, 30).tolist(),
        }
        for user in users
      }
      content = {'users': users, 'num_samples': [30] * 20, 'user_data': data}
      path = folder / 'leaf' / split / f'data_{number}.json'
      path.write_text(json.dumps(content))
