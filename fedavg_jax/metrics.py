"""Rounds to a target, and the versions and device beside every number."""

import contextlib
import hashlib
from importlib import metadata
import os
import pathlib
import platform
from typing import Any

import jax

_PACKAGES = ('fedavg_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')


def environment() -> dict[str, Any]:
  """Versions and device, to stand beside every number."""
  device = jax.devices()[0]
  return {
    'python': platform.python_version(),
    'versions': {name: _version(name) for name in _PACKAGES},
    'machine': f'{platform.system()} {platform.machine()}',
    'processor': _processor(),
    'cores': os.cpu_count(),
    'platform': device.platform,
    'device': device.device_kind,
    'num_devices': jax.device_count(),
    'num_processes': jax.process_count(),
  }


def code_sha256() -> str:
  """SHA-256 of this package's modules, in hexadecimal."""
  package, sha = pathlib.Path(__file__).parent, hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    content = path.read_bytes()
    sha.update(f'{path.relative_to(package)} {len(content)} '.encode())
    sha.update(content)
  return sha.hexdigest()


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

  It tests the model after rounds 1 .. 10, then every 10 up to 100, then every
  100, takes the running maximum of these accuracies alone, and interpolates
  linearly between them. None where the target was not seen there: not reached,
  stopped before the next of these rounds, or one of them not evaluated.

  >>> rounds_to_target_paper_grid([*range(11), 20], [0.5] * 11 + [0.7], 0.6)
  15.0
  """
  seen = dict(zip(rounds, accuracies, strict=True))
  before, best = 0, seen.get(0, 0.0)
  while (number := _next_on_paper_grid(before)) in seen:
    if seen[number] >= target:
      if before == 0:
        return float(number)
      share = (target - best) / (seen[number] - best)
      return float(before + (number - before) * share)
    before, best = number, max(best, seen[number])
  return None


def _processor() -> str:
  """The CPU's model, where Linux tells it."""
  with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
    for line in file:
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor()


def on_paper_grid(number: int) -> bool:
  """Whether the paper evaluates after this round."""
  return number <= 10 or number % (10 if number <= 100 else 100) == 0


def _next_on_paper_grid(number: int) -> int:
  return number + (1 if number < 10 else 10 if number < 100 else 100)


def _version(name: str) -> str:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return 'not installed'
