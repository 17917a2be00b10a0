"""Defines what attackers send, or train on.

Shape letters: M clients of the cohort, B rows of a batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedavg_jax.contracts.aggregation import exact_tensordot
from fedavg_jax.contracts.model import Array
from fedavg_jax.core import rules
from fedavg_jax.core.trees import PyTree


class Attack(NamedTuple):
  """Defines what attackers do; each function is None where they are honest.

  Attributes:
    labels: y [B] -> y [B], the labels that an attacker trains with.
    send: (message, key) -> message that an attacker sends.
    collude: (messages [M, ...], honest [M] bool) -> message that all attackers
      of the cohort send, who know the messages of the others.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> silence = fa.experimental.Attack(
  ...     send=lambda message, key: jnp.zeros_like(message))
  >>> silence.send(jnp.ones(2), None).tolist()
  [0.0, 0.0]
  """

  labels: Callable[[Array], jax.Array] | None = None
  send: Callable[[PyTree, jax.Array], PyTree] | None = None
  collude: Callable[[PyTree, jax.Array], PyTree] | None = None


def label_flip(num_classes: int) -> Attack:
  """Builds training on the labels num_classes - 1 - y, Fang et al. 2020.

  Args:
    num_classes: the number of classes, at least 2. Labels below 0, which mark
      positions without one, do not change.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> flip = fa.experimental.label_flip(10)
  >>> flip.labels(jnp.array([0, 9, 3, -1])).tolist()
  [9, 0, 6, -1]
  """
  rules.check_whole('num_classes', num_classes, 2)
  return Attack(
    labels=lambda y: jnp.where(y >= 0, num_classes - 1 - y, y).astype(y.dtype)
  )


def sign_flip(scale: float = 1.0) -> Attack:
  """Builds messages of the opposite sign, -scale times the honest ones.

  Args:
    scale: the factor of the message's size, in (0, 1e30].

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> fa.experimental.sign_flip(2.0).send(jnp.array([1.0, -3.0]), None).tolist()
  [-2.0, 6.0]
  """
  rules.check_positive('scale', scale, 1e30)
  return _scaled(-scale)


def scaling(scale: float) -> Attack:
  """Builds scale times the honest messages, Bagdasaryan et al. 2020.

  Args:
    scale: the factor of the message's size, in (0, 1e30].

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> fa.experimental.scaling(10.0).send(jnp.array([1.0, -3.0]), None).tolist()
  [10.0, -30.0]
  """
  rules.check_positive('scale', scale, 1e30)
  return _scaled(scale)


def gaussian_noise(scale: float) -> Attack:
  """Builds messages of noise alone, Blanchard et al. 2017, Section 5.

  Args:
    scale: the size of the noise, its standard deviation, in (0, 1e30]; the
      paper has 200.

  >>> import jax, jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> noise = fa.experimental.gaussian_noise(200.0)
  >>> sent = noise.send(jnp.zeros(1000), jax.random.key(0))
  >>> bool(abs(sent.std() - 200) < 20)
  True
  """
  rules.check_positive('scale', scale, 1e30)

  def send(message, key):
    leaves, structure = jax.tree.flatten(message)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
      [
        scale * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
      ]
    )

  return Attack(send=send)


def little_is_enough(scale: float = 1.5) -> Attack:
  """Builds mean - scale * deviation of honest messages, Baruch et al. 2019.

  Mean and standard deviation are those of each coordinate over the honest
  messages of the cohort, with equal weights. The messages of attackers stay
  within the spread of the honest ones.

  Args:
    scale: the size z of the shift in standard deviations, in (0, 1e30]; the
      paper derives it from the numbers of clients, 0.3 to 1.5 in its tables.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> little = fa.experimental.little_is_enough(0.5)
  >>> honest = jnp.array([True, True, False])
  >>> float(little.collude(jnp.array([1.0, 3.0, 7.0]), honest))
  1.5
  """
  rules.check_positive('scale', scale, 1e30)

  def collude(messages, honest):
    mean = _mean(messages, honest)
    squares = jax.tree.map(lambda m, c: (m - c[None]) ** 2, messages, mean)
    return jax.tree.map(
      lambda c, v: c - scale * jnp.sqrt(v), mean, _mean(squares, honest)
    )

  return Attack(collude=collude)


def inner_product(scale: float = 1.0) -> Attack:
  """Builds -scale times the mean of honest messages, Xie et al. 2020.

  Args:
    scale: the factor epsilon of the mean's size, in (0, 1e30]; the paper has
      0.1 to 100.

  >>> import jax.numpy as jnp
  >>> import fedavg_jax as fa
  >>> against = fa.experimental.inner_product(0.5)
  >>> honest = jnp.array([True, True, False])
  >>> float(against.collude(jnp.array([1.0, 3.0, 7.0]), honest))
  -1.0
  """
  rules.check_positive('scale', scale, 1e30)
  return Attack(
    collude=lambda messages, honest: jax.tree.map(
      lambda m: -scale * m, _mean(messages, honest)
    )
  )


def _scaled(factor: float) -> Attack:
  return Attack(
    send=lambda message, key: jax.tree.map(lambda m: factor * m, message)
  )


def _mean(messages: PyTree, honest: Array) -> PyTree:
  """Returns the mean of the honest messages, zero if there is none."""
  ones = honest.astype(jnp.float32)
  shares = ones / jnp.maximum(ones.sum(), 1.0)
  return jax.tree.map(lambda m: exact_tensordot(shares, m), messages)
