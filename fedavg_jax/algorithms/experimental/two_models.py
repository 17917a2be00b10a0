"""Defines Ditto and APFL, whose clients train two models at the same time.

With the global model x, client i trains a copy w of it, which it sends as in
the wrapped algorithm, and its own model v, which never leaves it. F is the mean
loss of the minibatch::

  Ditto   w <- w - eta * grad F(w)
          v <- v - eta * (grad F(v) + lambda * (v - x))

  APFL    w <- w - eta * grad F(w)
          v <- v - eta * alpha * g        g = grad F(alpha v + (1 - alpha) w)
          alpha <- alpha - eta_alpha * <v - w, g>, clipped to [0, 1]

A client's own model is v in Ditto and alpha v + (1 - alpha) x in APFL.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from fedavg_jax.algorithms.experimental.personal import check_optimizer
from fedavg_jax.algorithms.experimental.personal import personal
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import LossFn
from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import Batch
from fedavg_jax.contracts.model import Model
from fedavg_jax.contracts.model import Params
from fedavg_jax.contracts.model import Variables
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError

# The leaves of `two_models`; alpha is the weight of the own model in APFL.
_GLOBAL, _OWN, _ALPHA = 'global', 'own', 'alpha'


def two_models(model: Model) -> Model:
  """Gives a model a second set of parameters, for `ditto` and `apfl`.

  Args:
    model: the model, without untrained state.

  Returns:
    The model, whose parameters are a dictionary of 'global' (x), 'own' (v,
    equal to x at first) and 'alpha'. Its outputs are those of x.

  Raises:
    InputError: when it is initialised, if the model has untrained state.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> linear = fa.Model('linear', lambda key: jnp.ones(3), lambda w, x: x @ w)
  >>> both = fa.experimental.two_models(linear)
  >>> params = both.init(jax.random.key(0))
  >>> sorted(params), both.apply(params, jnp.ones((2, 3))).tolist()
  (['alpha', 'global', 'own'], [3.0, 3.0])
  """

  def init(key):
    params = model.init(key)
    if isinstance(params, Variables):
      raise InputError(
        f'model {model.name!r}: has untrained state, of which the two models of'
        ' a client would need one each; must be a model without'
      )
    return {_GLOBAL: params, _OWN: params, _ALPHA: jnp.ones((), jnp.float32)}

  def train(params, batch, context):
    assert model.train is not None
    return model.train(params[_GLOBAL], batch, context)

  return model._replace(
    init=init,
    apply=lambda params, x: model.apply(params[_GLOBAL], x),
    train=train if model.train else None,
  )


def ditto(
  algorithm: Algorithm,
  weight: float,
  optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
  """Adds to each client a model of its own, near the global one.

  Li et al. 2021, "Ditto", Algorithm 1, with one step of v per step of w. The
  global model is that of the algorithm for every weight, to the bit; a weight
  of 0 trains each v on its client's data alone.

  Args:
    algorithm: the algorithm of the global model, such as `fedavg(...)`.
    weight: lambda, the weight of the proximal term, in [0, 1e30].
    optimizer: the client optimizer of v; None is that of the algorithm.

  Returns:
    The algorithm, for a model from `two_models`. A local update computes two
    gradients; a client's state is v.

  Raises:
    InputError: the weight is out of range, or the algorithm needs an optimizer
      or has its own gradient.

  >>> import optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> fa.experimental.ditto(fedavg, -1.0)
  Traceback (most recent call last):
  ...
  fedavg_jax.core.errors.InputError: weight = -1.0: must be in [0, 1e+30]
  """
  rules.check_real('weight', weight, 0, 1e30)
  _check_plain(algorithm)

  def client_gradient(loss_fn, params, batch, context):
    x = context.global_params[_GLOBAL]
    losses, of_global = _gradient(loss_fn, params, params[_GLOBAL], batch)
    of_own = _apart(loss_fn, params, params[_OWN], batch)
    # The parts of a minibatch add up to one proximal term.
    share = jnp.sum(batch.mask) / jnp.maximum(batch.size, 1)
    of_own = jax.tree.map(
      lambda g, v, x: g + weight * share.astype(v.dtype) * (v - x),
      of_own,
      params[_OWN],
      x,
    )
    return losses, _grads(of_global, of_own, jnp.zeros_like(params[_ALPHA]))

  def own_model(context):
    return _tested(context, context.client_state.own[_OWN])

  return personal(algorithm, _roles(_ALPHA), optimizer)._replace(
    client_gradient=client_gradient, own_model=own_model
  )


def apfl(
  algorithm: Algorithm,
  alpha: float,
  alpha_rate: float = 0.0,
  optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
  """Adds to each client a model of its own that is mixed with the global one.

  Deng et al. 2020, "Adaptive Personalized Federated Learning", Algorithm 1. The
  global model is that of the algorithm for every alpha, to the bit; alpha = 1
  trains each v on its client's data alone. The metric `info_alpha` is the mean
  alpha of the cohort.

  Args:
    algorithm: the algorithm of the global model, such as `fedavg(...)`.
    alpha: the initial weight of v in the mixture, in [0, 1].
    alpha_rate: the learning rate of each client's alpha, which learns in every
      local update, in [0, 1e30]; 0 keeps alpha fixed.
    optimizer: the client optimizer of v; None is that of the algorithm.

  Returns:
    The algorithm, for a model from `two_models`. A local update computes two
    gradients; a client's state is v and alpha.

  Raises:
    InputError: a number is out of range, or the algorithm needs an optimizer or
      has its own gradient.

  >>> import optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> mixed = fa.experimental.apfl(fedavg, alpha=0.5, alpha_rate=0.01)
  >>> isinstance(mixed, fa.Algorithm)
  True
  """
  rules.check_fraction('alpha', alpha, one=True)
  rules.check_real('alpha_rate', alpha_rate, 0, 1e30)
  _check_plain(algorithm)
  check_optimizer(algorithm, optimizer)
  of_own = optimizer or algorithm.client_optimizer
  base = personal(algorithm, _roles(), _with_alpha(of_own, alpha_rate))

  def client_init(params, client_id):
    state = base.client_init(params, client_id)
    first = jnp.full_like(params[_ALPHA], alpha)
    return state._replace(own=state.own | {_ALPHA: first})

  def client_gradient(loss_fn, params, batch, context):
    del context
    w, v, a = params[_GLOBAL], params[_OWN], params[_ALPHA]
    losses, of_global = _gradient(loss_fn, params, w, batch)
    g = _apart(loss_fn, params, _mixture(a, v, w), batch)
    of_own = jax.tree.map(lambda g: a * g, g)
    of_alpha: Any = sum(
      jax.tree.leaves(
        jax.tree.map(lambda v, w, g: jnp.sum((v - w) * g), v, w, g)
      )
    )
    return losses, _grads(of_global, of_own, of_alpha)

  def client_finish(result):
    output = base.client_finish(result)
    return output._replace(info=output.info | {_ALPHA: result.params[_ALPHA]})

  def own_model(context):
    own = context.client_state.own
    x = context.global_params[_GLOBAL]
    return _tested(context, _mixture(own[_ALPHA], own[_OWN], x))

  return base._replace(
    client_init=client_init,
    client_gradient=client_gradient,
    client_finish=client_finish,
    own_model=own_model,
  )


def _with_alpha(
  optimizer: optax.GradientTransformation, rate: float
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer of v with a step of alpha that ends in [0, 1]."""
  of_own = optax.with_extra_args_support(optimizer)

  def rest(tree):
    return tree | {_ALPHA: None}

  def update(updates: Any, state: Any, params: Any = None, **extra: Any):
    context = extra['context']
    extra['context'] = context._replace(
      global_params=rest(context.global_params)
    )
    alpha = params[_ALPHA]
    step = jnp.clip(alpha - rate * updates[_ALPHA], 0.0, 1.0) - alpha
    moved: Any = of_own.update(rest(updates), state, rest(params), **extra)
    return moved[0] | {_ALPHA: step}, moved[1]

  return optax.GradientTransformationExtraArgs(
    lambda params: of_own.init(rest(params)), update
  )


def _roles(frozen: str = '') -> Callable[[str], str]:
  """Returns the roles of the leaves of `two_models`."""

  def role(path: str) -> str:
    part = path.partition('/')[0]
    if part not in (_GLOBAL, _OWN, _ALPHA):
      raise InputError(
        f'model: has the parameters {path!r}, must be a model from'
        ' fa.experimental.two_models'
      )
    if part == _GLOBAL:
      return 'shared'
    return 'frozen' if part == frozen else 'personal'

  return role


def _check_plain(algorithm: Algorithm) -> None:
  """Raises InputError if an algorithm has its own gradient."""
  if algorithm.client_gradient is not None:
    raise InputError(
      'algorithm: has a client_gradient of its own, must have none, because'
      ' each of the two models has its gradient here'
    )


def _gradient(
  loss_fn: LossFn, params: Params, model: Params, batch: Batch
) -> tuple[Array, Params]:
  """Returns losses [B] and the gradient of their mean at one of the models."""

  def share_of_mean_loss(model):
    losses = loss_fn(params | {_GLOBAL: model}, batch)
    size = jnp.maximum(batch.size, 1).astype(losses.dtype)
    return jnp.sum(jnp.where(batch.mask, losses, 0.0)) / size, losses

  grads, losses = jax.grad(share_of_mean_loss, has_aux=True)(model)
  return losses, grads


def _apart(
  loss_fn: LossFn, params: Params, model: Params, batch: Batch
) -> Params:
  """Returns the gradient at the other model, computed apart from the first.

  Without the barrier XLA merges products of the two models with the same
  inputs, and the gradient of the global model has other last bits.
  """
  model, batch = lax.optimization_barrier((model, batch))
  return _gradient(loss_fn, params, model, batch)[1]


def _grads(of_global: Params, of_own: Params, of_alpha: Array) -> Params:
  return {_GLOBAL: of_global, _OWN: of_own, _ALPHA: of_alpha}


def _mixture(alpha: Array, v: Params, w: Params) -> Params:
  return jax.tree.map(lambda v, w: alpha * v + (1 - alpha) * w, v, w)


def _tested(context: ClientContext, own: Params) -> Params:
  """Returns parameters with which the model's outputs are those of `own`."""
  return context.global_params | {_GLOBAL: own}
