"""Bad input of a command is one line and an exit code; no file changes."""

import os

import numpy as np
import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.data.catalog import load_dataset
from tests.testing import idx_files


def quickstart(*args):
  return ('quickstart', *args)


CASES = {
  # Sweeps.
  'sweep of nothing': (('sweep',), '--config is missing'),
  'sweep: no such config': (('sweep', 'quikstart'), 'quikstart'),
  'sweep: no such key': (
    ('sweep', *quickstart('--grid=client.lr=0.1', '--workdir=new')),
    '--grid client.lr: unknown key',
  ),
  'sweep: a value that is none': (
    ('sweep', *quickstart('--grid=rounds=many', '--workdir=new')),
    '--grid rounds=many: must be of type int',
  ),
  'sweep: out of range': (
    (
      'sweep',
      *quickstart('--grid=client.learning_rate=0.1,-5', '--workdir=new'),
    ),
    'client.learning_rate = -5.0: must be in',
  ),
  'sweep: twice the same': (
    ('sweep', *quickstart('--grid=rounds=3,3', '--workdir=new')),
    'duplicate value',
  ),
  'sweep: a seed in the grid': (
    ('sweep', *quickstart('--grid=seed=1,2', '--workdir=new')),
    '--grid seed: the seeds are those of --seeds',
  ),
  'sweep: no seeds': (
    ('sweep', *quickstart('--seeds=0', '--workdir=new')),
    '--seeds 0: must be at least 1',
  ),
  'sweep: seeds beyond the last': (
    ('sweep', *quickstart('--seeds=100000000000', '--workdir=new')),
    '--seeds 100000000000: must be at least 1, and the last one',
  ),
  'sweep: the last seed and two more': (
    (
      'sweep',
      *quickstart('--seeds=3', '--config.seed=2147483646', '--workdir=new'),
    ),
    '--seeds 3: must be at least 1, and the last one',
  ),
  'sweep: a seed too large': (
    ('sweep', *quickstart('--config.seed=100000000000', '--workdir=new')),
    'seed = 100000000000: must be in [0, 2147483647]',
  ),
  'sweep: too many runs': (
    ('sweep', *quickstart('--seeds=1000000', '--workdir=new')),
    'request 1,000,000 runs, must be at most 100,000',
  ),
  'sweep: no data': (
    (
      'sweep',
      *quickstart('--config.dataset=leaf', '--config.data_dir=none'),
      '--workdir=new',
    ),
    "data_dir = 'none': must be a file or folder with leaf",
  ),
  'sweep: clients that cannot be': (
    ('sweep', *quickstart('--grid=num_clients=10,5000', '--workdir=new')),
    'num_clients = 5000',
  ),
  'sweep: into a folder of something else': (
    ('sweep', *quickstart('--workdir=full')),
    'workdir = full: exists already',
  ),
  'sweep: into a file': (
    ('sweep', *quickstart('--workdir=file')),
    'workdir = file',
  ),
  # Comparisons.
  'compare: nothing': (('compare',), 'run'),
  'compare: no such folder': (('compare', 'none'), 'none/config.json'),
  'compare: a folder of something else': (
    ('compare', 'full'),
    'full/config.json',
  ),
  'compare: a config of an earlier version': (
    ('compare', 'old'),
    'has format 1, this version reads 2',
  ),
  'compare: a config that is no JSON': (
    ('compare', 'torn'),
    'torn/config.json',
  ),
  'compare: a picture that is there': (
    ('compare', 'old', '--picture=there.png'),
    'there.png: exists already',
  ),
  'compare: a target without an end': (
    ('compare', 'old', '--target=inf'),
    '--target',
  ),
  # Partitions.
  'partition: of nothing': (('partition',), '--config is missing'),
  'partition: a picture of another kind': (
    ('partition', *quickstart('--picture=a.gif')),
    '--picture a.gif: must end with .png',
  ),
  'partition: a picture that is there': (
    ('partition', *quickstart('--picture=there.png')),
    'there.png: exists already',
  ),
  'partition: a picture nowhere': (
    ('partition', *quickstart('--picture=none/a.png')),
    '--picture none/a.png: the folder none does not exist',
  ),
  'partition: by label too many': (
    ('partition', *quickstart('--config.shards_per_client=900')),
    'shards_per_client = 900',
  ),
  'partition: MNIST one folder up': (
    (
      'partition',
      *quickstart('--config.dataset=mnist', '--config.data_dir=data'),
    ),
    'did you mean data/mnist?',
  ),
  'partition: a config that is a pipe': (
    ('partition', '--config=pipe.py'),
    '--config pipe.py: is not a regular file',
  ),
  'partition: a config that is a folder': (
    ('partition', '--config=full'),
    '--config full: is not a regular file',
  ),
  'partition: a config that is a device': (
    ('partition', '--config=/dev/zero'),
    '--config /dev/zero: is not a regular file',
  ),
  'partition: a trace that is a pipe': (
    (
      'run',
      *quickstart('--config.availability_trace=pipe.py', '--workdir=new'),
    ),
    'availability_trace pipe.py: is not a regular file',
  ),
  # Clocks.
  'run: a clock for ever': (
    (
      'run',
      *quickstart('--config.clock.examples_per_second=1e-320', '--workdir=new'),
    ),
    'clock.examples_per_second = 1e-320: must be 0, or in [1e-12, 1e+12]',
  ),
  'run: messages for ever': (
    (
      'run',
      *quickstart(
        '--config.clock.examples_per_second=1.0',
        '--config.clock.megabits_up=1e-320',
        '--workdir=new',
      ),
    ),
    'clock.megabits_up = 1e-320: must be 0, or in',
  ),
  # Configs of the package.
  'config: no word': (('config', 'shw'), 'shw'),
  'config: no name': (('config', 'show'), 'config show'),
  'config: no such name': (('config', 'show', 'quickstrt'), 'quickstrt'),
  'config: a copy over a file': (
    ('config', 'copy', 'quickstart', 'there.png'),
    'there.png',
  ),
  # Conversions.
  'convert: nothing': (('convert',), '--source is missing'),
  'convert: into a file': (
    ('convert', '--source=arrays', '--path=a.npz', '--out=file'),
    'file: is not a directory',
  ),
  'convert: into a folder of something else': (
    ('convert', '--source=arrays', '--path=a.npz', '--out=full'),
    'full: is not empty; choose a new path',
  ),
  'convert: a pipe': (
    ('convert', '--source=arrays', '--path=pipe.py', '--out=new'),
    'must be a file or a folder',
  ),
  'convert: verify something else': (
    ('convert', '--verify=full'),
    'full/federation.json: is missing',
  ),
}


@pytest.fixture
def places(tmp_path):
  """Returns a folder with everything that the commands above name."""
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'thesis.tex').write_text('Years of work.')
  (tmp_path / 'file').write_text('A file.')
  (tmp_path / 'there.png').write_bytes(b'A picture.')
  for name, content in (('old', '{"config": {}}'), ('torn', '{"conf')):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(content)
    (tmp_path / name / 'metrics.jsonl').write_text('{"round": 0}\n')
  os.mkfifo(tmp_path / 'pipe.py')
  (tmp_path / 'data' / 'mnist').mkdir(parents=True)
  x = np.zeros((4, 2, 2), np.uint8)
  np.savez(
    tmp_path / 'a.npz',
    **{'x': x, 'y': np.arange(4), 'client': np.arange(4) // 2},
    **{'x_test': x, 'y_test': np.arange(4)},
  )
  return tmp_path


def listing(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
    for path in folder.rglob('*')
  }


@pytest.mark.parametrize('name', CASES)
def test_one_line_and_nothing_changed(name, command, training_server, places):
  args, words = CASES[name]
  before = listing(places)
  if args[0] == 'sweep':
    outcome = training_server.run(places, *args)
  else:
    outcome = command(*args)
  assert outcome.code == 2, outcome
  (line,) = outcome.err.splitlines()
  assert line.startswith('error: ') and words in line and len(line) < 1200
  assert 'Traceback' not in outcome.out
  assert listing(places) == before


def test_shared_data_are_found(tmp_path, monkeypatch):
  """$FEDAVG_DATA is the folder that contains the data sets' folders."""
  (tmp_path / 'mnist').mkdir()
  idx_files.make_files(tmp_path / 'mnist', 'mnist')
  monkeypatch.setenv('FEDAVG_DATA', str(tmp_path))
  assert len(load_dataset('mnist').train.y) == 60_000
  with pytest.raises(InputError, match='FEDAVG_DATA has none'):
    load_dataset('words')


def test_files_as_kaggle_names_them(tmp_path):
  idx_files.make_files(tmp_path, 'mnist')
  for path in list(tmp_path.iterdir()):
    path.rename(tmp_path / path.name.replace('-idx', '.idx'))
  assert len(load_dataset('mnist', str(tmp_path)).test.y) == 10_000
  for path in list(tmp_path.iterdir()):
    (tmp_path / 'into').mkdir()
    path.rename(tmp_path / 'into' / path.name)
    (tmp_path / 'into').rename(path)
  assert len(load_dataset('mnist', str(tmp_path)).test.y) == 10_000
