"""Lets some clients attack an algorithm, to test rules of `robust` with.

Shape letters: A attackers, M clients of the cohort, B rows of a batch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.algorithms.experimental.attack_kinds import Attack
from fedavg_jax.algorithms.experimental.secure_sums import (
  check_no_single_messages,
)
from fedavg_jax.contracts.aggregation import Gathered
from fedavg_jax.contracts.aggregation import gathered
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError

_ATTACKERS = 0x41_54_54  # The purpose of the draw, beside the seed.


def draw_attackers(num_clients: int, fraction: float, seed: int) -> list[int]:
  """Draws the attackers of a run, the same in all rounds.

  Args:
    num_clients: the number K of clients.
    fraction: the fraction of them that attack, in [0, 1); rounded down, at
      least one client.
    seed: the seed of the draw, a whole number of at least 0.

  Returns:
    The numbers of the attackers, ascending.

  Raises:
    InputError: a number is out of range, or the fraction is less than a client.

  >>> import fedavg_jax as fa
  >>> len(fa.experimental.draw_attackers(50, 0.2, seed=0))
  10
  """
  rules.check_whole('num_clients', num_clients, 1)
  rules.check_fraction('fraction', fraction)
  rules.check_seed(seed)
  number = int(round(fraction * num_clients, 6))
  if not number:
    raise InputError(
      f'fraction = {fraction!r}: is less than one of {num_clients} clients,'
      ' must give at least one attacker'
    )
  rng = np.random.default_rng([seed, _ATTACKERS])
  return sorted(rng.permutation(num_clients)[:number].tolist())


def attack(
  algorithm: Algorithm, attackers: Sequence[int], kind: Attack
) -> Algorithm:
  """Lets some clients attack an algorithm.

  A defence is a part of the algorithm under attack: `attack(robust(...), ...)`.
  Attackers train and keep their states as honest clients do, apart from labels;
  what they send differs, all of its leaves. The loss of a round includes
  theirs.

  Args:
    algorithm: the algorithm, with its defence.
    attackers: [A] numbers of the clients that attack, in [0, K - 1].
    kind: the attack, such as `sign_flip()`.

  Returns:
    The algorithm under attack. If attackers collude it needs the memory of M
    messages, whatever its own aggregation needs.

  Raises:
    InputError: the attackers are not distinct clients, or they change messages
      after `secure_aggregation`.

  >>> import optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> median = fa.experimental.robust(
  ...     fedavg, fa.experimental.coordinate_median())
  >>> attackers = fa.experimental.draw_attackers(50, 0.2, seed=0)
  >>> attacked = fa.experimental.attack(
  ...     median, attackers, fa.experimental.sign_flip(4.0))
  >>> attacked.aggregate == median.aggregate
  True
  """
  for client in attackers:
    rules.check_whole('attackers', client, 0)
  if not len(attackers) or len(set(attackers)) < len(attackers):
    raise InputError(
      f'attackers = {list(attackers)!r:.80}: must be distinct clients, at least'
      ' one'
    )
  numbers = np.array(attackers, np.int32)
  if kind.labels is not None:
    algorithm = _training_on(algorithm, numbers, kind.labels)
  if kind.send is not None or kind.collude is not None:
    check_no_single_messages('attack', algorithm)
  if kind.send is not None:
    algorithm = _sending(algorithm, numbers, kind.send)
  if kind.collude is not None:
    algorithm = _colluding(algorithm, numbers, kind.collude)
  return algorithm


def _training_on(algorithm: Algorithm, attackers: np.ndarray, labels):
  """Returns the algorithm whose attackers train on other labels."""
  gradient = algorithm.client_gradient or _gradient_of_mean

  def client_gradient(loss_fn, params, batch, context):
    if not hasattr(batch.y, 'dtype') or not jnp.issubdtype(
      batch.y.dtype, jnp.integer
    ):
      raise InputError('attack: the targets are not class numbers, must be')
    flips = jnp.isin(context.client_id, attackers)
    y = jnp.where(flips, labels(batch.y), batch.y)
    return gradient(loss_fn, params, batch._replace(y=y), context)

  return algorithm._replace(client_gradient=client_gradient)


def _gradient_of_mean(loss_fn, params, batch, context):
  """Returns losses [B] and the gradient of their mean over real rows."""
  del context

  def mean(params):
    losses = loss_fn(params, batch)
    total = jnp.sum(jnp.where(batch.mask, losses, 0.0))
    return total / jnp.maximum(batch.size, 1).astype(losses.dtype), losses

  grads, losses = jax.grad(mean, has_aux=True)(params)
  return losses, grads


def _sending(algorithm: Algorithm, attackers: np.ndarray, send):
  """Returns the algorithm whose attackers send something else."""

  def client_finish(result: ClientResult):
    output, context = algorithm.client_finish(result), result.context
    attacks = jnp.isin(context.client_id, attackers)
    forged = send(output.message, jax.random.fold_in(context.key, _ATTACKERS))
    return output._replace(
      message=jax.tree.map(
        lambda f, m: jnp.where(attacks, f, m), forged, output.message
      )
    )

  return algorithm._replace(client_finish=client_finish)


def _colluding(algorithm: Algorithm, attackers: np.ndarray, collude):
  """Returns the algorithm whose attackers know all honest messages.

  All messages are gathered, those of attackers are replaced, and the
  algorithm's own aggregator adds them at once.
  """
  own = algorithm.aggregate

  def server_update(params, server, sent, context):
    messages, weights = sent
    attacks = context.reported & jnp.isin(context.clients, attackers)
    forged = collude(messages, context.reported & ~attacks)
    messages = jax.tree.map(
      lambda m, f: jnp.where(
        attacks.reshape(-1, *(1,) * (m.ndim - 1)), f.astype(m.dtype)[None], m
      ),
      messages,
      forged,
    )
    size = weights.size
    one = jax.tree.map(
      lambda m: jax.ShapeDtypeStruct(m.shape[1:], m.dtype), messages
    )
    position = jnp.where(context.reported, jnp.arange(size), size)
    sums = own.add(own.init(one, size), messages, weights, position)
    aggregate = own.result(sums, jnp.ones((), jnp.float32))
    return algorithm.server_update(params, server, aggregate, context)

  return algorithm._replace(
    aggregate=gathered(Gathered), server_update=server_update
  )
