"""Configs name compressors; impossible ones are refused in one line."""

import jax.numpy as jnp
import pytest

import fedavg_jax as fa
from fedavg_jax.runs.algorithm_builder import build_algorithm


def config(**compression):
  changes = {f'compression.{key}': v for key, v in compression.items()}
  return fa.RunConfig().replace(changes)


@pytest.mark.parametrize(
  ('options', 'bits'),
  [
    ({'scheme': 'qsgd', 'levels': 3}, 32 + 3 * 1000),
    ({'scheme': 'top_k', 'fraction': 0.01}, 10 * (32 + 10)),
    ({'scheme': 'random_k', 'fraction': 0.1}, 100 * 32),
    ({'scheme': 'sign'}, 32 + 1000),
    ({'scheme': 'drive'}, 32 + 1024),
    ({'scheme': 'eden', 'bits': 2}, 32 + 2 * 1024),
  ],
)
def test_bytes_of_each_scheme(options, bits):
  message = (jnp.zeros(600), jnp.zeros(400))
  algorithm = build_algorithm(config(**options))
  assert algorithm.num_bytes(message) == -(-bits // 8)


def test_error_feedback_has_a_client_state():
  algorithm = build_algorithm(config(scheme='top_k', error_feedback=True))
  state = algorithm.client_init(jnp.zeros(3), jnp.int32(0))
  assert state.memory.shape == (3,)
  assert build_algorithm(config()).num_bytes is None


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'scheme': 'zip'}, "scheme = 'zip': must be one of none, qsgd"),
    ({'levels': 0}, 'compression.levels = 0: must be in'),
    ({'fraction': 0.0}, r'compression.fraction = 0.0: must be in \(0, 1\]'),
    ({'bits': 5}, 'compression.bits = 5: must be in'),
    (
      {'error_feedback': True},
      "must be False with compression.scheme = 'none'",
    ),
  ],
)
def test_refused(changes, said):
  with pytest.raises(fa.InputError, match=said):
    config(**changes)


@pytest.mark.parametrize(
  ('algorithm', 'said'),
  [
    ('scaffold', "per_leaf = False: must be True .* 'scaffold'"),
    ('parts:algorithm', "scheme = 'sign': must be 'none' with algorithm"),
  ],
)
def test_refused_with_an_algorithm(algorithm, said):
  with pytest.raises(fa.InputError, match=said):
    config(scheme='sign').replace({'algorithm': algorithm})


def test_a_biased_code_needs_error_feedback_where_corrections_add_up():
  scaffold = {'algorithm': 'scaffold', 'compression.per_leaf': True}
  with pytest.raises(fa.InputError, match='error_feedback = False: must be'):
    config(scheme='sign').replace(scaffold)
  config(scheme='qsgd').replace(scaffold)
  config(scheme='sign', error_feedback=True).replace(scaffold)
