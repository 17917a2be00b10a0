"""What happens to ONE client: a step of its minibatch, and its message.

Pure functions of named states, written for one lane; `client_round.py` vmaps
them over the lanes.

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
from fedavg_jax.engine import keys
from fedavg_jax.engine.prefetch import Buffer


@dataclasses.dataclass(frozen=True)
class Training:
  """What stands in the program when a round is compiled.

  Attributes:
    model: that every client trains.
    loss: of its outputs.
    algorithm: such as `algorithms.fedavg`.
    step_examples: B.
    accumulates: whether a minibatch may take several steps.
    skips_clients: whether a client that is not finite is left out.
    counts_bytes: whether the bytes of messages depend on their numbers.
    widths: lanes that step together, descending; the others are idle by then.
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
  """What every client of a round begins with.

  Attributes:
    global_params: the global model.
    model_state: of it, what is not trained; () where there is none.
    opt_state: of a client's optimizer before its first step.
    server_state: what the server keeps.
    number: int32 scalar, the round's number, from 1.
    augmentation: key of the round's augmentation.
    clients: key from which those of the clients come.
  """

  global_params: optax.Params
  model_state: Any
  opt_state: Any
  server_state: Any
  number: jax.Array
  augmentation: jax.Array
  clients: jax.Array


class LaneState(NamedTuple):
  """What a lane knows of the client that it trains; stacked, [L, ...].

  Attributes:
    params: the client's model.
    model_state: of it, what is not trained.
    opt_state: of its optimizer.
    grads: sum over the parts of a minibatch so far; () where it has one part.
    client_state: what the client keeps, as it was when the round began.
    client_id: int32, its number.
    num_examples: int32, n_k.
    updates: int32, local updates it has taken.
    loss: float32, sum over the examples it has read.
    examples: int32, how many these are.
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


class Step(NamedTuple):
  """A step of a lane, from the plan; stacked, [L].

  Attributes:
    start: int32, position in `Plan.order` of its first example.
    count: int32, examples it reads; 0 where the lane is idle.
    batch: int32, examples of the minibatch that it belongs to.
    completes: bool, whether it is the last part of that minibatch.
  """

  start: Array
  count: Array
  batch: Array
  completes: Array


def round_context(training: Training, state: Any, seed: Array) -> RoundContext:
  """Collects what every client of the round after a state begins with.

  Args:
    training: what is compiled in.
    state: of the server.
    seed: [] int32, of the run; its bits are those of a Python integer.
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
  )


def client_context(
  context: RoundContext, lane: LaneState, key: jax.Array
) -> ClientContext:
  """Collects what ONE client may know, with the key of whoever gets it."""
  return ClientContext(
    global_params=context.global_params,
    server_state=context.server_state,
    client_state=lane.client_state,
    client_id=lane.client_id,
    num_examples=lane.num_examples,
    round=context.number,
    key=key,
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
    training: what is compiled in.
    context: of the round.
    data: examples, rows of which `order` counts.
    order: [N] rows in the order of reading.
    lane: before the step.
    step: which examples it reads.
  """
  batch = read_batch(training, context, data, order, lane, step)
  loss, grads, model_state = gradient(training, context, lane, batch)
  if training.accumulates:
    grads = jax.tree.map(jnp.add, lane.grads, grads)
  params, opt_state = client_update(training, context, lane, grads)
  stepped = lane._replace(params=params, opt_state=opt_state)
  if training.accumulates:
    stepped = stepped._replace(grads=jax.tree.map(jnp.zeros_like, grads))
    # In the middle of a minibatch its gradient alone has grown.
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
  """Reads the examples of a step of ONE lane."""
  rows = lax.dynamic_slice_in_dim(order, step.start, training.step_examples)
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


def gradient(
  training: Training, context: RoundContext, lane: LaneState, batch: Batch
) -> tuple[jax.Array, optax.Params, Any]:
  """Differentiates the mean loss of ONE lane's minibatch, or a part of it.

  Args:
    training: what is compiled in.
    context: of the round.
    lane: before the step.
    batch: that it reads.

  Returns:
    The sum of the losses; the gradient, of a part its share, so that those of
    the parts add up; and the state of the model after the batch.
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

  The state stays what it is where the batch has no real row, as an idle lane's.
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


def client_update(
  training: Training, context: RoundContext, lane: LaneState, grads: Any
) -> tuple[optax.Params, Any]:
  """Applies ONE client's optimizer: new model and optimizer state."""
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
  """Returns what ONE client leaves at its end."""
  key = keys.of_finish(context.clients, lane.client_id)
  return training.algorithm.client_finish(
    ClientResult(
      delta=jax.tree.map(jnp.subtract, lane.params, context.global_params),
      params=lane.params,
      model_state=lane.model_state,
      num_updates=jnp.maximum(lane.updates, 1),
      mean_loss=lane.loss / jnp.maximum(lane.examples, 1).astype(jnp.float32),
      optimizer_state=lane.opt_state,
      context=client_context(context, lane, key),
    )
  )
