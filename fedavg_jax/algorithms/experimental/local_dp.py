"""Lets each client add noise to its own message: local differential privacy."""

import jax

from fedavg_jax.algorithms.experimental.gaussian import add_noise
from fedavg_jax.algorithms.experimental.gaussian import check_no_model_state
from fedavg_jax.algorithms.experimental.gaussian import clipped
from fedavg_jax.algorithms.experimental.gaussian import gaussian_epsilon
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.algorithm_checks import check_is_delta
from fedavg_jax.contracts.model import Scalar
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError

# Separates the key of the noise from that of the wrapped `client_finish`.
_NOISE = 0x6C6F6361


def local_dp(
  algorithm: Algorithm, clip: Scalar, noise_multiplier: Scalar
) -> Algorithm:
  """Makes each client clip its delta and add Gaussian noise before it sends it.

  Client k sends, of its delta d_k::

    sent_k = d_k * min(1, S / |d_k|) + N(0, (sigma S)^2 I)

  The norm is over all leaves together; a delta that is not finite counts as
  zero. Whatever a client's data are, they move what it sends by at most 2 S:
  the message alone is differentially private, also against the server. A mean
  over M clients of equal weights has noise of standard deviation sigma S /
  sqrt(M) where noise added at the server needs sigma S / M.

  Deltas are protected; n_k, the losses and the other metrics of a simulation
  are not. `local_epsilon` computes epsilon.

  Args:
    algorithm: the algorithm to wrap, whose clients send one delta, not encoded.
      Robust rules and secure sums are applied to the result.
    clip: S, in (0, 1e30].
    noise_multiplier: sigma, in [0, 1e30]; 0 adds no noise.

  Raises:
    InputError: a number is out of range, or messages are encoded; when a
      simulation is built, if a message has more than a delta, or the model has
      untrained state.

  >>> import jax, jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> local = fa.experimental.local_dp(fedavg, clip=1.0, noise_multiplier=2.0)
  >>> delta = jnp.full(40_000, 3.0)
  >>> context = fa.ClientContext(delta, (), (), 0, 9, 1, jax.random.key(0))
  >>> result = fa.ClientResult(delta, delta, (), 1, 0.5, (), context)
  >>> sent = local.client_finish(result).message
  >>> round(float(jnp.std(sent)), 1)
  2.0
  """
  rules.check_positive('clip', clip, 1e30)
  rules.check_real('noise_multiplier', noise_multiplier, 0, 1e30)
  if algorithm.num_bytes is not None:
    raise InputError(
      'algorithm.num_bytes: is set, so that messages are encoded already; must'
      ' be None for local_dp, after which messages can be encoded'
    )

  def client_finish(result: ClientResult):
    check_no_model_state('local_dp', result.model_state)
    output = algorithm.client_finish(result)
    check_is_delta('local_dp', output.message, result.delta)
    key = jax.random.fold_in(result.context.key, _NOISE)
    delta, _ = clipped(output.message, clip)
    noisy = add_noise(key, delta, noise_multiplier, clip)
    return output._replace(message=noisy)

  return algorithm._replace(client_finish=client_finish)


def local_epsilon(noise_multiplier: float, delta: float, rounds: int) -> float:
  """Computes the epsilon of one client's messages under `local_dp`.

  Neighbours are any two data sets of the client, whose clipped deltas differ by
  at most 2 S, so that a message is a Gaussian mechanism with sigma / 2. No
  sampling of clients amplifies it, because the server sees who sends.

  Args:
    noise_multiplier: sigma, at least 0.
    delta: delta, in (0, 1).
    rounds: the number of rounds in which the client sends a message, at least
      0; that of all rounds is safe.

  Raises:
    InputError: a number is out of range, or dp-accounting is not installed.

  >>> import fedavg_jax as fa
  >>> round(fa.experimental.local_epsilon(2.0, delta=1e-5, rounds=1), 2)
  4.38
  """
  rules.check_real('noise_multiplier', noise_multiplier, 0, 1e30)
  rules.check_whole('rounds', rounds, 0)
  return gaussian_epsilon(noise_multiplier / 2, delta, rounds)
