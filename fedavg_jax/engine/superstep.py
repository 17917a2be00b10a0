"""Several rounds, with their evaluation, as one compiled call.

Short rounds would leave a device waiting for Python between them. The call
stops by itself after the round that reaches the target or is not finite, so
that calls may be queued behind it.

Shape letters: R rounds of a call at most; the others as in `planning.py`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedavg_jax.contracts.task import Sums
from fedavg_jax.engine import collectives
from fedavg_jax.engine import processes
from fedavg_jax.engine.compiled_round import PLAN_SPECS
from fedavg_jax.engine.compiled_round import RoundMetrics
from fedavg_jax.schedule.plan import Plan
from fedavg_jax.schedule.planning import Planner

# Begun at once: one that the devices work on, and one behind it.
CALLS_IN_FLIGHT = 2


class Ends(NamedTuple):
  """When a model is tested, and what ends a run.

  Attributes:
    evaluated: round number -> whether its model is tested.
    enough: ends after a round whose test has reached it; `Task.never` for none.
  """

  evaluated: Callable[[int], bool]
  enough: float = math.inf


class Wishes(NamedTuple):
  """What a process wants of the calls to come, or the most that any wants.

  Processes must cut rounds into the same calls, and their clocks differ: their
  wishes go into a call, and what all want comes out with what it tells.

  Attributes:
    stop: to begin no further call.
    look: to have the state as soon as can be.
    seconds: that a round took, infinite before it is known.
  """

  stop: Any = False
  look: Any = False
  seconds: Any = math.inf


class Schedule(NamedTuple):
  """What one call does.

  Attributes:
    plans: of R rounds, every array with a leading axis [R].
    evaluate: [R] bool, rounds after which the model is tested.
    num_rounds: [] int32, how many of the R are real.
    enough: [] float32, the call and all that follow end after a round whose
      test has reached it; see `Metric.enough`.
    wishes: [D, 3] float32, `Wishes` of the processes with these devices.
  """

  plans: Plan
  evaluate: np.ndarray
  num_rounds: np.ndarray
  enough: np.ndarray
  wishes: np.ndarray


class CallResult(NamedTuple):
  """What one call returns beside the states.

  Attributes:
    going: bool, False after the target or a round that is not finite; [] or of
      a sweep [G], the call ends when none of them continues.
    num_rounds: [] int32, rounds that it did.
    rounds: their metrics, [R, ...].
    tests: their test metrics, [R, ...]; zero where the model was not tested.
    wishes: [] each, the most that any process wants.
  """

  going: jax.Array
  num_rounds: jax.Array
  rounds: RoundMetrics
  tests: Sums
  wishes: Wishes


def make_schedule(
  planner: Planner,
  numbers: Sequence[int],
  rounds_per_call: int,
  evaluated: Callable[[int], bool],
  enough: float = math.inf,
  wishes: Wishes = Wishes(),  # noqa: B008 (it is a constant)
) -> Schedule:
  """A call's rounds `numbers`, padded to `rounds_per_call` of them."""
  plans = [planner(number) for number in numbers]

  def stack(*arrays):
    stacked = np.zeros((rounds_per_call, *arrays[0].shape), arrays[0].dtype)
    stacked[: len(arrays)] = arrays
    return stacked

  tests = np.zeros(rounds_per_call, bool)
  tests[: len(plans)] = [evaluated(number) for number in numbers]
  return Schedule(
    plans=jax.tree.map(stack, *plans),
    evaluate=tests,
    num_rounds=np.array(len(plans), np.int32),
    enough=np.array(enough, np.float32),
    wishes=np.tile(np.array(wishes, np.float32), (planner.num_devices, 1)),
  )


def place(schedule: Schedule, mesh: jax.sharding.Mesh) -> Schedule:
  """A schedule as a call takes it: of several processes each puts its part."""
  if not processes.several():
    return schedule
  return collectives.put(schedule, _shardings(mesh))


def _shardings(mesh) -> Any:
  def sharding(*spec):
    return jax.sharding.NamedSharding(mesh, jax.P(*spec))

  plans: Any = jax.tree.map(lambda spec: sharding(None, *spec), PLAN_SPECS)
  return Schedule._make([plans, *[sharding()] * 3, sharding('lanes')])


def build_call(
  round_fn: Callable,
  evaluate: Callable,
  reached: Callable,
  mesh: jax.sharding.Mesh,
  data_spec: jax.P,
) -> jax.stages.Wrapped:
  """Builds the jitted call: rounds until the last, the target, the first NaN.

  Args:
    round_fn: (going, state, client_states, data, plan) -> (state,
      client_states, metrics), from `compiled_round.build_round` or
      `hyperparameter_axis.build_round`.
    evaluate: from `evaluation.build_evaluate`, or over a sweep.
    reached: (sums of a test, enough) -> whether the model has reached it.
    mesh: the devices of both.
    data_spec: where the examples are, as `round_fn` has them.

  Returns:
    `call(going, state, client_states, data, test, schedule) -> (state,
    client_states, result)`; client states that go in are donated. Does nothing
    where `going` is False, as of a call queued behind one that ended the run.
  """

  def call(going, state, client_states, data, test, schedule):
    num_plans = schedule.evaluate.shape[0]

    def goes_on(carry):
      r, going, *_ = carry
      return jnp.any(going) & (r < schedule.num_rounds)

    def one_round(carry):
      r, going, state, client_states, rounds, tests = carry
      plan = jax.tree.map(lambda array: array[r], schedule.plans)
      state, client_states, metrics = round_fn(
        going, state, client_states, data, plan
      )
      tested = lax.cond(
        schedule.evaluate[r],
        lambda: evaluate(state.variables, test),
        lambda: jax.tree.map(lambda all_: jnp.zeros_like(all_[r]), tests),
      )
      ends = schedule.evaluate[r] & reached(tested, schedule.enough)
      rounds, tests = jax.tree.map(
        lambda all_, one: all_.at[r].set(one),
        (rounds, tests),
        (metrics, tested),
      )
      going = going & metrics.finite & ~ends
      return r + 1, going, state, client_states, rounds, tests

    def many(like):
      return jnp.zeros((num_plans, *like.shape), like.dtype)

    plan = jax.tree.map(lambda array: array[0], schedule.plans)
    metrics = jax.eval_shape(round_fn, going, state, client_states, data, plan)[
      2
    ]
    tested = jax.eval_shape(evaluate, state.variables, test)
    r, going, state, client_states, rounds, tests = lax.while_loop(
      goes_on,
      one_round,
      (
        jnp.zeros((), jnp.int32),
        going,
        state,
        client_states,
        jax.tree.map(many, metrics),
        jax.tree.map(many, tested),
      ),
    )
    wishes = Wishes._make(jnp.max(schedule.wishes, axis=0))
    return state, client_states, CallResult(going, r, rounds, tests, wishes)

  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  return jax.jit(
    call,
    donate_argnums=2,
    in_shardings=(
      everywhere,
      everywhere,
      everywhere,
      jax.sharding.NamedSharding(mesh, data_spec),
      jax.sharding.NamedSharding(mesh, jax.P('lanes')),
      _shardings(mesh),
    ),
    out_shardings=everywhere,
  )
