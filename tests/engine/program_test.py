"""A federation's program is lowered for devices that are not here."""

import collections
import re

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import convolutions
from tests.testing import simulations


def lowered(name, seed=0, classes=10, **options):
  """Lowers a program that trains a model of the zoo on random images."""
  rng = np.random.default_rng(0)
  shape, labels = (40, 28, 28, 1), 40
  if name.endswith('lstm'):
    shape = labels = (40, 6)
  examples = fa.Examples(
    rng.integers(0, classes, shape).astype(np.uint8),
    rng.integers(0, classes, labels).astype(np.int32),
  )
  data = fa.Dataset(
    'random', examples, examples, classes, max_value=255.0, padding=0
  )
  parts = fa.partition.iid(40, num_clients=8, seed=0)
  return lower(fa.build_model(name, data), examples, parts, seed, **options)


def lower(model, examples, parts, seed=0, **options):
  """Lowers a program of four lanes on one device."""
  federation = fa.Federation(
    fa.build_clients(examples, parts),
    examples,
    client_fraction=0.5,
    epochs=1,
    batch_size=5,
    seed=seed,
  )
  execution = fa.Execution(lanes=4, devices=jax.devices()[:1])
  return fa.lower_simulation(
    model,
    federation,
    fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
    execution=execution,
    **options,
  )


@pytest.mark.parametrize('target', ['cuda', 'tpu'])
@pytest.mark.parametrize('name', ['2nn', 'cnn', 'char_lstm'])
def test_lowers_for_an_accelerator_that_is_not_here(name, target):
  """A GPU has products alone, and no program has callbacks to the host.

  All shapes are static, and products of float32 are exact by default.
  """
  text = lowered(name).export(target).mlir_module()
  operations = collections.Counter(re.findall(r'stablehlo\.(\w+)', text))
  targets = set(re.findall(r'custom_call @(\w+)', text))
  assert not {t for t in targets if 'callback' in t or 'cpu' in t.lower()}
  convolves = (name, target) == ('cnn', 'tpu')
  assert (operations['convolution'] > 0) == convolves
  assert operations['dot_general'] > 3
  assert 'dynamic_reshape' not in operations
  assert 'real_dynamic_slice' not in operations
  assert 'tensor<?' not in text and 'outfeed' not in operations
  products = re.findall(r'stablehlo\.(?:dot_general|convolution)[^\n]*', text)
  assert all('HIGHEST' in product for product in products)


def test_a_cpu_gets_convolutions():
  text = lowered('cnn').lower().as_text()
  assert 'stablehlo.convolution' in text


GROUPED = re.compile(r'(feature|batch)_group_count = ([2-9]|1\d)')


def test_convolutions_of_a_model_are_canonical_on_a_cpu():
  """XLA is slow on convolutions in groups; there are none left."""
  model = convolutions.model()
  written = lower(model._replace(as_written=True), *convolutions.examples())
  assert GROUPED.search(written.lower().as_text())
  text = lower(model, *convolutions.examples()).lower().as_text()
  assert 'stablehlo.convolution' in text and not GROUPED.search(text)
  assert 'select_and_scatter' not in text


def test_accelerators_get_a_model_as_it_is_written():
  model = convolutions.model()
  texts = [
    operations(lower(own, *convolutions.examples()).export('cuda'))
    for own in (model, model._replace(as_written=True))
  ]
  assert texts[0] == texts[1] and 'stablehlo.convolution' in texts[0]


def operations(exported):
  """Returns an exported program without its source locations."""
  return re.sub(r'loc\(#loc\d*\)|#loc.*', '', exported.mlir_module()).strip()


def test_a_model_without_convolutions_is_the_same_program(uneven_examples):
  x, y, parts = uneven_examples
  model = simulations.model()
  texts = [
    lower(own, fa.Examples(x, y), parts).lower().as_text()
    for own in (model, model._replace(as_written=True))
  ]
  assert texts[0] == texts[1]


def test_nothing_stays_on_the_devices():
  """A program is made of shapes: it has no examples, weights or test set."""
  before = {id(array) for array in jax.live_arrays()}
  program = lowered('2nn')
  assert program.lower().as_text()
  left = [a for a in jax.live_arrays() if id(a) not in before]
  assert sum(array.nbytes for array in left) < 1000


def test_one_program_serves_every_seed(uneven_examples):
  """The examples are augmented at random here."""
  x, y, parts = uneven_examples
  clients = fa.build_clients(fa.Examples(x, y), parts)
  texts = []
  for seed in (0, 7, 2**31 - 1):
    federation = fa.Federation(
      clients,
      fa.Examples(x, y),
      client_fraction=0.6,
      epochs=1,
      batch_size=3,
      seed=seed,
    )
    program = fa.lower_simulation(
      simulations.model(simulations.noise),
      federation,
      fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
      execution=fa.Execution(lanes=2, rounds_per_call=2),
    )
    texts.append(program.lower().as_text())
  assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize('seed', [0, 1, 12345, 2**31 - 1])
def test_a_traced_seed_is_a_seed(seed):
  made = jax.jit(lambda s: jax.random.key_data(jax.random.key(s)))
  np.testing.assert_array_equal(
    made(np.array(seed, np.int32)), jax.random.key_data(jax.random.key(seed))
  )
