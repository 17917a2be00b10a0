"""The devices of this machine and their free memory."""

import contextlib
import os
import pathlib
from typing import Any

import jax

from fedavg_jax.core.errors import InputError


def use_cpu_devices(number: int) -> None:
  """Gives each CPU core a virtual device of its own: before JAX starts.

  A small step cannot feed several cores, whole clients can. Without effect
  where JAX runs already, on accelerators, or where JAX_NUM_CPU_DEVICES or
  XLA_FLAGS have decided.

  Args:
    number: of devices, 0 for one per core this process may use.
  """
  config: Any = jax.config
  flags = os.environ.get('XLA_FLAGS', '')
  if config.jax_num_cpu_devices > 0 or 'host_platform_device_count' in flags:
    return
  with contextlib.suppress(RuntimeError):  # JAX runs already: keep its devices.
    jax.config.update('jax_num_cpu_devices', number or num_cores())


def check_jax() -> None:
  """Makes sure that JAX has a device, and settings that rounds can have.

  Raises:
    InputError: `JAX_PLATFORMS` names what is not here, or JAX is set to compute
      with 64 bits or without compiling.
  """
  config: Any = jax.config
  if config.jax_enable_x64:
    raise InputError(
      'JAX_ENABLE_X64 = True: must be off; plans and models have 32 bits'
    )
  if config.jax_disable_jit:
    raise InputError(
      'JAX_DISABLE_JIT = True: must be off; a round is one compiled call'
    )
  for name in ('jax_debug_nans', 'jax_debug_infs'):
    if getattr(config, name):
      raise InputError(
        f'{name.upper()} = True: must be off; idle lanes compute on anything,'
        ' and a round that is not finite says so itself'
      )
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    reason = (str(error).strip() or 'no device of this kind').splitlines()[0]
    raise InputError(
      f'JAX_PLATFORMS = {config.jax_platforms!r}: cannot be used on this'
      f' machine ({reason[:160]})'
    ) from error


def numerics() -> dict[str, Any]:
  """Returns those settings of JAX, by name, that change what is computed."""
  config: Any = jax.config
  return {
    name.upper(): getattr(config, name)
    for name in (
      'jax_default_prng_impl',
      'jax_threefry_partitionable',
      'jax_default_matmul_precision',
      'jax_numpy_dtype_promotion',
    )
  }


def num_cores() -> int:
  """CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # Where a process can be pinned.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def free_bytes(device: jax.Device) -> int | None:
  """Free memory of a device, None where it does not say or is not here."""
  if device.platform == 'cpu':
    return _free_host_bytes()
  try:
    stats = device.memory_stats()
  except jax.errors.JaxRuntimeError:  # Of a topology without its devices.
    return None
  if not stats or 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats['bytes_in_use']


def _free_host_bytes() -> int | None:
  """What Linux would give, file caches and a container's limit considered."""
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return None
  sizes = dict(line.split(':') for line in lines)
  free = int(sizes['MemAvailable'].split()[0]) * 1024
  group = pathlib.Path('/sys/fs/cgroup')
  with contextlib.suppress(OSError, ValueError):  # No limit, or none is known.
    limit = int((group / 'memory.max').read_text())
    free = min(free, limit - int((group / 'memory.current').read_text()))
  return free
