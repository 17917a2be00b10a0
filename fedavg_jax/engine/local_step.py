"""Trains ONE client: the steps of its minibatches, and its output.

The functions are pure and written for one lane; `client_round.py` vmaps them
over the lanes.

Shape letters: B examples of a step, N rows in the order of reading, L lanes of
one device.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.losses import Loss
from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import Batch
from fedavg_jax.contracts.model import Model
from fedavg_jax.contracts.model import forward
from fedavg_jax.contracts.model import join
from fedavg_jax.core import trees
from fedavg_jax.core.client_data import Examples
from fedavg_jax.engine import earlier_models
from fedavg_jax.engine import keys
from fedavg_jax.engine.prefetch import Buffer
from fedavg_jax.models import layers


@dataclasses.dataclass(frozen=True)
class Training:
  """Holds the static settings that are compiled into a round.

  Attributes:
    model: the model that every client trains.
    loss: the loss of its outputs.
    algorithm: the algorithm, such as `fa.fedavg(...)`.
    step_examples: B.
    accumulates: True if a minibatch may take several steps.
    skips_clients: True if clients that are not finite are dropped.
    counts_bytes: True if the bytes of messages depend on their values.
    widths: the numbers of lanes that step together, descending; the other lanes
      are idle by then.
  """

  model: Model
  loss: Loss
  algorithm: Algorithm
  step_examples: int
  accumulates: bool
  skips_clients: bool
  counts_bytes: bool
  widths: tuple[int, ...]


class RoundContext(NamedTuple):
  """Holds the values that all clients of a round share.

  Attributes:
    global_params: the parameters of the global model.
    model_state: the state of the global model, which is not trained; () if
      there is none.
    opt_state: the state of a client's optimizer before its first step.
    server_state: the algorithm's server state.
    number: int32 scalar, the round's number, from 1.
    augmentation: the key of the round's augmentation.
    clients: the key from which those of the clients derive.
    earlier: the last models of asynchronous clients, see `earlier_models`.
  """

  global_params: optax.Params
  model_state: Any
  opt_state: Any
  server_state: Any
  number: jax.Array
  augmentation: jax.Array
  clients: jax.Array
  earlier: Any = ()


class LaneState(NamedTuple):
  """Holds the state of a lane and its client; stacked over lanes, [L, ...].

  Attributes:
    params: the parameters of the client's model.
    model_state: the state of the client's model, which is not trained.
    opt_state: the state of the client's optimizer.
    grads: the sum of gradients over the parts of a minibatch so far; () if
      minibatches have one part.
    client_state: the client's state at the start of the round.
    client_id: int32, the client's id.
    num_examples: int32, n_k.
    updates: int32, the number of local updates so far.
    loss: float32, the sum of the losses of the examples read.
    examples: int32, the number of examples read.
    full_gradient: the part of the gradient at the global model that the
      examples read have contributed; () if the algorithm does not use it.
    staleness: int32, the rounds by which the client's initial model is behind;
      None unless clients are asynchronous.
  """

  params: optax.Params
  model_state: Any
  opt_state: Any
  grads: Any
  client_state: Any
  client_id: jax.Array
  num_examples: jax.Array
  updates: jax.Array
  loss: jax.Array
  examples: jax.Array
  full_gradient: Any
  staleness: jax.Array | None = None


class Step(NamedTuple):
  """Holds a lane's part of the plan for a step; stacked over lanes, [L].

  Attributes:
    start: int32, the position in `Plan.order` of the step's first example.
    count: int32, the number of examples; 0 if the lane is idle.
    batch: int32, the number of examples of the step's minibatch.
    completes: bool, True if the step is the last part of its minibatch.
  """

  start: Array
  count: Array
  batch: Array
  completes: Array


def round_context(training: Training, state: Any, seed: Array) -> RoundContext:
  """Returns the context of the round that follows a server state.

  Args:
    training: the static settings, compiled in.
    state: the `compiled_round.ServerState` before the round.
    seed: [] int32, the seed of the run, with the bits of a Python integer.
  """
  number = state.round + 1
  return RoundContext(
    global_params=state.params,
    model_state=state.model_state,
    opt_state=training.algorithm.client_optimizer.init(state.params),
    server_state=state.server,
    number=number,
    augmentation=keys.of_augmentation(seed, number),
    clients=keys.of_clients(seed, number),
    earlier=state.earlier,
  )


def initial_model(context: RoundContext, lane: LaneState) -> tuple[Any, Any]:
  """Returns the parameters and model state from which ONE client starts."""
  if lane.staleness is None:
    return context.global_params, context.model_state
  return earlier_models.read(
    context.earlier, context.number - 1 - lane.staleness
  )


def client_context(
  context: RoundContext, lane: LaneState, key: jax.Array
) -> ClientContext:
  """Returns the context of ONE client for a hook, with the hook's key."""
  global_params, _ = initial_model(context, lane)
  number, staleness = context.number, jnp.int32(0)
  if lane.staleness is not None:
    number, staleness = number - lane.staleness, lane.staleness
  return ClientContext(
    global_params=global_params,
    server_state=context.server_state,
    client_state=lane.client_state,
    client_id=lane.client_id,
    num_examples=lane.num_examples,
    round=number,
    key=key,
    staleness=staleness,
  )


def local_step(
  training: Training,
  context: RoundContext,
  data: Examples | Buffer,
  order: Array,
  lane: LaneState,
  step: Step,
) -> LaneState:
  """Takes one step of ONE lane, w <- w - eta * grad loss(w; b).

  Args:
    training: the static settings, compiled in.
    context: the context of the round.
    data: the examples, in which `order` counts rows.
    order: [N] row numbers in the order of reading.
    lane: the lane's state before the step.
    step: the lane's part of the plan.

  Returns:
    The lane's state after the step.
  """
  batch = read_batch(training, context, data, order, lane, step)
  loss, grads, model_state = gradient(training, context, lane, batch)
  if training.accumulates:
    grads = jax.tree.map(jnp.add, lane.grads, grads)
  params, opt_state = client_update(training, context, lane, grads)
  stepped = lane._replace(params=params, opt_state=opt_state)
  if training.accumulates:
    stepped = stepped._replace(grads=jax.tree.map(jnp.zeros_like, grads))
    # Before the last part of a minibatch only the gradient changes.
    stepped = jax.tree.map(
      lambda new, old: jnp.where(step.completes, new, old),
      stepped,
      lane._replace(grads=grads),
    )
  return stepped._replace(
    model_state=model_state,
    updates=lane.updates + step.completes.astype(jnp.int32),
    loss=lane.loss + loss,
    examples=lane.examples + step.count,
  )


def read_batch(
  training: Training,
  context: RoundContext,
  data: Examples | Buffer,
  order: Array,
  lane: LaneState,
  step: Step,
) -> Batch:
  """Reads the examples of a step of ONE lane, and augments them."""
  rows = _rows(order, step.start, training.step_examples)
  x, y = (trees.take(own, rows) for own in data[:2])
  if training.model.augment is not None:
    # An example has the same keys wherever it is read from. A client reads a
    # row once per epoch, each time after other updates.
    numbers = data.row[rows] if isinstance(data, Buffer) else rows
    key = jax.random.fold_in(context.augmentation, lane.updates)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
    x = jax.vmap(training.model.augment)(keys, x)
  mask = jnp.arange(training.step_examples) < step.count
  return Batch(x, y, mask, jnp.asarray(step.batch))


def _rows(order: Array, start: Array, number: int) -> jax.Array:
  """Returns `number` rows of an order from a position on, or its last ones."""
  if layers.traced_platform() == 'cpu':
    return lax.dynamic_slice_in_dim(order, start, number)
  # Under `vmap` a TPU takes the slices one lane after another.
  first = jnp.minimum(start, order.shape[0] - number)
  return order[first + jnp.arange(number, dtype=first.dtype)]


def gradient(
  training: Training, context: RoundContext, lane: LaneState, batch: Batch
) -> tuple[jax.Array, optax.Params, Any]:
  """Differentiates the mean loss of ONE lane's minibatch, or a part of it.

  Args:
    training: the static settings, compiled in.
    context: the context of the round.
    lane: the lane's state before the step.
    batch: the minibatch, or a part of it.

  Returns:
    The sum of the losses; the gradient, scaled so that the gradients of the
    parts of a minibatch add up to its own; and the model's state after the
    batch.
  """
  key = keys.of_batch(context.clients, lane.client_id, lane.examples)
  own = client_context(context, lane, key)

  def losses_of(params, batch):
    return batch_losses(training, lane, params, batch, own)

  if training.algorithm.client_gradient is not None:
    losses, grads = training.algorithm.client_gradient(
      lambda *args: losses_of(*args)[0], lane.params, batch, own
    )
    loss = jnp.sum(jnp.where(batch.mask, losses, 0.0))
    return loss, grads, losses_of(lane.params, batch)[1]

  def share_of_mean_loss(params):
    losses, model_state = losses_of(params, batch)
    losses = jnp.where(batch.mask, losses, 0.0)
    size = jnp.maximum(batch.size, 1).astype(losses.dtype)
    return jnp.sum(losses) / size, model_state

  (share, model_state), grads = jax.value_and_grad(
    share_of_mean_loss, has_aux=True
  )(lane.params)
  return share * batch.size.astype(share.dtype), grads, model_state


def batch_losses(
  training: Training,
  lane: LaneState,
  params: optax.Params,
  batch: Batch,
  context: ClientContext,
) -> tuple[jax.Array, Any]:
  """Returns the losses [B] of ONE lane's batch, and the model's state after it.

  The state does not change if the batch has no real row, as in an idle lane.
  """
  model = training.model
  variables = join(params, lane.model_state)
  outputs, state = forward(model, variables, batch, context)
  if model.state_of == 'nobody':
    state = lane.model_state
  state = jax.tree.map(
    lambda new, old: jnp.where(jnp.any(batch.mask), new, old),
    state,
    lane.model_state,
  )
  return training.loss(outputs, batch), state


def in_first_epoch(lane: LaneState, step: Step) -> Array:
  """Returns whether a step of ONE lane reads examples for the first time."""
  return (step.count > 0) & (lane.examples < lane.num_examples)


def measure(
  training: Training,
  context: RoundContext,
  data: Examples | Buffer,
  order: Array,
  lane: LaneState,
  step: Step,
) -> LaneState:
  """Adds a step's part of ONE client's gradient at the global model.

  The arguments are those of `local_step`. The part of b of the n_k examples is
  b / n_k times their mean gradient; it is zero after the first epoch.
  """
  batch = read_batch(training, context, data, order, lane, step)
  at_global = lane._replace(params=initial_model(context, lane)[0])
  _, grads, _ = gradient(training, context, at_global, batch)
  sizes = step.batch, jnp.maximum(lane.num_examples, 1)
  part, whole = (jnp.asarray(size, jnp.float32) for size in sizes)
  first = in_first_epoch(lane, step)
  return lane._replace(
    full_gradient=jax.tree.map(
      lambda total, g: jnp.where(first, total + part / whole * g, total),
      lane.full_gradient,
      grads,
    )
  )


def full_gradient(lane: LaneState) -> optax.Params:
  """Returns ONE client's gradient at the global model; () if not measured."""

  def mean(total):  # A straggler may end within its first epoch.
    sizes = jnp.minimum(lane.examples, lane.num_examples), lane.num_examples
    read, whole = (jnp.maximum(n, 1).astype(jnp.float32) for n in sizes)
    return total / (read / whole)

  return jax.tree.map(mean, lane.full_gradient)


def client_update(
  training: Training, context: RoundContext, lane: LaneState, grads: Any
) -> tuple[optax.Params, Any]:
  """Applies ONE client's optimizer; returns new params and optimizer state."""
  optimizer = optax.with_extra_args_support(training.algorithm.client_optimizer)
  key = keys.of_update(context.clients, lane.client_id, lane.updates)
  updates, opt_state = optimizer.update(
    grads,
    lane.opt_state,
    lane.params,
    context=client_context(context, lane, key),
    step=lane.updates,
  )
  return optax.apply_updates(lane.params, updates), opt_state


def client_output(
  training: Training, context: RoundContext, lane: LaneState
) -> ClientOutput:
  """Returns ONE client's output, the result of `client_finish`."""
  key = keys.of_finish(context.clients, lane.client_id)
  own_context = client_context(context, lane, key)
  return training.algorithm.client_finish(
    ClientResult(
      delta=jax.tree.map(jnp.subtract, lane.params, own_context.global_params),
      params=lane.params,
      model_state=lane.model_state,
      num_updates=jnp.maximum(lane.updates, 1),
      mean_loss=lane.loss / jnp.maximum(lane.examples, 1).astype(jnp.float32),
      optimizer_state=lane.opt_state,
      context=own_context,
      full_gradient=full_gradient(lane),
    )
  )
