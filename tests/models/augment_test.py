"""Augmentation has its invariants, and its keys are independent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.models import augment
from fedavg_jax.models import layers
from tests.testing import simulations

KEYS = jax.random.split(jax.random.key(0), 500)


def images(number=1, side=32):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (number, side, side, 3)).astype(np.uint8)


def many(x):
  """Returns the image as augmented with 500 keys, [500, 24, 24, 3]."""
  return np.asarray(jax.vmap(augment.tutorial, in_axes=(0, None))(KEYS, x))


@pytest.mark.slow
def test_it_is_a_crop_mirrored_lightened_and_stretched():
  """After a map a * x + b per channel, the result is a window of the image.

  All three channels have the same a, within the range of contrast.

  """
  (x,) = images()
  windows = {
    (top, left, mirrored): (
      x[top : top + 24, left : left + 24][:, :: -1 if mirrored else 1]
    ).astype(np.float64)
    for top in range(9)
    for left in range(9)
    for mirrored in (False, True)
  }
  seen = set()
  for out in many(x)[:60]:
    fits = []
    for key, window in windows.items():
      a = [
        np.polyfit(window[..., c].ravel(), out[..., c].ravel(), 1)
        for c in range(3)
      ]
      if all(
        np.allclose(window[..., c] * a[c][0] + a[c][1], out[..., c], atol=1e-2)
        for c in range(3)
      ):
        fits.append((key, a))
    ((key, a),) = fits
    seen.add(key)
    factors = [factor for factor, _ in a]
    assert np.ptp(factors) < 1e-4 and 0.2 <= factors[0] <= 1.8
    # Only the brightness moves the mean of each channel.
    shift = out.mean(axis=(0, 1)) - windows[key].mean(axis=(0, 1))
    assert np.ptp(shift) < 1e-2 and abs(shift[0]) <= 63 + 1e-2
  assert len(seen) > 45
  assert {mirrored for *_, mirrored in seen} == {False, True}


def test_all_windows_and_strengths_occur():
  """Pixel values are positions: all 81 windows and both mirrors occur."""
  rows, columns = np.mgrid[:32, :32]
  x = np.stack([rows * 8, columns * 8, rows * 0], axis=-1).astype(np.uint8)
  out = many(x)
  factor = (out[:, 1:, :, 0] - out[:, :-1, :, 0]).mean(axis=(1, 2)) / 8
  assert 0.2 <= factor.min() < 0.3 and 1.7 < factor.max() <= 1.8
  assert factor.mean() == pytest.approx(1.0, abs=0.07)
  light = out[..., 2].mean(axis=(1, 2))  # A black channel has the brightness.
  assert -63 <= light.min() < -55 and 55 < light.max() <= 63
  middle = out[..., 0].mean(axis=(1, 2)) - light  # The mean of the top row.
  tops = np.round(middle / 8 - 11.5).astype(int)
  assert np.bincount(tops, minlength=9).min() > 25 and tops.max() == 8
  mirrored = out[:, 0, 0, 1] > out[:, 0, -1, 1]
  assert 200 < mirrored.sum() < 300


def test_the_key_alone_decides():
  (x,) = images()
  one, again = (augment.tutorial(KEYS[0], x) for _ in range(2))
  np.testing.assert_array_equal(one, again)
  assert one.dtype == jnp.float32 and one.shape == (24, 24, 3)
  assert not np.allclose(one, augment.tutorial(KEYS[1], x))


def test_a_small_image_is_its_own_crop():
  x = images(2, side=24)
  np.testing.assert_array_equal(augment.central_crop(x), x)
  np.testing.assert_array_equal(
    augment.central_crop(images(2)), images(2)[:, 4:28, 4:28]
  )


def test_standardised_images():
  x = jnp.float32(images(3))
  out = np.asarray(augment.standardize(x))
  np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), 0, atol=1e-5)
  np.testing.assert_allclose(out.std(axis=(1, 2, 3)), 1, atol=1e-4)
  flat = augment.standardize(jnp.full((1, 24, 24, 3), 7.0))
  assert not np.any(flat)  # An image of one colour becomes zeros, not NaN.


# Augmentation within a round.


def build(augment_fn, record=None, **kwargs):
  """Builds a linear model on tiny images, augmented with `augment_fn`."""
  rng = np.random.default_rng(3)
  x = rng.normal(size=(23, 4)).astype(np.float32)
  y = rng.integers(0, 3, 23).astype(np.int32)
  parts = np.split(np.arange(23), [1, 8, 12, 21])
  examples = fa.Examples(x, y)

  def apply(params, x):
    return x @ params

  model = fa.Model(
    'linear', lambda key: jnp.zeros((4, 3)) + 0.1, apply, augment_fn
  )
  settings = {
    'client_fraction': 1.0,
    'epochs': 2,
    'batch_size': 4,
    'algorithm': fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
  }
  return simulations.build_simulation(
    model, fa.build_clients(examples, parts), examples, **settings | kwargs
  )


def noisy(key, x):
  return x + jax.random.normal(key, x.shape)


def params_after(simulation, rounds=2):
  *_, record = fa.simulate(simulation, rounds=rounds)
  return jax.device_get(record.state.params)


@pytest.mark.slow
@pytest.mark.parametrize(
  'kwargs',
  [
    {'lanes': 4, 'widths': (2, 1)},
    {'micro_batch': 2},
    {'lanes': 1},
    {'rounds_per_call': 1},
  ],
)
def test_draws_do_not_depend_on_the_layout(kwargs):
  """Other lanes, devices, micro-batches and calls have the same noise."""
  expected = params_after(build(noisy, lanes=2))
  got = params_after(build(noisy, **kwargs))
  np.testing.assert_allclose(got, expected, atol=1e-5)
  other = params_after(build(noisy, seed=1))
  assert np.abs(other - expected).max() > 1e-3


def test_every_use_of_every_example_has_its_own_key():
  """The device counts: no two uses of an example draw the same number."""
  seen = []

  def spy(key, x):
    number = jax.random.uniform(key)
    jax.debug.callback(
      lambda number, x: seen.append((float(number), x.tobytes())), number, x
    )
    return x

  params_after(build(spy, batch_size=1, lanes=2), rounds=2)
  jax.effects_barrier()
  # Idle lanes compute too, on any example; all other draws are new.
  draws = {}
  for number, x in seen:
    draws.setdefault(x, set()).add(number)
  assert len(draws) == 23
  assert all(len(numbers) >= 2 * 2 for numbers in draws.values())
  drawn = [number for numbers in draws.values() for number in numbers]
  assert len(set(drawn)) == len(drawn)


def test_the_test_set_is_not_augmented():
  """The first model has the accuracy of the raw images."""
  first = next(iter(fa.simulate(build(noisy), rounds=1)))
  plain = next(iter(fa.simulate(build(None), rounds=1)))
  assert first.test_loss == plain.test_loss


@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_the_crop_is_the_same_for_other_devices(platform, dtype):
  """Indices, or products with zeros and ones, make the same crop as a slice."""
  (x,) = images(side=29)
  x = (x + 0.001).astype(dtype)
  with layers.for_platform(platform):
    elsewhere = many(x)
  np.testing.assert_array_equal(many(x), elsewhere)
