"""Algorithms with states and full gradients compose with all the engine has."""

import jax
import numpy as np
import optax
import pytest

import fedavg_jax as fa
from tests.testing import quadratics
from tests.testing import rest_slow

ETA = 0.2


def scaffold(eta=ETA):
  return fa.scaffold(eta, momentum=0.5, control='gradient')


def mimelite(eta=ETA):
  return fa.experimental.mimelite(
    optax.sgd(eta, momentum=0.5), optax.sgd(1.0, momentum=0.3)
  )


def fednova(eta=ETA):
  return fa.experimental.fednova(
    optax.sgd(eta, momentum=0.5), optax.sgd(1.0, momentum=0.5, nesterov=True)
  )


def feddyn(eta=ETA):
  return fa.experimental.feddyn(0.5, optax.sgd(eta))


FAMILIES = [scaffold, mimelite, fednova, feddyn]


def build(algorithm, **options):
  return quadratics.build(
    algorithm, client_fraction=0.5, epochs=2, lanes=2, **options
  )


def last(simulation, number=6, **start):
  *_, record = fa.simulate(simulation, rounds=number, **start)
  return record


def equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('family', rest_slow(2, FAMILIES))
def test_calls_streams_and_resumes_change_no_bit(family):
  simulation = build(family(), rounds_per_call=3)
  whole, half = last(simulation), last(simulation, 3)
  resumed = last(simulation, start=(half.state, half.client_states))
  equal(
    (whole.state, whole.client_states), (resumed.state, resumed.client_states)
  )
  hosts = {'examples_on': 'host', 'client_states_on': 'host'}
  equal(whole.state, last(build(family(), **hosts)).state)


@pytest.mark.parametrize('family', rest_slow(1, [mimelite, *FAMILIES[::2]]))
def test_a_sweep_has_the_model_of_a_single_run(family):
  swept = last(build(family, sweep=(0.05, ETA))).state.params['w'][1]
  alone = last(build(family())).state.params['w']
  np.testing.assert_allclose(swept, alone, rtol=1e-5)
