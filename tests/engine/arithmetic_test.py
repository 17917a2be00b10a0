"""Products have the precision that is asked for, on devices that have it."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.engine import arithmetic
from fedavg_jax.engine.arithmetic import Arithmetic

PRODUCT = re.compile(r'stablehlo\.(?:dot_general|convolution)[^\n]*')


def apply(variables, x):
  """Applies a convolution and a product, as a user may write them."""
  kernel, dense = variables
  x = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  return x.mean(axis=(1, 2)) @ dense


def program(precision):
  """Returns the program of a user-defined model, on one device."""
  x = np.zeros((6, 4, 4, 1), np.float32)
  examples = fa.Examples(x, np.arange(6, dtype=np.int32) % 3)
  init = lambda key: (jnp.ones((3, 3, 1, 2)), jnp.ones((2, 3)))  # noqa: E731
  return fa.lower_simulation(
    fa.Model('own', init, apply),
    fa.Federation(
      fa.build_clients(examples, [[0, 1, 2], [3, 4], [5]]),
      examples,
      client_fraction=0.5,
      epochs=1,
      batch_size=2,
    ),
    fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
    execution=fa.Execution(
      lanes=1, devices=jax.devices()[:1], precision=precision
    ),
  )


@pytest.mark.parametrize(
  ('target', 'fast'), [('cuda', 'tf32'), ('tpu', 'bfloat16')]
)
def test_products_of_a_user_defined_model_carry_the_precision(target, fast):
  """The call has training and evaluation; the mean is exact in any case."""
  exact = program('float32')
  products = PRODUCT.findall(exact.export(target).mlir_module())
  # Forward, the gradient of the kernel, and two of the dense layer; the test.
  assert len(products) > 5
  assert all('HIGHEST' in own for own in products)
  quick = exact._replace(precision=fast).export(target).mlir_module()
  fast_ones = PRODUCT.findall(quick)
  assert len(fast_ones) == len(products)
  assert sum('HIGHEST' in own for own in fast_ones) == 2  # Of two weights.


def test_a_cpu_gets_the_same_program():
  exact, quick = (
    program(name).lower().as_text() for name in ('float32', 'bfloat16')
  )
  assert exact == quick and exact.count('HIGHEST, HIGHEST') == 2


def test_a_tpu_has_no_tf32():
  with pytest.raises(fa.InputError, match="precision = 'tf32': .* on a TPU"):
    program('float32')._replace(precision='tf32').export('tpu')


def test_a_precision_is_refused_before_anything_compiles():
  with pytest.raises(fa.InputError) as error:
    program('tf32')
  assert str(error.value) == (
    "precision = 'tf32': must be float32 or bfloat16 on a CPU, which has no"
    ' TF32'
  )


@pytest.mark.parametrize(
  ('capability', 'has'),
  [('7.5', False), ('8.0', True), ('12.0', True), ('gfx942', True)],
)
def test_tf32_needs_a_generation_of_gpus(capability, has):
  device = types.SimpleNamespace(compute_capability=capability)
  own = Arithmetic('gpu', 'tf32')
  if has:
    return arithmetic.check(own, device)
  with pytest.raises(fa.InputError, match='compute capability 7.5'):
    arithmetic.check(own, device)


def test_only_a_gpu_gets_compiler_options():
  asked = {'deterministic': True, 'gpu_graphs': True}
  for platform in ('cpu', 'tpu'):
    assert Arithmetic(platform, **asked).options(loops=True) == {}
  gpu = Arithmetic('gpu', **asked)
  assert list(gpu.options()) == ['xla_gpu_deterministic_ops']
  assert len(gpu.options(loops=True)) == 2
  assert Arithmetic('gpu').options(loops=True) == {}


@pytest.fixture(scope='module')
def doubled():
  return jax.jit(lambda x: x + x).lower(jnp.ones(3))


def test_this_xla_knows_every_option(doubled):
  """Compilers of all platforms read the options of all of them."""
  options = Arithmetic('gpu', deterministic=True, gpu_graphs=True).options(
    loops=True
  )
  compiled = arithmetic.compiled(doubled, options)
  np.testing.assert_array_equal(compiled(jnp.ones(3)), [2, 2, 2])


def test_an_unknown_option_is_one_line(doubled, monkeypatch):
  key = 'xla_gpu_enable_command_buffer'
  with pytest.raises(fa.InputError) as error:
    arithmetic.compiled(doubled, {key: 'LOOPS'})
  line = str(error.value)
  assert line.startswith('gpu_graphs = True: must be False with jax')
  assert line.endswith(f'does not support {key} = LOOPS')
  monkeypatch.setitem(arithmetic._NEEDED_BY, 'xla_gpu_no', 'deterministic')
  with pytest.raises(fa.InputError, match='^deterministic = True: must be'):
    arithmetic.compiled(doubled, {'xla_gpu_no': True})
  with pytest.raises(jax.errors.JaxRuntimeError):  # It is none of ours.
    arithmetic.compiled(doubled, {'xla_gpu_nor_this': True})


def test_a_precision_of_jax_that_is_replaced_is_one_warning(monkeypatch):
  said = []
  monkeypatch.setattr(
    arithmetic.logging, 'log_first_n', lambda *own: said.append(own)
  )
  with jax.default_matmul_precision('bfloat16'):
    arithmetic.check(Arithmetic('cpu'))
    assert said == []
    arithmetic.check(Arithmetic('tpu'))
  assert said[0][-2:] == ('bfloat16', 'float32') and len(said) == 1
