"""Applies a trained model to examples."""

from typing import Any

import jax
import numpy as np

from fedavg_jax.contracts.model import Model
from fedavg_jax.core import trees
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine.arithmetic import Arithmetic

# The examples per call: enough to be fast, few enough to bound memory.
_BATCH = 256


def predict(
  model: Model, variables: Any, x: Any, arithmetic: Arithmetic
) -> Any:
  """Applies a model to examples, in batches of one size.

  Args:
    model: the model.
    variables: its parameters, or `Variables` with a state too.
    x: the examples, [n, ...], or a pytree of them.
    arithmetic: how the devices compute.

  Returns:
    The outputs of the model on the host, [n, ...].

  Raises:
    InputError: there is no example.
  """
  if not trees.num_rows(x):
    raise InputError('x: must have at least one example')
  apply = jax.jit(model.apply, compiler_options=arithmetic.options() or None)
  # One batch size for all, so that the model is compiled once.
  number = trees.num_rows(x)
  rows = np.minimum(np.arange(-(-number // _BATCH) * _BATCH), number - 1)
  with arithmetic.tracing():
    outputs = [
      jax.device_get(apply(variables, trees.take(x, rows[i : i + _BATCH])))
      for i in range(0, len(rows), _BATCH)
    ]
  return jax.tree.map(lambda *a: np.concatenate(a)[:number], *outputs)
