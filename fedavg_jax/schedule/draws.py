"""Who is drawn for a round: the contract of a draw, and the built-in one.

A draw is one pure function, `(rng, context) -> clients`, which
`Participation.draw` takes. NumPy only.

Shape letters: K clients, M cohort at most, m clients drawn.
"""

from typing import NamedTuple
from typing import Protocol

import numpy as np

from fedavg_jax.core import exact
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule.availability import Trace


class DrawContext(NamedTuple):
  """What a draw may know; it is the same however a federation is computed.

  Attributes:
    round_number: from 1.
    num_examples: [K] int64, n_k of every client; it is read-only.
    cohort_size: M, the most clients that can be drawn.
  """

  round_number: int
  num_examples: np.ndarray
  cohort_size: int

  @property
  def num_clients(self) -> int:
    """K; clients are 0 to K - 1."""
    return len(self.num_examples)


class Draw(Protocol):
  """Draws the clients of a round; a plain function is one.

  It must be pure: it is called more than once for a round, and for any round
  first, because runs resume. All randomness comes from `rng`, which begins anew
  in every round from the seed and the round alone; so lanes, devices and rounds
  per call cannot change a cohort.

  >>> def blocks(rng, context):
  ...   del rng  # Client 0, 1, ... M - 1 in round 1, the next M in round 2.
  ...   m = context.cohort_size
  ...   return ((context.round_number - 1) * m + np.arange(m)) % (
  ...     context.num_clients)
  >>> blocks(None, DrawContext(2, np.array([9, 8, 7, 6, 5]), 2))
  array([2, 3])
  """

  def __call__(
    self, rng: np.random.Generator, context: DrawContext, /
  ) -> np.ndarray:
    """Returns [m] different whole numbers in 0 .. K - 1, with m <= M.

    With m < M the round has fewer clients, with m = 0 it changes nothing.
    """
    ...


def num_unavailable(num_clients: int, unavailable_fraction: float) -> int:
  """Clients that cannot be reached in a round, cut to a whole number."""
  return int(round(unavailable_fraction * num_clients, 6))


def at_random(
  *,
  unavailable_fraction: float = 0.0,
  weights: np.ndarray | None = None,
  trace: Trace | None = None,
) -> Draw:
  """Makes the draw without replacement of clients that are in reach.

  Args:
    unavailable_fraction: of all clients, out of reach in a round, drawn anew.
    weights: [K], a client is drawn in proportion to its weight among those that
      are left, never with a weight of 0; None draws uniformly.
    trace: when clients are in reach; None is always.

  Returns:
    A draw of M clients, or of as many as are in reach where these are fewer.
  """

  def draw(rng: np.random.Generator, context: DrawContext) -> np.ndarray:
    number = context.num_clients
    away = num_unavailable(number, unavailable_fraction)
    drawn = rng.permutation(number)[away:]
    if trace is not None:
      drawn = drawn[trace.available(context.round_number, number)[drawn]]
    if weights is not None:
      own = np.asarray(weights)[drawn]
      drawn, own = drawn[own > 0], own[own > 0]
      # Who arrives first at these rates is drawn in proportion to them, and so
      # is the next among those that are left.
      drawn = drawn[np.argsort(rng.exponential(size=len(drawn)) / own)]
    return drawn[: context.cohort_size]

  return draw


def check_cohort(drawn: object, context: DrawContext) -> np.ndarray:
  """Returns what a draw has given as clients [m] int64.

  Raises:
    InputError: it is of another shape or type, larger than the cohort of a
      plan, names a client that there is not, or one twice.
  """
  where = f'participation.draw, round {context.round_number}'
  clients = exact.array(drawn, where)
  if not clients.size and clients.ndim == 1:
    return np.zeros(0, np.int64)
  if clients.ndim != 1 or clients.dtype.kind not in 'iu':
    raise InputError(
      f'{where}: must return client numbers [m], whole and in one dimension;'
      f' returns {clients.dtype} of shape {list(clients.shape)}'
    )
  if len(clients) > context.cohort_size:
    raise InputError(
      f'{where}: returns {len(clients)} clients; must be at most the'
      f' {context.cohort_size} of a cohort'
    )
  outside = (clients < 0) | (clients >= context.num_clients)
  if outside.any():
    raise InputError(
      f'{where}: returns client {clients[outside.argmax()]}; must be in'
      f' [0, {context.num_clients - 1}]'
    )
  found, times = np.unique(clients, return_counts=True)
  if len(found) < len(clients):
    raise InputError(
      f'{where}: returns client {found[times.argmax()]} {times.max()} times;'
      ' must return each at most once'
    )
  return clients.astype(np.int64)
