"""Sets up JAX's devices, and measures their free memory."""

import contextlib
import os
import pathlib
from typing import Any

import jax

from fedavg_jax.core.errors import InputError


def use_cpu_devices(number: int) -> None:
  """Makes each CPU core a virtual device; must run before JAX starts.

  One small step cannot use several cores, but several clients can. Has no
  effect if JAX is running already, on accelerators, or if JAX_NUM_CPU_DEVICES
  or XLA_FLAGS set the number of CPU devices.

  Args:
    number: the number of devices; 0 makes one per core that this process may
      use.

  >>> import jax
  >>> import fedavg_jax as fa
  >>> devices = jax.devices()  # JAX is running from here on:
  >>> fa.use_cpu_devices(len(devices) + 1)
  >>> jax.devices() == devices
  True
  """
  config: Any = jax.config
  flags = os.environ.get('XLA_FLAGS', '')
  if config.jax_num_cpu_devices > 0 or 'host_platform_device_count' in flags:
    return
  with contextlib.suppress(RuntimeError):  # JAX is running already.
    jax.config.update('jax_num_cpu_devices', number or num_cores())


def check_jax() -> None:
  """Checks that JAX has a device, and settings with which rounds can run.

  Raises:
    InputError: `JAX_PLATFORMS` names an absent platform; or JAX is set to
      compute with 64 bits, without compiling, or with its checks for NaN.
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
        f'{name.upper()} = True: must be off; idle lanes compute on unused'
        ' data, and rounds report NaN and Inf themselves'
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
  """Returns the settings of JAX, by name, that affect numerical results."""
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
  """Counts the CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # Only some systems can pin processes.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def free_bytes(device: jax.Device) -> int | None:
  """Returns the free memory of a device in bytes; None if unknown."""
  if device.platform == 'cpu':
    return _free_host_bytes()
  stats = _memory_stats(device)
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats['bytes_in_use']


def total_bytes(device: jax.Device) -> int | None:
  """Returns the memory of an accelerator in bytes; None if unknown."""
  return _memory_stats(device).get('bytes_limit')


def _memory_stats(device: jax.Device) -> dict[str, int]:
  """Returns what a device reports of its memory, {} if it reports nothing."""
  try:
    return device.memory_stats() or {}
  except jax.errors.JaxRuntimeError:  # A topology without its devices.
    return {}


def _free_host_bytes() -> int | None:
  """Returns the available host memory in bytes, None if not on Linux.

  Counts file caches as available, and respects a container's limit.
  """
  try:
    lines = (
      pathlib.Path('/proc/meminfo').read_text(encoding='utf-8').splitlines()
    )
  except OSError:
    return None
  sizes = dict(line.split(':') for line in lines)
  free = int(sizes['MemAvailable'].split()[0]) * 1024
  group = pathlib.Path('/sys/fs/cgroup')
  with contextlib.suppress(OSError, ValueError):  # No limit, or an unknown one.
    limit = int((group / 'memory.max').read_text())
    free = min(free, limit - int((group / 'memory.current').read_text()))
  return free
