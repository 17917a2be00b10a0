"""Runs a workload with the reference round, as a baseline for the engine.

Every client of the cohort is padded to the largest one of the population, so
that one compilation serves every round; the padded clients are stacked, `vmap`
trains them side by side, and their weighted mean is the new model:
`fedavg_jax.engine.build_reference_round`. Cohorts, example orders and
minibatches are those of the engine. The host stacks the next round's cohort
while the device computes the current round.
"""

import time
from typing import Any

import jax
import numpy as np

from experiments.benchmark import workloads
import fedavg_jax as fa
from fedavg_jax.contracts.task import make_task
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import evaluation
from fedavg_jax.runs import provenance

_COHORTS = 100  # Rounds that the useful share of steps is averaged over.


class PlainRounds:
  """Runs the rounds of a workload, starting from the initial model.

  Attributes:
    params: the global model.
    facts: the facts that the worker reports at its start.
  """

  def __init__(self, workload: workloads.Workload, options: dict[str, Any]):
    """Compiles a workload.

    Args:
      workload: the workload.
      options: `convolution` and `precision` of the model.

    Raises:
      InputError: the reference round does not support the workload.
    """
    data, self._clients = workloads.make_data(workload)
    model = workloads.make_model(
      workload,
      data,
      convolution=options.get('convolution', 'auto'),
      precision=options.get('precision', 'float32'),
    )
    if model.augment is not None:
      raise InputError('the reference round does not support augmentation')
    if workload.weighting != 'examples' and len(set(workload.sizes)) > 1:
      raise InputError(
        'the reference round supports weighting clients by their examples only'
      )
    self._planner = fa.engine.Planner(
      num_examples=self._clients.num_examples,
      cohort_size=workload.cohort,
      epochs=workload.epochs,
      batch_size=workload.batch,
      weighting=workload.weighting,
      seed=0,
    )
    self.params = model.init(jax.random.key(self._planner.seed))
    self._evaluate, self._test = None, None
    if workload.tested:
      mesh = fa.engine.lane_mesh(jax.devices()[:1])
      self._evaluate = evaluation.build_evaluate(make_task(model), mesh)
      self._test = evaluation.place_test_set(data.test, mesh)
    reference_round: Any = fa.engine.build_reference_round(
      fa.losses.of_examples(model.apply), workload.learning_rate
    )
    self._done = 0
    begin = time.perf_counter()
    self._round: Any = reference_round.lower(
      self.params, *self._inputs(1)
    ).compile()
    self.facts = self._describe(time.perf_counter() - begin)

  def run(self, rounds: int) -> None:
    """Trains more rounds, each with a test if the workload has test examples.

    Args:
      rounds: the number of rounds.
    """
    under_way: Any = ()
    for _ in range(rounds):
      self._done += 1
      inputs = self._inputs(self._done)
      jax.device_get(under_way)
      self.params = self._round(self.params, *inputs)
      under_way = jax.tree.leaves(self.params)[:1]
      if self._evaluate is not None:
        under_way = self._evaluate(self.params, self._test)
    jax.block_until_ready((self.params, jax.device_get(under_way)))

  def _inputs(self, number: int) -> tuple[np.ndarray, ...]:
    """Stacks a round's cohort; shapes are the same in every round."""
    cohort = self._planner.cohort(number)
    x, y, mask = fa.stack(self._clients, cohort.tolist())
    batches = self._planner.padded_batches(number, cohort)
    most = int(self._planner.num_examples.max())
    steps = int(self._planner.steps(np.array([most]))[0])
    return (
      *(_padded(array, most, 0) for array in (x, y, mask)),
      _padded(batches, steps, -1),
    )

  def _describe(self, compile_seconds: float) -> dict[str, Any]:
    """Returns the facts that need no timing, and the seconds of compiling."""
    planner = self._planner
    cohorts = [planner.cohort(r) for r in range(1, _COHORTS + 1)]
    steps = [planner.steps(planner.num_examples[ids]) for ids in cohorts]
    most = planner.steps(planner.num_examples).max()
    memory = self._round.memory_analysis()
    return {
      'lanes': planner.cohort_size,
      'devices': 1,
      'compile_seconds': compile_seconds,
      'useful_share': float(np.mean(steps) / most),
      'temporary_bytes': memory.temp_size_in_bytes,
      **provenance.environment(),
    }


def _padded(array: np.ndarray, length: int, fill: int) -> np.ndarray:
  """Pads the second axis to a length."""
  missing = [(0, 0)] * array.ndim
  missing[1] = (0, length - array.shape[1])
  return np.pad(array, missing, constant_values=fill)
