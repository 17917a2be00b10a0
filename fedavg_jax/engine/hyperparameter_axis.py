"""The same federation with several values of one number, in the same calls.

A plan does not depend on a learning rate, so G learning rates read the same
examples in the same order: one more `vmap` around the round, and each value's
model is the one that it would have by itself.

Shape letter: G values.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from fedavg_jax.engine.compiled_round import RoundMetrics


def build_round(
  make_round: Callable, values: Sequence[float], platform: str
) -> Callable:
  """One round of every value that goes on; the others stay as they are.

  Args:
    make_round: value, a float32 scalar -> (state, client_states, data, plan) ->
      (state, client_states, metrics).
    values: [G].
    platform: of the devices. On a CPU the values take turns, which is as fast
      as all together and costs nothing for those that have ended.

  Returns:
    `round_fn(going [G], state, client_states, data, plan)`, states and metrics
    with a leading axis [G].
  """

  def nothing():
    """What a value tells that has ended."""
    none = jnp.zeros((), jnp.int32)
    return RoundMetrics(jnp.float32(jnp.nan), none, none, jnp.array(False))

  def round_fn(going, state, client_states, data, plan):
    def one(value, going, state, client_states):
      return lax.cond(
        going,
        lambda: make_round(value)(state, client_states, data, plan),
        lambda: (state, client_states, nothing()),
      )

    return over(one, platform)(
      jnp.asarray(values, jnp.float32), going, state, client_states
    )

  return round_fn


def over(fn: Callable, platform: str) -> Callable:
  """The function over the leading axis [G] of all that it takes."""
  if platform != 'cpu':
    return jax.vmap(fn)
  return lambda *trees: lax.map(lambda one: fn(*one), trees)


def stack(trees: Sequence[Any]) -> Any:
  """One tree of all, with a leading axis [G]."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
