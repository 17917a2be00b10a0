"""Defines the contract of a draw of clients, and the built-in draw.

A draw is one pure function, `(rng, context) -> clients`, which
`Participation.draw` takes. NumPy only.

Shape letters: K clients, M cohort size, m <= M clients drawn.
"""

from typing import NamedTuple
from typing import Protocol

import numpy as np

from fedavg_jax.core import exact
from fedavg_jax.core.errors import InputError
from fedavg_jax.schedule.availability import Trace


class DrawContext(NamedTuple):
  """Describes a round to a draw, independently of lanes and devices.

  >>> import fedavg_jax as fa
  >>> context = fa.schedule.DrawContext(
  ...   round_number=1, num_examples=np.array([9, 8, 7]), cohort_size=2)
  >>> context.num_clients
  3

  Attributes:
    round_number: the round, counted from 1.
    num_examples: [K] int64, n_k of every client; read-only.
    cohort_size: M, the maximum number of clients drawn.
    rate: q, the probability with which `poisson` draws each client; 0 for the
      draws of a fixed number.
  """

  round_number: int
  num_examples: np.ndarray
  cohort_size: int
  rate: float = 0.0

  @property
  def num_clients(self) -> int:
    """Returns K; clients are 0 to K - 1."""
    return len(self.num_examples)


class Draw(Protocol):
  """Draws the clients of a round; a plain function does.

  It must be pure: it is called more than once for a round, and its first call
  may be for any round, because runs resume. All randomness comes from `rng`,
  which is seeded anew in every round from the seed and the round alone, so
  lanes, devices and rounds per call cannot change a cohort.

  >>> def blocks(rng, context):
  ...   del rng  # Clients 0, 1, ... M - 1 in round 1, the next M in round 2.
  ...   m = context.cohort_size
  ...   return ((context.round_number - 1) * m + np.arange(m)) % (
  ...     context.num_clients)
  >>> blocks(None, DrawContext(2, np.array([9, 8, 7, 6, 5]), 2))
  array([2, 3])
  """

  def __call__(
    self, rng: np.random.Generator, context: DrawContext, /
  ) -> np.ndarray:
    """Returns [m] distinct integers in [0, K - 1], with m <= M.

    With m < M the round has fewer clients; with m = 0 it changes nothing.
    """
    ...


def num_unavailable(num_clients: int, unavailable_fraction: float) -> int:
  """Returns how many clients are unavailable in a round, rounded down."""
  return int(round(unavailable_fraction * num_clients, 6))


def at_random(
  *,
  unavailable_fraction: float = 0.0,
  weights: np.ndarray | None = None,
  trace: Trace | None = None,
) -> Draw:
  """Builds the draw of available clients without replacement.

  Args:
    unavailable_fraction: the fraction of all clients that is unavailable, in
      [0, 1), drawn anew in every round.
    weights: [K] sampling weights; each client drawn is chosen in proportion to
      its weight among those not yet drawn, never with a weight of 0. None draws
      uniformly.
    trace: the rounds in which clients are available; None is all of them.

  Returns:
    A draw of M clients, or of all available ones where they are fewer.
  """

  def draw(rng: np.random.Generator, context: DrawContext) -> np.ndarray:
    number = context.num_clients
    unavailable = num_unavailable(number, unavailable_fraction)
    drawn = rng.permutation(number)[unavailable:]
    if trace is not None:
      drawn = drawn[trace.available(context.round_number, number)[drawn]]
    if weights is not None:
      rates = np.asarray(weights)[drawn]
      drawn, rates = drawn[rates > 0], rates[rates > 0]
      # The first arrival at these rates is a draw in proportion to them, and so
      # is each next one among the remaining clients.
      drawn = drawn[np.argsort(rng.exponential(size=len(drawn)) / rates)]
    return drawn[: context.cohort_size]

  return draw


def poisson(rng: np.random.Generator, context: DrawContext) -> np.ndarray:
  """Draws each client with probability q, independently; at most M of them.

  Where more than M are drawn, a uniformly random subset of M is the cohort. The
  draw depends on no client's data. With no client drawn the round has none.

  >>> context = DrawContext(1, np.array([9, 8, 7]), cohort_size=3, rate=1.0)
  >>> sorted(poisson(np.random.default_rng(0), context).tolist())
  [0, 1, 2]
  """
  drawn = np.flatnonzero(rng.random(context.num_clients) < context.rate)
  return rng.permutation(drawn)[: context.cohort_size]


def check_cohort(drawn: object, context: DrawContext) -> np.ndarray:
  """Returns the result of a draw as [m] int64.

  Raises:
    InputError: its shape or type is wrong, it has more than M clients, or a
      client is out of range or drawn twice.
  """
  where = f'participation.draw, round {context.round_number}'
  clients = exact.array(drawn, where)
  if not clients.size and clients.ndim == 1:
    return np.zeros(0, np.int64)
  if clients.ndim != 1 or clients.dtype.kind not in 'iu':
    raise InputError(
      f'{where}: must return client numbers [m], whole and in one dimension;'
      f' got {clients.dtype} of shape {list(clients.shape)}'
    )
  if len(clients) > context.cohort_size:
    raise InputError(
      f'{where}: returns {len(clients)} clients; must be at most the cohort'
      f' size {context.cohort_size}'
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
