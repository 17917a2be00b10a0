"""Estimates of a step equal counts by hand, and are near compiled programs."""

import json

import jax
from jax import lax
from jax.experimental import pallas
import jax.numpy as jnp
import numpy as np
import pytest

from fedavg_jax.contracts import losses
from fedavg_jax.core.client_data import Examples
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.engine import step_cost
from fedavg_jax.models import layers
from fedavg_jax.models import zoo

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
BYTES = 8 * 8 * 4


def test_elementwise_operations_join_the_kernel_that_reads_them():
  def step(w, x):
    hidden = jnp.tanh(x @ w.T) * 2  # Written, because a product reads it.
    return jax.nn.relu(hidden.reshape(8, 8) @ w) + 1

  found = step_cost.estimate(step, SQUARE, SQUARE)
  assert found.kernels == 4 and found.host_reads == 0
  # Two products read two and write one; two others read one and write one.
  assert found.bytes == (2 * 3 + 2 * 2) * BYTES
  assert found.memory == 2 * BYTES


def test_unused_results_cost_nothing():
  found = step_cost.estimate(lambda w: (w @ w, w + 1)[1], SQUARE)
  assert found == step_cost.StepCost(1, 0, 2 * BYTES, BYTES)


def test_loops_of_known_length_are_counted_by_it():
  def step(w):
    return lax.scan(lambda c, _: (c @ w, None), w, length=7)[0]

  one = step_cost.estimate(lambda c, w: c @ w, SQUARE, SQUARE)
  seven = step_cost.estimate(step, SQUARE)
  assert seven.kernels == 7 * one.kernels
  assert seven.bytes == 7 * one.bytes and seven.host_reads == 0


def test_a_loop_of_unknown_length_is_read_by_the_host():
  def step(w):
    return lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c @ w, w)

  assert step_cost.estimate(step, SQUARE).host_reads == 1
  assert step_cost.estimate(jax.jit(step), SQUARE).host_reads == 1


def test_scatter_add_writes_its_table_and_a_kernel_of_pallas_is_one():
  rows = jax.ShapeDtypeStruct((3,), jnp.int32)
  found = step_cost.estimate(lambda w, i: w.at[i].add(1.0), SQUARE, rows)
  assert found is not None and found.bytes >= 2 * BYTES

  def kernel(x, y):
    y[...] = x[...]

  step = pallas.pallas_call(kernel, SQUARE)
  assert step_cost.estimate(step, SQUARE) == (1, 0, 2 * BYTES, BYTES)


def test_a_fault_of_an_estimate_is_no_error(monkeypatch):
  monkeypatch.setattr(step_cost, '_flatten', lambda jaxpr: {}['a fault'])
  assert step_cost.estimate(jnp.sin, SQUARE) is None


CASES = {
  '2nn': ('2nn', (28, 28, 1), 10, 10),
  'cnn': ('cnn', (28, 28, 1), 10, 10),
  'cifar': ('cifar_cnn', (24, 24, 3), 10, 50),
}


@pytest.mark.parametrize('case', CASES)
def test_estimates_are_near_the_compiled_program(repository, case):
  """The table has the step of ten lanes for a GPU: compiled, not run."""
  name, shape, classes, batch = CASES[case]
  zeros = Examples(np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32))
  model = zoo.build_model(name, Dataset('zeros', zeros, zeros, classes, 255.0))
  loss = losses.of_examples(model.apply)

  def step(params, x, y):
    grads = jax.grad(lambda params: loss(params, x, y).sum())(params)
    return jax.tree.map(jnp.subtract, params, grads)

  with layers.for_platform('gpu'):
    found = step_cost.estimate(
      step,
      jax.eval_shape(model.init, jax.random.key(0)),
      jax.ShapeDtypeStruct((batch, *shape), 'uint8'),
      jax.ShapeDtypeStruct((batch,), 'int32'),
    )
  table = repository / 'experiments' / 'benchmark' / 'results'
  (row,) = (
    row
    for row in map(
      json.loads, (table / 'compiled.jsonl').read_text().splitlines()
    )
    if (row['target'], row['case']) == ('h100', case)
  )
  assert 0.6 < found.kernels / row['kernels'] < 1.6
  assert 0.6 < 10 * found.bytes / 1e6 / row['megabytes'] < 1.8
