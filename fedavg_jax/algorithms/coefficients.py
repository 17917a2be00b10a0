"""Sums the coefficients with which a client's gradients enter its delta."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.core.trees import PyTree


class Coefficients(NamedTuple):
  """Holds the state of a client optimizer and the sum of its coefficients.

  Attributes:
    own: the state of the optimizer on the model.
    unit: the state of the same optimizer on one number with gradients of 1.
    moved: the sum of the updates of that number, [].
  """

  own: PyTree
  unit: PyTree
  moved: jax.Array


def with_coefficients(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Extends an optimizer that is linear in the gradients by their coefficients.

  After local updates with gradients g_j the delta is `-eta * sum_j a_j g_j`.
  `moved` is `-eta * sum_j a_j`: the same optimizer runs on one number whose
  gradients are 1, so that momentum, a proximal term and decaying learning rates
  need no separate formulas. With plain SGD it is -eta times the updates.

  Args:
    optimizer: the optimizer, such as `optax.sgd(eta, momentum=0.9)`.

  Returns:
    The optimizer with a state of `Coefficients`; its updates are the same.

  >>> import jax, jax.numpy as jnp, optax
  >>> sgd = with_coefficients(optax.sgd(0.5, momentum=0.5))
  >>> w = jnp.zeros(2)
  >>> context = ClientContext(w, (), (), 0, 9, 1, jax.random.key(0))
  >>> state = sgd.init(w)
  >>> for _ in range(2):  # The coefficients are 1 + 0.5, and 1.
  ...   _, state = sgd.update(w, state, w, context=context)
  >>> float(state.moved)
  -1.25
  """
  full = optax.with_extra_args_support(optimizer)

  def init(params):
    zero = jnp.float32(0)
    return Coefficients(optimizer.init(params), optimizer.init(zero), zero)

  def update(updates, state, params=None, **extra):
    context: ClientContext = extra['context']
    updates, own = full.update(updates, state.own, params, **extra)
    extra['context'] = context._replace(global_params=jnp.float32(0))
    step, unit = full.update(jnp.float32(1), state.unit, state.moved, **extra)
    return updates, Coefficients(own, unit, state.moved + step)

  return optax.GradientTransformationExtraArgs(init, update)
