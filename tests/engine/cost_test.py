"""Costs are compared with counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedavg_jax.contracts import losses
from fedavg_jax.core import choices
from fedavg_jax.core import client_data
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.engine import cost
from fedavg_jax.models import zoo

CNN = (28 * 28 * 25 * 32, 14 * 14 * 25 * 32 * 64, 3136 * 512, 512 * 10)
TWO = (784 * 200, 200 * 200, 200 * 10)


@pytest.mark.parametrize('method', choices.CONVOLUTIONS)
@pytest.mark.parametrize(('name', 'products'), [('cnn', CNN), ('2nn', TWO)])
def test_gradient_of_the_papers_models(name, products, method):
  """A layer has three products; the first has no gradient of its data."""
  if (name, method) == ('cnn', 'patches'):  # 6 x 6 pixels make 2 x 2 outputs.
    products = [*(n * 36 // 25 for n in products[:-2]), *products[-2:]]
  examples = client_data.Examples(
    np.zeros((1, 28, 28, 1), np.uint8), np.zeros(1, np.int32)
  )
  data = Dataset('zeros', examples, examples, 10, max_value=255.0)
  model = zoo.build_model(name, data, convolution=method)
  loss_fn = losses.of_examples(model.apply)
  found = cost.flops(
    jax.grad(lambda params, x, y: loss_fn(params, x, y).sum()),
    jax.eval_shape(model.init, jax.random.key(0)),
    jax.ShapeDtypeStruct((10, 28, 28, 1), 'uint8'),
    jax.ShapeDtypeStruct((10,), 'int32'),
  )
  assert found == 2 * 10 * (3 * sum(products) - products[0])


def test_loops_branches_and_calls():
  def product(w):
    return w @ w  # 2 * 4 ** 3 = 128.

  w = jnp.ones((4, 4))
  scan = cost.flops(
    lambda w: jax.lax.scan(lambda c, _: (product(c), None), w, length=7)[0], w
  )
  assert scan == 7 * 128
  assert cost.flops(jax.jit(product), w) == 128
  unused = cost.flops(lambda w: (product(w), w + 1)[1], w)
  assert unused == 0
  one = cost.flops(
    lambda w: jax.lax.cond(w[0, 0] > 0, product, lambda w: w + w, w), w
  )
  assert one == 128
