"""Makes contexts and results of clients and servers by hand."""

import jax
import numpy as np

import fedavg_jax as fa


def context(params, server=(), state=(), number=1) -> fa.ClientContext:
  """Makes the context of client 0, which has four examples."""
  return fa.ClientContext(
    global_params=params,
    server_state=server,
    client_state=state,
    client_id=np.int32(0),
    num_examples=np.int32(4),
    round=np.int32(number),
    key=jax.random.key(0),
  )


def of_client(delta, *, server=(), state=(), num_updates=1) -> fa.ClientResult:
  """Makes the result of client 0, whose global model is zero."""
  zero = jax.tree.map(np.zeros_like, delta)
  return fa.ClientResult(
    delta=delta,
    params=delta,
    model_state=(),
    num_updates=np.int32(num_updates),
    mean_loss=np.float32(1),
    optimizer_state=(),
    context=context(zero, server, state),
  )


def server_context(share=1.0) -> fa.ServerContext:
  """Makes the server's context of a round of one client."""
  return fa.ServerContext(
    round=np.int32(1),
    key=jax.random.key(0),
    share=np.float32(share),
    clients=np.array([0], np.int32),
    reported=np.array([True]),
  )
