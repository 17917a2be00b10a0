"""Measures the epsilon of private rounds with canaries, and of faulty ones.

A canary takes part in a round or not, by a fair coin; what the server learns
then bounds epsilon from below, with a confidence of 99.9 %
(`fedavg_jax/algorithms/experimental/canaries.py`). The bound of a correct
mechanism must not exceed its proven epsilon; that of each of five faulty ones
must, or the measurement would find nothing.

python -m experiments.stress.canaries --scores 64000

It prints a line per mechanism, with its two numbers; the exit code is 1 if one
is on the wrong side. Seeds are fixed.
"""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedavg_jax as fa
from fedavg_jax.algorithms.experimental.canaries import RoundFn
from fedavg_jax.runs.accountant import Accountant
from fedavg_jax.runs.accountant import Event

own = fa.experimental

DELTA, SIGMA, CLIP = 1e-3, 1.0, 0.5
SIZE, CANARIES, OTHERS = 32, 16, 16  # d, N and P.
CLIENTS = CANARIES + OTHERS
# Of repeated rounds of few clients: K, M, T and sigma.
POPULATION, COHORT, ROUNDS, REPEATED_SIGMA = 8, 4, 16, 2.0


class Case(NamedTuple):
  """Describes a mechanism to measure.

  Attributes:
    round_fn: (deltas, present, key) -> what the server learns.
    proven: the epsilon that is claimed for it.
    faulty: whether the claim is wrong.
    canaries: [N, d] deltas of canaries; by default orthogonal ones with eight
      times the norm of the clip.
    others: [P, d] deltas of the other clients; random ones by default.
    reference: whether to compare with a round of another key.
  """

  round_fn: RoundFn
  proven: float
  faulty: bool = False
  canaries: Any = None
  others: Any = None
  reference: bool = False


def private(adaptive: own.AdaptiveClip | None = None) -> fa.Algorithm:
  """Builds DP-FedAvg with a fixed or an adaptive clip."""
  return own.privatize(
    fa.fedavg(optax.sgd(1.0), optax.sgd(1.0)),
    clip=CLIP,
    noise_multiplier=SIGMA,
    denominator=CLIENTS,
    adaptive=adaptive,
  )


def total(deltas, present, clip=CLIP, weights=1.0):
  """Returns the sum of the clipped deltas of clients that take part, [d]."""
  norms = jnp.linalg.norm(deltas, axis=1, keepdims=True)
  short = deltas * jnp.minimum(1.0, clip / norms)
  return jnp.sum(jnp.where(present[:, None], short * weights, 0.0), axis=0)


def gaussian(key, deviation):
  """Returns noise, [d]."""
  return deviation * jax.random.normal(key, (SIZE,))


def not_clipped(deltas, present, key):
  """Adds the right noise to deltas that nobody has clipped."""
  noisy = total(deltas, present, clip=jnp.inf) + gaussian(key, SIGMA * CLIP)
  return noisy / CLIENTS


def noise_of_the_mean(deltas, present, key):
  """Adds the noise of a mean to a sum, before it is divided."""
  deviation = SIGMA * CLIP / CLIENTS
  return (total(deltas, present) + gaussian(key, deviation)) / CLIENTS


def weighted_mean(deltas, present, key):
  """Takes a mean with n_k = 10 for canaries, with noise for equal weights."""
  sizes = jnp.where(jnp.arange(CLIENTS) < CANARIES, 10.0, 1.0)
  whole = jnp.sum(jnp.where(present, sizes, 0.0))
  mean = total(deltas, present, weights=sizes[:, None]) / whole
  return mean + gaussian(key, SIGMA * CLIP / CLIENTS)


def reused_key(deltas, present, key):
  """Draws the same noise in every round."""
  del key
  return algorithm(private())(deltas, present, jax.random.key(0))


def algorithm(private: fa.Algorithm) -> RoundFn:
  """Returns the round of an algorithm with all clients."""
  return own.algorithm_round(private, SIZE, CLIENTS)


def local(deltas, present, key):
  """Returns one client's own message, whose data are one thing or another."""
  private = own.local_dp(
    fa.fedavg(optax.sgd(1.0), optax.sgd(1.0)), CLIP, 2 * SIGMA
  )
  send = own.algorithm_round(private, SIZE, num_clients=1)
  here = jnp.where(present[0], deltas, -deltas)
  return send(here, jnp.ones(1, bool), key)


def banded(strategy: own.Strategy, chosen: Sequence[int]) -> RoundFn:
  """Builds all rounds of a strategy, with canaries in some of them.

  The server learns the sums of all rounds; what it returns is the best linear
  test of them, the inner product of C times the sums with C u.

  Args:
    strategy: the strategy.
    chosen: the rounds in which canaries take part, counted from 0.
  """
  private = own.correlated_noise(
    fa.fedavg(optax.sgd(1.0), optax.sgd(1.0)),
    strategy,
    clip=CLIP,
    noise_multiplier=SIGMA,
    denominator=1,
    num_clients=strategy.rounds + 1,
  )
  rounds = strategy.rounds
  c = np.zeros((rounds, rounds))
  for j, value in enumerate(strategy.coefficients):
    c += value * np.eye(rounds, k=-j)
  test = jnp.asarray(c.T @ c[:, chosen].sum(axis=1), jnp.float32)
  takes_part = jnp.zeros(rounds, bool).at[np.array(chosen)].set(True)

  def round_fn(deltas, present, key):
    sums = total(deltas, present)

    def one_round(carry, number):
      params, server = carry
      context = fa.ServerContext(
        round=number,
        key=jax.random.fold_in(key, number),
        share=jnp.ones(()),
        clients=jnp.where(takes_part[number - 1], 0, number)[None],
        reported=jnp.zeros(1, bool),  # The schedule decides.
      )
      here = jnp.where(takes_part[number - 1], sums, 0.0)
      new, server = private.server_update(params, server, here, context)
      return (new, server), new - params

    model = jnp.zeros(SIZE)
    start = model, private.server_init(model)
    _, learned = jax.lax.scan(one_round, start, jnp.arange(1, rounds + 1))
    return test @ learned

  return round_fn


def repeated(draw: Callable[..., Any]) -> RoundFn:
  """Builds T rounds of cohorts of a small population, with one canary.

  The others send the opposite of the canary, so that who replaces it matters.

  Args:
    draw: (key, present [K]) -> the clients of a round, [K] bool.
  """

  def round_fn(deltas, present, key):
    def one_round(key):
      clients, noise = jax.random.split(key)
      drawn = total(deltas, draw(clients, present))
      return drawn + REPEATED_SIGMA * CLIP * jax.random.normal(noise, (1,))

    return jax.vmap(one_round)(jax.random.split(key, ROUNDS)).sum(axis=0)

  return round_fn


def poisson(key, present):
  """Draws each client that exists independently."""
  rate = COHORT / POPULATION
  return present & jax.random.bernoulli(key, rate, present.shape)


def fixed(key, present):
  """Draws exactly M of the clients that exist."""
  order = jnp.where(present, jax.random.uniform(key, present.shape), jnp.inf)
  return present & (jnp.argsort(jnp.argsort(order)) < COHORT)


def poisson_epsilon() -> float:
  """Returns the epsilon of T rounds of Poisson cohorts."""
  rate = COHORT / POPULATION
  event = Event('zero_out', POPULATION, rate, POPULATION, REPEATED_SIGMA)
  epsilon = Accountant(event, DELTA).tight_epsilon(ROUNDS)
  assert epsilon is not None
  return epsilon


def of_deltas(round_fn: RoundFn, **options) -> Case:
  """Returns a case that claims the epsilon of one Gaussian mechanism."""
  return Case(round_fn, own.gaussian_epsilon(SIGMA, DELTA), **options)


def of_one_client() -> Case:
  """Returns the case of one client's own message, with one canary."""
  return Case(
    local,
    own.local_epsilon(2 * SIGMA, DELTA, rounds=1),
    canaries=own.orthogonal_canaries(jax.random.key(1), 1, SIZE),
    others=jnp.zeros((0, SIZE)),
  )


def of_cohorts(draw: Callable[..., Any], faulty: bool) -> Case:
  """Returns a case that claims the epsilon of Poisson cohorts."""
  return Case(
    repeated(draw),
    poisson_epsilon(),
    faulty,
    canaries=jnp.full((1, 1), CLIP),
    others=jnp.full((POPULATION, 1), -CLIP),
  )


def of_bands() -> Case:
  """Returns the case of correlated noise, with canaries in two rounds."""
  strategy = own.banded_strategy(rounds=6, bands=3, participations=2)
  return of_deltas(banded(strategy, [0, 3]))


# The mechanisms by name, faulty ones last.
CASES: dict[str, Callable[[], Case]] = {
  'DP-FedAvg': lambda: of_deltas(algorithm(private())),
  'DP-FedAvg, two rounds': lambda: of_deltas(
    algorithm(private()), reference=True
  ),
  'DP-FedAvg, adaptive clip': lambda: of_deltas(
    algorithm(private(own.AdaptiveClip(quantile=0.5)))
  ),
  'correlated noise': of_bands,
  'local noise': of_one_client,
  'Poisson cohorts': lambda: of_cohorts(poisson, faulty=False),
  'deltas not clipped': lambda: of_deltas(not_clipped, faulty=True),
  'noise of the mean in the sum': lambda: of_deltas(
    noise_of_the_mean, faulty=True
  ),
  'weighted mean': lambda: of_deltas(weighted_mean, faulty=True),
  'reused key': lambda: of_deltas(reused_key, faulty=True, reference=True),
  'fixed cohorts as Poisson': lambda: of_cohorts(fixed, faulty=True),
}


def measure(case: Case, scores: int, seed: int = 0) -> float:
  """Returns the lower bound on epsilon of a mechanism.

  Args:
    case: the mechanism.
    scores: the number of scores of canaries, at least 64.
    seed: the seed of coins and noise.
  """
  key = jax.random.key(seed)
  canaries, others = case.canaries, case.others
  if canaries is None:
    canaries = own.orthogonal_canaries(jax.random.key(1), CANARIES, SIZE)
    canaries *= 8 * CLIP
    others = jax.random.normal(jax.random.key(2), (OTHERS, SIZE))
  found = own.canary_scores(
    case.round_fn,
    canaries,
    others,
    runs=math.ceil(scores / len(canaries)),
    key=key,
    reference=case.reference,
  )
  return own.epsilon_lower_bound(found, DELTA)


def main(argv: Sequence[str] | None = None) -> int:
  """Measures all mechanisms; returns 1 if one is on the wrong side."""
  parser = argparse.ArgumentParser(
    description='Measures the epsilon of private rounds, and of faulty ones.'
  )
  parser.add_argument('--scores', type=int, default=64_000)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args(argv)
  wrong = 0
  print(f'{"measured":>9} {"proven":>7}  (delta = {DELTA:g})')
  for name, build in CASES.items():
    case = build()
    bound = measure(case, flags.scores, flags.seed)
    fails = (bound > case.proven) != case.faulty
    wrong += fails
    kind = 'a fault' if case.faulty else 'correct'
    note = ': on the wrong side' if fails else ''
    print(f'{bound:9.3f} {case.proven:7.3f}  {name}, {kind}{note}', flush=True)
  return int(wrong > 0)


if __name__ == '__main__':
  raise SystemExit(main())
