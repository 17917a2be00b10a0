"""Joins the processes of a distributed run."""

import contextlib
import ipaddress
import re
import socket
import time

import jax

from fedavg_jax.core.errors import InputError

_SHUTDOWN_SECONDS = 60  # For those that end a little later.
_num_processes: int | None = None  # That `connect` was given.


def connect(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  connect_seconds: int,
  heartbeat_seconds: int,
) -> None:
  """Joins the processes of a run, before JAX starts.

  What is None is found by `jax.distributed.initialize` where SLURM, Open MPI,
  Kubernetes or a TPU pod know it.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: of the run.
    process_id: of this one, from 0.
    connect_seconds: to wait for the others.
    heartbeat_seconds: of silence after which a process counts as dead.

  Raises:
    InputError: what is given cannot be, or the coordinator cannot be reached.
  """
  global _num_processes
  _num_processes = num_processes
  host, port = _host_and_port(coordinator) if coordinator else ('', 0)
  if num_processes is not None and process_id is not None:
    if not 0 <= process_id < num_processes:
      raise InputError(
        f'--process_id {process_id}: must lie in 0 .. {num_processes - 1} with'
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
      ' --coordinator, --num_processes and --process_id where no cluster knows'
      ' them'
    ) from error


def _host_and_port(coordinator: str) -> tuple[str, int]:
  found = re.fullmatch(r'([^\s/]+):(\d{1,5})', coordinator)
  if not found or not 1 <= int(found[2]) <= 65535:
    raise InputError(
      f'--coordinator {coordinator}: must be HOST:PORT, with a port in 1 ..'
      ' 65535'
    )
  return found[1].strip('[]'), int(found[2])


def local_address(host: str) -> str | None:
  """Returns the address to listen on, so that nobody else is listened to.

  Args:
    host: that the other processes name.

  Returns:
    Its address where that is one of this machine, IPv6 in brackets; None, which
    is every interface, where it is not, or where a name of this machine means
    only itself here (Debian's 127.0.1.1), but not to others.
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
      with socket.socket(family, kind, protocol) as own:
        own.bind((address, 0))
      return f'[{address}]' if ':' in address else address
  return None


def _reach(coordinator: str, seconds: float) -> None:
  """Waits until somebody listens there."""
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
  """How many processes the run has, as this one was started."""
  return _num_processes or jax.process_count()
