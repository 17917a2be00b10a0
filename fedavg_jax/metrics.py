"""What a run leaves behind: a folder of JSON, and a line per round."""

import datetime
from importlib import metadata
import json
import math
import os
import pathlib
import platform
import shutil
from typing import Any

import jax
import numpy as np

from fedavg_jax.errors import InputError

_PACKAGES = ('fedavg_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')


def default_workdir(name: str) -> pathlib.Path:
  """outputs/<date>/<time>_<config>, numbered where that is taken."""
  now = datetime.datetime.now()
  folder = pathlib.Path('outputs') / now.strftime('%Y-%m-%d')
  stem = f'{now:%H-%M-%S}_{name}'
  path, number = folder / stem, 2
  while path.exists():
    path, number = folder / f'{stem}_{number}', number + 1
  return path


def environment() -> dict[str, Any]:
  """Versions and device, to stand beside every number."""
  device = jax.devices()[0]
  return {
    'python': platform.python_version(),
    'versions': {name: _version(name) for name in _PACKAGES},
    'machine': f'{platform.system()} {platform.machine()}',
    'cores': os.cpu_count(),
    'platform': device.platform,
    'device': device.device_kind,
    'num_devices': jax.device_count(),
  }


def refuse_existing(workdir: pathlib.Path) -> None:
  """Raises InputError where a run would find its folder there already."""
  if workdir.exists():
    raise InputError(
      f'workdir = {workdir}: exists already; name a new folder, nothing is ever'
      ' written over'
    )


def refuse_full(workdir: pathlib.Path, room: int) -> None:
  """Raises InputError where fewer than `room` bytes are free."""
  here = next(path for path in (workdir, *workdir.parents) if path.exists())
  free = shutil.disk_usage(here).free
  if free < room:
    raise InputError(
      f'workdir = {workdir}: {free / 2**20:.1f} MiB are free, a run needs'
      f' {room / 2**20:.1f}'
    )


class RunWriter:
  """Writes into a folder that did not exist before.

  Attributes:
    workdir: the folder.
  """

  def __init__(self, workdir: pathlib.Path, *, room: int):
    """Makes the folder.

    Args:
      workdir: the new folder.
      room: bytes that must be free.

    Raises:
      InputError: it is there already, cannot be made or has no room.
    """
    refuse_existing(workdir)
    refuse_full(workdir, room)
    self.workdir = workdir
    try:
      workdir.mkdir(parents=True, exist_ok=False)
    except OSError as error:
      raise InputError(
        f'workdir = {workdir}: cannot be made ({error.strerror})'
      ) from error
    self._lines = open(workdir / 'metrics.jsonl', 'x', encoding='utf-8')

  def round(self, record: dict[str, Any]) -> None:
    """Appends a line to metrics.jsonl; it is on disk when this returns."""
    self._lines.write(_dumps(record) + '\n')
    self._lines.flush()

  def json(self, name: str, content: dict[str, Any]) -> None:
    """Writes a new JSON file."""
    with open(self.workdir / name, 'x', encoding='utf-8') as file:
      file.write(_dumps(content, indent=2) + '\n')

  def close(self) -> None:
    """Closes metrics.jsonl."""
    self._lines.close()


def rounds_to_target(
  rounds: list[int], accuracies: list[float], target: float
) -> int | None:
  """First evaluated round whose accuracy is at least the target, or None."""
  for number, accuracy in zip(rounds, accuracies, strict=True):
    if accuracy >= target:
      return number
  return None


def rounds_to_target_paper_grid(
  rounds: list[int], accuracies: list[float], target: float
) -> float | None:
  """Rounds to the target as the paper measures them.

  The running maximum of the accuracy, seen only at rounds 1 .. 10, then every
  10 up to 100, then every 100, and interpolated linearly between those. None
  where the target was not seen there: not reached, stopped before the next of
  these rounds, or one of them not evaluated.
  """
  best = dict(zip(rounds, np.maximum.accumulate(accuracies), strict=True))
  before = 0
  while (number := _next_on_paper_grid(before)) in best:
    if best[number] >= target:
      if before == 0:
        return float(number)
      share = (target - best[before]) / (best[number] - best[before])
      return float(before + (number - before) * share)
    before = number
  return None


def _next_on_paper_grid(number: int) -> int:
  return number + (1 if number < 10 else 10 if number < 100 else 100)


def _version(name: str) -> str:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return 'not installed'


def _dumps(content, indent=None) -> str:
  """JSON without NaN, which JSON does not have: null stands for it."""

  def plain(value):
    if isinstance(value, dict):
      return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
      return [plain(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
      return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
      return None
    return value

  return json.dumps(plain(content), indent=indent, allow_nan=False)
