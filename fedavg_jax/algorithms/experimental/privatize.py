"""Makes rounds differentially private for whole clients."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedavg_jax.algorithms.experimental.contexts import with_own_server_state
from fedavg_jax.algorithms.experimental.gaussian import add_noise
from fedavg_jax.algorithms.experimental.gaussian import clipped
from fedavg_jax.algorithms.experimental.gaussian import describe
from fedavg_jax.algorithms.experimental.gaussian import unweighted_sum
from fedavg_jax.algorithms.experimental.robust import check_takes_the_mean
from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.algorithm import ServerContext
from fedavg_jax.contracts.algorithm_checks import check_is_delta
from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import Scalar
from fedavg_jax.contracts.model import num_bytes as dense_bytes
from fedavg_jax.core import rules
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.trees import PyTree

# Separates the keys of the noise from the key of the wrapped `server_update`.
_NOISE, _BIT_NOISE = 0x6E6F6973, 0x62697473


class AdaptiveClip(NamedTuple):
  """Configures a clip that follows a quantile of the clients' norms.

  Attributes:
    quantile: gamma, the fraction of clients whose norms the clip should not
      exceed, in (0, 1).
    learning_rate: eta_C, the rate of the clip's geometric updates, above 0.
    bit_noise: sigma_b, the standard deviation of the noise of the sum of bits;
      it must be above half the noise multiplier. 0 is a twentieth of the
      denominator.

  >>> import fedavg_jax as fa
  >>> fa.experimental.AdaptiveClip(quantile=0.5).learning_rate
  0.2
  """

  quantile: float
  learning_rate: float = 0.2
  bit_noise: float = 0.0


class PrivateMessage(NamedTuple):
  """Holds what a client sends.

  Attributes:
    delta: the clipped message of the wrapped algorithm.
    bit: 1/2 if the norm of the message was at most the clip, else -1/2; () with
      a fixed clip.
  """

  delta: PyTree
  bit: PyTree


class PrivateServer(NamedTuple):
  """Holds the server's state.

  Attributes:
    own: the server state of the wrapped algorithm.
    clip: float32 scalar, S of the next round.
  """

  own: PyTree
  clip: Array


def privatize(
  algorithm: Algorithm,
  *,
  clip: Scalar,
  noise_multiplier: Scalar,
  denominator: float,
  adaptive: AdaptiveClip | None = None,
) -> Algorithm:
  """Clips each client's message and adds Gaussian noise to their sum.

  This is DP-FedAvg with user-level privacy, McMahan et al. 2018, "Learning
  Differentially Private Recurrent Language Models", Algorithm 1 with the
  estimator of a fixed denominator and flat clipping. Each client is drawn with
  probability q, q K clients on average. For clients i of the cohort::

    message_i = delta_i * min(1, S / |delta_i|)
    aggregate = (sum of message_i + N(0, (sigma S)^2 I)) / (q K)

  The norm is over all leaves together. A message that is not finite counts as
  zero, and so does a client that does not report; all others have the weight 1.
  With adaptive clipping (Andrew et al. 2021, "Differentially Private Learning
  with Adaptive Clipping", Algorithm 1) clients also send a bit::

    b_i     = 1/2 if |delta_i| <= S else -1/2
    share   = 1/2 + (sum of b_i + N(0, sigma_b^2)) / (q K)
    S      <- S * exp(-eta_C * (share - gamma))

  and the noise of the deltas has sigma_delta = (sigma^-2 - (2
  sigma_b)^-2)^(-1/2) in place of sigma, so that sigma is the noise multiplier
  of both sums together.

  Args:
    algorithm: the algorithm to wrap, whose clients have no state and send one
      delta; its `aggregate` must be the weighted mean. Compression and attacks
      are applied to it before, since the clip must be what is sent.
    clip: S, in (0, 1e30]; the first one if it is adaptive.
    noise_multiplier: sigma, in [0, 1e30]; 0 adds no noise to the deltas.
    denominator: q K, the expected number of clients of a cohort.
    adaptive: the quantile that the clip follows; None keeps the clip.

  Returns:
    The algorithm, whose server state is a `PrivateServer` and whose `mechanism`
    describes it; the metrics have the clip of a round as `info_clip`.

  Raises:
    InputError: a number breaks its rule, or the algorithm does not average
      single deltas; when a simulation is built, if clients keep a state, the
      weights are not uniform, or another setting lets a client move the sum by
      more than S.

  >>> import jax, jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> private = fa.experimental.privatize(
  ...     fedavg, clip=1.0, noise_multiplier=0.0, denominator=10)
  >>> x = jnp.zeros(2)
  >>> server = private.server_init(x)
  >>> context = fa.ClientContext(x, server, (), 0, 9, 1, key=None)
  >>> delta = jnp.array([3.0, 4.0])
  >>> result = fa.ClientResult(delta, delta, (), 1, 0.5, (), context)
  >>> sent = private.client_finish(result).message
  >>> bool(jnp.allclose(sent.delta, delta / 5))
  True
  """
  rules.check_positive('clip', clip, 1e30)
  rules.check_real('noise_multiplier', noise_multiplier, 0, 1e30)
  rules.check_positive('denominator', denominator, 2**31)
  if algorithm.mechanism is not None:
    raise InputError('privatize: the algorithm is private already')
  check_takes_the_mean('privatize', algorithm)
  if adaptive is not None:
    adaptive = _checked(adaptive, noise_multiplier, denominator)
  deviation = deviation_of_deltas(noise_multiplier, adaptive)
  inside = with_own_server_state(algorithm)

  def server_init(params):
    return PrivateServer(algorithm.server_init(params), jnp.float32(clip))

  def client_finish(result: ClientResult):
    output = inside.client_finish(result)
    check_is_delta('privatize', output.message, result.delta)
    clip = result.context.server_state.clip
    delta, bit = clipped(output.message, clip)
    message = PrivateMessage(delta, () if adaptive is None else bit)
    return output._replace(message=message)

  def server_update(
    params: PyTree, server: PrivateServer, sums: Any, context: ServerContext
  ):
    key = jax.random.fold_in(context.key, _NOISE)
    noisy = add_noise(key, sums.delta, deviation, server.clip)
    mean = jax.tree.map(lambda total: total / denominator, noisy)
    params, own = algorithm.server_update(params, server.own, mean, context)
    clip = server.clip
    if adaptive is not None:
      key = jax.random.fold_in(context.key, _BIT_NOISE)
      bits = add_noise(key, sums.bit, adaptive.bit_noise, 1.0)
      clip = next_clip(adaptive, clip, 0.5 + bits / denominator)
    return params, PrivateServer(own, clip)

  def num_bytes(message: PrivateMessage):
    assert algorithm.num_bytes is not None
    return algorithm.num_bytes(message.delta) + dense_bytes(message.bit)

  private = inside._replace(
    server_init=server_init,
    client_finish=client_finish,
    aggregate=unweighted_sum(),
    server_update=server_update,
    num_bytes=algorithm.num_bytes and num_bytes,
    server_info=lambda server: {'clip': server.clip},
  )
  return private._replace(
    mechanism=describe(private, clip, noise_multiplier, denominator)
  )


def next_clip(adaptive: AdaptiveClip, clip: Array, share: Array) -> Array:
  """Returns the clip of the next round.

  Args:
    adaptive: the quantile and the rate.
    clip: [] the clip of this round.
    share: [] the noisy share of clients whose norms are at most the clip.
  """
  step = jnp.exp(-adaptive.learning_rate * (share - adaptive.quantile))
  return jnp.clip(clip * step, 1e-30, 1e30)


def _checked(
  adaptive: AdaptiveClip, noise_multiplier: Scalar, denominator: float
) -> AdaptiveClip:
  """Returns adaptive clipping with the default of its noise filled in."""
  rules.check_positive('quantile', adaptive.quantile, 1)
  rules.check_fraction('quantile', adaptive.quantile)
  rules.check_positive('learning_rate', adaptive.learning_rate, 1e30)
  rules.check_real('bit_noise', adaptive.bit_noise, 0, 1e30)
  noise = adaptive.bit_noise or denominator / 20
  if not rules.is_traced(noise_multiplier) and noise <= noise_multiplier / 2:
    raise InputError(
      f'bit_noise = {noise:g}: must be above noise_multiplier / 2 ='
      f' {noise_multiplier / 2:g}, or the bits alone have less noise'
    )
  return adaptive._replace(bit_noise=noise)


def deviation_of_deltas(
  noise_multiplier: Scalar, adaptive: AdaptiveClip | None
) -> Scalar:
  """Returns sigma_delta, which is sigma with a fixed clip.

  Args:
    noise_multiplier: sigma.
    adaptive: adaptive clipping with its noise sigma_b, None with a fixed clip.
  """
  if adaptive is None:
    return noise_multiplier
  # (z^-2 - (2 sigma_b)^-2)^(-1/2), which is 0 for z = 0.
  return (
    noise_multiplier
    / (1 - (noise_multiplier / (2 * adaptive.bit_noise)) ** 2) ** 0.5
  )
