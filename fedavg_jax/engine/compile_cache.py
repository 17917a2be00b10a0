"""Turns on JAX's compilation cache, in a private folder of this machine.

A later process then reads what XLA has compiled, instead of compiling it again.
Settings of JAX take precedence: a folder of the user's (for example in the
environment variable JAX_COMPILATION_CACHE_DIR) is used as it is, and
JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import stat
import subprocess
from typing import Any

from absl import logging
import jax

from fedavg_jax.engine import cache_entries

# Smaller programs compile about as fast as they are read.
_LEAST_COMPILE_SECONDS = 0.1
_MOST_BYTES = 2**29
_JAX_SECONDS = 'jax_persistent_cache_min_compile_time_secs'
_tried: list[pathlib.Path] = []


def turn_on() -> None:
  """Turns the cache on for this process, unless JAX has settings for it.

  Has an effect once per process. A folder that cannot be used is one warning;
  the process then compiles everything itself.

  >>> import jax
  >>> folder = jax.config.jax_compilation_cache_dir
  >>> turn_on()  # The tests have a folder of their own.
  >>> jax.config.jax_compilation_cache_dir == folder
  True
  """
  config: Any = jax.config
  if (
    _tried
    or config.jax_compilation_cache_dir
    or not config.jax_enable_compilation_cache
  ):
    return
  folder = default_folder()
  _tried.append(folder)
  try:
    make_private(folder)
    cache_entries.delete_oldest(folder, _MOST_BYTES)
  except OSError as error:
    logging.warning(
      'the compilation cache %s is not used: %s',
      folder,
      error.strerror or error,
    )
    return
  if config.jax_compilation_cache_max_size == -1:
    cache_entries.use(folder)
  else:  # JAX deletes files itself, in ways that sealed paths do not have.
    jax.config.update('jax_compilation_cache_dir', os.fspath(folder))
  # JAX's default is a second.
  if (
    _JAX_SECONDS.upper() not in os.environ
    and getattr(config, _JAX_SECONDS) == 1.0
  ):
    jax.config.update(_JAX_SECONDS, _LEAST_COMPILE_SECONDS)


def default_folder() -> pathlib.Path:
  """Returns the folder of this user, version of JAX and kind of machine.

  Compiled programs have instructions that another processor may not have.
  """
  base = os.environ.get('XDG_CACHE_HOME', '')
  if not os.path.isabs(base):  # The standard ignores relative paths.
    base = os.path.expanduser('~/.cache')
  sha256 = hashlib.sha256(processor().encode()).hexdigest()
  return (
    pathlib.Path(base) / 'fedavg_jax' / f'jax-{jax.__version__}-{sha256[:16]}'
  )


def processor() -> str:
  """Describes the instructions that this machine's processor has."""
  system = platform.system()
  known = [system, platform.machine()]
  with contextlib.suppress(OSError):
    text = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8')
    lines = [line.partition(':') for line in text.splitlines()]
    # Equal for all cores, or the instructions of each kind of core.
    return '\n'.join(
      known
      + sorted(
        {
          f'{name.strip()}:{value}'
          for name, _, value in lines
          if name.strip() in ('flags', 'Features', 'model name', 'CPU part')
        }
      )
    )
  if system == 'Darwin':
    with contextlib.suppress(OSError):
      name = subprocess.run(
        ['/usr/sbin/sysctl', '-n', 'machdep.cpu.brand_string'],
        capture_output=True,
        text=True,
        check=False,
      )
      return '\n'.join([*known, name.stdout])
  # Unknown: a folder for each machine.
  return '\n'.join([*known, platform.processor(), platform.node()])


def make_private(folder: pathlib.Path) -> None:
  """Creates a folder that only this user may use, or checks that it is one.

  Raises:
    OSError: it cannot be created or written, or somebody else may write to it,
      whose machine code this process would execute.
  """
  folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
  folder.mkdir(exist_ok=True, mode=0o700)
  if hasattr(os, 'getuid'):  # Windows has private folders, but no modes.
    for path in (folder.parent, folder):
      found = path.stat(follow_symlinks=False)
      if not stat.S_ISDIR(found.st_mode):
        raise OSError(f'{path} is not a folder')
      if found.st_uid != os.getuid():
        raise OSError(f'{path} belongs to another user')
      if found.st_mode & 0o022:
        raise OSError(f'{path} can be written by other users')
    if stat.S_IMODE(folder.stat().st_mode) != 0o700:
      folder.chmod(0o700)
  cache_entries.check_writable(folder)
