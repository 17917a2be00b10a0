"""Examples that do not fit are refused in one line, before compilation."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts.metrics import num_labels
from fedavg_jax.contracts.task import make_task
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine import examples
from tests.testing import simulations


def linear(outputs=3, features=2):
  return fa.Model(
    'linear',
    lambda key: {'w': jnp.zeros((features, outputs))},
    lambda params, x: x.astype(jnp.float32) @ params['w'],
  )


def per_position():
  """Returns a model with logits [B, T, 3] of tokens [B, T]."""
  return fa.Model(
    'tagger',
    lambda key: {'w': jnp.zeros((5, 3))},
    lambda params, x: params['w'][x.astype(jnp.int32)],
  )


def own(apply, init=lambda key: {}):
  return fa.Model('own', init, apply)


def fails(key):
  raise KeyError('my\nkey')


X, Y = np.ones((4, 2), np.float32), np.array([0, 1, 2, 0], np.int32)


def check(model, x=X, y=Y, test_x=X, test_y=Y, **options):
  clients = fa.Clients(x, y, np.array([0, len(y)]))
  return examples.check(
    make_task(model),
    examples.init_shapes(model, 0),
    clients,
    fa.Examples(test_x, test_y),
    **({'on_nan': 'stop', 'stream': False} | options),
  )


@pytest.mark.parametrize('dtype', ['u1', 'u2', 'i8', 'u8', 'f4', 'f8', '>i4'])
def test_class_numbers_of_any_dtype_become_int32(dtype):
  clients, test = check(linear(), y=Y.astype(dtype), test_y=Y.astype(dtype))
  for y in (clients.y, test.y):
    assert y.dtype == np.int32 and y.tolist() == Y.tolist()


@pytest.mark.parametrize('dtype', ['i8', 'u8', 'f8'])
def test_inputs_of_64_bits_become_smaller(dtype):
  x = X.astype(dtype)
  clients, test = check(linear(), x=x, test_x=x)
  assert clients.x.dtype == test.x.dtype
  assert clients.x.dtype == (np.float32 if dtype == 'f8' else np.int32)


def test_labels_of_255_classes_are_all_trained_on():
  """An unsigned label of 255 is a class, not a missing label."""
  model = linear(256)
  y = np.array([255, 254, 255, 3])
  runs = []
  for dtype in (np.int32, np.uint8):
    labelled = fa.Examples(X, y.astype(dtype))
    runs.append(
      fa.run(
        simulations.build_simulation(
          model,
          fa.Clients(X, y.astype(dtype), np.array([0, 2, 4])),
          labelled,
          client_fraction=1.0,
          epochs=1,
          batch_size=2,
          algorithm=fa.fedavg(optax.sgd(0.5), optax.sgd(1.0)),
        ),
        rounds=2,
      )
    )
  for name in ('train_loss', 'test_loss', 'test_accuracy'):
    np.testing.assert_array_equal(runs[0][name], runs[1][name])


TOKENS = np.array([[0, 1, 2], [2, 3, 4]], np.int32)
TAGS = np.array([[0, 1, -1], [2, -1, -1]], np.int32)


def test_positions_may_have_no_label():
  clients, _ = check(per_position(), TOKENS, TAGS, TOKENS, TAGS)
  assert clients.y.tolist() == TAGS.tolist()


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'y': Y[:, None]}, 'clients.y: has the shape [n, 1], the model returns'),
    ({'y': np.eye(4)[:, :3]}, 'clients.y: has the shape [n, 3]'),
    ({'test_y': Y[:, None]}, 'test.y: has the shape [n, 1]'),
    ({'y': Y + 1}, 'clients.y: holds 1 to 3, must be in [0, 2]'),
    ({'y': Y - 1}, 'clients.y: holds -1 to 1, must be in [0, 2]'),
    ({'test_y': Y.astype(int) + 2**32}, 'test.y: holds 4294967296'),
    ({'y': Y + 0.5}, 'clients.y: holds 0.5 at row 0, must be whole'),
    ({'y': np.where(Y == 2, np.nan, Y)}, 'clients.y: holds nan at row 2'),
    ({'y': Y.astype(str)}, 'clients.y: is <U'),
    ({'y': Y[:3], 'x': X}, 'clients: 4 inputs, but 3 labels'),
    ({'test_y': Y[:3]}, 'test: 4 inputs, but 3 labels'),
    ({'test_x': X[:0], 'test_y': Y[:0]}, 'test: holds no example'),
    ({'x': X.astype(complex)}, 'clients.x: is complex128, must be real'),
    (
      {'x': X.astype('f8') + 1e300},
      'clients.x: holds 1e+300 at row 0, too large',
    ),
    ({'x': X.astype(int) + 2**40}, 'clients.x: holds 1099511627777'),
    (
      {'test_x': X.astype(np.uint8)},
      'test.x: expected float32[2] as in clients.x, got uint8[2]',
    ),
    (
      {'test_x': np.ones((4, 3))},
      'test.x: expected float32[2] as in clients.x, got float32[3]',
    ),
    ({'x': X * np.nan}, 'clients.x: 4 examples are not finite, the first is'),
    ({'test_x': X * np.inf}, 'test.x: 4 examples are not finite'),
    ({'x': np.ones((4, 5)), 'test_x': np.ones((4, 5))}, 'cannot take examples'),
    ({'x': X.astype('f8'), 'stream': True}, 'at most 32 bits'),
  ],
)
def test_examples_that_do_not_fit(changes, words):
  with pytest.raises(InputError, match=re.escape(words)) as caught:
    check(linear(), **changes)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('model', 'words'),
  [
    (own(lambda params, x: 3.0), "model 'own': apply(params, x) must return"),
    (own(lambda params, x: (x, x)), 'must return logits'),
    (own(lambda params, x: x[:, 0]), 'must return logits'),
    (own(lambda params, x: x.sum(0, keepdims=True).T), 'must return logits'),
    (own(lambda params, x: x.astype(jnp.int32)), 'floating-point logits'),
    (own(lambda params, x: params['w']), 'cannot take examples float32[2]'),
    (own(lambda params, x: x, fails), "model 'own': init(key) fails"),
    (linear(features=7), "model 'linear': cannot take examples float32[2]"),
  ],
)
def test_models_that_do_not_fit(model, words):
  with pytest.raises(InputError, match=re.escape(words)) as caught:
    check(model)
  assert '\n' not in str(caught.value)


def test_a_gradient_that_xla_refuses_is_one_line():
  """The message of MLIR's verifier has a line for each frame."""
  with pytest.raises(
    InputError, match="'linear': cannot be trained on"
  ) as own_:
    with examples.lowering(linear(), X):
      raise ValueError(
        'Cannot lower jaxpr with verifier errors:\n\twindow 0\nat'
      )
  assert '\n' not in str(own_.value)
  with pytest.raises(ValueError, match='another'):
    with examples.lowering(linear(), X):
      raise ValueError('another')


def test_tokens_beyond_the_vocabulary_are_refused():
  """An embedding would silently take its last row instead."""
  good = fa.Examples(TOKENS, np.where(TAGS < 0, -1, TAGS))
  bad = fa.Examples(TOKENS + 1, good.y)
  for train, test, words in (
    (bad, good, 'own: train.x: holds 1 to 5, must be in [0, 4]'),
    (good, bad, 'own: test.x: holds 1 to 5'),
    (good, good._replace(x=TOKENS - 1), 'own: test.x: holds -1 to 3'),
  ):
    data = fa.Dataset('own', train, test, 5, 1.0)
    with pytest.raises(InputError, match=re.escape(words)):
      fa.build_model('char_lstm', data)


@pytest.mark.parametrize('name', ['cnn', 'cnn_torch', 'cifar_cnn'])
@pytest.mark.parametrize('shape', [(60,), (8, 8)])
def test_networks_of_images_need_images(name, shape):
  own_ = fa.Examples(np.zeros((3, *shape), np.uint8), np.zeros(3, np.int32))
  with pytest.raises(InputError, match=re.escape('needs images [n, H, W, C]')):
    fa.build_model(name, fa.Dataset('own', own_, own_, 10, 255.0))


@pytest.mark.parametrize(
  ('held', 'words'),
  [
    ((X, Y[:, None]), 'held.y: has the shape [n, 1]'),
    ((X, Y + 1), 'held.y: holds 1 to 3'),
    ((X[:3], Y), 'held: 3 inputs, but 4 labels'),
    ((np.ones((4, 5)), Y), 'cannot take examples float32[5]'),
  ],
)
def test_held_out_examples_have_the_same_rules(held, words):
  model = linear()
  own_ = fa.Clients(*held, np.array([0, 4]))
  with pytest.raises(InputError, match=re.escape(words)):
    examples.check_held(make_task(model), examples.init_shapes(model, 0), own_)


def regression(x=X, y=Y, test_y=Y, offsets=(0, 4), on_nan='stop'):
  """Checks examples of a model with outputs [n] and squared errors."""
  model = own(lambda params, x: jnp.sum(x.astype(jnp.float32), axis=1))
  return examples.check(
    make_task(model, fa.losses.squared_error),
    {},
    fa.Clients(x, y, offsets),
    fa.Examples(X, test_y),
    on_nan=on_nan,
    stream=False,
  )


@pytest.mark.parametrize('dtype', ['?', 'u1', 'i2', 'i8', 'f4', 'f8'])
def test_targets_of_a_custom_loss_have_one_rule(dtype):
  """They are the same for clients and test, in `build_clients` and by hand."""
  y = np.array([0, 1, 1, 0], dtype)
  built = fa.build_clients(fa.Examples(X, y), [[0, 1], [2, 3]])
  for given in (y, built.y):
    clients, test = regression(y=given, test_y=y, offsets=[0, 4])
    assert clients.y.dtype == test.y.dtype
    assert clients.y.tolist() == test.y.tolist() == y.tolist()


def test_integer_targets_of_any_sign_count():
  """A number that means no label in a sequence is a target in a regression."""
  y = np.array([-1, -7, -1, 3])
  clients = fa.build_clients(fa.Examples(X, y), [[0, 1, 2], [3]])
  assert clients.y.tolist() == y.tolist()
  batch = fa.Batch(X, jnp.asarray(y), jnp.ones(4, bool), jnp.int32(4))
  assert num_labels(batch).tolist() == [1, 1, 1, 1]
  tagged = batch._replace(x=TOKENS, y=jnp.asarray(TAGS), mask=jnp.ones(2, bool))
  assert num_labels(tagged).tolist() == [2, 1]


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_targets_that_are_not_finite_are_refused(bad):
  y = np.array([0.5, 1, bad, 2], np.float32)
  with pytest.raises(InputError, match='clients.y: 1 ex.* row 2 of client 0'):
    regression(y=y, test_y=Y.astype(np.float32))
  with pytest.raises(InputError, match='test.y: 1 examples are not .* row 2'):
    regression(y=Y.astype(np.float32), test_y=y)
  regression(y=y, test_y=Y.astype(np.float32), on_nan='skip_client')
  with pytest.raises(InputError, match='clients.y: 1 examples are not finite'):
    regression(y={'a': Y, 'b': y}, test_y={'a': Y, 'b': np.ones_like(y)})


@pytest.mark.parametrize(
  'offsets',
  [
    *([0, 3], [1, 4], [0, 5], [0, 3, 2, 4], [0.0, 4.0], [4], 4, 'ab'),
    np.array([0, 3, 2, 4], np.uint64),  # Its differences are all positive.
  ],
)
def test_clients_by_hand_have_their_offsets(offsets):
  with pytest.raises(InputError, match='clients.offsets: must be whole'):
    regression(offsets=offsets)


def test_clients_by_hand_may_be_lists():
  clients, _ = regression(x=X.tolist(), y=Y.tolist(), offsets=[0, 1, 4])
  assert clients.num_examples.tolist() == [1, 3]


def test_a_federation_needs_clients_and_examples():
  clients = fa.build_clients(fa.Examples(X, Y), [[0, 1], [2, 3]])
  rest = {'client_fraction': 1.0, 'epochs': 1, 'batch_size': 2}
  for parts, words in (
    (
      (fa.Examples(X, Y), fa.Examples(X, Y)),
      'clients: expected fa.Clients, got Examples',
    ),
    ((clients, (X, Y)), 'test: expected fa.Examples, got tuple'),
  ):
    with pytest.raises(InputError, match=words):
      fa.Federation(*parts, **rest)
  federation = fa.Federation(clients, fa.Examples(X, {}), **rest)
  with pytest.raises(InputError, match='test.y: its arrays have no rows'):
    fa.build_simulation(
      linear(), federation, fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
    )
