"""Process 0 uses the named address where it is local."""

import re
import socket

import pytest

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import distributed


@pytest.mark.parametrize(
  'coordinator',
  [
    *('nonsense', 'localhost:99999', 'localhost:0', ':1', 'a/b:3', 'a b:3'),
    *('localhost:', 'localhost:-1', 'localhost:port', 'localhost:123456'),
  ],
)
def test_invalid_coordinators_are_refused(coordinator):
  with pytest.raises(
    InputError, match=re.escape(f'--coordinator {coordinator}: must be HOST:')
  ):
    distributed.connect(
      coordinator, 2, 0, connect_seconds=1, heartbeat_seconds=1
    )


@pytest.mark.parametrize('host', ['localhost', '127.0.0.1'])
def test_a_loopback_listens_on_loopback_alone(host):
  address = distributed.local_address(host)
  assert address in ('127.0.0.1', '[::1]')


@pytest.mark.parametrize('host', ['192.0.2.7', 'host.invalid', 'a' * 300, ''])
def test_other_hosts_are_not_local(host):
  """One is an address for documentation, one a name without a host."""
  assert distributed.local_address(host) is None


def test_a_hosts_file_name_is_not_reachable(monkeypatch):
  """Debian has such a line in /etc/hosts; other machines cannot use it."""
  found = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.1.1', 0))]
  monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: found)
  assert distributed.local_address('myhost') is None
