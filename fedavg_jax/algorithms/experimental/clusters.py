"""Defines IFCA, which trains several models, each for a cluster of clients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.algorithms.experimental.personal import first_epochs
from fedavg_jax.algorithms.fedavg import fedavg
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.model import Model
from fedavg_jax.contracts.model import Variables
from fedavg_jax.contracts.model import num_bytes
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError

# The leaves of `clustered`: the models, and a client's loss of each.
_MODELS, _LOSSES = 'models', 'losses'


def clustered(model: Model, number: int) -> Model:
  """Gives a model several sets of parameters, for `ifca`.

  Args:
    model: the model, without `train` and untrained state.
    number: the number k of sets, each with its own initial weights, at least 1.

  Returns:
    The model, whose parameters are a dictionary of 'models', [k, ...], and
    'losses', [k]. Its outputs are those of the set with the smallest loss, the
    first one in tests of the global model.

  Raises:
    InputError: `number` is below 1, or the model has `train`; when it is
      initialised, if it has untrained state.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> linear = fa.Model(
  ...     'linear', lambda key: jax.random.normal(key, (3,)),
  ...     lambda w, x: x @ w)
  >>> four = fa.experimental.clustered(linear, 4)
  >>> four.init(jax.random.key(0))['models'].shape
  (4, 3)
  """
  rules.check_whole('number', number, 1)
  if model.train is not None:
    raise InputError(f'model {model.name!r}: has `train`, must have none')

  def init(key):
    models = jax.vmap(model.init)(jax.random.split(key, number))
    if isinstance(models, Variables):
      raise InputError(f'model {model.name!r}: has untrained state')
    return {_MODELS: models, _LOSSES: jnp.zeros(number, jnp.float32)}

  def apply(params, x):
    best = jnp.argmin(params[_LOSSES])
    return model.apply(jax.tree.map(lambda m: m[best], params[_MODELS]), x)

  return model._replace(init=init, apply=apply)


def ifca(
  client_optimizer: optax.GradientTransformation, number: int, batch_size: int
) -> Algorithm:
  """Builds IFCA, Ghosh et al. 2020, Algorithm 1 with model averaging.

  With the models x_1, ..., x_k and the mean loss F_i of client i::

    client   j = argmin over j of F_i(x_j); trains a copy y_i of x_j
    server   x_j <- x_j + mean of (y_i - x_j) over the cohort's clients with j

  A client measures the losses in the first of its local epochs and trains in
  the others: set `epochs` to E + 1. Each epoch also computes the outputs of all
  k models. The losses are in the client's delta: do not clip it by its norm.

  Args:
    client_optimizer: the optimizer of local updates, which does not move where
      gradients are 0, such as `optax.sgd(eta)`.
    number: the number k of models, as in `clustered`, at least 1.
    batch_size: B, as in `fa.Federation`; 0 is one update per epoch.

  Returns:
    The algorithm, for a model from `clustered`. A client receives k models,
    sends one and its number j, and its state is j, -1 before it is drawn; its
    own model is x_j, x_1 before it is drawn.

  Raises:
    InputError: an argument is out of range.

  >>> import optax
  >>> import fedavg_jax as fa
  >>> algorithm = fa.experimental.ifca(optax.sgd(0.1), 4, batch_size=10)
  >>> int(algorithm.client_init({}, 0))
  -1
  """
  rules.check_whole('number', number, 1)
  measured = first_epochs(1, batch_size)
  optimizer = optax.with_extra_args_support(client_optimizer)

  def choose(params, j):
    """Returns parameters in which the loss of model j is the smallest."""
    return params | {_LOSSES: -jax.nn.one_hot(j, number)}

  def client_gradient(loss_fn, params, batch, context):
    def mean_loss(models):
      losses = loss_fn(params | {_MODELS: models}, batch)
      size = jnp.maximum(batch.size, 1).astype(losses.dtype)
      return jnp.sum(jnp.where(batch.mask, losses, 0.0)) / size, losses

    grads, losses = jax.grad(mean_loss, has_aux=True)(params[_MODELS])
    each = jax.vmap(lambda j: loss_fn(choose(context.global_params, j), batch))(
      jnp.arange(number)
    )  # [k, B]
    sums = jnp.sum(jnp.where(batch.mask[None], each, 0.0), axis=1)
    return losses, {_MODELS: grads, _LOSSES: sums}

  def init(params: Any):
    return optimizer.init(params[_MODELS])

  def update(updates: Any, state: Any, params: Any = None, **extra: Any):
    context: ClientContext = extra['context']
    extra['context'] = context._replace(
      global_params=context.global_params[_MODELS]
    )
    moved, trained = optimizer.update(
      updates[_MODELS], state, params[_MODELS], **extra
    )
    measures = extra['step'] < measured(context)
    models = jax.tree.map(lambda m: jnp.where(measures, 0.0, m), moved)
    losses = jnp.where(measures, updates[_LOSSES], 0.0)
    state = jax.tree.map(
      lambda old, new: jnp.where(measures, old, new), state, trained
    )
    return {_MODELS: models, _LOSSES: losses}, state

  def client_finish(result: ClientResult):
    j = jnp.argmin(result.params[_LOSSES]).astype(jnp.int32)
    mine = jax.nn.one_hot(j, number)
    return ClientOutput((result.delta[_MODELS], mine), j)

  def server_update(params, server, mean, context):
    del context
    deltas, shares = mean
    shares = jnp.where(shares > 0, shares, 1.0)

    def move(models, delta):
      return models + delta / shares.reshape(-1, *(1,) * (delta.ndim - 1))

    models = jax.tree.map(move, params[_MODELS], deltas)
    return params | {_MODELS: models}, server

  return fedavg(
    optax.GradientTransformationExtraArgs(init, update),
    optax.identity(),
  )._replace(
    client_gradient=client_gradient,
    client_finish=client_finish,
    client_init=lambda params, client_id: jnp.int32(-1),
    server_update=server_update,
    # One model and its number.
    num_bytes=lambda message: num_bytes(message[0]) // number + 4,
    received=lambda params: params[_MODELS],
    own_model=lambda context: choose(
      context.global_params, context.client_state
    ),
  )
