"""A federated algorithm: pure functions of one client or the server.

The engine vmaps what is written for ONE client over lanes and aggregates what
the clients send. `fedavg_jax/algorithms/` has one file for each family; to make
another, write such functions, or put some of them in the place of `fedavg`'s:
`fedavg(...)._replace(client_finish=...)`.

The paper's letters: x global model, y_i local model, eta local learning rate,
K local updates of a client, delta = y_i - x.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import optax

from fedavg_jax.contracts.aggregation import Aggregator
from fedavg_jax.contracts.aggregation import weighted_mean
from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import Params

Tree = Any


class ClientContext(NamedTuple):
  """What ONE client may know while it takes part in a round.

  Attributes:
    global_params: the global model, as it was when the round began.
    server_state: what the server keeps, as it was when the round began.
    client_state: what the client keeps, as it was when the round began.
    client_id: int32 scalar, the client's number, 0 .. K - 1.
    num_examples: int32 scalar, n_k.
    round: int32 scalar, the round's number, from 1.
    key: of the function that it is given to; another one for each function,
      client and round, and for each local update. It depends on nothing but
      these and the seed.
  """

  global_params: Params
  server_state: Tree
  client_state: Tree
  client_id: Array
  num_examples: Array
  round: Array
  key: Array


class ClientResult(NamedTuple):
  """A client at the end of its local epochs.

  Attributes:
    delta: its model minus the global one.
    params: its model.
    model_state: of its model, what is not trained; () where there is none.
    num_updates: int32 scalar, local updates it has taken; at least one.
    mean_loss: float32 scalar, of the examples it has read, each before its own
      update.
    optimizer_state: of its optimizer, after the last update.
    context: of the client.
  """

  delta: Params
  params: Params
  model_state: Tree
  num_updates: Array
  mean_loss: Array
  optimizer_state: Tree
  context: ClientContext


class ClientOutput(NamedTuple):
  """What a client leaves at its end.

  Attributes:
    message: what it sends, any tree of floating-point arrays.
    state: what it keeps until it is drawn again, as `client_init` has it.
    info: name -> number, whose mean over the clients that count is in the
      round's metrics.
  """

  message: Tree
  state: Tree = ()
  info: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)


class ServerContext(NamedTuple):
  """What the server may know when it updates the model.

  Attributes:
    round: int32 scalar, the round's number, from 1.
    key: of the round's update; it depends on seed and round alone.
    share: float32 scalar, the cohort's part of the weight of all clients.
    clients: [M] int32, the numbers of the cohort's clients.
    reported: [M] bool, those whose messages have come and count.
  """

  round: Array
  key: Array
  share: Array
  clients: Array
  reported: Array


def send_delta(result: ClientResult) -> ClientOutput:
  """Sends the delta, and keeps what the client has."""
  return ClientOutput(result.delta, result.context.client_state)


def keep_nothing(params: Params, client_id: Array) -> Tree:
  """Returns the state of a client that keeps nothing."""
  del params, client_id
  return ()


class Algorithm(NamedTuple):
  """A federated algorithm; every function is pure, trees keep their shapes.

  Attributes:
    client_optimizer: turns a minibatch gradient into a local update. Its
      `update(grads, state, params, *, context, step)` may also see the client's
      context and how many local updates it has taken before. Its own state
      begins anew with every client of every round.
    server_init: params -> what the server keeps, any tree. Numbers that are not
      finite, here or in what clients keep, count as divergence.
    server_update: (params, server_state, aggregate, context: ServerContext) ->
      (params, server_state).
    client_finish: (result: ClientResult) -> ClientOutput. What a client sends
      and keeps, and what the metrics show of it.
    client_init: (params, client_id) -> what a client keeps before it was ever
      drawn, any tree; () if it keeps nothing.
    client_start: (context: ClientContext) -> the model that a client begins
      with; None begins with the global model.
    aggregate: what the server makes of the messages, `weighted_mean()` or
      `gathered(rule)`.
    client_gradient: (loss_fn, params, batch, context) -> (losses [B], gradient)
      with loss_fn(params, batch) -> losses [B]; None differentiates the mean
      loss. The gradient is the sum over the real rows divided by `batch.size`,
      so that those of the parts of a minibatch add up.
    num_bytes: message -> bytes that it takes as it is coded, which may depend
      on its numbers; None counts it in its own types.
  """

  client_optimizer: optax.GradientTransformation
  server_init: Callable[[Params], Tree]
  server_update: Callable[
    [Params, Tree, Tree, ServerContext], tuple[Params, Tree]
  ]
  client_finish: Callable[[ClientResult], ClientOutput] = send_delta
  client_init: Callable[[Params, Array], Tree] = keep_nothing
  client_start: Callable[[ClientContext], Params] | None = None
  aggregate: Aggregator = weighted_mean()
  client_gradient: Callable[..., tuple[Array, Params]] | None = None
  num_bytes: Callable[[Tree], Any] | None = None
