"""Tests ONE client's model on the examples that the client holds out.

Clients' own models are tested a few clients at a time, as many as there are
lanes, so that the memory is that of training.

Shape letters: K clients, C clients that are tested together, H held-out
examples of all clients, B examples of a batch.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.model import Array
from fedavg_jax.contracts.model import Batch
from fedavg_jax.contracts.model import join
from fedavg_jax.contracts.task import Sums
from fedavg_jax.contracts.task import Task
from fedavg_jax.core import trees
from fedavg_jax.core.client_data import Clients
from fedavg_jax.engine import collectives
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import evaluation
from fedavg_jax.engine import keys
from fedavg_jax.engine.client_round import Kept
from fedavg_jax.engine.client_state_store import ClientStates
from fedavg_jax.engine.simulation import Simulation

_BATCH = 64


class Held(NamedTuple):
  """Holds the held-out examples of all clients, on every device.

  Attributes:
    x: [H, ...] inputs.
    y: [H, ...] targets.
    offsets: [K + 1] int32, the row at which each client's examples begin.
  """

  x: Array
  y: Array
  offsets: Array


def batch_width(held: Clients) -> int:
  """Returns B, the examples of a batch of one client's test."""
  return int(min(_BATCH, held.num_examples.max()))


def place(held: Clients, sharding: jax.sharding.Sharding) -> Held:
  """Places the held-out examples of all clients on every device."""
  return collectives.put(
    Held(held.x, held.y, held.offsets.astype(np.int32)), sharding
  )


def no_sums(task: Task, state: compiled_round.ServerState, held: Held) -> Sums:
  """Returns the initial sums of a test, all zero."""
  test = evaluation.TestSet(
    trees.take(held.x, (None, slice(1))),
    trees.take(held.y, (None, slice(1))),
    jnp.ones((1, 1), bool),
  )
  return evaluation.no_sums(task, state.variables, test)


def client_sums(
  task: Task, held: Held, width: int, zero: Sums, variables: Any, k: Array
) -> Sums:
  """Computes the sums of ONE client's test on its held-out examples.

  Args:
    task: the task that is tested.
    held: the held-out examples of all clients.
    width: B, the examples of a batch.
    zero: the initial sums.
    variables: the variables of the client's model.
    k: int32 scalar, the client's number.
  """
  first, stop = held.offsets[k], held.offsets[k + 1]

  def batch(i, sums):
    rows = first + i * width + jnp.arange(width)
    own = _batch(held, rows, rows < stop)
    tested = evaluation.rows(task, variables, own)
    return jax.tree.map(
      lambda total, one: total + jnp.sum(one, axis=0), sums, tested
    )

  return lax.fori_loop(0, -(-(stop - first) // width), batch, zero)


def _batch(held: Held, rows: jax.Array, real: jax.Array) -> Batch:
  """Reads held-out rows [B]; rows that are not `real` [B] are arbitrary."""
  rows = jnp.minimum(rows, trees.num_rows(held.y) - 1)
  x, y = (trees.take(own, rows) for own in held[:2])
  return Batch(x, y, real, jnp.sum(real, dtype=jnp.int32))


def build_own_models(
  simulation: Simulation, held: Clients
) -> Callable[[compiled_round.ServerState, Any], Sums]:
  """Compiles the tests of the clients' own models, `Algorithm.own_model`.

  Args:
    simulation: the compiled simulation, whose algorithm makes the models.
    held: the checked held-out examples of its K clients.

  Returns:
    The function (server state, client states) -> sums [K].
  """
  mesh, planner = simulation.mesh, simulation.planner
  task, own_model = simulation.task, simulation.parts.trained.first.own_model
  assert own_model is not None
  width, number = batch_width(held), held.num_clients
  everywhere, divided = jax.P(), jax.P('lanes')
  replicated = jax.sharding.NamedSharding(mesh, everywhere)
  own = place(held, replicated)

  sizes = collectives.put(
    np.asarray(planner.num_examples, np.int32), replicated
  )
  seed = np.array(planner.seed, np.int32)

  def test_device(state, states, clients, own, seed, sizes):
    # A client's model is that from which it would start the next round.
    zero, number = no_sums(task, state, own), state.round + 1
    round_key = keys.of_clients(seed, number)

    def one(k, client_state):
      kept = client_state
      if not isinstance(kept, Kept):
        kept = Kept(client_state, state.model_state)
      context = ClientContext(
        global_params=state.params,
        server_state=state.server,
        client_state=kept.algorithm,
        client_id=k,
        num_examples=sizes[k],
        round=number,
        key=keys.of_start(round_key, k),
      )
      variables = join(own_model(context), kept.model_state)
      return client_sums(task, own, width, zero, variables, k)

    return jax.vmap(one)(clients, states)  # [C, ...] of one device.

  test_some = jax.jit(
    jax.shard_map(
      test_device,
      mesh=mesh,
      in_specs=(everywhere, divided, divided, *3 * (everywhere,)),
      out_specs=divided,
      check_vma=False,
    ),
    out_shardings=replicated,
    compiler_options=simulation.arithmetic.options() or None,
  )
  take = jax.jit(
    lambda states, clients: jax.tree.map(lambda leaf: leaf[clients], states),
    out_shardings=jax.sharding.NamedSharding(mesh, divided),
  )

  def test_all(state, client_states) -> Sums:
    found = []
    for begin in range(0, number, planner.lanes):
      # The last clients are repeated, so that one program serves all.
      clients = np.arange(begin, begin + planner.lanes, dtype=np.int32)
      clients = np.minimum(clients, number - 1)
      if isinstance(client_states, ClientStates):
        states = collectives.put(client_states.gather(clients), replicated)
      else:
        states = take(client_states, clients)
      with simulation.arithmetic.tracing():
        found.append(test_some(state, states, clients, own, seed, sizes))
    return jax.tree.map(
      lambda *sums: np.concatenate(sums)[:number], *jax.device_get(found)
    )

  return test_all
