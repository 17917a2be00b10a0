"""A config builds the algorithms that Python does, and refuses bad mixes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts import algorithm_checks
from fedavg_jax.runs import run_config
from fedavg_jax.runs.algorithm_builder import build_algorithm
from fedavg_jax.runs.algorithm_builder import build_client_optimizer
from tests.testing import results

PARAMS = {'w': np.ones(3, np.float32)}


def programs(algorithm):
  """Returns what the hooks of an algorithm compute, as text."""
  shapes = jax.eval_shape(lambda: PARAMS)
  result = algorithm_checks._result(algorithm, shapes)
  update = algorithm_checks._update(algorithm)
  message = jax.eval_shape(algorithm.client_finish, result).message
  server = result.context.server_state
  return [
    str(jax.make_jaxpr(hook)(*args))
    for hook, args in (
      (update, (shapes, result)),
      (algorithm.client_finish, (result,)),
      (
        lambda *args: algorithm.server_update(*args, results.server_context()),
        (shapes, server, message),
      ),
    )
  ] + [str(algorithm.server_init(PARAMS)), algorithm.full_gradient]


def sgd(momentum=None):
  rates = fa.decayed_sgd(0.1, 1.0, 1)
  return optax.chain(optax.trace(momentum), rates) if momentum else rates


SERVER = optax.sgd(1.0)
CASES = [
  (
    {'client.momentum': 0.9, 'server.momentum': 0.5, 'server.nesterov': True},
    fa.fedavg(sgd(0.9), optax.sgd(1.0, momentum=0.5, nesterov=True)),
  ),
  (
    {'algorithm': 'fedprox', 'client.momentum': 0.9, 'client.proximal': 2.0},
    fa.fedprox(2.0, sgd(0.9), SERVER),
  ),
  (
    {
      'algorithm': 'scaffold',
      'client.control': 'gradient',
      'client.momentum': 0.9,
      'server.learning_rate': 0.7,
    },
    fa.scaffold(0.1, 0.7, momentum=0.9, control='gradient'),
  ),
  (
    {'algorithm': 'fednova', 'client.momentum': 0.9, 'server.momentum': 0.5},
    fa.experimental.fednova(sgd(0.9), optax.sgd(1.0, momentum=0.5)),
  ),
  (
    {'algorithm': 'fednova_prox', 'client.proximal': 2.0},
    fa.experimental.fednova(optax.chain(fa.proximal(2.0), sgd()), SERVER),
  ),
  (
    {'algorithm': 'feddyn', 'client.regularization': 0.3},
    fa.experimental.feddyn(0.3, sgd()),
  ),
  (
    {'algorithm': 'fedexp', 'server.epsilon': 0.2},
    fa.experimental.fedexp(sgd(), 0.2),
  ),
  (
    {'algorithm': 'qfedavg', 'server.fairness': 3.0},
    fa.experimental.qfedavg(3.0, 0.1),
  ),
  (
    {
      'algorithm': 'mimelite',
      'server.momentum': 0.9,
      'server.learning_rate': 0.7,
    },
    fa.experimental.mimelite(optax.sgd(0.1, momentum=0.9), optax.sgd(0.7)),
  ),
  (
    {'algorithm': 'mimelite', 'server.optimizer': 'adam'},
    fa.experimental.mimelite(
      fa.adaptive('adam', 0.1, b1=0.0, b2=0.99, tau=0.001), SERVER
    ),
  ),
]


@pytest.mark.parametrize(('changes', 'expected'), CASES)
def test_a_config_builds_what_python_does(changes, expected):
  found = build_algorithm(run_config.RunConfig().replace(changes))
  assert programs(found) == programs(expected)
  plain = fa.fedavg(sgd(), SERVER)
  assert programs(found) != programs(plain)


@pytest.mark.parametrize(
  ('schedule', 'rate_of'),
  [
    ('step', lambda t: 0.5 * 0.2 ** (t // 4)),
    ('linear', lambda t: 0.5 - 0.4 * min(t / 4, 1)),
    (
      'cosine',
      lambda t: 0.1 + 0.4 * (1 + np.cos(np.pi * min(t / 4, 1))) / 2,
    ),
  ],
)
def test_rates_of_rounds(schedule, rate_of):
  """Each rate is a fifth of 0.5 after four rounds."""
  cfg = run_config.RunConfig().replace(
    {
      'client.learning_rate': 0.5,
      'client.schedule': schedule,
      'client.decay': 0.2,
      'client.decay_rounds': 4,
    }
  )
  optimizer, grad = build_client_optimizer(cfg), jnp.float32(2)
  for number in range(1, 8):
    with jax.numpy_dtype_promotion('standard'):  # Schedules of optax need it.
      update, _ = optimizer.update(
        grad, optimizer.init(grad), context=results.context(grad, number=number)
      )
    assert float(update) == pytest.approx(-2 * rate_of(number - 1), rel=1e-5)


@pytest.mark.parametrize(
  ('algorithm', 'key', 'value'),
  [
    ('scaffold', 'server.optimizer', 'adam'),
    ('scaffold', 'server.momentum', 0.9),
    ('scaffold', 'client.clip_norm', 1.0),
    ('scaffold', 'client.decay', 0.9),
    ('feddyn', 'server.learning_rate', 0.5),
    ('feddyn', 'client.clip_norm', 1.0),
    ('fedexp', 'server.learning_rate', 0.5),
    ('fedexp', 'server.momentum', 0.5),
    ('qfedavg', 'client.momentum', 0.9),
    ('qfedavg', 'client.decay', 0.9),
    ('qfedavg', 'server.optimizer', 'yogi'),
    ('mimelite', 'client.momentum', 0.9),
    ('mimelite', 'client.decay', 0.9),
  ],
)
def test_numbers_without_a_meaning_are_refused(algorithm, key, value):
  plain = run_config.RunConfig().replace({'algorithm': algorithm})
  said = rf"^{key} = {value!r}: must be .* with algorithm = '{algorithm}'$"
  with pytest.raises(fa.InputError, match=said):
    plain.replace({key: value})


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'client.schedule': 'cosine'}, "client.schedule = 'cosine': must be"),
    ({'server.nesterov': True}, 'server.nesterov = True: must be False'),
    (
      {
        'algorithm': 'feddyn',
        'asynchronous.buffer': 2,
        'clock.examples_per_second': 9.0,
      },
      "asynchronous.buffer = 2: must be 0 with algorithm = 'feddyn'",
    ),
    (
      {
        'server.nesterov': True,
        'server.momentum': 0.9,
        'server.optimizer': 'adam',
      },
      'server.nesterov = True: must be False',
    ),
  ],
)
def test_contradictions(changes, said):
  with pytest.raises(fa.InputError, match=said):
    run_config.RunConfig().replace(changes)
