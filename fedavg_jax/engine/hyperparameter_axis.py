"""Trains one algorithm, or several that differ in one hyperparameter.

A plan does not depend on a learning rate, so G learning rates read the same
examples in the same order: a sweep is one more `vmap` around the round, and
each value's model equals that of a run with this value alone. `Single` and
`Sweep` have the same methods, so that no other code distinguishes them.

Shape letter: G values.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import Protocol

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine.compiled_round import RoundMetrics

# (state, client_states, data, plan) -> (state, client_states, metrics).
RoundFn = Callable[..., tuple[Any, Any, RoundMetrics]]


class Trained(Protocol):
  """Defines the interface to the algorithms that a call trains."""

  @property
  def first(self) -> Algorithm:
    """Returns the algorithm; in a sweep, that of the first value."""

  def at(self, index: int) -> Algorithm:
    """Returns the algorithm of value `index`; the same for a single one."""

  @property
  def values(self) -> tuple[float, ...] | None:
    """Returns the values of a sweep, or None for a single algorithm."""

  @property
  def going(self) -> np.ndarray:
    """Returns which values run before round 1, [] or [G] bool: all of them."""

  def init(self, init_of: Callable[[Algorithm], Any]) -> Any:
    """Returns `init_of(algorithm)`; in a sweep, those of all values, stacked.

    Args:
      init_of: the function algorithm -> tree of initial states.

    Returns:
      The tree; in a sweep its leaves have a leading axis, [G, ...].
    """

  def round(
    self, round_of: Callable[[Algorithm], RoundFn], platform: str
  ) -> Callable:
    """Returns `round_fn(going, state, client_states, data, plan)`.

    Args:
      round_of: the function algorithm -> round of this algorithm.
      platform: the platform of the devices, such as 'cpu'.
    """

  def evaluate(self, evaluate: Callable, platform: str) -> Callable:
    """Returns `evaluate(variables, test)` for each algorithm's model.

    Args:
      evaluate: the function (variables, test) -> sums for one model.
      platform: the platform of the devices, such as 'cpu'.
    """


@dataclasses.dataclass(frozen=True)
class Single:
  """Trains one algorithm.

  Attributes:
    first: the algorithm.
    values: None; there is no sweep.
  """

  first: Algorithm
  values: None = None

  def at(self, index: int) -> Algorithm:
    del index
    return self.first

  @property
  def going(self) -> np.ndarray:
    return np.ones((), bool)

  def init(self, init_of: Callable[[Algorithm], Any]) -> Any:
    return init_of(self.first)

  def round(
    self, round_of: Callable[[Algorithm], RoundFn], platform: str
  ) -> Callable:
    del platform
    round_one = round_of(self.first)

    def round_fn(going, *args):
      del going  # It is True here: otherwise the call has ended.
      return round_one(*args)

    return round_fn

  def evaluate(self, evaluate: Callable, platform: str) -> Callable:
    del platform
    return evaluate


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Trains an algorithm with each of several values, in the same calls.

  Attributes:
    algorithm_of: the function value -> algorithm; the value is a float32 scalar
      that may be traced.
    values: the G values, such as learning rates.

  Raises:
    InputError: there is no value.
  """

  algorithm_of: Callable[[jax.Array], Algorithm]
  values: tuple[float, ...]

  def __post_init__(self) -> None:
    if not self.values:
      raise InputError('values = (): must hold at least one value')

  def at(self, index: int) -> Algorithm:
    return self.algorithm_of(jnp.float32(self.values[index]))

  @property
  def first(self) -> Algorithm:
    return self.at(0)

  @property
  def going(self) -> np.ndarray:
    return np.ones(len(self.values), bool)

  def init(self, init_of: Callable[[Algorithm], Any]) -> Any:
    # The initial server state may depend on the value, as FedAdam's does.
    return _stack(
      [init_of(self.algorithm_of(jnp.float32(value))) for value in self.values]
    )

  def round(
    self, round_of: Callable[[Algorithm], RoundFn], platform: str
  ) -> Callable:
    """Returns a round that trains the values that have not ended.

    The states of the others do not change. On a CPU the values take turns,
    which is as fast as `vmap` and costs nothing for values that have ended.
    """

    def round_fn(going, state, client_states, data, plan):
      def one(value, going, state, client_states):
        def train():
          round_one = round_of(self.algorithm_of(value))
          return round_one(state, client_states, data, plan)

        def stay():
          _, _, metrics = jax.eval_shape(train)
          return state, client_states, _no_metrics(metrics)

        return lax.cond(going, train, stay)

      return over(one, platform)(
        jnp.asarray(self.values, jnp.float32), going, state, client_states
      )

    return round_fn

  def evaluate(self, evaluate: Callable, platform: str) -> Callable:
    @jax.jit
    def evaluate_all(variables, test):
      return over(lambda one: evaluate(one, test), platform)(variables)

    return evaluate_all


def over(fn: Callable, platform: str) -> Callable:
  """Maps a function over the leading axis [G] of all its arguments."""
  if platform != 'cpu':
    return jax.vmap(fn)
  return lambda *trees: lax.map(lambda one: fn(*one), trees)


def _no_metrics(shapes: RoundMetrics) -> RoundMetrics:
  """Returns the metrics of a value that has ended: `finite` is False."""
  none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  return none._replace(train_loss=jnp.float32(jnp.nan))


def _stack(trees: Sequence[Any]) -> Any:
  """Stacks G trees into one with a leading axis [G]."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
