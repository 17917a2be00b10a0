"""Defines a federated algorithm as pure functions of a client or the server.

The engine applies `vmap` to the functions of ONE client and aggregates the
messages that clients send. `fedavg_jax/algorithms/` has a file for each family
of algorithms. To add one, write such functions, or replace some of `fedavg`'s:
`fedavg(...)._replace(client_finish=...)`.

The papers' letters: x global model, y_i local model, eta local learning rate,
K local updates of a client, delta = y_i - x.
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

from fedavg_jax.contracts.aggregation import Aggregator
from fedavg_jax.contracts.aggregation import weighted_mean
from fedavg_jax.contracts.mechanism import Mechanism
from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import Batch
from fedavg_jax.contracts.model import Params
from fedavg_jax.contracts.model import Scalar
from fedavg_jax.core.trees import PyTree

# (params, batch) -> losses [B].
LossFn = Callable[[Params, Batch], Array]


class ClientContext(NamedTuple):
  """Holds the information that ONE client may use in a round.

  Attributes:
    global_params: the global model from which the client starts.
    server_state: the server's state at the start of the round.
    client_state: the client's state at the start of the round.
    client_id: int32 scalar, the client's number in [0, K - 1].
    num_examples: int32 scalar, n_k.
    round: int32 scalar, the number of the round that follows `global_params`,
      from 1.
    key: a random key that depends on the seed, the round, the client, the
      function that receives this context and, in the optimizer or
      `Model.train`, on the local update or the batch alone.
    staleness: int32 scalar, the number of rounds by which `global_params` is
      behind the newest model when the client's message arrives; 0 unless
      clients are asynchronous (`Participation.buffer`).

  >>> import jax
  >>> import fedavg_jax as fa
  >>> def personal_start(context):  # An `Algorithm.client_start`.
  ...   return context.client_state
  >>> context = fa.ClientContext(
  ...     global_params={'w': 0}, server_state=(), client_state={'w': 1},
  ...     client_id=3, num_examples=20, round=1, key=jax.random.key(0))
  >>> personal_start(context)
  {'w': 1}
  """

  global_params: Params
  server_state: PyTree
  client_state: PyTree
  client_id: Array
  num_examples: Array
  round: Array
  key: Array
  staleness: Array | int = 0


class ClientResult(NamedTuple):
  """Holds the result of ONE client's local epochs.

  Attributes:
    delta: the local model minus the global model, y_i - x.
    params: the local model, y_i.
    model_state: the untrained state of the local model; () if it has none.
    num_updates: int32 scalar, the number of local updates; at least 1.
    mean_loss: float32 scalar, the mean loss of the examples that the client has
      read, each before the update that it contributes to.
    optimizer_state: the state of the client's optimizer after the last update.
    context: the client's context, with a key for `client_finish`.
    full_gradient: the gradient of the client's mean loss at the global model;
      () unless `Algorithm.full_gradient` asks for it.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> def mean_step(result):  # An `Algorithm.client_finish`.
  ...   return fa.ClientOutput(result.delta / result.num_updates)
  >>> result = fa.ClientResult(
  ...     delta=jnp.array([2.0, 4.0]), params=jnp.array([3.0, 5.0]),
  ...     model_state=(), num_updates=2, mean_loss=0.5, optimizer_state=(),
  ...     context=None)
  >>> mean_step(result).message.tolist()
  [1.0, 2.0]
  """

  delta: Params
  params: Params
  model_state: PyTree
  num_updates: Array
  mean_loss: Array
  optimizer_state: PyTree
  context: ClientContext
  full_gradient: Params = ()


class ClientOutput(NamedTuple):
  """Holds the output of ONE client at the end of its local epochs.

  Attributes:
    message: the pytree of floating-point arrays that the client sends.
    state: the client's state until it is drawn again, with the structure,
      shapes and dtypes of `Algorithm.client_init`.
    info: scalars by name; the round's metrics have the mean of each over the
      clients that count.

  >>> import fedavg_jax as fa
  >>> output = fa.ClientOutput(message={'w': 1.0}, info={'steps': 5})
  >>> output.state, sorted(output.info)
  ((), ['steps'])
  """

  message: PyTree
  state: PyTree = ()
  info: dict[str, Scalar] = {}  # noqa: RUF012 (never modified)


class ServerContext(NamedTuple):
  """Holds the information that the server may use in its update.

  Attributes:
    round: int32 scalar, the round's number, from 1.
    key: a random key that depends on seed and round alone.
    share: float32 scalar, the fraction of the weight of all K clients that the
      reporting clients have.
    clients: [M] int32, the numbers of the cohort's clients.
    reported: [M] bool, True for clients whose messages count.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> context = fa.ServerContext(
  ...     round=1, key=jax.random.key(0), share=0.5,
  ...     clients=jnp.array([4, 7]), reported=jnp.array([True, False]))
  >>> context.clients[context.reported].tolist()
  [4]
  """

  round: Array
  key: Array
  share: Array
  clients: Array
  reported: Array


def send_delta(result: ClientResult) -> ClientOutput:
  """Returns the delta as the message and the client state unchanged."""
  return ClientOutput(result.delta, result.context.client_state)


def keep_nothing(params: Params, client_id: Array) -> PyTree:
  """Returns the state of a client that has none, ()."""
  del params, client_id
  return ()


class Algorithm(NamedTuple):
  """Defines a federated algorithm; every function is pure.

  States and models preserve their structure, shapes and dtypes.

  Attributes:
    client_optimizer: the transformation of a minibatch gradient into a local
      update. Its `update(grads, state, params, *, context, step)` may also use
      the client's context and the number of earlier local updates. Each client
      of each round starts with a new optimizer state.
    server_init: params -> server state, any pytree. Values that are not finite,
      in it or in the clients' states, count as divergence.
    server_update: (params, server_state, aggregate, context: ServerContext) ->
      (params, server_state).
    client_finish: (result: ClientResult) -> ClientOutput.
    client_init: (params, client_id) -> client state before the client was ever
      drawn, any pytree; () if it has none.
    client_start: (context: ClientContext) -> initial local model; None starts
      from the global model.
    aggregate: the aggregator of messages, such as `weighted_mean()` or
      `gathered(rule)`.
    client_gradient: (loss_fn, params, batch, context) -> (losses [B], gradient)
      with loss_fn(params, batch) -> losses [B]; None differentiates the mean
      loss. The gradient is the sum over the real rows divided by `batch.size`,
      so that the gradients of the parts of a minibatch add up.
    num_bytes: message -> size of the encoded message, in bytes, which may
      depend on its values; None counts the bytes of its arrays.
    full_gradient: whether `client_finish` needs `ClientResult.full_gradient`.
      It is summed over the minibatches of the first local epoch, which costs a
      second gradient there; of a straggler, over those that it completes.
    received: params -> the part of the global model that a client receives in a
      round, for the count of bytes; None if it receives all of it.
    own_model: (context: ClientContext) -> the client's own model, with the
      structure of params, which is tested on the client's held-out examples;
      None if clients have no models of their own.
    server_info: (server state at the start of a round) -> scalars by name, for
      the round's metrics; None for none.
    mechanism: the description of a differentially private sum, from
      `experimental.privatize`, which adds noise in rounds without clients too;
      None if there is none.

  >>> import jax, jax.numpy as jnp, optax
  >>> import fedavg_jax as fa
  >>> def send_signs(result):
  ...   return fa.ClientOutput(jax.tree.map(jnp.sign, result.delta))
  >>> fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  >>> algorithm = fedavg._replace(client_finish=send_signs)
  >>> isinstance(algorithm, fa.Algorithm)
  True
  """

  client_optimizer: optax.GradientTransformation
  server_init: Callable[[Params], PyTree]
  server_update: Callable[
    [Params, PyTree, PyTree, ServerContext], tuple[Params, PyTree]
  ]
  client_finish: Callable[[ClientResult], ClientOutput] = send_delta
  client_init: Callable[[Params, Array], PyTree] = keep_nothing
  client_start: Callable[[ClientContext], Params] | None = None
  aggregate: Aggregator = weighted_mean()
  client_gradient: (
    Callable[[LossFn, Params, Batch, ClientContext], tuple[Array, Params]]
    | None
  ) = None
  num_bytes: Callable[[PyTree], Scalar] | None = None
  full_gradient: bool = False
  received: Callable[[Params], PyTree] | None = None
  own_model: Callable[[ClientContext], Params] | None = None
  server_info: Callable[[PyTree], dict[str, Scalar]] | None = None
  mechanism: Mechanism | None = None
