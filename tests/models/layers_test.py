"""Every way to compute a layer is compared with plain loops."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from fedavg_jax.core import choices
from fedavg_jax.engine import cost
from fedavg_jax.models import layers
from tests.testing import convolutions
from tests.testing import rest_slow

METHODS = [m for m in choices.CONVOLUTIONS if m != 'lax']


@pytest.mark.parametrize('method', choices.CONVOLUTIONS)
@pytest.mark.parametrize(
  ('size', 'k', 'padding'), [(7, 5, 2), (7, 5, 1), (6, 3, 0), (5, 1, 0)]
)
def test_conv_matches_loops(method, size, k, padding):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, size, size + 1, 3))
  kernel = rng.normal(size=(k, k, 3, 4))
  got = layers.conv2d(
    jnp.float32(x), jnp.float32(kernel), padding=padding, method=method
  )
  np.testing.assert_allclose(
    got, convolutions.conv(x, kernel, ((padding, padding),) * 2), atol=1e-4
  )


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
  ('k', 'padding'), rest_slow(1, [(5, 1), (5, 2), (3, 0)], True)
)
def test_conv_gradients_match_jax(method, k, padding):
  rng = np.random.default_rng(1)
  x = jnp.float32(rng.normal(size=(2, 8, 7, 3)))
  kernel = jnp.float32(rng.normal(size=(k, k, 3, 4)))
  weight = jnp.float32(
    rng.normal(size=(2, 9 + 2 * padding - k, 8 + 2 * padding - k, 4))
  )

  def value(x, kernel, method):
    out = layers.conv2d(x, kernel, padding=padding, method=method)
    return jnp.sum(jnp.sin(out) * weight)

  grad = jax.jit(jax.grad(value, argnums=(0, 1)), static_argnums=2)
  got, expected = grad(x, kernel, method), grad(x, kernel, 'lax')
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('clients', rest_slow(1, [3, 1]))
@pytest.mark.parametrize('batched', [(0, 0), (None, 0), (0, None)])
def test_conv_of_many_clients_is_that_of_each(method, clients, batched):
  """Both gradients are included, and shared images or a shared kernel."""
  rng = np.random.default_rng(2)
  x = jnp.float32(rng.normal(size=(clients, 2, 6, 6, 2)))
  kernel = jnp.float32(rng.normal(size=(clients, 3, 3, 2, 3)))
  args = [
    a if b == 0 else a[0] for a, b in zip((x, kernel), batched, strict=True)
  ]

  @functools.partial(jax.value_and_grad, argnums=(0, 1))
  def one(x, kernel):
    out = layers.conv2d(x, kernel, padding=1, method=method)
    return jnp.sum(jnp.sin(out))

  got = jax.jit(jax.vmap(one, in_axes=batched))(*args)
  alone = jax.jit(one)
  for c in range(clients):
    expected = alone(
      *(a[c] if b == 0 else a for a, b in zip(args, batched, strict=True))
    )
    for a, b in zip(
      jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(a[c], b, atol=1e-4)


@pytest.mark.parametrize('method', rest_slow(1, METHODS))
def test_conv_under_two_vmaps(method):
  """A sweep is a vmap around that of the clients."""
  rng = np.random.default_rng(3)
  x = jnp.float32(rng.normal(size=(2, 3, 1, 5, 5, 1)))
  kernel = jnp.float32(rng.normal(size=(2, 3, 3, 3, 1, 2)))

  @jax.jit
  def grad(x, kernel):
    return jax.grad(
      lambda k: jnp.sum(layers.conv2d(x, k, padding=1, method=method) ** 2)
    )(kernel)

  got = jax.vmap(jax.vmap(grad))(x, kernel)
  for i in range(2):
    for j in range(3):
      np.testing.assert_allclose(
        got[i, j], grad(x[i, j], kernel[i, j]), atol=1e-4
      )


def test_no_gradient_of_the_data_is_computed():
  """Two of the first layer's three convolutions are left after compilation."""

  def loss(kernel, x):
    return jnp.sum(layers.conv2d(x, kernel, padding=2, method='canonical') ** 2)

  x, kernel = jnp.ones((4, 8, 8, 1)), jnp.ones((5, 5, 1, 3))
  text = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text()
  assert text.count(' convolution(') == 2


def test_conv_refuses_an_unknown_method():
  with pytest.raises(ValueError, match="method = 'fast'"):
    layers.conv2d(
      jnp.ones((1, 3, 3, 1)), jnp.ones((1, 1, 1, 1)), padding=0, method='fast'
    )


@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize('size', [6, 7])
def test_max_pool_matches_reduce_window(padding, size):
  rng = np.random.default_rng(4)
  x = jnp.float32(rng.normal(size=(2, size, size, 3)) - 5)  # Some are negative.

  def pooled(x):
    return lax.reduce_window(
      x,
      -jnp.inf,
      lax.max,
      (1, 2, 2, 1),
      (1, 2, 2, 1),
      ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)),
    )

  np.testing.assert_array_equal(layers.max_pool2(x, padding=padding), pooled(x))
  weight = jnp.float32(rng.normal(size=pooled(x).shape))
  got = jax.jit(
    jax.grad(lambda x: jnp.sum(layers.max_pool2(x, padding=padding) * weight))
  )(x)
  expected = jax.jit(jax.grad(lambda x: jnp.sum(pooled(x) * weight)))(x)
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_matmul_and_its_gradients():
  rng = np.random.default_rng(5)
  x = jnp.float32(rng.normal(size=(3, 4, 5)))
  kernel = jnp.float32(rng.normal(size=(3, 5, 2)))

  def value(product):
    one = jax.value_and_grad(
      lambda x, k: jnp.sum(jnp.sin(product(x, k))), argnums=(0, 1)
    )
    return jax.jit(jax.vmap(one))(x, kernel)

  for a, b in zip(
    jax.tree.leaves(value(layers.matmul)),
    jax.tree.leaves(value(jnp.matmul)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_max_pool3_is_tensorflows():
  rng = np.random.default_rng(6)
  x = jnp.float32(rng.normal(size=(2, 8, 6, 3)) - 5)

  def pooled(x):  # XLA's SAME pads the end more, as TensorFlow does.
    return lax.reduce_window(
      x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME'
    )

  np.testing.assert_array_equal(layers.max_pool3(x), pooled(x))
  weight = jnp.float32(rng.normal(size=(2, 4, 3, 3)))
  got, expected = (
    jax.jit(jax.grad(lambda x, pool=pool: jnp.sum(pool(x) * weight)))(x)
    for pool in (layers.max_pool3, pooled)
  )
  np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize('pool', [layers.max_pool2, layers.max_pool3])
def test_pools_of_blocks_are_those_of_slices(pool):
  """A GPU's form has the same bits, and the same shares of equal maxima."""
  rng = np.random.default_rng(13)
  x = jnp.float32(rng.integers(0, 3, (2, 8, 6, 3)))  # Many are equal.
  weight = jnp.float32(rng.normal(size=(2, 4, 3, 3)))
  value = jax.value_and_grad(lambda x: jnp.sum(pool(x) * weight))
  expected = value(x)
  with layers.for_platform('gpu'):
    got = value(x)
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_float32_kernel_of_bfloat16_inputs():
  """It is rounded; its gradient is that of the rounded product, in float32."""
  rng = np.random.default_rng(14)
  x = jnp.asarray(rng.normal(size=(4, 5)), jnp.bfloat16)
  kernel = jnp.float32(rng.normal(size=(5, 2)))
  g = jnp.asarray(rng.normal(size=(4, 2)), jnp.bfloat16)
  out, gradients = jax.vjp(layers.matmul, x, kernel)
  dx, dkernel = gradients(g)
  assert (out.dtype, dx.dtype, dkernel.dtype) == (x.dtype, x.dtype, jnp.float32)
  exact_x, exact_g, rounded = (
    np.asarray(own.astype(jnp.bfloat16), np.float64) for own in (x, g, kernel)
  )
  np.testing.assert_allclose(np.float64(out), exact_x @ rounded, rtol=1e-2)
  np.testing.assert_allclose(np.float64(dx), exact_g @ rounded.T, rtol=1e-2)
  np.testing.assert_allclose(dkernel, exact_x.T @ exact_g, rtol=1e-5)


# The peephole cell in NumPy.


def lstm_weights(rng, inputs, size):
  return {
    'kernel': rng.normal(size=(inputs, 4 * size)) * 0.5,
    'recurrent': rng.normal(size=(size, 4 * size)) * 0.5,
    'bias': rng.normal(size=4 * size) * 0.5,
    'peephole': rng.normal(size=(3, size)),
  }


def numpy_lstm(x, weights):
  """Computes x [B, T, I] -> h [B, T, H] in float64, gate by gate."""
  kernel, recurrent, bias, peephole = weights.values()
  examples, times, _ = x.shape
  size = len(recurrent)
  out = np.zeros((examples, times, size))

  def sigmoid(v):
    return 1 / (1 + np.exp(-v))

  for b in range(examples):
    h, c = np.zeros(size), np.zeros(size)
    for t in range(times):
      new_h, new_c = np.zeros(size), np.zeros(size)
      for u in range(size):
        a_i, a_f, a_g, a_o = (
          x[b, t] @ kernel[:, gate * size + u]
          + h @ recurrent[:, gate * size + u]
          + bias[gate * size + u]
          for gate in range(4)
        )
        i = sigmoid(a_i + peephole[0, u] * c[u])
        f = sigmoid(a_f + 1.0 + peephole[1, u] * c[u])
        new_c[u] = f * c[u] + i * np.tanh(a_g)
        o = sigmoid(a_o + peephole[2, u] * new_c[u])
        new_h[u] = o * np.tanh(new_c[u])
      h, c = new_h, new_c
      out[b, t] = h
  return out


@pytest.mark.parametrize(
  ('platform', 'steps'),
  [('cpu', 1), ('cpu', 3), ('cpu', 5), ('tpu', None), ('gpu', None)],
)
def test_lstm_is_the_numpy_twins(platform, steps):
  """None takes all steps."""
  rng = np.random.default_rng(7)
  x, weights = rng.normal(size=(2, 5, 3)), lstm_weights(rng, 3, 4)
  with layers.for_platform(platform):
    got = layers.lstm(
      jnp.float32(x),
      *map(jnp.float32, weights.values()),
      None if steps is None else jnp.int32(steps),
    )
  expected = numpy_lstm(x[:, :steps], weights)
  np.testing.assert_allclose(got[:, :steps], expected, atol=1e-5)
  assert steps is None or not np.any(got[:, steps:])


@pytest.mark.parametrize('steps', [1, 4])
def test_lstm_gradients_are_those_of_the_numpy_twin(steps):
  """Central differences of the twin are taken for the data and all weights."""
  rng = np.random.default_rng(8)
  x, weights = rng.normal(size=(2, 4, 3)), lstm_weights(rng, 3, 2)
  target = rng.normal(size=(2, 4, 2))
  target[:, steps:] = 0

  def value(x, *weights):
    out = layers.lstm(x, *weights, jnp.int32(steps))
    return jnp.sum(jnp.sin(out) * jnp.float32(target))

  def twin(arrays):
    weights = dict(zip(names, arrays[1:], strict=True))
    return np.sum(np.sin(numpy_lstm(arrays[0], weights)) * target)

  names = list(weights)
  arrays = [x, *weights.values()]
  got = jax.grad(value, argnums=range(5))(*map(jnp.float32, arrays))
  for n, array in enumerate(arrays):
    for index in np.ndindex(array.shape):
      was = array[index]
      values = []
      for step in (1e-5, -1e-5):
        array[index] = was + step
        values.append(twin(arrays))
      array[index] = was
      expected = (values[0] - values[1]) / 2e-5
      np.testing.assert_allclose(got[n][index], expected, atol=1e-4)


@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_lstm_gradients_with_loops_of_known_length(platform):
  """They are those of all steps; a device's host reads no flag of its loops."""
  rng = np.random.default_rng(12)
  x, target = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 2))
  weights = lstm_weights(rng, 3, 2)
  arrays = [jnp.float32(own) for own in (x, *weights.values())]

  def value(steps, *arrays):
    return jnp.sum(jnp.sin(layers.lstm(*arrays, steps)) * jnp.float32(target))

  known, counted = (
    jax.jit(jax.grad(value, argnums=range(1, 6))) for _ in range(2)
  )
  expected = counted(jnp.int32(4), *arrays)
  with layers.for_platform(platform):
    got = known(None, *arrays)
    program = jax.make_jaxpr(jax.grad(value, range(1, 6)))(None, *arrays)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  loops = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == 'scan']
  assert len(loops) == 2 and 'while[' not in str(program)
  if platform == 'tpu':
    return
  for loop in loops:  # Otherwise a GPU's host stacks what the next step reads.
    body, carried = loop.params['jaxpr'].jaxpr, loop.params['num_carry']
    (stacked,) = body.outvars[carried:]
    assert not any(stacked in eqn.invars for eqn in body.eqns)
    assert stacked not in body.outvars[:carried]


@pytest.mark.slow
@pytest.mark.parametrize('clients', [1, 3])
def test_lstm_of_many_clients_is_that_of_each(clients):
  """Clients with shorter lines take as many steps as the longest."""
  rng = np.random.default_rng(9)
  x = jnp.float32(rng.normal(size=(clients, 2, 6, 3)))
  weights = [
    jnp.float32(rng.normal(size=(clients, *w.shape)) * 0.5)
    for w in lstm_weights(rng, 3, 4).values()
  ]
  lengths = jnp.array([[2, 1], [5, 3], [1, 1]][:clients])

  def value(x, lengths, *weights):
    out = layers.lstm(x, *weights, layers.longest(lengths))
    real = jnp.arange(6)[None] < lengths[:, None]
    return jnp.sum(jnp.where(real[..., None], jnp.sin(out), 0))

  one = jax.value_and_grad(value, argnums=(0, 2, 3, 4, 5))
  got = jax.jit(jax.vmap(one))(x, lengths, *weights)
  for c in range(clients):
    expected = one(x[c], lengths[c], *(w[c] for w in weights))
    for a, b in zip(
      jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(a[c], b, atol=1e-5)


def test_the_loops_have_only_what_needs_the_previous_step():
  """One product per step is in each direction's loop, the others outside."""

  def value(*weights):
    return jnp.sum(layers.lstm(x, *weights, jnp.int32(5)))

  rng = np.random.default_rng(10)
  x = jnp.float32(rng.normal(size=(2, 5, 3)))
  weights = [jnp.float32(w) for w in lstm_weights(rng, 3, 4).values()]
  program = jax.make_jaxpr(jax.grad(value, argnums=range(4)))(*weights)

  def products(jaxpr, inside=False):
    """Returns the numbers of products in loops and outside of them."""
    found = np.zeros(2, int)
    for eqn in jaxpr.eqns:
      found[0 if inside else 1] += eqn.primitive.name == 'dot_general'
      loop = inside or eqn.primitive.name == 'while'
      found += sum(
        (products(sub, loop) for sub in cost.programs_inside(eqn)), 0
      )
    return found

  # Forward: x kernel. Backward: two weights; the data need none.
  inside, outside = products(program.jaxpr)
  assert inside == 2
  assert 3 <= outside <= 4  # XLA drops the gradient of the data.
