"""Parameter counts, scaling of pixels, and the geometry of the networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedavg_jax as fa
from fedavg_jax import models


def images(max_value=255.0):
  """Random images in the shape of MNIST's."""
  rng = np.random.default_rng(0)
  examples = fa.Examples(
    rng.integers(0, 256, (20, 28, 28, 1)).astype(np.uint8),
    rng.integers(0, 10, 20).astype(np.int32),
  )
  return fa.Dataset('random', examples, examples, 10, max_value)


@pytest.mark.parametrize(
  ('name', 'expected'),
  [('2nn', 199_210), ('cnn', 1_663_370), ('cnn_torch', 1_663_370)],
)
def test_parameter_counts_of_the_paper(name, expected):
  params = models.build_model(name, images()).init(jax.random.key(0))
  assert models.num_parameters(params) == expected
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize('name', models.NAMES)
@pytest.mark.parametrize('pixels', models.PIXELS)
def test_a_model_scales_raw_pixels_itself(name, pixels):
  """Scaling inside equals scaling outside, in NumPy."""
  data = images()
  x = data.train.x[:3]
  scaled = x / 255.0
  if pixels == 'standard':
    every = data.train.x / 255.0
    scaled = (scaled - every.mean()) / every.std()
  model = models.build_model(name, data, pixels=pixels)
  outside = models.build_model(name, images(max_value=1.0))
  params = model.init(jax.random.key(1))
  logits = model.apply(params, x)
  assert logits.shape == (3, 10) and logits.dtype == jnp.float32
  expected = outside.apply(params, jnp.float32(scaled))
  np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_cnn_is_the_network_that_the_paper_describes():
  """Pooling before bias and ReLU is convolution, bias, ReLU, pooling."""
  model = models.build_model('cnn', images(), convolution='lax')
  params = model.init(jax.random.key(0))
  params = jax.tree.map(  # Biases start at zero; make them count.
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape), params
  )
  rng = np.random.default_rng(1)
  x = rng.integers(0, 256, (2, 28, 28, 1)).astype(np.uint8)
  h = jnp.float32(x) / 255
  for i in (0, 1):
    layer = params[f'ConvPoolRelu_{i}']
    h = jax.lax.conv_general_dilated(
        h, layer['kernel'], (1, 1), 'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip
    h = jax.nn.relu(h + layer['bias'][None, None, None])
    b, s, _, c = h.shape
    h = h.reshape(b, s // 2, 2, s // 2, 2, c).max((2, 4))
  h = h.reshape(2, -1)
  h = h @ params['Dense_0']['kernel'] + params['Dense_0']['bias'][None]
  h = jax.nn.relu(h)
  h = h @ params['Dense_1']['kernel'] + params['Dense_1']['bias'][None]
  np.testing.assert_allclose(model.apply(params, x), h, atol=1e-4)


def test_torch_like_weights_are_uniform_in_one_over_root_fan_in():
  params = models.build_model('cnn_torch', images()).init(jax.random.key(3))
  for name, fan_in in {
    'ConvPoolRelu_0': 25,
    'ConvPoolRelu_1': 800,
    'Dense_0': 3136,
    'Dense_1': 512,
  }.items():
    for leaf in params[name].values():
      bound = fan_in**-0.5
      assert np.abs(leaf).max() <= bound
      # The largest of n uniform numbers is about bound * n / (n + 1).
      assert np.abs(leaf).max() >= bound * (1 - 10 / leaf.size)
    kernel = np.asarray(params[name]['kernel'])
    assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_unknown_model():
  with pytest.raises(ValueError, match="model = 'vit'"):
    models.build_model('vit', images())
  with pytest.raises(ValueError, match="pixels = 'raw'"):
    models.build_model('cnn', images(), pixels='raw')
