"""What XLA compiles is read again on the same machine, and only if intact."""

import json
import os
import pathlib
import subprocess
import sys
import types

from absl import logging
import numpy as np
import pytest

from fedavg_jax.core import client_data
from fedavg_jax.data import partition
from fedavg_jax.engine import cache_entries
from fedavg_jax.engine import compile_cache
from fedavg_jax.schedule import planning
from tests.testing import PROGRAMS

_WRONG = (
  b'E1128 02:15:53.829572   15471 cpu_aot_loader.cc:195] Loading XLA:CPU AOT'
  b' result. Target machine feature +prefer-no-%s is not  supported on the'
  b" host machine. Machine type used for XLA:CPU compilation doesn't match\n"
)


def outcomes(folder, *cases):
  """Returns what each of several processes read, compiled and computed."""
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('JAX_', 'TF_'))
  }
  process = subprocess.run(
    [sys.executable, PROGRAMS / 'cached_programs.py', *cases],
    env=environment | {'XDG_CACHE_HOME': str(folder)},
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert process.returncode == 0, process.stderr
  return [json.loads(line) for line in process.stdout.splitlines()]


def test_a_second_process_and_another_seed_compile_nothing(tmp_path):
  first, again = outcomes(tmp_path, 'first', 'again')
  assert not first['read'] and first['compiled']
  # Equal keys: neither the seed nor the sizes of clients are in the program.
  assert again['compiled'] == 0 and again['read'] >= first['compiled']
  assert again['stderr'] == ''  # XLA's lines about its own processor, too.
  same, other = again['models']
  assert first['models'] == [same] and other != same
  modes = {path.stat().st_mode & 0o077 for path in tmp_path.rglob('*')}
  assert modes == {0}


def test_the_other_seed_has_other_sizes():
  """The seeds of the test above need different plans."""
  y = np.random.default_rng(0)
  y.normal(size=(90, 4))
  y = y.integers(0, 3, 90)
  longest = set()
  for seed in (0, 1):
    parts = partition.dirichlet(
      y, num_clients=10, alpha=5.0, min_size=1, seed=seed
    )
    clients = client_data.build_clients(client_data.Examples(y, y), parts)
    planner = planning.Planner(
      num_examples=clients.num_examples,
      cohort_size=5,
      epochs=1,
      batch_size=4,
      seed=seed,
    )
    longest.add(planner._longest_lane)
  assert len(longest) == 2


@pytest.mark.slow
def test_damaged_and_foreign_programs_are_compiled_again(tmp_path):
  first, damaged, other = outcomes(
    tmp_path, 'first', 'damaged', 'other processor'
  )
  assert damaged['read'] == 0 and damaged['compiled'] == first['compiled']
  (line,) = damaged['stderr'].splitlines()
  assert 'the compilation cache has damaged files' in line
  assert other == first
  assert damaged['models'] == first['models']


class Settings(types.SimpleNamespace):
  """Replaces JAX and its settings."""

  __version__ = '0.10.1'

  def __init__(self, **changes):
    super().__init__(
      jax_compilation_cache_dir=None,
      jax_enable_compilation_cache=True,
      jax_persistent_cache_min_compile_time_secs=1.0,
      jax_compilation_cache_max_size=-1,
    )
    self.__dict__.update(changes)
    self.config = self

  def update(self, name, value):
    setattr(self, name, value)


@pytest.fixture
def turn_on(monkeypatch, tmp_path):
  """Returns a function that turns the cache on; it returns the folders."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.delenv(
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', raising=False
  )

  def turn_on(**changes):
    used = []
    settings = Settings(**changes)
    monkeypatch.setattr(compile_cache, 'jax', settings)
    monkeypatch.setattr(compile_cache, '_tried', [])
    monkeypatch.setattr(cache_entries, 'use', used.append)
    compile_cache.turn_on()
    compile_cache.turn_on()
    return used, settings

  return turn_on


def test_it_is_on_unless_jax_has_settings(turn_on, tmp_path):
  (folder,), settings = turn_on()
  assert folder.parent == tmp_path / 'cache' / 'fedavg_jax'
  assert folder.name.startswith('jax-0.10.1-')
  assert folder.stat().st_mode & 0o777 == 0o700
  assert settings.jax_persistent_cache_min_compile_time_secs == 0.1
  for own in (
    {'jax_compilation_cache_dir': '/mine'},
    {'jax_enable_compilation_cache': False},
  ):
    used, settings = turn_on(**own)
    assert used == []
    assert settings.jax_persistent_cache_min_compile_time_secs == 1.0
  _, settings = turn_on(jax_persistent_cache_min_compile_time_secs=7.0)
  assert settings.jax_persistent_cache_min_compile_time_secs == 7.0


def test_jax_limits_a_plain_folder(turn_on):
  used, settings = turn_on(jax_compilation_cache_max_size=1000)
  assert used == []
  assert settings.jax_compilation_cache_dir == str(
    compile_cache.default_folder()
  )


def test_the_folder_is_that_of_the_processor(turn_on, monkeypatch):
  (here,), _ = turn_on()
  monkeypatch.setattr(compile_cache, 'processor', lambda: 'flags: avx512f')
  (there,), _ = turn_on()
  assert here.parent == there.parent and here != there


def as_file(path):
  path.parent.parent.mkdir(parents=True)
  path.parent.write_text('mine')


def as_link(path):
  path.parent.mkdir(parents=True)
  elsewhere = path.parent.parent / 'elsewhere'
  elsewhere.mkdir()
  path.symlink_to(elsewhere)


def for_all(path):
  path.mkdir(parents=True)
  path.chmod(0o777)


def of_others(path):
  path.mkdir(parents=True)
  try:
    os.chown(path, 12345, -1)
  except PermissionError:
    pytest.skip('giving a folder away needs rights')


@pytest.mark.parametrize('make', [as_file, as_link, for_all, of_others])
def test_a_folder_that_is_not_private_is_not_used(make, turn_on, caplog):
  make(compile_cache.default_folder())
  logging.use_python_logging(quiet=True)
  with caplog.at_level('WARNING'):
    used, _ = turn_on()
  assert used == []
  (line,) = caplog.messages
  assert 'is not used: ' in line and '\n' not in line


def sealed(folder, content=b'program'):
  path = cache_entries.SealedPath(f'fedavg-jax-compiled://{folder}') / 'name'
  path.write_bytes(content)
  return path


@pytest.mark.parametrize('size', [0, 3, 31, 32, 38])
def test_half_a_file_is_deleted(size, tmp_path):
  path = sealed(tmp_path)
  plain = pathlib.Path(os.fspath(path))
  assert plain == tmp_path / 'name' and path.exists()
  plain.write_bytes(plain.read_bytes()[:size])
  assert not path.exists() and list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_warning(tmp_path, monkeypatch, caplog):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with caplog.at_level('WARNING'):
    path = sealed(tmp_path)
  assert not path.exists() and list(tmp_path.iterdir()) == []
  assert sum('No space left' in line for line in caplog.messages) <= 1


def test_the_oldest_files_make_room(tmp_path):
  for i, name in enumerate(('b', 'c', 'a')):
    (tmp_path / name).write_bytes(b'x' * 10)
    os.utime(tmp_path / name, (i, i))
  cache_entries.delete_oldest(tmp_path, most_bytes=25)
  assert {path.name for path in tmp_path.iterdir()} == {'a', 'c'}


def test_only_the_wrong_lines_are_dropped(capfd, tmp_path):
  path = sealed(tmp_path)
  kept = b'E1128 cpu_aot_loader.cc:195] Target machine feature +amx-int8\n'
  assert path.exists() and path.read_bytes() == b'program'
  for line in (_WRONG % b'gather', kept, _WRONG % b'scatter', b'no newline'):
    os.write(2, line)
  assert capfd.readouterr().err == ''
  cache_entries._after_compiling('/jax/another/event', 1.0)
  assert capfd.readouterr().err == ''
  for _ in range(2):
    cache_entries._after_compiling(cache_entries._COMPILED, 1.0)
  assert capfd.readouterr().err.encode() == kept + b'no newline'


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
def test_a_forked_process_and_other_backends_write_at_once(
  capfd, tmp_path, monkeypatch
):
  path = sealed(tmp_path)
  assert path.exists() and path.read_bytes() == b'program'
  cache_entries._restore_in_child()  # What a fork does in its child.
  os.write(2, b'child\n')
  assert capfd.readouterr().err == 'child\n'
  monkeypatch.setattr(cache_entries.jax, 'default_backend', lambda: 'gpu')
  assert path.read_bytes() == b'program'
  os.write(2, b'gpu\n')
  assert capfd.readouterr().err == 'gpu\n'
