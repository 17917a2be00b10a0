"""Records the provenance of results: versions, device, code and data."""

from collections.abc import Sequence
import contextlib
import hashlib
from importlib import metadata
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np

import fedavg_jax
from fedavg_jax.contracts.task import make_task
from fedavg_jax.core import references
from fedavg_jax.core import trees
from fedavg_jax.engine import devices
from fedavg_jax.engine.hyperparameter_axis import Single
from fedavg_jax.runs import builders
from fedavg_jax.runs import checkpoint
from fedavg_jax.runs import fingerprint
from fedavg_jax.runs import own_parts
from fedavg_jax.runs import population
from fedavg_jax.runs.builders import Prepared
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.schedule import sampling

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')


def environment() -> dict[str, Any]:
  """Returns the versions and the device, to be saved with results."""
  device = jax.devices()[0]
  return {
    'python': platform.python_version(),
    'versions': {
      # The version of the running code, even if another one is installed.
      'fedavg_jax': fedavg_jax.__version__,
      **{name: version(name) for name in _PACKAGES},
    },
    'machine': f'{platform.system()} {platform.machine()}',
    'processor': _processor(),
    'cores': os.cpu_count(),
    'platform': device.platform,
    'device': device.device_kind,
    'num_devices': jax.device_count(),
    'num_processes': jax.process_count(),
  }


def code_sha256() -> str:
  """Returns the SHA-256 of this package's modules, in hexadecimal."""
  package, sha = pathlib.Path(__file__).parent.parent, hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    if path.parent == package / 'configs':
      continue  # A wheel has them inside, a clone next to the package.
    content = path.read_bytes()
    sha.update(f'{path.relative_to(package)} {len(content)} '.encode())
    sha.update(content)
  return sha.hexdigest()


def _processor() -> str:
  """Returns the model of the CPU, as Linux reports it where available."""
  with (
    contextlib.suppress(OSError),
    open('/proc/cpuinfo', encoding='utf-8') as file,
  ):
    for line in file:
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor()


def version(name: str) -> str:
  """Returns the version of a package, or 'not installed'."""
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return 'not installed'


def to_begin(cfg: RunConfig, prepared: Prepared) -> dict[str, Any]:
  """Returns the content of config.json for a run that starts here and now."""
  clients = prepared.clients
  test = trees.arrays(tuple(prepared.dataset.test))
  trace = population.build_participation(cfg, clients.num_examples).trace
  periods = () if trace is None else (trace.client, trace.first, trace.last)
  return {
    'config': cfg.to_dict(),
    'data_sha256': checkpoint.digest([*_content(prepared), *test, *periods]),
    'test_sha256': checkpoint.digest(test),
    'numerics': devices.numerics(),
    **_own_code(cfg, prepared),
    **environment(),
  }


def _own_code(cfg: RunConfig, prepared: Prepared) -> dict[str, Any]:
  """Returns the SHA-256 of user-defined files and objects, if there are any."""
  hashes = {'own_code_sha256': own_parts.code_sha256(cfg)}
  from_python = [
    part
    for part in ('model', 'loss', 'metrics', 'algorithm')
    if references.is_from_python(getattr(cfg, part))
  ]
  if from_python:
    clients = prepared.clients
    found = fingerprint.of_parts(
      make_task(prepared.model, prepared.loss, prepared.metrics),
      Single(builders.algorithm_of(cfg, prepared)),
      clients,
      sampling.cohort_size(clients.num_clients, cfg.client_fraction),
    )
    hashes['from_python_sha256'] = {part: found[part] for part in from_python}
  return {name: sha256 for name, sha256 in hashes.items() if sha256}


def _content(prepared: Prepared) -> Sequence[Any]:
  """Returns arrays that identify the clients' data, or their stored SHA-256."""
  clients = prepared.clients
  if prepared.dataset.clients is clients:
    sha256 = bytes.fromhex(prepared.dataset.sha256)
    return [np.frombuffer(sha256, np.uint8), clients.offsets]
  return trees.arrays(tuple(clients))
