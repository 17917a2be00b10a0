"""Joins the processes of a distributed run."""

import contextlib
import ipaddress
import re
import socket
import time

import jax

from fedavg_jax.core.errors import InputError

_SHUTDOWN_SECONDS = 60  # Others may end a little later.
_num_processes: int | None = None  # As given to `connect`.


def connect(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  connect_seconds: int,
  heartbeat_seconds: int,
) -> None:
  """Joins the processes of a run, before JAX starts.

  Arguments that are None are detected by `jax.distributed.initialize` from
  SLURM, Open MPI, Kubernetes or a TPU pod.

  Args:
    coordinator: the address of process 0, HOST:PORT.
    num_processes: the number of processes of the run.
    process_id: the index of this process, from 0.
    connect_seconds: the seconds to wait for the others.
    heartbeat_seconds: the seconds without a sign of life after which a process
      counts as dead.

  Raises:
    InputError: an argument breaks its rule, or the coordinator cannot be
      reached.
  """
  global _num_processes
  _num_processes = num_processes
  host, port = _host_and_port(coordinator) if coordinator else ('', 0)
  if num_processes is not None and process_id is not None:
    if not 0 <= process_id < num_processes:
      raise InputError(
        f'--process_id {process_id}: must be in [0, {num_processes - 1}] with'
        f' --num_processes {num_processes}'
      )
  if coordinator is not None and process_id:
    _reach(coordinator, connect_seconds)
  bind = local_address(host) if process_id == 0 else None
  try:
    jax.distributed.initialize(
      coordinator_address=coordinator,
      coordinator_bind_address=bind and f'{bind}:{port}',
      num_processes=num_processes,
      process_id=process_id,
      initialization_timeout=connect_seconds,
      heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except (OSError, RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise InputError(
      f'--distributed: this process cannot join the others ({reason}); give'
      ' --coordinator, --num_processes and --process_id if they cannot be'
      ' detected from the cluster environment'
    ) from error


def _host_and_port(coordinator: str) -> tuple[str, int]:
  """Splits HOST:PORT; an IPv6 host loses its brackets."""
  found = re.fullmatch(r'([^\s/]+):(\d{1,5})', coordinator)
  if not found or not 1 <= int(found[2]) <= 65535:
    raise InputError(
      f'--coordinator {coordinator}: must be HOST:PORT, with a port in [1,'
      ' 65535]'
    )
  return found[1].strip('[]'), int(found[2])


def local_address(host: str) -> str | None:
  """Returns the address to listen on, so that no other one is open.

  Args:
    host: the name or address by which the other processes reach this one.

  Returns:
    The address of `host` if it belongs to this machine, IPv6 in brackets. None,
    which means every interface, if it does not, or if it is a loopback address
    only here (Debian's 127.0.1.1) and another one for the other processes.
  """
  try:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
  except (OSError, UnicodeError):
    return None
  for family, kind, protocol, _, (number, *_) in found:
    address = str(number)
    loops = ipaddress.ip_address(address).is_loopback
    if loops and host not in ('localhost', address):
      continue
    with contextlib.suppress(OSError):
      with socket.socket(family, kind, protocol) as listener:
        listener.bind((address, 0))
      return f'[{address}]' if ':' in address else address
  return None


def _reach(coordinator: str, seconds: float) -> None:
  """Waits until a process listens at the coordinator's address."""
  host, port = coordinator.rsplit(':', 1)
  ends = time.monotonic() + seconds
  while True:
    try:
      with socket.create_connection((host.strip('[]'), int(port)), timeout=5):
        return
    except (OSError, OverflowError) as error:
      if time.monotonic() > ends:
        raise InputError(
          f'--coordinator {coordinator}: cannot be reached within'
          f' {seconds} s ({error}); process 0 must run there'
        ) from error
    time.sleep(0.2)


def num_processes() -> int:
  """Returns the number of processes of the run."""
  return _num_processes or jax.process_count()
