"""The same round in its plainest form: to read, to teach, to test against.

Every client of the cohort is padded to the largest one, `vmap` trains them all
side by side, and a weighted mean makes the new model. This is Algorithm 1 of
McMahan et al. 2017, with the weights taken over the cohort. The engine in
`engine/compiled_round.py` computes the same without the padding, and faster.

Shape letters: M cohort, N examples of the largest client, T = E * ceil(N / B)
steps, B examples of a step.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp


def build_reference_round(loss_fn: Callable, learning_rate: float) -> Callable:
  """Builds `reference_round(params, x, y, mask, batches) -> params`.

  Args:
    loss_fn: (params, x [B, ...], y [B]) -> losses [B].
    learning_rate: eta of the clients' plain SGD.

  Returns:
    A jitted function of the global model and of the cohort's padded data:
    x [M, N, ...], y [M, N] and mask [M, N] from `client_data.stack`, batches
    [M, T, B] from `Planner.padded_batches` (positions in 0 .. N - 1, -1 for
    padding).
  """

  def client_update(params, x, y, batches):
    """E local epochs of ONE client: x [N, ...], y [N], batches [T, B]."""

    def step(params, batch):
      real = batch >= 0

      def mean_loss(params):
        losses = jnp.where(real, loss_fn(params, x[batch], y[batch]), 0.0)
        return losses.sum() / jnp.maximum(real.sum(dtype=losses.dtype), 1)

      grads = jax.grad(mean_loss)(params)  # Zero where the batch is empty.
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
