"""Sections `robust` and `attack` of a config have their effects, and rules."""

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from fedavg_jax.contracts.aggregation import Gathered
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import algorithm_builder
from fedavg_jax.runs.run_config import RunConfig
from tests.testing import results

own = fa.experimental
PARAMS = {'w': np.zeros(2, np.float32)}
# Five clients, the last of them far away.
SENT = {'w': np.float32([[0, 1], [1, 1], [2, 1], [1, 3], [90, -90]])}


def build(**changes):
  return algorithm_builder.build_algorithm(
    RunConfig().replace(
      {key.replace('__', '.'): value for key, value in changes.items()}
    ),
    num_clients=10,
    num_classes=10,
  )


def aggregate(algorithm):
  """Returns the step of the server for the messages above."""
  gathered = Gathered(SENT, np.full(5, 0.2, np.float32))
  params, _ = algorithm.server_update(
    PARAMS,
    algorithm.server_init(PARAMS),
    gathered,
    results.server_context()._replace(clients=np.arange(5, dtype=np.int32)),
  )
  return params['w']


FEDAVG = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
SAME = [
  ({'robust__rule': 'median'}, own.coordinate_median()),
  (
    {'robust__rule': 'trimmed_mean', 'robust__trimmed_fraction': 0.2},
    own.trimmed_mean(0.2),
  ),
  (
    {
      'robust__rule': 'krum',
      'robust__attackers': 1,
      'robust__selected': 2,
    },
    own.krum(1, 2),
  ),
  ({'robust__rule': 'geometric_median'}, own.geometric_median(8)),
  (
    {
      'robust__rule': 'centred_clipping',
      'robust__clip': 2.0,
      'robust__iterations': 3,
    },
    own.centred_clipping(2.0, 3),
  ),
]


@pytest.mark.parametrize(('changes', 'rule'), SAME)
def test_each_rule_has_its_numbers(changes, rule):
  expected = aggregate(own.robust(FEDAVG, rule))
  np.testing.assert_array_equal(aggregate(build(**changes)), expected)


def test_buckets_bounds_and_attacks():
  bucketed = build(robust__rule='median', robust__bucket_size=3)
  size = jax.ShapeDtypeStruct((7,), np.float32)
  assert bucketed.aggregate.num_bytes(size, 10) == 4 * 7 * 4
  bounded = build(robust__rule='norm_bound', robust__clip=1.0)
  assert bounded.aggregate.num_bytes(size, 10) == 7 * 4
  flipped = build(attack__kind='sign_flip', attack__scale=3.0, seed=4)
  attackers = own.draw_attackers(10, 0.2, seed=4)
  for client in range(10):
    result = results.of_client({'w': np.ones(2, np.float32)})
    context = result.context._replace(client_id=np.int32(client))
    sent = flipped.client_finish(result._replace(context=context)).message
    expected = -3.0 if client in attackers else 1.0
    np.testing.assert_array_equal(sent['w'], expected)


def test_without_a_section_the_algorithm_is_what_it_was():
  """No function is wrapped, nor is it by an attack of nobody."""
  for algorithm in (build(), build(attack__kind='scaling', attack__fraction=0)):
    assert algorithm.aggregate == fa.weighted_mean()
    assert (
      algorithm.client_finish is fa.Algorithm._field_defaults['client_finish']
    )


REFUSED = [
  ({'robust__rule': 'krum', 'client_fraction': 0.04}, 'at least 3 messages'),
  (
    {'robust__rule': 'krum', 'robust__attackers': 12},
    'robust.attackers = 12: must be at most 11 with a cohort of 25',
  ),
  (
    {'robust__rule': 'krum', 'robust__attackers': 1, 'robust__bucket_size': 9},
    'robust.attackers = 1: must be at most 0 with a cohort of 25 in buckets',
  ),
  (
    {'robust__rule': 'krum', 'robust__attackers': 5, 'robust__selected': 21},
    'robust.attackers = 5: must be at most 4',
  ),
  (
    {'robust__rule': 'median', 'robust__bucket_size': 26},
    'robust.bucket_size = 26: must be at most the cohort of 25',
  ),
  ({'robust__rule': 'norm_bound'}, 'robust.clip = 0.0: must be above 0'),
  ({'robust__rule': 'centred_clipping'}, 'robust.clip = 0.0: must be above 0'),
  (
    {'robust__rule': 'median', 'algorithm': 'scaffold'},
    "robust.rule = 'median': must be 'none' with algorithm = 'scaffold'",
  ),
  (
    {'robust__rule': 'median', 'algorithm': 'mine:algorithm'},
    "robust.rule = 'median': must be 'none' with algorithm = 'mine:algorithm'",
  ),
  (
    {
      'robust__rule': 'median',
      'asynchronous__buffer': 5,
      'clock__examples_per_second': 9.0,
    },
    "robust.rule = 'median': must be 'none' with asynchronous.buffer = 5",
  ),
  (
    {'attack__kind': 'scaling', 'algorithm': 'mine:algorithm'},
    "attack.kind = 'scaling': must be 'none' with algorithm =",
  ),
  (
    {'attack__kind': 'sign_flip', 'attack__fraction': 0.01},
    'attack.fraction = 0.01: is less than one of num_clients = 50',
  ),
  (
    {'attack__kind': 'label_flip', 'loss': 'squared_error'},
    "attack.kind = 'label_flip': must be another attack with loss =",
  ),
  (
    {'robust__rule': 'median', 'compression__scheme': 'top_k'},
    "compression.scheme = 'top_k': must be another code with robust.rule",
  ),
  (
    {
      'robust__rule': 'krum',
      'compression__scheme': 'qsgd',
      'compression__error_feedback': True,
    },
    'compression.error_feedback = True: must be False with robust.rule',
  ),
  (
    {'robust__rule': 'norm_bound', 'algorithm': 'mimelite'},
    "robust.rule = 'norm_bound': must be 'none' with algorithm = 'mimelite'",
  ),
  (
    {
      'robust__rule': 'norm_bound',
      'robust__clip': 1.0,
      'robust__bucket_size': 2,
    },
    'robust.bucket_size = 2: must be 1 with',
  ),
  ({'robust__rule': 'trimmed_mean'}, 'trimmed_fraction = 0.0: must be above 0'),
  ({'attack__kind': 'scaling'}, 'attack.scale = 1.0: must not be 1'),
  ({'attack__fraction': 1.0}, r'attack.fraction = 1.0: must be in \[0, 1\)'),
  ({'robust__trimmed_fraction': 0.5}, 'trimmed_fraction = 0.5: must be in'),
]


@pytest.mark.parametrize(('changes', 'said'), REFUSED)
def test_contradictions_are_one_line(changes, said):
  with pytest.raises(InputError, match=said) as info:
    RunConfig().replace(
      {'num_clients': 50, 'client_fraction': 0.5}
      | {key.replace('__', '.'): value for key, value in changes.items()}
    )
  assert '\n' not in str(info.value)
