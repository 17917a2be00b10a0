"""Fingerprints: what is made alike has the same one, all else another."""

import dataclasses
import functools
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.runs.fingerprint import fingerprint

FACTOR = 2.0


class Net(nn.Module):
  """A network of a person's own."""

  width: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.width)(x)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Numbers of a person's own."""

  rate: float


class Scaled:
  """An object with what it was made of."""

  def __init__(self, rate):
    self.rate = rate

  def __call__(self, x):
    return self.rate * x


def network(width):
  net = Net(width)
  return fa.Model(
    'net', lambda key: net.init(key, jnp.zeros((1, 4))), net.apply
  )


def helped(power):
  def helper(x):
    return x**power

  return lambda outputs, batch: helper(outputs - batch.y)


def knotted(number):
  """Makes two functions that hold each other."""

  def even(n):
    return number if n == 0 else odd(n - 1)

  def odd(n):
    return even(n - 1)

  return even


def steps(rates):
  return optax.sgd(optax.piecewise_constant_schedule(rates[0], {5: rates[1]}))


# Makers of a part, and two values that make different ones.
PARTS = {
  'learning rate': (
    lambda eta: fa.fedavg(optax.sgd(eta), optax.sgd(1.0)),
    1,
    2,
  ),
  'schedule': (steps, (0.1, 0.2), (0.1, 0.3)),
  'network': (network, 3, 4),
  'closure': (helped, 2, 4),
  'knot': (knotted, 2, 4),
  'partial': (lambda n: functools.partial(pow, n), 2, 3),
  'compiled': (lambda n: jax.jit(helped(n)), 2, 3),
  'metric': (fa.metrics.top_k, 3, 5),
  'dataclass': (Settings, 0.1, 0.2),
  'object': (Scaled, 0.1, 0.2),
  'method': (lambda n: Scaled(n).__call__, 1, 2),
  'array': (np.float32, 0.1, 0.2),
  'type': (lambda dtype: np.ones(3, dtype), np.float32, np.float64),
  'shape': (np.ones, (2, 3), (3, 2)),
  'key': (jax.random.key, 0, 1),
  'dictionary': (lambda n: {'a': 1, 'b': n}, 2, 3),
  'set': (lambda words: frozenset(words.split()), 'a b c', 'a b d'),
  'participation': (
    lambda share: fa.Participation(straggler_fraction=share),
    0.1,
    0.2,
  ),
  'sign': (lambda n: 1.0 * n, 0, -0.0),
}


@pytest.mark.parametrize('name', PARTS)
def test_alike_and_not(name):
  make, a, b = PARTS[name]
  assert fingerprint(make(a)) == fingerprint(make(a))
  assert fingerprint(make(a)) != fingerprint(make(b))


def test_code_and_what_it_reads_count(monkeypatch):
  def scaled(x):
    return FACTOR * x

  before = fingerprint(scaled)
  assert before != fingerprint(lambda x: FACTOR * x)  # Another name.
  monkeypatch.setitem(globals(), 'FACTOR', 3.0)
  assert before != fingerprint(scaled)
  plus, minus = (lambda x: x + 1), (lambda x: x - 1)
  assert plus.__qualname__ == minus.__qualname__
  assert fingerprint(plus) != fingerprint(minus)


def test_a_method_of_an_own_class_counts(monkeypatch):
  before = fingerprint(network(3))
  monkeypatch.setattr(Scaled, '__call__', lambda self, x: x)
  assert before == fingerprint(network(3))
  monkeypatch.setattr(Net, 'extra', lambda self: 1, raising=False)
  assert before != fingerprint(network(3))


def test_arrays_on_disk_are_not_read_whole(tmp_path):
  np.save(tmp_path / 'x.npy', np.arange(3000.0).reshape(1000, 3))
  array = np.load(tmp_path / 'x.npy', mmap_mode='r+')
  before = fingerprint(array)
  array[1] += 1  # Not among the rows that are read.
  assert before == fingerprint(array)
  array[-1] += 1
  assert before != fingerprint(array)


def test_other_processes_have_the_same(repository):
  """Neither the order of a set nor an address is in it."""
  code = (
    'from tests.runs.fingerprint_test import PARTS, fingerprint\n'
    'for make, a, b in PARTS.values(): print(fingerprint(make(a)))'
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
  here = [fingerprint(make(a)) for make, a, _ in PARTS.values()]
  assert texts.split() == here
