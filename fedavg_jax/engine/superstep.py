"""Builds the call of several rounds and their evaluations.

Otherwise a device would wait for Python between short rounds. The call stops
on the device after a round that reaches the target or is not finite, so that
further calls may be queued.

Shape letters: R, the most rounds of a call; G values of a sweep; the others as
in `planning.py`.
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

# The calls in flight: one that the devices work on, and one queued behind it.
CALLS_IN_FLIGHT = 2


class Ends(NamedTuple):
  """Defines after which rounds the model is tested, and the run's target.

  Attributes:
    evaluated: the function round number -> True if the model is tested.
    enough: the threshold of a test that ends the run, from `Task.enough`;
      `Task.never` is none.
  """

  evaluated: Callable[[int], bool]
  enough: float = math.inf


class Requests(NamedTuple):
  """Holds one process's requests for later calls, or the maximum over all.

  Processes must split rounds into the same calls although their clocks differ.
  Each passes its requests into a call, which returns the maximum over all.

  Attributes:
    stop: True to dispatch no further call.
    state: True to get the state as soon as possible.
    seconds: the time per round in seconds, infinite before it is known.
  """

  stop: Any = False
  state: Any = False
  seconds: Any = math.inf


class Schedule(NamedTuple):
  """Holds the inputs of one call that define its rounds.

  Attributes:
    plans: the plans of R rounds, stacked on a leading axis [R].
    evaluate: [R] bool, True for rounds after which the model is tested.
    num_rounds: [] int32, the number of rounds that are not padding.
    enough: [] float32, the threshold of a test that ends the run; see
      `Metric.enough`.
    wishes: [D, 3] float32, the `Requests` of the process of each device.
  """

  plans: Plan
  evaluate: np.ndarray
  num_rounds: np.ndarray
  enough: np.ndarray
  wishes: np.ndarray


class CallResult(NamedTuple):
  """Holds the results of one call other than the states.

  Attributes:
    going: [] bool, or [G] in a sweep, False once a value has reached the target
      or is not finite; the call ends when none continues.
    num_rounds: [] int32, the number of rounds done.
    rounds: the metrics of the rounds, [R, ...].
    tests: the sums of the tests, [R, ...]; zero where the model was not tested.
    wishes: the maximum of all processes' requests, [] each.
  """

  going: jax.Array
  num_rounds: jax.Array
  rounds: RoundMetrics
  tests: Sums
  wishes: Requests


def make_schedule(
  planner: Planner,
  numbers: Sequence[int],
  rounds_per_call: int,
  evaluated: Callable[[int], bool],
  enough: float = math.inf,
  wishes: Requests = Requests(),  # noqa: B008 (it is a constant)
) -> Schedule:
  """Returns the schedule of a call, padded to `rounds_per_call` rounds.

  Args:
    planner: the planner of the rounds' plans.
    numbers: the numbers of the call's rounds, at most `rounds_per_call`.
    rounds_per_call: R, the largest number of rounds of a call.
    evaluated: the function round number -> True if the model is tested after
      it.
    enough: the threshold of a test that ends the run, from `Task.enough`; the
      default is none for metrics whose higher values are better.
    wishes: the requests of this process.

  >>> import numpy as np
  >>> import fedavg_jax as fa
  >>> planner = fa.engine.Planner(
  ...   num_examples=np.array([20, 10]), cohort_size=2, epochs=1, batch_size=5,
  ...   seed=0)
  >>> schedule = fa.engine.make_schedule(
  ...   planner, [1, 2, 3], rounds_per_call=4, evaluated=lambda n: n % 2 == 0)
  >>> schedule.evaluate.tolist(), int(schedule.num_rounds)
  ([False, True, False, False], 3)
  >>> schedule.plans.cohort.shape
  (4, 2)
  """
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
  """Places a schedule for a call; each of several processes places its part."""
  if not processes.is_distributed():
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
    round_fn: the function (going, state, client_states, data, plan) -> (state,
      client_states, metrics), from `hyperparameter_axis.Trained.round`.
    evaluate: the function (variables, test) -> sums, from
      `evaluation.build_evaluate` or `hyperparameter_axis.Trained.evaluate`.
    reached: the function (sums of a test, enough) -> bool, True if the model
      has reached the threshold.
    mesh: the devices of both.
    data_spec: the placement of the examples on the devices.

  Returns:
    `call(going, state, client_states, data, test, schedule) -> (state,
    client_states, result)`; the client states passed to it are donated. It
    changes nothing if `going` is False, as in a call queued behind one that
    ended the run.
  """

  def call(going, state, client_states, data, test, schedule):
    num_plans = schedule.evaluate.shape[0]

    def continues(carry):
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
      continues,
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
    wishes = Requests._make(jnp.max(schedule.wishes, axis=0))
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
