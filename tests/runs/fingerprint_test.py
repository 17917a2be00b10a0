"""Parts that compute the same have equal fingerprints, others do not."""

import functools
import os
import subprocess
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts.task import make_task
from fedavg_jax.engine.hyperparameter_axis import Single
from fedavg_jax.engine.hyperparameter_axis import Sweep
from fedavg_jax.runs import fingerprint
from tests.testing import rest_slow

FACTOR = 2.0
x = 0.0  # Functions below use this name for something else.


class Net(nn.Module):
  """Is a user's network."""

  widths: tuple
  precision: jax.lax.Precision | None = None

  @nn.compact
  def __call__(self, inputs):
    inputs = inputs.reshape(len(inputs), -1)
    for i, width in enumerate(self.widths):
      for part in width if isinstance(width, tuple) else (width,):
        inputs = nn.Dense(part, precision=self.precision)(inputs)
      inputs = inputs * (i + 1)
    return inputs


def network(widths=(4,), **options):
  net = Net(widths, **options)
  return fa.Model(
    'net', lambda key: net.init(key, jnp.zeros((1, 3))), net.apply
  )


def scaled(loss):
  """Decorates a loss with a factor that is only in its closure."""

  def decorate(factor):
    @functools.wraps(loss)
    def wrapper(outputs, batch):
      return factor * loss(outputs, batch)

    return wrapper

  return decorate


@scaled
def squared(outputs, batch):
  return jnp.sum((outputs - batch.y[:, None]) ** 2, axis=1)


def of_config(mu):
  config = ml_collections.ConfigDict({'mu': mu})
  return lambda outputs, batch: jnp.sum((outputs - config.mu) ** 2, axis=1)


def of_module(scale):
  """Returns a loss that reads its number from a module."""
  helpers = types.ModuleType('helpers')
  helpers.scale = scale
  return lambda outputs, batch: jnp.sum(helpers.scale * outputs, axis=1)


def of_operation(operation):
  return lambda outputs, batch: operation(outputs, 0.5).sum(axis=1)


def of_gradient(argument):
  """Returns a loss that differentiates a function by one of its arguments."""

  def energy(a, b):
    return jnp.sum(a * a + 3 * b)

  gradient = jax.grad(energy, argnums=argument)
  return lambda outputs, batch: gradient(outputs, outputs).sum(axis=1)


def steps(rates):
  def schedule(count):
    return rates[0] + rates[1] * count.astype(jnp.float32)

  return fa.fedavg(optax.sgd(schedule), optax.sgd(1.0))


def metric_of(value):
  return {'metrics': [fa.metrics.mean_loss(squared(value))]}


# Keyword arguments of `of_parts` below for a value, and two such values.
PARTS = {
  'learning rate': (
    lambda eta: {'algorithm': fa.fedavg(optax.sgd(eta), optax.sgd(1.0))},
    *(1.0, 2.0),
  ),
  'schedule': (
    lambda rates: {'algorithm': steps(rates)},
    *((0.1, 0.2), (0.1, 0.3)),
  ),
  'kept by clients': (
    lambda eta: {'algorithm': fa.scaffold(eta)},
    *(0.1, 0.2),
  ),
  'widths': (
    lambda widths: {'model': network(widths)},
    *(((8, 4), 4), ((8,), 4, 4)),
  ),
  'precision': (
    lambda name: {
      'model': network(precision=None if not name else jax.lax.Precision(name))
    },
    *('', 'highest'),
  ),
  'wrapper': (lambda n: {'loss': squared(n)}, 2.0, 3.0),
  'config': (lambda mu: {'loss': of_config(mu)}, 0.0, 9.0),
  'module': (lambda n: {'loss': of_module(n)}, 1.0, 100.0),
  'operation': (
    lambda name: {'loss': of_operation(getattr(jnp, name))},
    *('maximum', 'minimum'),
  ),
  'gradient': (lambda n: {'loss': of_gradient(n)}, 0, 1),
  'metric': (metric_of, 3.0, 5.0),
  'direction': (
    lambda lower: {
      'metrics': [
        fa.metrics.mean_loss(squared(1.0))._replace(lower_is_better=lower)
      ]
    },
    *(True, False),
  ),
}


def of_parts(model=None, loss=None, metrics=None, algorithm=None, cohort=2):
  clients = fa.Clients(
    np.arange(12, dtype=np.float32).reshape(4, 3),
    np.arange(4, dtype=np.float32),
    np.array([0, 3, 4]),
  )
  trained = algorithm or fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  if isinstance(trained, fa.Algorithm):
    trained = Single(trained)
  task = make_task(model or network(), loss or squared(1.0), metrics)
  return fingerprint.of_parts(task, trained, clients, cohort)


def differ(one, other):
  return {name for name in one if one[name] != other[name]}


@pytest.mark.parametrize('name', rest_slow(4, PARTS))
def test_equal_and_different_parts(name):
  make, a, b = PARTS[name]
  (part,) = make(a)
  found = of_parts(**make(a))
  assert not differ(found, of_parts(**make(a)))
  assert part in differ(found, of_parts(**make(b)))


def test_the_part_that_differs_comes_first():
  """Losses and models are in an algorithm's program, but not the reverse."""
  found = of_parts()
  assert differ(found, of_parts(algorithm=fa.scaffold(0.1))) == {'algorithm'}
  assert 'model' not in differ(found, of_parts(loss=squared(3.0)))
  weights = network().init(jax.random.key(0))
  other = jax.tree.map(lambda leaf: leaf.at[0].add(1e-6), weights)
  first, second = (
    of_parts(model=network()._replace(init=lambda key, own=own: own))
    for own in (weights, other)
  )
  assert differ(first, second) == {'model'}


def test_how_a_function_is_written_does_not_count():
  """Names, docstrings, earlier traces and unread globals have no effect."""
  calls = []

  def written_otherwise(outputs, batch):
    """Returns squared errors, in other words than above."""
    calls.append(batch.x)
    distance = outputs - batch.y[:, None]
    return jnp.sum(distance**2, axis=1)

  before = of_parts(loss=written_otherwise)
  globals()['x'] = 1.0
  assert calls and not differ(before, of_parts(loss=written_otherwise))

  def another_name(outputs, batch):
    return jnp.sum((outputs - batch.y[:, None]) ** 2, axis=1)

  metrics = [fa.metrics.mean_loss(squared(1.0))]
  assert not differ(
    of_parts(loss=written_otherwise, metrics=metrics),
    of_parts(loss=another_name, metrics=metrics),
  )


def test_globals_that_are_read_count(monkeypatch):
  def loss(outputs, batch):
    return FACTOR * outputs.sum(axis=1)

  before = of_parts(loss=loss)
  monkeypatch.setitem(globals(), 'FACTOR', 3.0)
  assert 'loss' in differ(before, of_parts(loss=loss))


def test_a_derivative_rule_counts():
  """The rule is not in the forward pass."""

  def ruled(slope):
    @jax.custom_jvp
    def halved(value):
      return value / 2

    halved.defjvp(lambda p, t: (halved(*p), slope * t[0]))
    return lambda outputs, batch: halved(outputs).sum(axis=1)

  first, second = of_parts(loss=ruled(0.5)), of_parts(loss=ruled(0.7))
  assert differ(first, second) == {'algorithm'}


def test_a_sweep_counts_what_makes_its_algorithms():
  def trained(power):
    return Sweep(
      lambda eta: fa.fedavg(optax.sgd(eta**power), optax.sgd(1.0)), (1.0, 2.0)
    )

  found = of_parts(algorithm=trained(1))
  assert not differ(found, of_parts(algorithm=trained(1)))
  assert differ(found, of_parts(algorithm=trained(2))) == {'algorithm'}


def test_arrays_on_disk_are_read_in_part(tmp_path):
  np.save(tmp_path / 'x.npy', np.arange(3000.0).reshape(1000, 3))
  array = np.load(tmp_path / 'x.npy', mmap_mode='r+')
  before = fingerprint.of_arrays((array,))
  array[1] += 1  # This row is not read.
  assert before == fingerprint.of_arrays((array,))
  array[-1] += 1
  assert before != fingerprint.of_arrays((array,))


@pytest.mark.parametrize(
  ('a', 'b'),
  [
    (np.zeros(2), np.zeros(3)),
    (np.zeros(2, np.float32), np.zeros(2)),
    (np.zeros((2, 3)), np.zeros((3, 2))),
    ({'a': np.zeros(2)}, {'a': np.ones(2)}),
  ],
)
def test_arrays_count_with_type_shape_and_values(a, b):
  assert fingerprint.of_arrays((a,)) != fingerprint.of_arrays((b,))


@pytest.mark.slow
def test_other_processes_have_the_same(repository):
  """The order of a set and memory addresses have no effect."""
  code = (
    'from tests.runs.fingerprint_test import PARTS, of_parts\n'
    'for make, a, b in PARTS.values(): print(*of_parts(**make(a)).values())'
  )
  found = {
    subprocess.run(
      [sys.executable, '-c', code],
      env=os.environ | {'PYTHONHASHSEED': seed},
      cwd=repository,
      check=True,
      capture_output=True,
      text=True,
    ).stdout
    for seed in ('1', '2')
  }
  (texts,) = found
  here = [
    ' '.join(of_parts(**make(a)).values()) for make, a, _ in PARTS.values()
  ]
  assert texts.splitlines() == here
