"""FedAdagrad, FedYogi and FedAdam: adaptive optimizers for the server."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.model import Params
from fedavg_jax.core import choices
from fedavg_jax.core import rules


class AdaptiveState(NamedTuple):
  """Attributes: m, v: first and second moment, each like the model."""

  m: Params
  v: Params


def adaptive(
  name: str, learning_rate: float, *, b1: float, b2: float, tau: float
) -> optax.GradientTransformation:
  """Server optimizer of FedAdagrad, FedYogi or FedAdam: no bias correction.

  Reddi et al. 2021, Algorithm 2, with `v_{-1} = tau^2`::

    m <- b1 m + (1 - b1) g        g the pseudo-gradient, -delta
    v <- v + g^2                             adagrad
         v - (1 - b2) g^2 sign(v - g^2)      yogi
         b2 v + (1 - b2) g^2                 adam
    x <- x - learning_rate * m / (sqrt(v) + tau)

  Args:
    name: 'adagrad', 'yogi' or 'adam'.
    learning_rate: the server's.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second, in [0, 1); adagrad has none.
    tau: the degree of adaptivity; larger is nearer to plain momentum.

  Returns:
    An optax transformation for `fedavg`.

  Raises:
    InputError: a value breaks its rule.
  """
  choices.check_choice('name', name, choices.SERVER_OPTIMIZERS[1:])
  rules.check_rate('learning_rate', learning_rate)
  rules.check_fraction('b1', b1)
  rules.check_fraction('b2', b2)
  rules.check_real('tau', tau, 1e-15, 1e15)
  second_moment = {
    'adagrad': lambda v, g2: v + g2,
    'yogi': lambda v, g2: v - (1 - b2) * g2 * jnp.sign(v - g2),
    'adam': lambda v, g2: b2 * v + (1 - b2) * g2,
  }[name]

  def init(params):
    return AdaptiveState(
      m=jax.tree.map(jnp.zeros_like, params),
      v=jax.tree.map(lambda p: jnp.full_like(p, tau**2), params),
    )

  def update(updates, state, params=None):
    del params
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.m, updates)
    v = jax.tree.map(lambda v, g: second_moment(v, g * g), state.v, updates)
    updates = jax.tree.map(
      lambda m, v: -learning_rate * m / (jnp.sqrt(v) + tau), m, v
    )
    return updates, AdaptiveState(m, v)

  return optax.GradientTransformation(init, update)
