"""Measures a lower bound on epsilon with canaries.

A canary is a client with a known message that takes part or not, by a fair
coin. If what a round returns tells the two apart better than (epsilon, delta)
allows, the round is not (epsilon, delta) differentially private, whatever its
proof says. The bound finds faults; it cannot prove that there are none.

Shape letters: N canaries, P other clients, d numbers of a message, R runs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.algorithm import ServerContext
from fedavg_jax.contracts.model import Array
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError

# (deltas [N + P, d], present [N + P] bool, key) -> [d], what the server learns.
RoundFn = Callable[[Array, Array, Array], Array]
_BATCH = 256  # Runs under one vmap.


class CanaryScores(NamedTuple):
  """Holds the scores of canaries, of all runs together.

  Attributes:
    inside: scores of canaries that took part.
    outside: scores of canaries that did not.

  >>> import fedavg_jax as fa
  >>> fa.experimental.CanaryScores([2.0, 3.0], [0.0]).outside
  [0.0]
  """

  inside: np.ndarray
  outside: np.ndarray


def orthogonal_canaries(key: Array, number: int, size: int) -> jax.Array:
  """Draws random unit vectors that are orthogonal to each other, [N, d].

  Args:
    key: a random key.
    number: N, in [1, d].
    size: the number d of weights.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> canaries = fa.experimental.orthogonal_canaries(jax.random.key(0), 3, 9)
  >>> bool(jnp.allclose(canaries @ canaries.T, jnp.eye(3), atol=1e-5))
  True
  """
  rules.check_whole('size', size, 1)
  rules.check_whole('number', number, 1, size)
  columns, _ = jnp.linalg.qr(jax.random.normal(key, (size, number)))
  return columns.T


def canary_scores(
  round_fn: RoundFn,
  canaries: Array,
  others: Array,
  *,
  runs: int,
  key: Array,
  reference: bool = False,
) -> CanaryScores:
  """Repeats a round many times, with canaries that take part by fair coins.

  The score of a canary u in a run is the inner product of what the server
  learns and u / |u|^2. With orthogonal canaries and isotropic noise the scores
  of a run are independent.

  Args:
    round_fn: (deltas [N + P, d], present [N + P] bool, key) -> [d], such as
      `algorithm_round` builds.
    canaries: [N, d] deltas of the canaries.
    others: [P, d] deltas of clients that always take part.
    runs: R, at least 2.
    key: the random key of coins and runs.
    reference: whether to subtract what the server learns in a second round of
      the same run, with another key and without canaries. It finds noise that
      is not new in every round.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> def exact_sum(deltas, present, key):
  ...   return jnp.where(present[:, None], deltas, 0.0).sum(axis=0)
  >>> scores = fa.experimental.canary_scores(
  ...     exact_sum, jnp.eye(3), jnp.zeros((0, 3)), runs=8,
  ...     key=jax.random.key(0))
  >>> set(scores.inside.tolist()), set(scores.outside.tolist())
  ({1.0}, {0.0})
  """
  rules.check_whole('runs', runs, 2)
  number, most = len(canaries), len(canaries) + len(others)
  deltas = jnp.concatenate([jnp.asarray(canaries), jnp.asarray(others)])
  # Squares of very short or long canaries would leave the range of float32.
  largest = jnp.max(jnp.abs(canaries), axis=1, keepdims=True)
  shorter = canaries / largest
  units = (
    shorter / jnp.sum(jnp.square(shorter), axis=1, keepdims=True) / largest
  )

  def one_run(key):
    coins, first, second = jax.random.split(key, 3)
    inside = jax.random.bernoulli(coins, 0.5, (number,))
    present = jnp.ones(most, bool).at[:number].set(inside)
    learned = round_fn(deltas, present, first)
    if reference:
      nobody = jnp.ones(most, bool).at[:number].set(False)
      learned = learned - round_fn(deltas, nobody, second)
    return jnp.matmul(units, learned, precision=lax.Precision.HIGHEST), inside

  all_runs = jax.jit(
    lambda keys: lax.map(one_run, keys, batch_size=min(_BATCH, runs))
  )
  scores, inside = map(np.asarray, all_runs(jax.random.split(key, runs)))
  return CanaryScores(scores[inside], scores[~inside])


def algorithm_round(
  algorithm: Algorithm, size: int, num_clients: int
) -> RoundFn:
  """Builds one round of an algorithm, in which clients have given deltas.

  The server learns the change of the model in round 1. The model has d weights,
  initially zero; clients have one example each, the same weight, and no
  training, so that their deltas are the given ones.

  Args:
    algorithm: the algorithm, whose server adds the aggregate to the model, such
      as `local_dp(fa.fedavg(optax.sgd(1.0), optax.sgd(1.0)), ...)`.
    size: the number d of weights.
    num_clients: the number N + P of clients.

  >>> import jax, jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(1.0), optax.sgd(1.0))
  >>> round_fn = fa.experimental.algorithm_round(fedavg, 2, num_clients=3)
  >>> deltas = jnp.array([[4.0, 0.0], [0.0, 2.0], [99.0, 99.0]])
  >>> present = jnp.array([True, True, False])
  >>> round_fn(deltas, present, jax.random.key(0)).tolist()  # Their mean.
  [2.0, 1.0]
  """
  model = jnp.zeros(size)
  clients = jnp.arange(num_clients, dtype=jnp.int32)

  def round_fn(deltas, present, key):
    server = algorithm.server_init(model)

    def message_of(delta, client):
      context = ClientContext(
        global_params=model,
        server_state=server,
        client_state=algorithm.client_init(model, client),
        client_id=client,
        num_examples=jnp.int32(1),
        round=jnp.int32(1),
        key=jax.random.fold_in(key, client),
      )
      state = algorithm.client_optimizer.init(model)
      return algorithm.client_finish(
        ClientResult(
          delta=delta,
          params=model + delta,
          model_state=(),
          num_updates=jnp.int32(1),
          mean_loss=jnp.float32(0),
          optimizer_state=state,
          context=context,
        )
      ).message

    messages = jax.vmap(message_of)(deltas, clients)
    messages = jax.tree.map(
      lambda m: jnp.where(present.reshape(-1, *(1,) * (m.ndim - 1)), m, 0),
      messages,
    )
    count = jnp.maximum(jnp.sum(present), 1).astype(jnp.float32)
    shapes = jax.tree.map(
      lambda m: jax.ShapeDtypeStruct(m.shape[1:], m.dtype), messages
    )
    rule = algorithm.aggregate
    sums = rule.add(
      rule.init(shapes, num_clients),
      messages,
      present.astype(jnp.float32) / count,
      jnp.where(present, clients, num_clients),
    )
    learned, _ = algorithm.server_update(
      model,
      server,
      rule.result(sums, jnp.ones(())),
      ServerContext(
        round=jnp.int32(1),
        key=jax.random.fold_in(key, num_clients),
        share=jnp.ones(()),
        clients=clients,
        reported=present,
      ),
    )
    return learned

  return round_fn


def epsilon_lower_bound(
  scores: CanaryScores, delta: float, confidence: float = 0.999
) -> float:
  """Computes a lower bound on epsilon from the scores of canaries.

  A test that calls scores above a threshold 'inside' has, for any (epsilon,
  delta) differentially private round, TPR <= e^epsilon FPR + delta, and the
  same for the rates of negatives (Kairouz et al. 2015). One half
  of the scores chooses the threshold; on the other half the rates are bounded
  by Clopper-Pearson intervals, as Nasr et al. 2021 do.

  Args:
    scores: independent scores, at least four on each side.
    delta: delta, in [0, 1).
    confidence: the probability that the bound is at most the true epsilon, in
      (0, 1).

  Raises:
    InputError: a number is out of range, or there are too few scores.

  >>> import numpy as np
  >>> import fedavg_jax as fa
  >>> apart = fa.experimental.CanaryScores(np.ones(2000), np.zeros(2000))
  >>> round(fa.experimental.epsilon_lower_bound(apart, delta=0.0), 2)
  4.88
  """
  rules.check_fraction('delta', delta)
  rules.check_positive('confidence', confidence, 1)
  rules.check_fraction('confidence', confidence)
  for name, own in zip(scores._fields, scores, strict=True):
    if len(own) < 4 or not np.isfinite(own).all():
      raise InputError(f'scores.{name}: must be at least 4 finite numbers')
  inside, outside = (np.asarray(own, np.float64) for own in scores)
  # The negative rates are the positive ones of the negated scores, swapped.
  sides = [(inside, outside), (-outside, -inside)]
  chosen = [
    _best_threshold(a[::2], b[::2], delta, confidence) for a, b in sides
  ]
  side = int(np.argmax([bound for bound, _ in chosen]))
  threshold = np.array([chosen[side][1]])
  a, b = sides[side]
  bounds = _bounds(a[1::2], b[1::2], threshold, delta, confidence)
  return max(float(bounds[0]), 0.0)


def _best_threshold(
  inside: np.ndarray, outside: np.ndarray, delta: float, confidence: float
) -> tuple[float, float]:
  """Returns the largest bound over thresholds, and its threshold."""
  thresholds = np.unique(np.concatenate([inside, outside]))
  if len(thresholds) > 2000:
    thresholds = thresholds[:: len(thresholds) // 2000]
  bounds = _bounds(inside, outside, thresholds, delta, confidence)
  best = int(np.argmax(bounds))
  return float(bounds[best]), float(thresholds[best])


def _bounds(
  inside: np.ndarray,
  outside: np.ndarray,
  thresholds: np.ndarray,
  delta: float,
  confidence: float,
) -> np.ndarray:
  """Returns log((TPR - delta) / FPR) at each threshold, with bounded rates."""
  from scipy import stats

  miss = (1 - confidence) / 2  # One half for each of the two rates.

  def count(scores):  # At or above each threshold.
    return len(scores) - np.searchsorted(np.sort(scores), thresholds)

  hits, n = count(inside), len(inside)
  alarms, m = count(outside), len(outside)
  low = np.where(hits > 0, stats.beta.ppf(miss, hits, n - hits + 1), 0.0)
  high = np.where(
    alarms < m, stats.beta.ppf(1 - miss, alarms + 1, m - alarms), 1.0
  )
  with np.errstate(divide='ignore'):
    return np.log(np.maximum(low - delta, 0)) - np.log(high)
