import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedavg_jax.contracts import task as tasks
from fedavg_jax.contracts.model import Model
from fedavg_jax.core import client_data
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import evaluation


def evaluate(apply, variables, test, mesh):
  """Returns the results of a classifier's test, and its number of labels."""
  task = tasks.make_task(Model('own', None, apply))
  run = evaluation.build_evaluate(task, mesh)
  sums = jax.device_get(run(variables, test))
  return tasks.results(task, sums), sums.count


@pytest.mark.parametrize('num_devices', [1, 2])
@pytest.mark.parametrize('examples', [1, 124, 125, 126, 250, 511])
def test_padding_does_not_count(num_devices, examples):
  """A linear model is compared with NumPy, for awkward numbers of examples."""
  rng = np.random.default_rng(examples)
  x = rng.integers(0, 256, (examples, 2, 2, 1)).astype(np.uint8)
  y = rng.integers(0, 3, examples).astype(np.int32)
  w = rng.normal(size=(4, 3))

  def apply(params, x):
    return x.astype(jnp.float32).reshape(x.shape[0], -1) / 255 @ params

  mesh = compiled_round.lane_mesh(jax.devices()[:num_devices])
  test = evaluation.place_test_set(client_data.Examples(x, y), mesh)
  got, count = evaluate(apply, jnp.float32(w), test, mesh)
  logits = x.reshape(examples, -1) / 255.0 @ w
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  assert count == examples
  assert got['accuracy'] == (logits.argmax(axis=1) == y).mean()
  assert got['loss'] == pytest.approx(
    -log_p[np.arange(examples), y].mean(), 1e-5
  )


def test_every_label_of_an_image_belongs_to_its_own():
  """Labels are [n, H, W]; examples stay in their order."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(130, 2, 3, 4)).astype(np.float32)
  y = rng.integers(0, 4, (130, 2, 3)).astype(np.int32)
  mesh = compiled_round.lane_mesh(jax.devices()[:1])
  test = evaluation.place_test_set(client_data.Examples(x, y), mesh)
  np.testing.assert_array_equal(test.x.reshape(-1, 2, 3, 4)[:130], x)
  got, count = evaluate(lambda params, x: x, (), test, mesh)
  assert count == 130 * 6
  assert got['accuracy'] == pytest.approx((x.argmax(axis=-1) == y).mean())


@pytest.mark.parametrize('num_devices', [1, 2])
@pytest.mark.parametrize('examples', [1, 125, 300])
def test_every_label_of_a_sequence_counts_once(num_devices, examples):
  """Sequences have any length, but at least one label each."""
  rng = np.random.default_rng(examples)
  x = rng.integers(0, 5, (examples, 6)).astype(np.int32)
  y = rng.integers(0, 5, (examples, 6)).astype(np.int32)
  lengths = rng.integers(1, 7, examples)
  real = np.arange(6) < lengths[:, None]
  y[~real] = client_data.NO_LABEL
  table = rng.normal(size=(5, 5))
  mesh = compiled_round.lane_mesh(jax.devices()[:num_devices])
  test = evaluation.place_test_set(client_data.Examples(x, y), mesh)
  got, count = evaluate(
    lambda params, x: params[x], jnp.float32(table), test, mesh
  )
  logits = table[x][real]
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  assert count == real.sum()
  assert got['accuracy'] == (logits.argmax(axis=1) == y[real]).mean()
  expected = -log_p[np.arange(len(log_p)), y[real]].mean()
  assert got['loss'] == pytest.approx(expected, 1e-5)
