"""A communication round as one compiled call.

`round_fn(state, data, plan) -> (state, metrics)` trains the whole cohort and
updates the global model. What happens to one client is written for one client
(`build_local_step`) and vmapped over the lanes; the lanes are sharded over the
devices of a mesh. Trip counts come from the plan, so that one compilation
serves every cohort.

Shape letters: L lanes of one device, B examples of a step, T, S, N as in
`plan.py`.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from fedavg_jax.clients import Examples
from fedavg_jax.losses import LossFn
from fedavg_jax.plan import Plan


class ServerState(NamedTuple):
  """What the server keeps between rounds.

  Attributes:
    round: int32 scalar, rounds done.
    params: the global model w_t.
    opt_state: state of the server's optimizer.
  """

  round: jax.Array
  params: optax.Params
  opt_state: optax.OptState


class RoundMetrics(NamedTuple):
  """What one round tells.

  Attributes:
    train_loss: mean loss of the examples read, each before its own step.
    examples: examples read by the cohort in all local epochs.
    finite: False where the loss or the new model is not finite; the round then
      left the model as it was.
  """

  train_loss: jax.Array
  examples: jax.Array
  finite: jax.Array


def lane_mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
  """The devices along one axis, 'lanes'."""
  return jax.sharding.Mesh(devices, ('lanes',))


def init_state(
  params: optax.Params,
  server_optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> ServerState:
  """The state before the first round, on every device of the mesh."""
  state = ServerState(
    round=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=server_optimizer.init(params),
  )
  return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.P()))


def build_local_step(
  loss_fn: LossFn, client_optimizer: optax.GradientTransformation
) -> Callable:
  """One minibatch step of ONE client: w <- w - eta * grad loss(w; b)."""

  def local_step(params, opt_state, x, y, mask):
    """The loss of x [B, ...], y [B] is the mean where mask [B] is True."""
    count = jnp.sum(mask)

    def mean_loss(params):
      losses = jnp.where(mask, loss_fn(params, x, y), 0.0)
      return jnp.sum(losses) / jnp.maximum(count, 1).astype(losses.dtype)

    loss, grads = jax.value_and_grad(mean_loss)(params)
    updates, opt_state = client_optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss * count.astype(loss.dtype), count

  return local_step


def build_round(
  loss_fn: LossFn,
  client_optimizer: optax.GradientTransformation,
  server_optimizer: optax.GradientTransformation,
  *,
  step_examples: int,
  mesh: jax.sharding.Mesh,
) -> jax.stages.Wrapped:
  """Builds the jitted round; the state that goes in is donated.

  Args:
    loss_fn: losses of a batch under one client's model.
    client_optimizer: the local optimizer, `optax.sgd(eta)` in the paper; its
      state begins anew with every client of every round.
    server_optimizer: takes the pseudo-gradient, the negative weighted mean of
      the clients' deltas; `optax.sgd(1.0)` is FedAvg.
    step_examples: B, rows of one step's batch (`Planner.step_examples`).
    mesh: the devices, from `lane_mesh`; plans must be made for as many.

  Returns:
    `round_fn(state, data, plan)`; data are all clients' examples.
  """
  local_step = build_local_step(loss_fn, client_optimizer)
  lanes, everywhere = jax.P('lanes'), jax.P()

  def train_lanes(params, data: Examples, plan: Plan):
    """One device's lanes: the sum of weight * delta, the loss, the count."""
    num_lanes = plan.start.shape[0]
    begin = jax.tree.map(
      lambda p: jnp.broadcast_to(p, (num_lanes, *p.shape)), params
    )
    begin_opt = jax.vmap(client_optimizer.init)(begin)

    def step(t, carry):
      local, opt_state, loss_sum, examples = carry

      def one_lane(params, opt_state, start, count):
        rows = lax.dynamic_slice_in_dim(plan.order, start, step_examples)
        mask = jnp.arange(step_examples) < count
        return local_step(params, opt_state, data.x[rows], data.y[rows], mask)

      local, opt_state, loss, count = jax.vmap(one_lane)(
        local, opt_state, plan.start[:, t], plan.count[:, t]
      )
      return (
        local,
        opt_state,
        loss_sum + jnp.sum(loss),
        examples + jnp.sum(count),
      )

    def until_event(s, carry):
      """Steps up to event s, then the clients that end there."""
      total, *local_carry = carry
      first = jnp.where(s == 0, 0, plan.event[0, s - 1])
      local, opt_state, loss_sum, examples = lax.fori_loop(
        first, plan.event[0, s], step, tuple(local_carry)
      )
      ended = plan.client[:, s] >= 0  # [L]

      def per_lane(flags, like):
        return flags.reshape(-1, *(1,) * (like.ndim - 1))

      def add(total, local, begin):
        # An idle lane's model is nobody's: left out, not multiplied by zero.
        delta = jnp.where(per_lane(ended, local), local - begin, 0)
        return total + _exact_tensordot(plan.weight[:, s], delta)

      def restart(now, begin):
        return jnp.where(per_lane(ended, now), begin, now)

      total = jax.tree.map(add, total, local, begin)
      local = jax.tree.map(restart, local, begin)
      opt_state = jax.tree.map(restart, opt_state, begin_opt)
      return total, local, opt_state, loss_sum, examples

    total, _, _, loss_sum, examples = lax.fori_loop(
      0,
      plan.num_events[0],
      until_event,
      (
        jax.tree.map(jnp.zeros_like, params),
        begin,
        begin_opt,
        jnp.zeros((), jnp.float32),
        jnp.zeros((), jnp.int32),
      ),
    )
    return lax.psum((total, loss_sum, examples), 'lanes')

  train_cohort = jax.shard_map(
    train_lanes,
    mesh=mesh,
    in_specs=(everywhere, everywhere, Plan._make([everywhere, *[lanes] * 6])),
    out_specs=everywhere,
    check_vma=False,
  )

  def round_fn(state, data, plan):
    mean_delta, loss_sum, examples = train_cohort(state.params, data, plan)
    # Optimizers descend: the direction to go, delta, is minus a gradient.
    pseudo_gradient = jax.tree.map(jnp.negative, mean_delta)
    updates, opt_state = server_optimizer.update(
      pseudo_gradient, state.opt_state, state.params
    )
    new_state = ServerState(
      state.round + 1, optax.apply_updates(state.params, updates), opt_state
    )
    finite = jnp.isfinite(loss_sum) & _all_finite(new_state.params)
    new_state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), new_state, state
    )
    metrics = RoundMetrics(
      train_loss=loss_sum / jnp.maximum(examples, 1).astype(jnp.float32),
      examples=examples,
      finite=finite,
    )
    return new_state, metrics

  def sharding(spec):
    return jax.sharding.NamedSharding(mesh, spec)

  return jax.jit(
    round_fn,
    donate_argnums=0,
    in_shardings=(
      sharding(everywhere),
      sharding(everywhere),
      Plan._make([sharding(everywhere), *[sharding(lanes)] * 6]),
    ),
    out_shardings=sharding(everywhere),
  )


def place_examples(
  x: np.ndarray, y: np.ndarray, mesh: jax.sharding.Mesh
) -> Examples:
  """Puts all examples on every device of the mesh, to stay there."""
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  return jax.device_put(Examples(x, y), everywhere)


def _exact_tensordot(weights, stacked) -> jax.Array:
  """[L] x [L, ...] -> [...], in float32 also where matrix units round more."""
  return jnp.tensordot(weights, stacked, 1, precision=lax.Precision.HIGHEST)


def _all_finite(tree) -> jax.Array:
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])
  )
