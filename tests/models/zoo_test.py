"""Models have the parameter counts, scaling and networks of their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts.model import num_parameters
from fedavg_jax.core import choices
from fedavg_jax.models import zoo
from tests.testing import rest_slow


def images(max_value=255.0):
  """Makes random images in the shape of MNIST's."""
  rng = np.random.default_rng(0)
  examples = fa.Examples(
    rng.integers(0, 256, (20, 28, 28, 1)).astype(np.uint8),
    rng.integers(0, 10, 20).astype(np.int32),
  )
  return fa.Dataset('random', examples, examples, 10, max_value)


def coloured(side=32):
  """Makes random images in the shape of CIFAR's."""
  rng = np.random.default_rng(1)
  examples = fa.Examples(
    rng.integers(0, 256, (20, side, side, 3)).astype(np.uint8),
    rng.integers(0, 10, 20).astype(np.int32),
  )
  return fa.Dataset('coloured', examples, examples, 10, 255.0)


def sequences(length, tokens, padding=None):
  """Makes random sequences; the second is short where there is padding."""
  rng = np.random.default_rng(2)
  x = rng.integers(0, tokens - 2, (20, length)).astype(np.int32)
  y = rng.integers(0, tokens - 2, (20, length)).astype(np.int32)
  if padding is not None:
    x[1, 3:], y[1, 3:] = padding, -1
  examples = fa.Examples(x, y)
  return fa.Dataset('random', examples, examples, tokens, 1.0, padding=padding)


MODELS = [
  ('2nn', images(), {}, 199_210),
  ('cnn', images(), {}, 1_663_370),
  ('cnn_torch', images(), {}, 1_663_370),
  ('cifar_cnn', coloured(), {'augmentation': 'tutorial'}, 1_068_298),
  ('char_lstm', sequences(80, 258, 257), {}, 866_578),
  ('word_lstm', sequences(10, 10_000), {}, 4_950_544),
]


@pytest.mark.parametrize(('name', 'data', 'kwargs', 'expected'), MODELS)
def test_parameter_counts_of_the_paper(name, data, kwargs, expected):
  init = zoo.build_model(name, data, **kwargs).init
  params = jax.eval_shape(init, jax.random.key(0))
  assert num_parameters(params) == expected
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
  ('name', 'data', 'kwargs'),
  rest_slow(1, [case[:3] for case in MODELS], several=True),
)
@pytest.mark.usefixtures('real_programs')
def test_initial_weights_have_the_bits_of_operations(name, data, kwargs):
  """Compiled as one program, they have the bits of single operations."""
  init = zoo.build_model(name, data, **kwargs).init
  compiled = init(jax.random.key(3))
  jax.tree.map(
    np.testing.assert_array_equal,
    compiled,
    getattr(init, '__wrapped__', init)(jax.random.key(3)),
  )


@pytest.mark.parametrize(
  'name', rest_slow(1, ['2nn', 'cnn', 'cnn_torch', 'cifar_cnn'])
)
@pytest.mark.parametrize('pixels', choices.PIXELS)
def test_a_model_scales_raw_pixels_itself(name, pixels):
  """Scaling within the model is the same as scaling before, in NumPy."""
  data = images()
  x = data.train.x[:3]
  scaled = x / 255.0
  if pixels == 'standard':
    every = data.train.x / 255.0
    scaled = (scaled - every.mean()) / every.std()
  elif pixels == 'image':
    each = data.train.x[:3].reshape(3, -1)
    scaled = ((each.T - each.mean(axis=1)) / each.std(axis=1)).T
    scaled = scaled.reshape(3, 28, 28, 1)
  model = zoo.build_model(name, data, pixels=pixels)
  outside = zoo.build_model(name, images(max_value=1.0))
  params = model.init(jax.random.key(1))
  logits = model.apply(params, x)
  assert logits.shape == (3, 10) and logits.dtype == jnp.float32
  expected = outside.apply(params, jnp.float32(scaled))
  np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
def test_cnn_is_the_network_that_the_paper_describes():
  """Pooling before bias and ReLU is convolution, bias, ReLU, pooling."""
  model = zoo.build_model('cnn', images(), convolution='lax')
  params = model.init(jax.random.key(0))
  params = jax.tree.map(  # Biases start at zero, which tests nothing.
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


@pytest.mark.slow
def test_torch_like_weights_are_uniform_in_one_over_root_fan_in():
  params = zoo.build_model('cnn_torch', images()).init(jax.random.key(3))
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
    zoo.build_model('vit', images())
  with pytest.raises(ValueError, match="pixels = 'raw'"):
    zoo.build_model('cnn', images(), pixels='raw')


@pytest.mark.parametrize('name', ['2nn', 'char_lstm'])
def test_a_model_for_another_kind_of_data_is_refused(name):
  data = sequences(10, 20) if name == '2nn' else images()
  with pytest.raises(ValueError, match=f"model = '{name}': must be one of"):
    zoo.build_model(name, data)


def test_the_crop_needs_large_images():
  for data in (coloured(side=20), sequences(10, 20)):
    name = 'word_lstm' if data.train.y.ndim > 1 else 'cifar_cnn'
    with pytest.raises(ValueError, match="augmentation = 'tutorial': needs"):
      zoo.build_model(name, data, augmentation='tutorial')


@pytest.mark.slow
def test_cifar_net_is_the_tutorials():
  """Layers are conv, ReLU, pool, norm, conv, ReLU, norm, pool, three dense."""
  model = zoo.build_model('cifar_cnn', coloured(24), pixels='image')
  params = model.init(jax.random.key(0))
  params = jax.tree.map(
    lambda p: p + 0.05 * jax.random.normal(jax.random.key(2), p.shape), params
  )
  x = coloured(24).train.x[:2]
  flat = x.reshape(2, -1).astype(np.float64)
  h = ((flat.T - flat.mean(axis=1)) / flat.std(axis=1)).T.reshape(x.shape)

  def conv(h, number):
    h = jax.lax.conv_general_dilated(
        jnp.float32(h), params[f'kernel_{number}'], (1, 1), 'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip
    return np.maximum(h + params[f'bias_{number}'][None, None, None], 0)

  def pool(h):
    return jax.lax.reduce_window(
      h, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME'
    )

  def norm(h):
    squares = np.pad(np.asarray(h, np.float64) ** 2, ((0, 0),) * 3 + ((4, 4),))
    near = sum(squares[..., i : i + 64] for i in range(9))
    return h / (1 + 0.001 / 9 * near) ** 0.75

  h = conv(norm(pool(conv(h, 1))), 2)
  h = pool(jnp.float32(norm(h))).reshape(2, -1)
  for i in range(3):
    layer = params[f'Dense_{i}']
    h = h @ layer['kernel'] + layer['bias'][None]
    h = jax.nn.relu(h) if i < 2 else h
  np.testing.assert_allclose(model.apply(params, x), h, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'data'),
  [
    ('char_lstm', sequences(12, 258, 257)),
    ('word_lstm', sequences(10, 10_000)),
  ],
)
def test_a_language_model_only_sees_the_past(name, data):
  """A token changes later logits and no earlier ones."""
  model = zoo.build_model(name, data)
  params = model.init(jax.random.key(0))
  x = data.train.x[:3].copy()
  before = model.apply(params, x)
  assert before.shape == (3, x.shape[1], data.num_classes)
  changed = x.copy()
  changed[:, 5] = (changed[:, 5] + 1) % 100
  after = model.apply(params, changed)
  np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-6)
  assert np.abs(before[0, 5:] - after[0, 5:]).max(axis=1).min() > 1e-6


@pytest.mark.slow
def test_padding_takes_no_steps_and_changes_nothing():
  """A short line is run alone, in a longer array, and next to a long line."""
  data = sequences(12, 258, 257)
  model = zoo.build_model('char_lstm', data)
  params = model.init(jax.random.key(0))
  x = data.train.x[1:2]  # A line of three characters.
  alone = model.apply(params, x)[:, :3]
  together = model.apply(params, data.train.x[:2])[1:, :3]
  short = model.apply(params, x[:, :3])
  np.testing.assert_allclose(alone, together, atol=1e-6)
  np.testing.assert_allclose(alone, short, atol=1e-6)


def gradients(name, data, precision, **kwargs):
  """Returns the gradient of random weights' loss on four examples."""
  model = fa.build_model(name, data, precision=precision, **kwargs)
  params = model.init(jax.random.key(0))
  x, y = (own[:4] for own in data.train)

  def loss(params):
    logits = model.apply(params, x)
    assert logits.dtype == jnp.float32
    labels = jax.nn.one_hot(y, data.num_classes)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, axis=-1))

  return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize(
  ('name', 'data', 'kwargs'),
  rest_slow(
    1,
    [
      ('2nn', images(), {}),
      ('cnn', images(), {'convolution': 'patches'}),
      ('cifar_cnn', coloured(24), {'convolution': 'patches'}),
      ('word_lstm', sequences(4, 300), {}),
    ],
    several=True,
  ),
)
def test_gradients_in_bfloat16_are_close_to_those_in_float32(
  name, data, kwargs
):
  """All weights have float32 gradients; a few maxima and ReLUs differ."""
  rounded, exact = (
    gradients(name, data, precision, **kwargs)
    for precision in ('bfloat16', 'float32')
  )
  for a, b in zip(
    jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True
  ):
    assert a.dtype == b.dtype == jnp.float32
    assert jnp.linalg.norm(a - b) < 0.2 * jnp.linalg.norm(b)


@pytest.mark.slow
def test_training_in_bfloat16_learns_as_in_float32():
  data = fa.load_dataset('digits')
  clients = fa.build_clients(
    data.train, np.array_split(np.arange(len(data.train.y)), 10)
  )
  accuracy = {}
  for precision in ('float32', 'bfloat16'):
    simulation = fa.build_simulation(
      fa.build_model('2nn', data, precision=precision),
      fa.Federation(
        clients, data.test, client_fraction=0.5, epochs=3, batch_size=10
      ),
      fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
    )
    *_, last = fa.simulate(simulation, rounds=15)
    accuracy[precision] = last.test_accuracy
  assert accuracy['float32'] > 0.85
  assert abs(accuracy['bfloat16'] - accuracy['float32']) < 0.02
