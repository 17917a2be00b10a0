"""Builds small simulations of the twin's network, in memory or on disk."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

import fedavg_jax as fa
from tests.testing import rounds
from tests.testing import twin


def model(augment=None):
  def init(key):
    del key
    return jax.tree.map(
      lambda leaf: jnp.asarray(leaf, jnp.float32),
      twin.init(np.random.default_rng(0), 9, 6, rounds.CLASSES),
    )

  return fa.Model('twin', init, rounds.apply, augment)


def noise(key, x):
  """Changes an example by its key."""
  return x.astype(jnp.float32) + 20 * jax.random.normal(key, x.shape)


def mapped(clients, folder):
  """Returns the same clients with their arrays on disk alone."""
  for name in ('x', 'y'):
    np.save(folder / f'{name}.npy', getattr(clients, name))
  return clients._replace(
    x=np.load(folder / 'x.npy', mmap_mode='r'),
    y=np.load(folder / 'y.npy', mmap_mode='r'),
  )


def build_simulation(own, clients, test, *, algorithm, sweep=None, **options):
  """Builds a simulation or a sweep from options of all three kinds."""

  def some(kind):
    names = {field.name for field in dataclasses.fields(kind)}
    return {n: options.pop(n) for n in names & options.keys()}

  federation = fa.Federation(clients, test, **some(fa.Federation))
  kinds = {
    name: options.pop(name) for name in ('loss', 'metrics') if name in options
  }
  kinds |= {
    'execution': fa.Execution(**some(fa.Execution)),
    'placement': fa.Placement(**some(fa.Placement)),
  }
  assert not options, options
  if sweep is None:
    return fa.build_simulation(own, federation, algorithm, **kinds)
  return fa.build_sweep(own, federation, algorithm, sweep, **kinds)


def build(clients, own, **changes):
  options = {
    **{'client_fraction': 0.6, 'epochs': 2, 'batch_size': 3, 'seed': 5},
    'algorithm': rounds.fedavg(),
  }
  x, y = np.asarray(clients.x[:9]), np.asarray(clients.y[:9])
  return build_simulation(
    own, clients, fa.Examples(x, y), **(options | changes)
  )


class Watched:
  """Records which rows of an array are read, and may be slow."""

  def __init__(self, array, seconds=0.0):
    self.array, self.read, self.seconds = array, set(), seconds
    self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

  def __getitem__(self, rows):
    assert isinstance(rows, slice)
    self.read |= set(range(rows.start, rows.stop))
    time.sleep(self.seconds)
    return self.array[rows]
