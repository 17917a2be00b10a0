import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedavg_jax.contracts import task as tasks
from fedavg_jax.contracts.model import Model
from fedavg_jax.core import client_data
from fedavg_jax.engine import compiled_round
from fedavg_jax.engine import evaluation
from fedavg_jax.models import layers


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


@pytest.mark.parametrize('batch', [8, 16, 256, 1000])
def test_the_size_of_batches_changes_no_count(batch):
  """Each device has as many batches, and padding does not count."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(511, 3)).astype(np.float32)
  y = rng.integers(0, 3, 511).astype(np.int32)
  mesh = compiled_round.lane_mesh(jax.devices()[:2])
  test = evaluation.place_test_set(client_data.Examples(x, y), mesh, batch)
  assert test.mask.shape[1] == batch and not test.mask.shape[0] % 2
  got, count = evaluate(lambda params, x: x, (), test, mesh)
  assert count == 511 and got['accuracy'] == (x.argmax(axis=1) == y).mean()


@pytest.mark.parametrize(
  ('platform', 'memory', 'number', 'expected'),
  [
    ('cpu', None, 10_000, 125),
    ('gpu', None, 10_000, 2000),
    ('gpu', None, 10, 16),
    ('tpu', None, 2100, 1056),
    # A result of 4 MB per example: 512 of them are 2 GiB, and a few bytes.
    ('gpu', None, 10_000 * 2**20, 504),
    ('gpu', 2**33, 10_000 * 2**20, 128),
    ('gpu', 1, 10_000, 128),
  ],
)
def test_accelerators_take_large_batches_that_fit(
  monkeypatch, platform, memory, number, expected
):
  """A batch is as large as memory allows, and batches are of equal sizes."""
  number, wide = number % 2**20 or 10_000, number > 2**20
  monkeypatch.setattr(evaluation, 'total_bytes', lambda device: memory)
  x = np.zeros((number, 4), np.float32)
  test = client_data.Examples(x, np.zeros(number, np.int32))
  kernel = np.zeros((4, 2**20 if wide else 3), np.float32)
  init = lambda key: kernel  # noqa: E731 (only its shape is needed)
  task = tasks.make_task(Model('own', init, lambda w, x: x @ w))
  mesh = compiled_round.lane_mesh(jax.devices()[:1])
  with layers.for_platform(platform):
    assert evaluation.batch_size(task, test, mesh) == expected
    sweep = evaluation.batch_size(task, test, mesh, values=2)
    assert sweep == (256 if expected == 504 else min(expected, sweep))
