"""Trains clients with DP-SGD: per-example clipping and noise in every step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.algorithms.experimental.gaussian import add_noise
from fedavg_jax.algorithms.experimental.gaussian import check_no_model_state
from fedavg_jax.algorithms.experimental.gaussian import clipped
from fedavg_jax.algorithms.experimental.gaussian import gaussian_epsilon
from fedavg_jax.contracts import losses
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.model import Batch
from fedavg_jax.contracts.model import Params
from fedavg_jax.contracts.model import Scalar
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError

# Separates the key of the noise from that of the wrapped optimizer.
_NOISE = 0x65786D70


def example_dp(
  algorithm: Algorithm,
  clip: Scalar,
  noise_multiplier: Scalar,
  denominator: float,
) -> Algorithm:
  """Makes each client train with DP-SGD, Abadi et al. 2016, Algorithm 1.

  A local step with the examples i of a minibatch is::

    g = (sum of g_i * min(1, S / |g_i|) + N(0, (sigma S)^2 I)) / B

  with the gradient g_i of one example's loss, zero if it is not finite. The
  client's optimizer receives g. The noise is added once per minibatch, whether
  or not the engine splits it; B is a constant, so that the last minibatch of an
  epoch, which may be smaller, has the same noise and a smaller gradient.

  What a client sends is then differentially private with respect to each of
  its examples, also against the server. `example_epsilon` computes epsilon.
  Losses and the other metrics of a simulation are not protected.

  Args:
    algorithm: the algorithm to wrap. Its clients' optimizer comes after the
      noise, so that FedProx, momentum and clipped deltas are allowed.
    clip: S, in (0, 1e30].
    noise_multiplier: sigma, in [0, 1e30]; 0 adds no noise.
    denominator: B, above 0: the batch size, or a public guess of n_k where a
      minibatch is all local data.

  Returns:
    The algorithm; a local step needs the memory of B gradients.

  Raises:
    InputError: a number is out of range, or the algorithm uses other gradients;
      when a simulation is built, if the model has untrained state, or a message
      depends on the client's loss.

  >>> import jax, jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> private = fa.experimental.example_dp(
  ...     fedavg, clip=1.0, noise_multiplier=0.0, denominator=2)
  >>> batch = fa.Batch(
  ...     x=jnp.array([0.5, 9.0, 9.0]), y=jnp.zeros(3),
  ...     mask=jnp.array([True, True, False]), size=jnp.int32(2))
  >>> _, gradient = private.client_gradient(
  ...     lambda w, batch: w * batch.x, jnp.zeros(()), batch, None)
  >>> float(gradient)  # (0.5 + 1) / 2.
  0.75
  """
  rules.check_positive('clip', clip, 1e30)
  rules.check_real('noise_multiplier', noise_multiplier, 0, 1e30)
  rules.check_positive('denominator', denominator, 2**31)
  if algorithm.client_gradient is not None:
    raise InputError(
      'algorithm.client_gradient: is set, must be None for example_dp, which'
      ' clips the gradient of each example'
    )
  if algorithm.full_gradient:
    raise InputError(
      'algorithm.full_gradient: must be False for example_dp, which adds no'
      ' noise to the gradient at the global model'
    )
  optimizer = optax.with_extra_args_support(algorithm.client_optimizer)

  def client_gradient(
    loss_fn: Any, params: Params, batch: Batch, context: ClientContext
  ):
    del context
    values, gradients = losses.per_example_gradients(loss_fn, params, batch)
    short, _ = jax.vmap(lambda g: clipped(g, clip))(gradients)
    return values, jax.tree.map(
      lambda g: jnp.sum(g, axis=0) / denominator, short
    )

  def update(updates, state, params=None, **extra):
    key = jax.random.fold_in(extra['context'].key, _NOISE)
    noisy = add_noise(key, updates, noise_multiplier, clip / denominator)
    return optimizer.update(noisy, state, params, **extra)

  def client_finish(result: ClientResult):
    check_no_model_state('example_dp', result.model_state)
    _check_float32(result.params)
    _check_ignores_loss(algorithm, result)
    return algorithm.client_finish(result)

  return algorithm._replace(
    client_gradient=client_gradient,
    client_optimizer=optax.GradientTransformationExtraArgs(
      optimizer.init, update
    ),
    client_finish=client_finish,
  )


def _check_float32(params: Params) -> None:
  """Raises InputError where a sum of gradients would be rounded too much."""
  for leaf in jax.tree.leaves(params):
    if leaf.dtype != jnp.float32:
      raise InputError(
        f'example_dp: the model has parameters of {leaf.dtype}, must have'
        ' float32, as rounding to fewer bits may exceed the clip'
      )


def _check_ignores_loss(algorithm: Algorithm, result: ClientResult) -> None:
  """Raises InputError if a message or state depends on the unprotected loss."""

  def sent(loss):
    output = algorithm.client_finish(result._replace(mean_loss=loss))
    return output.message, output.state

  program = jax.make_jaxpr(sent)(jax.ShapeDtypeStruct((), jnp.float32)).jaxpr
  loss = program.invars[0]
  used = [v for eqn in program.eqns for v in eqn.invars] + program.outvars
  if any(v is loss for v in used):
    raise InputError(
      'algorithm.client_finish: what a client sends or keeps depends on its'
      ' loss, to which no noise is added; must not with example_dp'
    )


def example_epsilon(
  noise_multiplier: float, delta: float, rounds: int, epochs: int
) -> float:
  """Computes the epsilon of one example of a client under `example_dp`.

  Neighbours are data sets in which one example is replaced by any other, and
  n_k is public. Clients shuffle their examples, each of which is in one
  minibatch of an epoch: replacing it moves one sum per epoch by at most 2 S.
  The T * E sums compose as Gaussian mechanisms with sigma / 2. A subsampled
  Gaussian mechanism would need minibatches drawn by Poisson sampling, with a
  smaller epsilon that does not hold for shuffled epochs; the drawing of clients
  does not amplify it either, as the server sees who sends.

  Args:
    noise_multiplier: sigma, at least 0.
    delta: delta, in (0, 1).
    rounds: T, the number of rounds in which the client trains, at least 0; that
      of all rounds is safe.
    epochs: E, the local epochs of a round, at least 1.

  Raises:
    InputError: a number is out of range, or dp-accounting is not installed.

  >>> import fedavg_jax as fa
  >>> once = fa.experimental.example_epsilon(8.0, 1e-5, rounds=1, epochs=4)
  >>> more = fa.experimental.example_epsilon(16.0, 1e-5, rounds=4, epochs=4)
  >>> round(once, 2), abs(once - more) < 1e-9
  (1.99, True)
  """
  rules.check_real('noise_multiplier', noise_multiplier, 0, 1e30)
  rules.check_whole('rounds', rounds, 0)
  rules.check_whole('epochs', epochs, 1)
  return gaussian_epsilon(noise_multiplier / 2, delta, rounds * epochs)
