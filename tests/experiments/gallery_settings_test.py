"""The gallery's settings, models and data are those of their publications."""

import jax
import numpy as np
import optax
import pytest

from experiments.gallery import catalog
from experiments.gallery import fedprox_mnist
from experiments.gallery import fedprox_synthetic
from experiments.gallery import flute
from experiments.gallery import lenet
from experiments.gallery import niid_bench
from experiments.gallery import pfl_cifar10
from experiments.gallery import report
from experiments.gallery.cell import BEST
from experiments.gallery.cell import Published
from experiments.gallery.cell import at_round
from experiments.gallery.cell import mean_of_last
import fedavg_jax as fa
from fedavg_jax.runs import population
from fedavg_jax.schedule import sampling

# Label counts of MNIST's training set.
LABELS = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
# Examples by label of clients 0 to 9, as the documentation of Flower's
# DistributionPartitioner prints them for the seed 2024.
PRINTED = (
  {0: 40, 1: 5},
  {2: 36, 1: 5},
  {3: 52, 2: 7},
  {3: 14, 4: 6},
  {4: 47, 5: 28},
  {6: 30, 5: 5},
  {6: 19, 7: 11},
  {8: 22, 7: 11},
  {9: 11, 8: 5},
  {0: 124, 9: 13},
)


def cell_named(name):
  (cell,) = catalog.named(name)
  return cell


def dataset(labels, shape, max_value=255.0):
  """Returns a data set of images without content."""
  y = np.asarray(labels, np.int32)
  x = np.zeros((len(y), *shape), np.uint8)
  examples = fa.Examples(x, y)
  return fa.Dataset('test', examples, examples, 10, max_value)


def num_parameters(model):
  params = jax.eval_shape(model.init, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(params))


# --- What a curve says.


def test_readings_of_a_curve():
  rounds, values = np.array([0, 10, 20, 25]), np.array([0.1, 0.9, 0.4, 0.6])
  assert BEST.of(rounds, values) == 0.9
  assert at_round(20).of(rounds, values) == 0.4
  # Of the rounds 16 to 25, two were tested.
  assert mean_of_last(10).of(rounds, values) == pytest.approx(0.5)
  assert mean_of_last(25).of(rounds, values) == pytest.approx(1.9 / 3)


def test_inside_is_two_deviations_or_the_margin():
  assert Published(0.9909, 0.0005).has_inside(0.9919)
  assert not Published(0.9909, 0.0005).has_inside(0.99191)
  assert not Published(0.9909, 0.0005, margin=0.5).has_inside(0.98)
  assert Published(0.1, 0.0).has_inside(0.1)
  assert not Published(0.1, 0.0).has_inside(0.1001)
  assert Published(0.63, margin=0.05).has_inside(0.68)
  assert not Published(0.63, margin=0.05).has_inside(0.6801)


def test_large_deviations_leave_no_verdict():
  """Two deviations are 53.5 points of FedProx with one label per client."""
  assert Published(0.5, 0.025).has_inside(0.55)
  assert Published(0.5, 0.0251).has_inside(0.5) is None
  unclear = [
    cell.name.removeprefix('niid_bench/')
    for cell in catalog.CELLS
    if cell.published is not None and cell.published.has_inside(0) is None
  ]
  assert unclear == [
    f'mnist/1_label/{kind}' for kind in ('fedavg', 'fedprox', 'fednova')
  ]


def test_values_read_off_a_plot_are_ranges():
  for name, words, low, high in (
    ('dropped', '60 to 70', 0.6, 0.7),
    ('mu_0', '70 to 80', 0.7, 0.8),
    ('mu_2', 'about 85', 0.8, 0.9),
  ):
    (cell,) = catalog.named(f'fedprox_mnist/{name}')
    published = cell.published
    assert published.words == words
    assert f'{words}  ' in report.listing(report.RESULTS)
    assert published.has_inside(low) and published.has_inside(high)
    assert not published.has_inside(low - 1e-3)
    assert not published.has_inside(high + 1e-3)


def test_cells_have_their_own_names_and_settings():
  cells = catalog.CELLS
  assert len({cell.name for cell in cells}) == len(cells)
  assert len({cell.digest(0) for cell in cells}) == len(cells)
  assert cells[0].digest(0) != cells[0].digest(1)
  for cell in cells:
    assert cell.name.startswith(f'{cell.source.key}/')


def test_cells_are_found_by_name_beginning_and_pattern():
  assert len(catalog.named('niid_bench')) == 26  # Not those of 100 clients.
  assert len(catalog.named('niid_bench/mnist/*/fedavg,flute')) == 6
  assert len(catalog.named('flute,flute/lr_mnist')) == 1
  with pytest.raises(fa.InputError, match='did you mean flute/lr_mnist'):
    catalog.named('flute/lr_minst')


# --- NIID-Bench.


def test_lenet_has_the_published_numbers_of_parameters():
  for shape, number in (((28, 28, 1), 44_426), ((32, 32, 3), 62_006)):
    assert num_parameters(lenet.lenet(dataset([0], shape))) == number
  assert num_parameters(pfl_cifar10.cnn(dataset([0], (32, 32, 3)))) == 1_626_442


def test_lenet_computes_what_its_equations_say():
  """LeNet equals a twin that pools after ReLU, in float64."""
  data = dataset([0], (16, 16, 3))
  model = lenet.lenet(data)
  params = jax.jit(model.init)(jax.random.key(1))
  x = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
  found = jax.jit(model.apply)(params, x)

  weights = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  h = x / 255
  for name in ('conv_1', 'conv_2'):
    windows = np.lib.stride_tricks.sliding_window_view(h, (5, 5), axis=(1, 2))
    h = np.einsum('bhwcij,ijco->bhwo', windows, weights[name]['kernel'])
    h = np.maximum(h + weights[name]['bias'], 0)
    b, height, width, channels = h.shape
    h = h.reshape(b, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
  h = h.reshape(len(h), -1)
  for name in ('dense_1', 'dense_2', 'dense_3'):
    h = h @ weights[name]['kernel'] + weights[name]['bias']
    h = h if name == 'dense_3' else np.maximum(h, 0)
  np.testing.assert_allclose(found, h, atol=1e-5)
  for leaf in weights.values():  # PyTorch's bounds.
    bound = np.prod(leaf['kernel'].shape[:-1]) ** -0.5
    assert np.abs(leaf['kernel']).max() <= bound
    assert np.abs(leaf['bias']).max() <= bound


def test_crops_are_parts_of_the_reflected_image():
  x = np.arange(12 * 10 * 2, dtype=np.uint8).reshape(12, 10, 2)
  padded = np.pad(x, ((4, 4), (4, 4), (0, 0)), mode='reflect')
  parts = [
    padded[top : top + 12, left : left + 10][:, ::step]
    for top in range(9)
    for left in range(9)
    for step in (1, -1)
  ]
  keys = jax.random.split(jax.random.key(0), 400)
  crops = np.asarray(jax.jit(jax.vmap(lenet.crop, (0, None)))(keys, x))
  seen = {crop.tobytes() for crop in crops}
  assert seen <= {part.tobytes() for part in parts}
  assert len(seen) > 100  # Of 162.


@pytest.mark.parametrize(
  'partition', ['iid', 'dirichlet', '1_label', '3_labels']
)
def test_clients_of_niid_bench(partition):
  config = niid_bench.setting('mnist', partition, 'fedavg')
  labels = np.repeat(np.arange(10), LABELS)
  parts = population.divide(config, dataset(labels, (1, 1, 1)))
  assert sorted(np.concatenate(parts)) == list(range(60_000))
  assert sampling.cohort_size(len(parts), config.client_fraction) == 10
  own = [set(labels[part].tolist()) for part in parts]
  if partition == 'iid':
    assert [len(part) for part in parts] == [6000] * 10
  elif partition == 'dirichlet':
    assert min(map(len, parts)) >= 10 and len({*map(len, parts)}) > 5
  else:
    assert [len(mine) for mine in own] == [int(partition[0])] * 10
    assert all(i in mine for i, mine in enumerate(own))
    for label in range(10):  # Divided evenly among those who have it.
      counts = [(labels[p] == label).sum() for p in parts]
      sizes = [count for count in counts if count]
      assert max(sizes) - min(sizes) <= 1


def test_settings_of_niid_bench():
  for cell in catalog.named('niid_bench,niid_bench_100'):
    config, local = cell.config, cell.config.client
    assert (local.epochs, local.batch_size) == (10, 64)
    assert (local.learning_rate, local.momentum) == (0.01, 0.9)
    assert (config.alpha, config.min_size, config.pixels) == (0.5, 10, 'unit')
    assert config.holdout_fraction == 0.1 and cell.reading is BEST
    assert config.options['model'] == {'augment': config.dataset == 'cifar10'}
    many = cell.source is niid_bench.HUNDRED
    assert (config.num_clients, config.rounds) == (
      (100, 500) if many else (10, 50)
    )
    assert (
      sampling.cohort_size(config.num_clients, config.client_fraction) == 10
    )


@pytest.mark.parametrize('kind', niid_bench.ALGORITHMS)
def test_weight_decay_is_added_to_the_gradient(kind):
  """The client's state keeps its structure, which FedNova and SCAFFOLD read."""
  config = niid_bench.setting('mnist', 'iid', kind)
  ours = niid_bench.algorithm(config, kind=kind).client_optimizer
  plain = niid_bench.with_decay(niid_bench.algorithm(config, kind=kind), -1e-5)
  x, g = {'w': np.float32([2.0, -3.0])}, {'w': np.float32([0.1, 0.0])}
  zeros = {'w': np.zeros(2, np.float32)}
  context = fa.ClientContext(
    *(
      zeros if name == 'client_state' else x
      for name in fa.ClientContext._fields
    )
  )._replace(server_state=fa.scaffold(0.1).server_init(zeros))
  update, state = ours.update(g, ours.init(x), x, context=context, step=0)
  # SGD's first step, without momentum; the proximal term is 0 at the start.
  np.testing.assert_allclose(
    update['w'], -0.01 * (g['w'] + 1e-5 * x['w']), rtol=1e-6
  )
  inner = plain.client_optimizer
  update, _ = inner.update(g, inner.init(x), x, context=context, step=0)
  np.testing.assert_allclose(update['w'], -0.01 * g['w'], rtol=1e-5)
  assert jax.tree.structure(state) == jax.tree.structure(ours.init(x))


# --- FedProx on synthetic data.


def test_synthetic_devices_have_the_published_form():
  data = fedprox_synthetic.data(alpha=1.0, beta=1.0, iid=False, seed=3)
  sizes = np.random.default_rng(3).lognormal(4, 2, 30).astype(int) + 50
  train = np.bincount(data.owners)
  assert train.tolist() == [int(0.9 * size) for size in sizes]
  assert data.train.x.shape == (train.sum(), 61)
  assert len(data.test.y) == sizes.sum()
  device = data.test.x[:, 60]
  assert (np.bincount(device[device >= 0].astype(int)) == train).all()
  assert (device < 0).sum() == (sizes - train).sum()
  assert (data.train.x[:, 60] == data.owners).all()
  # v_k ~ N(B_k, 1) and B_k ~ N(0, 1) give centers of variance 2.
  centers = [
    data.train.x[data.owners == k, :60].mean(axis=0) for k in range(30)
  ]
  assert 1.0 < np.var(centers) < 3.5


def test_iid_synthetic_devices_have_one_model():
  data = fedprox_synthetic.data(alpha=0.0, beta=0.0, iid=True, seed=0)
  x = data.train.x[:, :60]
  number = len(x)
  np.testing.assert_allclose(
    x.var(axis=0), np.arange(1, 61) ** -1.2, rtol=6 * (2 / number) ** 0.5
  )
  # Labels of a linear model are learned by a linear model of all devices.
  columns = np.c_[x, np.ones(number)]
  targets = np.eye(10)[data.train.y]
  weights = np.linalg.lstsq(columns, targets, rcond=None)[0]
  common = (columns @ weights).argmax(axis=1) == data.train.y
  for k in range(30):
    assert common[data.owners == k].mean() > 0.5


@pytest.mark.parametrize('equal', [False, True])
def test_dissimilarity_is_that_of_the_devices_gradients(equal):
  """The metric equals a twin that has one float64 gradient per device."""
  rng = np.random.default_rng(0)
  owners = np.repeat(np.arange(30), 4 if equal else rng.integers(1, 6, 30))
  x, y = rng.normal(size=(len(owners), 60)), rng.integers(0, 10, len(owners))
  if equal:  # All devices have the same four examples.
    x, y = np.tile(x[:4], (30, 1)), np.tile(y[:4], 30)
  test_x, test_y = rng.normal(size=(7, 60)), rng.integers(0, 10, 7)
  params = {'w': rng.normal(size=(60, 10)), 'b': rng.normal(size=10)}
  tags = np.r_[owners, np.full(7, -1)][:, None]
  all_x = np.c_[np.r_[x, test_x], tags].astype(np.float32)
  all_y = np.r_[y, test_y].astype(np.int32)

  data = fa.Dataset('test', fa.Examples(all_x, all_y), None, 10, 1.0)
  model = fedprox_synthetic.regression(data)
  metric = fedprox_synthetic.measures(data)
  batch = fa.Batch(all_x, all_y, all_y >= 0, np.int32(len(all_y)))
  logits = model.apply(jax.tree.map(np.float32, params), all_x)
  rows = jax.jit(metric.rows)(logits, batch)
  found = metric.result(
    jax.tree.map(lambda a: np.asarray(a, np.float64).sum(axis=0), rows)
  )

  def probabilities(x):
    z = x @ params['w'] + params['b']
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)

  def gradient(mine):
    error = probabilities(x[mine]) - np.eye(10)[y[mine]]
    return np.r_[x[mine].T @ error, error.sum(axis=0)[None]] / len(error)

  gradients = [gradient(owners == k) for k in range(30)]
  mean = gradient(owners >= 0)
  expected = np.mean([((g - mean) ** 2).sum() for g in gradients])
  np.testing.assert_allclose(
    found['dissimilarity'], expected, rtol=1e-4, atol=1e-8
  )
  assert not equal or expected < 1e-20
  losses = -np.log(probabilities(x)[np.arange(len(y)), y])
  np.testing.assert_allclose(found['training_loss'], losses.mean(), rtol=1e-4)
  correct = probabilities(test_x).argmax(axis=1) == test_y
  np.testing.assert_allclose(found['accuracy'], correct.mean())


def test_settings_of_the_synthetic_cells():
  for cell in catalog.named('fedprox_synthetic'):
    config, local = cell.config, cell.config.client
    assert sampling.cohort_size(30, config.client_fraction) == 10
    assert (config.rounds, local.epochs, local.batch_size) == (200, 20, 10)
    assert local.learning_rate == 0.01 and config.straggler_work == 'epochs'
    assert cell.seeded(4).options['dataset']['seed'] == 4
  dropped = cell_named('fedprox_synthetic/1_1/stragglers_90/dropped').config
  assert (dropped.stragglers, dropped.client.proximal) == ('drop', 0.0)


# --- FLUTE, and FedProx on MNIST.


def test_flute_takes_the_sigmoid_of_standardised_pixels():
  """A pixel that is the same in all images is 0 after standardisation."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (9, 28, 28, 1)).astype(np.uint8)
  x[:, 0, 0] = 7
  examples = fa.Examples(x, np.zeros(9, np.int32))
  data = fa.Dataset('test', examples, examples, 10, 255.0)
  model = flute.sigmoid_regression(data)
  params = model.init(jax.random.key(0))
  flat = x.reshape(9, -1).astype(np.float64)
  scaled = (flat - flat.mean(axis=0)) / (flat.std(axis=0) + 1e-3)
  assert (scaled[:, 0] == 0).all()
  logits = scaled @ np.float64(params['w']) + np.float64(params['b'])
  np.testing.assert_allclose(
    model.apply(params, x), 1 / (1 + np.exp(-logits)), atol=1e-5
  )


def test_clients_of_the_straggler_figure_are_those_of_flower():
  labels = np.repeat(np.arange(10), LABELS)
  parts = fedprox_mnist.divide(labels, seed=2024)
  for part, printed in zip(parts, PRINTED, strict=False):
    names, counts = np.unique(labels[part], return_counts=True)
    assert dict(zip(names, counts, strict=True)) == printed
  assert sorted(np.concatenate(parts)) == list(range(len(labels)))
  for part, own in zip(parts, fedprox_mnist.to_train_on(parts), strict=True):
    assert len(own) == 9 * len(part) // 10 and set(own) < set(part)


def test_stragglers_do_one_to_nine_epochs():
  """Each number of epochs has its probability, to four deviations."""
  number = 20_000
  work = fa.schedule.WorkContext(
    round_number=1,
    clients=np.arange(number),
    num_examples=np.full(number, 25),
    epochs=10,
    updates_per_epoch=np.full(number, 3),
    in_time=np.full(number, 30),
  )
  done = fedprox_mnist.some_epochs(np.random.default_rng(0), work)
  epochs, rest = np.divmod(done, 3)
  assert not rest.any()
  found = np.bincount(epochs, minlength=11)
  assert found[0] == 0 and found.sum() == number
  np.testing.assert_allclose(
    found[1:] / number, 0.1, atol=4 * (0.1 * 0.9 / number) ** 0.5
  )


def test_flute_is_plain_fedavg_with_one_epoch():
  config = cell_named('flute/lr_mnist').config
  assert (config.algorithm, config.client.epochs) == ('fedavg', 1)
  assert config.holdout_fraction == config.straggler_fraction == 0
  assert (config.client.batch_size, config.client.learning_rate) == (10, 0.03)
  assert sampling.cohort_size(1000, config.client_fraction) == 10


def test_decay_of_the_mnist_cells():
  config = cell_named('fedprox_mnist/mu_0').config
  sgd = fedprox_mnist.fedprox(config).client_optimizer
  x, g = {'w': np.float32([2.0])}, {'w': np.float32([0.5])}
  context = fa.ClientContext(*[x] * len(fa.ClientContext._fields))
  sgd = optax.with_extra_args_support(sgd)
  update, _ = sgd.update(g, sgd.init(x), x, context=context)
  np.testing.assert_allclose(update['w'], -0.03 * (0.5 + 1e-3 * 2), rtol=1e-6)


@pytest.mark.slow
def test_first_round_of_niid_bench():
  """SCAFFOLD's controls are 0 and FedNova's clients do equal work."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (96, 16, 16, 1)).astype(np.uint8)
  examples = fa.Examples(x, np.arange(96, dtype=np.int32) % 10)
  data = fa.Dataset('test', examples, examples, 10, 255.0)
  federation = fa.Federation(
    fa.build_clients(examples, np.arange(96).reshape(4, 24)),
    examples,
    client_fraction=1.0,
    epochs=2,
    batch_size=10,
  )
  found = {}
  for kind in niid_bench.ALGORITHMS:
    config = niid_bench.setting('mnist', 'iid', kind)
    config = config.replace({'client.proximal': 30.0})
    algorithm = niid_bench.algorithm(config, kind=kind)
    simulation = fa.build_simulation(lenet.lenet(data), federation, algorithm)
    params = fa.run(simulation, rounds=1).params
    found[kind] = np.concatenate([a.ravel() for a in jax.tree.leaves(params)])
  for kind in ('scaffold', 'fednova'):
    np.testing.assert_allclose(found[kind], found['fedavg'], atol=1e-6)
  assert np.abs(found['fedprox'] - found['fedavg']).max() > 1e-4


# --- pfl and Flower's MNIST.


def test_setting_of_pfl():
  config = cell_named('pfl_cifar10/iid').config
  assert sampling.cohort_size(config.num_clients, config.client_fraction) == 50
  assert (config.rounds, config.weighting) == (1500, 'uniform')
  assert (config.client.epochs, config.client.batch_size) == (1, 10)


@pytest.mark.slow
def test_dropout_of_pfl():
  """Dropout is in training only, by the key of the minibatch."""
  data = dataset([0, 1], (32, 32, 3))
  x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
  data = data._replace(train=fa.Examples(x, data.train.y))
  model = pfl_cifar10.cnn(data)
  params = jax.jit(model.init)(jax.random.key(0))
  mean, deviation = pfl_cifar10.channel_statistics(x)
  np.testing.assert_allclose(mean[0, 0, 0], x.mean(axis=(0, 1, 2)))
  np.testing.assert_allclose(deviation[0, 0, 0], x.std(axis=(0, 1, 2)))
  batch = fa.Batch(x, data.train.y, data.train.y >= 0, np.int32(2))

  @jax.jit
  def outputs(key):
    context = fa.ClientContext(*[None] * len(fa.ClientContext._fields))
    logits, state = model.train(params, batch, context._replace(key=key))
    assert state == ()
    return logits

  first, other = (outputs(jax.random.key(seed)) for seed in (1, 2))
  assert (first == outputs(jax.random.key(1))).all() and (first != other).any()
  plain = jax.jit(model.apply)(params, x)
  assert (plain != first).any() and plain.shape == (2, 10)


def test_settings_of_flower_mnist():
  for cell in catalog.named('flower_mnist'):
    config = cell.config
    assert (config.num_clients, config.client_fraction) == (100, 1.0)
    assert (config.model, config.holdout_fraction) == ('cnn_torch', 0.1)
    point = int(cell.reading.name.removeprefix('at round '))
    assert (point, config.rounds) in ((100, 130), (200, 300))
