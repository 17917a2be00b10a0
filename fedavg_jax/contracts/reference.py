"""Defines a round of FedAvg in its simplest form, to read and to test against.

Every client of the cohort is padded to the size of the largest, `vmap` trains
all of them in parallel, and their weighted mean is the new model. This is
Algorithm 1 of McMahan et al. 2017, with weights over the cohort. The engine
in `engine/compiled_round.py` computes the same without padding, and faster.

Shape letters: M cohort, N examples of the largest client, T = E * ceil(N / B)
steps, B examples of a step.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.contracts.model import Params
from fedavg_jax.core.trees import PyTree


def build_reference_round(
  loss_fn: Callable[[Params, PyTree, PyTree], jax.Array], learning_rate: float
) -> Callable[..., Params]:
  """Builds `reference_round(params, x, y, mask, batches) -> params`.

  Args:
    loss_fn: (params, x [B, ...], y [B, ...]) -> losses [B], such as that of
      `fa.losses.of_examples`.
    learning_rate: eta of the clients' plain SGD.

  Returns:
    A jitted function of the global model and the cohort's padded data: x
    [M, N, ...], y [M, N, ...] and mask [M, N] from `fa.stack`, and batches
    [M, T, B] from `fa.engine.Planner.padded_batches`, the examples' positions
    in [0, N - 1], or -1 for padding.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> loss_fn = fa.losses.of_examples(
  ...     lambda w, x: w * x, fa.losses.squared_error)
  >>> reference_round = fa.engine.build_reference_round(loss_fn, 0.5)
  >>> ones = jnp.ones((2, 1, 1))  # Two clients with one example each.
  >>> mask, batches = jnp.ones((2, 1), bool), jnp.zeros((2, 1, 1), jnp.int32)
  >>> float(reference_round(jnp.zeros(()), ones, ones, mask, batches))
  1.0
  """

  def client_update(params, x, y, batches):
    """Trains ONE client: x [N, ...], y [N, ...], batches [T, B]."""

    def step(params, batch):
      real = batch >= 0

      def mean_loss(params):
        losses = jnp.where(real, loss_fn(params, x[batch], y[batch]), 0.0)
        return losses.sum() / jnp.maximum(real.sum(dtype=losses.dtype), 1)

      grads = jax.grad(mean_loss)(params)  # Zero if the batch is empty.
      return jax.tree.map(
        lambda w, g: w - learning_rate * g, params, grads
      ), None

    params, _ = lax.scan(step, params, batches)
    return params

  @jax.jit
  def reference_round(params, x, y, mask, batches):
    locals_ = jax.vmap(client_update, in_axes=(None, 0, 0, 0))(
      params, x, y, batches
    )
    num_examples = mask.sum(axis=1, dtype=jnp.float32)  # n_k, [M]
    weights = num_examples / num_examples.sum()
    return jax.tree.map(
      lambda w: jnp.tensordot(weights, w, 1, precision='highest'), locals_
    )

  return reference_round
