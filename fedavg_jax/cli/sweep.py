"""Runs a grid of settings with several seeds each; writes a table, a picture.

fedavg-jax sweep quickstart --seeds 3 --workdir outputs/grid
  --grid client.learning_rate=0.03,0.1,0.3 --grid client.epochs=1,5

Values that contain commas are separated by semicolons:
--grid "sizes=equal;600,900". Flags that begin with the same key are
alternatives, each with its own further keys:

fedavg-jax sweep quickstart --seeds 3 --grid client.learning_rate=0.03,0.1
  --grid algorithm=fedavg --grid "algorithm=fedprox client.proximal=0.1,1"

Settings that differ only in numbers such as the learning rate are trained
together, in the same compiled calls; others in turn. Every run has its own
folder, like those of `fedavg-jax run`. The same command resumes an interrupted
sweep; with further values or seeds it runs those that are missing, and with
more --config.rounds it continues all. The tables have all of them: means,
standard deviations and differences over the seeds.

What XLA compiles is kept in $XDG_CACHE_HOME/fedavg_jax or ~/.cache/fedavg_jax;
the environment variable JAX_ENABLE_COMPILATION_CACHE=0 turns this off.
"""

from collections.abc import Sequence
import itertools
import re
from typing import Any

from absl import flags
from etils import epy

from fedavg_jax.cli import command
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs.run_dir import default_workdir

with epy.lazy_imports():  # It imports JAX.
  from fedavg_jax.runs import grid


def _parse(texts: Sequence[str]) -> list[dict[str, list[str]]]:
  """Returns the grids of all --grid flags, each key -> values.

  Every setting has the keys of one flag of each first key: flags with the same
  one are alternatives, others are combined.
  """
  alternatives: dict[str, list[dict[str, list[str]]]] = {}
  for text in texts:
    block = _block(text)
    alternatives.setdefault(next(iter(block)), []).append(block)
  grids = []
  for chosen in itertools.product(*alternatives.values()):
    keys = list(itertools.chain.from_iterable(chosen))
    for key in keys:
      if keys.count(key) > 1:
        raise InputError(
          f'--grid {key}: duplicate key; alternatives begin with the same key,'
          " such as 'algorithm=fedavg' and 'algorithm=fedprox ...'"
        )
    grids.append({key: one[key] for one in chosen for key in one})
  return grids


def _block(text: str) -> dict[str, list[str]]:
  """Returns key -> values of one --grid flag, 'key=a,b key=c'."""
  block: dict[str, list[str]] = {}
  # A value may contain spaces, but not another key.
  for part in re.split(r'\s+(?=[\w.]+=)', text.strip()):
    key, equals, values = part.partition('=')
    separated = values.split(';' if ';' in values else ',')
    if not equals or not all(separated):
      raise InputError(f'--grid {text}: must be key=value,value,...')
    if key in block:
      raise InputError(f'--grid {text}: {key}: duplicate key')
    block[key] = separated
  return block


def define_flags() -> None:
  """Defines the flags of the command."""
  command.define_config()
  flags.DEFINE_multi_string(
    'grid',
    None,
    'An option and its values, key=value,value; once per option, or per'
    " alternative, 'key=value key=value,value'.",
  )
  flags.DEFINE_integer('seeds', 1, 'Number of seeds per setting.')
  flags.DEFINE_string(
    'workdir',
    None,
    'New folder, or that of an interrupted sweep, which resumes; default'
    ' outputs/<date>/<time>_<config>_sweep.',
  )
  flags.DEFINE_string(
    'choose_on',
    'validation',
    'Set on which the best setting is chosen: validation, of'
    ' config.validation_fraction, or test.',
  )


def main(argv: Sequence[str]) -> int:
  """Executes the sweep that the flags describe; returns the exit code."""
  return command.run(_run, argv)


def _run() -> None:
  config, name = command.read_config()
  workdir = command.read_path('workdir', default_workdir(f'{name}_sweep'))
  values = _parse(flags.FLAGS['grid'].value or [])
  seeds: Any = flags.FLAGS['seeds'].value
  choose_on: Any = flags.FLAGS['choose_on'].value
  grid.run_sweep(config, values, seeds, workdir, choose_on=choose_on)
