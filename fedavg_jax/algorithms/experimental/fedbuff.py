"""Defines FedBuff, which weights asynchronous updates by their staleness."""

import jax
import jax.numpy as jnp

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.algorithm_checks import check_is_delta
from fedavg_jax.core import rules


def fedbuff(algorithm: Algorithm, exponent: float = 0.5) -> Algorithm:
  """Scales each client's message by its staleness, as FedBuff does.

  Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous
  Aggregation", Algorithm 1 and Section 5.1. A client that starts from the model
  of round v and whose message arrives when the newest model is that of round
  v + tau has the staleness tau. With M messages in the buffer::

    message_i = (1 + tau_i) ** -exponent * (y_i - x_v)
    x        <- x + eta_g * mean of message_i

  `fa.Participation(buffer=M, clock=...)` makes clients asynchronous. The
  paper's mean is uniform, `weighting = 'uniform'`.

  Args:
    algorithm: the algorithm of clients and server, such as `fa.fedavg(...)`,
      whose message is one delta. SCAFFOLD's and FedNova's, for example, have
      parts that must not be scaled.
    exponent: the exponent of the discount, in [0, 100]; 0 discounts nothing.

  Returns:
    The algorithm; its metrics have the mean staleness as `info_staleness`. In
    synchronous rounds it is `algorithm`, bit for bit.

  Raises:
    InputError: `exponent` is out of range; when a simulation is built, if the
      message has more than a delta.

  >>> import jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> fedbuff = fa.experimental.fedbuff(fedavg)
  >>> x = jnp.zeros(2)
  >>> context = fa.ClientContext(x, (), (), 0, 9, 5, key=None, staleness=3)
  >>> result = fa.ClientResult(x + 4, x + 4, (), 1, 0.5, (), context)
  >>> fedbuff.client_finish(result).message.tolist()
  [2.0, 2.0]
  """
  rules.check_real('exponent', exponent, 0, 100)

  def client_finish(result: ClientResult):
    output = algorithm.client_finish(result)
    check_is_delta('fedbuff', output.message, result.delta)
    staleness = jnp.float32(result.context.staleness)
    scale = (1 + staleness) ** -exponent
    return output._replace(
      message=jax.tree.map(lambda leaf: scale * leaf, output.message),
      info=output.info | {'staleness': staleness},
    )

  return algorithm._replace(client_finish=client_finish)
