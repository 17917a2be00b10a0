"""Defines the server optimizers of FedAdagrad, FedYogi and FedAdam."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.model import Params
from fedavg_jax.core import choices
from fedavg_jax.core import rules


class AdaptiveState(NamedTuple):
  """Holds the moments of the pseudo-gradient.

  Attributes:
    m: the first moment, with the structure and shapes of the model.
    v: the second moment, likewise.
  """

  m: Params
  v: Params


def adaptive(
  name: str, learning_rate: float, *, b1: float, b2: float, tau: float
) -> optax.GradientTransformation:
  """Builds an adaptive server optimizer without bias correction.

  With it, `fedavg` is FedAdagrad, FedYogi or FedAdam, Reddi et al. 2021,
  Algorithm 2, with `v_{-1} = tau^2`::

    m <- b1 m + (1 - b1) g        g the pseudo-gradient, -delta
    v <- v + g^2                             adagrad
         v - (1 - b2) g^2 sign(v - g^2)      yogi
         b2 v + (1 - b2) g^2                 adam
    x <- x - learning_rate * m / (sqrt(v) + tau)

  Args:
    name: the rule of the second moment, 'adagrad', 'yogi' or 'adam'.
    learning_rate: the server's learning rate, in [1e-30, 1e30].
    b1: the decay of the first moment, in [0, 1).
    b2: the decay of the second moment, in [0, 1); unused by 'adagrad'.
    tau: the degree of adaptivity, in [1e-15, 1e15]; larger values approach
      momentum without adaptivity.

  Returns:
    An optax transformation for the server of `fedavg`.

  Raises:
    InputError: an argument is out of range.

  >>> import jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> adam = fa.adaptive('adam', 0.01, b1=0.9, b2=0.99, tau=0.5)
  >>> adam.init(jnp.zeros(2)).v.tolist()
  [0.25, 0.25]
  >>> fedadam = fa.fedavg(optax.sgd(0.1), adam)
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
