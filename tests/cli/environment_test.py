"""Settings of the environment are applied, or refused in one line."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.testing import PROGRAMS

pytestmark = pytest.mark.slow


def start(tmp_path, repository, *args, command=None, **environment):
  config = repository / 'configs' / 'quickstart.py'
  return subprocess.run(
    command
    or [
      *(sys.executable, '-m', 'fedavg_jax', 'run', f'--config={config}'),
      *('--config.rounds=1', '--config.num_clients=5', '--workdir=run'),
      *('--config.pictures=False', *args),
    ],
    cwd=tmp_path,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=200,
  )


@pytest.mark.parametrize(
  ('name', 'value', 'words'),
  [
    ('JAX_ENABLE_X64', '1', 'JAX_ENABLE_X64 = True: must be off'),
    ('JAX_DISABLE_JIT', '1', 'JAX_DISABLE_JIT = True: must be off'),
    ('JAX_DEBUG_NANS', '1', 'JAX_DEBUG_NANS = True: must be off'),
    ('JAX_PLATFORMS', 'nonsense', "JAX_PLATFORMS = 'nonsense': cannot be used"),
    ('JAX_PLATFORMS', 'rocm', "JAX_PLATFORMS = 'rocm': cannot be used"),
    (
      'JAX_DEFAULT_PRNG_IMPL',
      'dice',
      'JAX_DEFAULT_PRNG_IMPL = dice: JAX',
    ),
    ('JAX_NUM_CPU_DEVICES', 'two', 'JAX_NUM_CPU_DEVICES = two: JAX rejects'),
  ],
)
def test_invalid_settings_of_jax_are_refused(
  name, value, words, tmp_path, repository
):
  process = start(tmp_path, repository, **{name: value})
  assert process.returncode == 2
  (line,) = process.stderr.splitlines()
  assert line.startswith(f'error: {words}')
  assert not list(tmp_path.iterdir())


def test_settings_that_change_bits_are_compared(tmp_path, repository):
  process = start(tmp_path, repository, JAX_DEFAULT_PRNG_IMPL='rbg')
  assert process.returncode == 0, process.stderr
  more = ('--resume=extend', '--config.rounds=2')
  process = start(tmp_path, repository, *more)
  assert process.returncode == 2
  (line,) = process.stderr.splitlines()
  assert "JAX_DEFAULT_PRNG_IMPL = 'threefry2x32': was 'rbg' when" in line
  process = start(tmp_path, repository, *more, JAX_DEFAULT_PRNG_IMPL='rbg')
  assert process.returncode == 0, process.stderr


def test_names_in_unicode_on_a_terminal_of_ascii(tmp_path, repository):
  process = start(
    tmp_path,
    repository,
    '--workdir=é漢',
    '--config.pictures',
    PYTHONIOENCODING='ascii',
    LC_ALL='C',
    MPLBACKEND='nonsense',
  )
  assert process.returncode == 0 and not process.stderr
  assert '\\xe9\\u6f22' in process.stdout
  assert (tmp_path / 'é漢' / 'curves.png').exists()


def test_abandoned_rounds_end_quietly(tmp_path, repository):
  process = start(
    tmp_path, repository, command=[sys.executable, PROGRAMS / 'left_early.py']
  )
  assert process.returncode == 0
  assert process.stdout == 'left\n' and not process.stderr


def in_a_shell(tmp_path, repository, script):
  """Executes a script in a shell; RUN in it is replaced by the command."""
  config = repository / 'configs' / 'quickstart.py'
  run = (
    f'{sys.executable} -m fedavg_jax run --config={config} --config.rounds=4'
    ' --config.checkpoint.rounds=1 --workdir=run'
  )
  command = ['bash', '-c', script.replace('RUN', run)]
  return start(tmp_path, repository, command=command)


def test_few_open_files_are_enough_or_one_line(tmp_path, repository):
  """Many users have a low `ulimit -n`."""
  process = in_a_shell(tmp_path, repository, 'ulimit -n 64; exec RUN')
  assert process.returncode in (0, 1)
  assert process.stderr.count('\n') <= 1 and 'Traceback' not in process.stderr
  assert not list(tmp_path.rglob('*.damaged*'))


def test_a_strict_umask_and_a_full_standard_output(tmp_path, repository):
  """The files are private, and one line says that the output is full."""
  script = 'umask 077; exec RUN > /dev/full'
  process = in_a_shell(tmp_path, repository, script)
  assert process.returncode == 0, process.stderr
  (line,) = process.stderr.splitlines()
  assert 'standard output cannot be written (No space left on device)' in line
  modes = {path.stat().st_mode & 0o077 for path in tmp_path.rglob('*')}
  assert modes == {0}


@pytest.mark.parametrize('command', ['sweep', 'convert'])
def test_commands_whose_stdout_is_closed(command, tmp_path, repository):
  """Whatever happens to the output, the files are the same."""
  np.savez(
    tmp_path / 'clients.npz',
    x=np.zeros((30, 2, 2), np.uint8),
    y=np.arange(30) % 3,
    client=np.arange(30) % 5,
    x_test=np.zeros((3, 2, 2), np.uint8),
    y_test=np.arange(3),
  )
  args = {
    'sweep': f'--config={repository / "configs" / "quickstart.py"}'
    ' --config.rounds=2 --config.num_clients=5 --config.pictures=False'
    ' --seeds=2 --workdir=NAME',
    'convert': '--source=arrays --path=clients.npz --out=NAME',
  }[command]
  script = f'{sys.executable} -m fedavg_jax {command} {args}'
  endings = ('', '| head -1', '>&- 2>&-', '> /dev/full')
  names = []
  for i, end in enumerate(endings):
    name = f'run{i}'
    shell = ['bash', '-c', f'{script.replace("NAME", name)} {end}']
    process = start(tmp_path, repository, command=shell)
    assert 'Traceback' not in process.stderr
    assert process.stderr.count('\n') == ('full' in end), process.stderr
    folder = tmp_path / name
    names.append({str(p.relative_to(folder)) for p in folder.rglob('*')})
  if command == 'sweep':  # Orbax names its files at random.
    names = [{n for n in own if 'checkpoints' not in n} for own in names]
  assert names[0] and names == names[:1] * len(endings)
