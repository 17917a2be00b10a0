"""Adds correlated noise to the sums of rounds: DP-FTRL with banded matrices.

Rounds t = 1, ..., T release noisy sums of clipped deltas, of which the model
adds up a prefix. Independent noise adds up too; the noise of this module is
drawn so that later noise cancels a part of the earlier, and prefixes have less
(Kairouz et al. 2021; Choquette-Choo et al. 2023, "(Amplified) Banded Matrix
Factorization", the equations here). Its accounting needs no random cohorts, but
a bound on how often, and how soon again, a client takes part.

Letters: T rounds, b bands, k participations of a client, C the lower triangular
Toeplitz matrix with the coefficients c_0, ..., c_(b - 1).
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.algorithms.experimental.contexts import with_own_server_state
from fedavg_jax.algorithms.experimental.gaussian import add_noise
from fedavg_jax.algorithms.experimental.gaussian import check_no_model_state
from fedavg_jax.algorithms.experimental.gaussian import clipped
from fedavg_jax.algorithms.experimental.gaussian import describe
from fedavg_jax.algorithms.experimental.gaussian import unweighted_sum
from fedavg_jax.algorithms.experimental.robust import check_takes_the_mean
from fedavg_jax.contracts.aggregation import exact_tensordot
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.algorithm import ServerContext
from fedavg_jax.contracts.algorithm_checks import check_is_delta
from fedavg_jax.contracts.algorithm_checks import message_shapes
from fedavg_jax.contracts.model import Scalar
from fedavg_jax.core import optional
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.trees import PyTree
from fedavg_jax.schedule.draws import DrawContext

# Separates the key of the noise from that of the wrapped `server_update`.
_NOISE = 0x636F7272


class Strategy(NamedTuple):
  """Describes the matrix C and the participation for which it is sound.

  Attributes:
    coefficients: [b] c_0, ..., c_(b - 1), with c_0 above 0.
    rounds: the number T of rounds.
    min_separation: the least difference of two rounds in which a client takes
      part, at least b.
    participations: k, the most rounds in which a client takes part.

  >>> import fedavg_jax as fa
  >>> strategy = fa.experimental.banded_strategy(rounds=10, bands=1)
  >>> strategy.coefficients, strategy.participations
  ((1.0,), 10)
  """

  coefficients: tuple[float, ...]
  rounds: int
  min_separation: int
  participations: int

  @property
  def sensitivity(self) -> float:
    """Returns the most by which a client of norm 1 moves C times all sums.

    Rounds at least b apart have columns of C without a common row, which are
    orthogonal: sqrt(k) times the norm of a column.
    """
    return math.sqrt(self.participations) * math.hypot(*self.coefficients)


class CorrelatedServer(NamedTuple):
  """Holds the server's state.

  Attributes:
    own: the server state of the wrapped algorithm.
    noise: [b - 1, ...] the noise of the last rounds, the newest first, with the
      structure of a message.
    drawn: int32 scalar, the number of noises drawn so far.
    last: [K] int32, the last round of each client; far in the past at first.
    count: [K] int32, the number of rounds of each client.
  """

  own: PyTree
  noise: PyTree
  drawn: Any
  last: Any
  count: Any


def banded_strategy(
  rounds: int,
  bands: int,
  *,
  min_separation: int | None = None,
  participations: int | None = None,
  optimized: bool = False,
) -> Strategy:
  """Builds the strategy of correlated noise with b bands.

  The coefficients are the first b of the square root of the matrix of prefix
  sums, c_0 = 1 and c_j = c_(j - 1) (2 j - 1) / (2 j) (Fichtenberger et al.
  2023), or those with the least mean squared error of all prefixes. They are
  scaled to a norm of 1. One band is independent noise.

  Args:
    rounds: T, at least 1.
    bands: b, in [1, T].
    min_separation: the least difference of two rounds of a client, in [b, T]; b
      by default.
    participations: k, the most rounds of a client, at least 1; by default as
      many as the separation allows.
    optimized: whether jax-privacy optimizes the coefficients, which takes
      seconds.

  Raises:
    InputError: a number is out of range, or jax-privacy is not installed.

  >>> import fedavg_jax as fa
  >>> strategy = fa.experimental.banded_strategy(rounds=100, bands=20)
  >>> strategy.participations, round(strategy.sensitivity**2, 6)
  (5, 5.0)
  """
  rules.check_whole('rounds', rounds, 1)
  rules.check_whole('bands', bands, 1, rounds)
  separation = bands if min_separation is None else min_separation
  rules.check_whole('min_separation', separation, bands, rounds)
  most = -(-rounds // separation)
  if participations is None:
    participations = most
  rules.check_whole('participations', participations, 1, most)
  j = np.arange(1, bands)
  c = np.cumprod(np.concatenate([[1.0], (2 * j - 1) / (2 * j)]))
  if optimized and bands > 1:
    toeplitz = optional.load(
      'jax_privacy.matrix_factorization.toeplitz',
      'banded_strategy',
      "'fedavg_jax[privacy]'",
    )
    with jax.numpy_dtype_promotion('standard'):
      c = np.asarray(toeplitz.optimize_banded_toeplitz(rounds, bands))
  c = c.astype(float) / np.linalg.norm(c.astype(float))
  return Strategy(tuple(c.tolist()), rounds, separation, participations)


def correlated_noise(
  algorithm: Algorithm,
  strategy: Strategy,
  *,
  clip: Scalar,
  noise_multiplier: Scalar,
  denominator: float,
  num_clients: int,
) -> Algorithm:
  """Adds correlated Gaussian noise to the sums of clipped deltas.

  With the clipped deltas of the cohort of round t, and Delta the strategy's
  sensitivity::

    z_t         ~ N(0, (sigma S Delta)^2 I)
    noise_t     = (z_t - sum over j = 1..b-1 of c_j noise_(t - j)) / c_0
    aggregate_t = (sum of delta_i * min(1, S / |delta_i|) + noise_t) / m

  that is noise = C^-1 z. All T rounds together are one Gaussian mechanism: T
  sums s of a federation with and without one client have |C (s - s')| <= S
  Delta, so that epsilon is `gaussian_epsilon(sigma, delta)`. Nothing is
  amplified by sampling.

  The noise is part of the server's state, so that a resumed run continues it.
  A simulation whose draws break the strategy is refused when it is built, by
  `check_separation` of all T cohorts, which are public. The server holds rounds
  to it too: after T rounds, and where a client counts too soon or too often, as
  in a round that is built by hand, the aggregate is NaN, which ends a run.

  Args:
    algorithm: the algorithm to wrap, whose clients send one delta; its
      `aggregate` must be the weighted mean, which becomes a sum with equal
      weights.
    strategy: C and the participation, from `banded_strategy`.
    clip: S, the largest norm over all leaves of a delta, in (0, 1e30].
    noise_multiplier: sigma, in [0, 1e30].
    denominator: m, the constant that divides the sum, above 0: the expected
      number of clients of a cohort.
    num_clients: the number K of clients of the federation.

  Returns:
    The algorithm, whose server state is a `CorrelatedServer` and needs the
    memory of b - 1 models and 8 bytes per client.

  Raises:
    InputError: a number is out of range, or the algorithm does not average
      single deltas; when a simulation is built, if the model has untrained
      state, or another setting lets a client move a sum by more than S.

  >>> import optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> strategy = fa.experimental.banded_strategy(rounds=100, bands=10)
  >>> private = fa.experimental.correlated_noise(
  ...     fedavg, strategy, clip=1.0, noise_multiplier=4.0, denominator=10,
  ...     num_clients=100)
  >>> round(fa.experimental.gaussian_epsilon(4.0, delta=1e-5), 2)
  0.93
  """
  rules.check_positive('clip', clip, 1e30)
  rules.check_real('noise_multiplier', noise_multiplier, 0, 1e30)
  rules.check_positive('denominator', denominator, 2**31)
  rules.check_whole('num_clients', num_clients, 1)
  check_takes_the_mean('correlated_noise', algorithm)
  bands = len(strategy.coefficients)
  if bands > strategy.min_separation:
    raise InputError(
      f'strategy.min_separation = {strategy.min_separation}: must be at least'
      f' the number of bands, {bands}'
    )
  inside = with_own_server_state(algorithm)
  unit = clip * strategy.sensitivity

  def server_init(params):
    noise = jax.tree.map(
      lambda m: jnp.zeros((bands - 1, *m.shape), jnp.float32),
      message_shapes(algorithm, params),
    )
    return CorrelatedServer(
      own=algorithm.server_init(params),
      noise=noise,
      drawn=jnp.zeros((), jnp.int32),
      last=jnp.full(num_clients, -strategy.min_separation, jnp.int32),
      count=jnp.zeros(num_clients, jnp.int32),
    )

  def client_finish(result: ClientResult):
    check_no_model_state('correlated_noise', result.model_state)
    output = inside.client_finish(result)
    check_is_delta('correlated_noise', output.message, result.delta)
    message, _ = clipped(output.message, clip)
    return output._replace(message=message)

  def server_update(
    params: PyTree, server: CorrelatedServer, sums: Any, context: ServerContext
  ):
    key = jax.random.fold_in(context.key, _NOISE)
    nothing = jax.tree.map(jnp.zeros_like, sums)
    z = add_noise(key, nothing, noise_multiplier, unit)
    noise = jax.tree.map(
      functools.partial(_next_noise, strategy.coefficients), z, server.noise
    )
    sound = _is_sound(strategy, server, context)
    mean = jax.tree.map(
      lambda total, own: jnp.where(sound, (total + own) / denominator, jnp.nan),
      sums,
      noise,
    )
    # Who reported must not show in the model.
    seen = context._replace(reported=jnp.ones_like(context.reported))
    params, own = algorithm.server_update(params, server.own, mean, seen)
    last = jax.tree.map(
      lambda new, old: jnp.concatenate([new[None], old])[: bands - 1],
      noise,
      server.noise,
    )
    # Positions past the end, of clients that do not count, change nothing.
    clients = jnp.where(context.reported, context.clients, num_clients)
    return params, CorrelatedServer(
      own=own,
      noise=last,
      drawn=server.drawn + 1,
      last=server.last.at[clients].set(context.round, mode='drop'),
      count=server.count.at[clients].add(1, mode='drop'),
    )

  private = inside._replace(
    server_init=server_init,
    client_finish=client_finish,
    aggregate=unweighted_sum(),
    server_update=server_update,
  )

  def check_schedule(cohort: Callable[[int], np.ndarray]) -> None:
    check_separation(map(cohort, range(1, strategy.rounds + 1)), strategy)

  return private._replace(
    mechanism=describe(
      private, clip, noise_multiplier, denominator, check_schedule
    )
  )


def _is_sound(
  strategy: Strategy, server: CorrelatedServer, context: ServerContext
) -> jax.Array:
  """Returns whether a round is one that a strategy allows, [] bool."""
  clients = context.clients
  unknown = clients >= server.last.size
  soon = context.round - server.last[clients] < strategy.min_separation
  often = server.count[clients] >= strategy.participations
  return (
    (context.round == server.drawn + 1)
    & (context.round <= strategy.rounds)
    & ~jnp.any(context.reported & (unknown | soon | often))
  )


def _next_noise(
  coefficients: Sequence[float], z: jax.Array, last: jax.Array
) -> jax.Array:
  """Returns the next row of C^-1 z.

  Args:
    coefficients: [b] those of C.
    z: [...] independent noise of the round.
    last: [b - 1, ...] the last rows, the newest first.
  """
  c = np.asarray(coefficients, np.float32)
  return (z - exact_tensordot(c[1:], last)) / c[0]


def check_separation(
  cohorts: Iterable[Sequence[int] | np.ndarray], strategy: Strategy
) -> None:
  """Raises InputError if a schedule breaks what a strategy assumes.

  Args:
    cohorts: the clients of each round, from round 1 on, such as
      `[simulation.planner.cohort(t) for t in range(1, T + 1)]`.
    strategy: the strategy, which allows T rounds.

  Raises:
    InputError: a client takes part again too soon or too often, or there are
      more than T rounds.

  >>> import fedavg_jax as fa
  >>> strategy = fa.experimental.banded_strategy(rounds=4, bands=2)
  >>> fa.experimental.check_separation([[0, 1], [2], [1, 0], [2]], strategy)
  >>> fa.experimental.check_separation([[0, 1], [1]], strategy)
  Traceback (most recent call last):
  ...
  fedavg_jax.core.errors.InputError: cohorts: client 1 takes part in rounds 1 \
and 2, must do so at least 2 rounds apart
  """
  last: dict[int, int] = {}
  count: dict[int, int] = {}
  for number, cohort in enumerate(cohorts, 1):
    if number > strategy.rounds:
      raise InputError(
        f'cohorts: has more than {strategy.rounds} rounds, must have at most'
        ' those of the strategy'
      )
    for client in map(int, cohort):
      if number - last.get(client, -number) < strategy.min_separation and (
        client in last
      ):
        raise InputError(
          f'cohorts: client {client} takes part in rounds {last[client]} and'
          f' {number}, must do so at least {strategy.min_separation} rounds'
          ' apart'
        )
      last[client] = number
      count[client] = count.get(client, 0) + 1
      if count[client] > strategy.participations:
        raise InputError(
          f'cohorts: client {client} takes part in {count[client]} rounds, must'
          f' do so in at most {strategy.participations}'
        )


def rotating_draw(seed: int = 0):
  """Builds a draw in which clients take turns, for `Participation.draw`.

  The K clients form ceil(K / M) groups at random, once for all rounds, and each
  round draws the next group: a client takes part again after ceil(K / M)
  rounds, the largest separation that cohorts of M allow.

  Args:
    seed: the seed of the groups, a whole number of at least 0.

  Returns:
    `draw(rng, context) -> clients`.

  >>> import numpy as np
  >>> import fedavg_jax as fa
  >>> draw = fa.experimental.rotating_draw()
  >>> sizes = np.full(5, 9)
  >>> rounds = [
  ...   draw(None, fa.schedule.DrawContext(number, sizes, cohort_size=2))
  ...   for number in (1, 2, 3, 4)]
  >>> sorted(np.concatenate(rounds[:3]).tolist())
  [0, 1, 2, 3, 4]
  >>> np.array_equal(rounds[0], rounds[3])
  True
  """
  rules.check_seed(seed)

  def draw(rng: np.random.Generator, context: DrawContext) -> np.ndarray:
    del rng  # The groups are the same in all rounds.
    order = np.random.default_rng(seed).permutation(context.num_clients)
    groups = -(-context.num_clients // context.cohort_size)
    return np.array_split(order, groups)[(context.round_number - 1) % groups]

  return draw
