"""Checks that a federation runs the mechanism that its algorithm describes.

Each rule protects the sensitivity of the sum, or the law of the cohorts, from
which an accountant computes epsilon.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ServerContext
from fedavg_jax.contracts.algorithm_checks import message_shapes
from fedavg_jax.contracts.mechanism import Mechanism
from fedavg_jax.contracts.model import Model
from fedavg_jax.contracts.model import split
from fedavg_jax.core.errors import InputError
from fedavg_jax.engine.options import Federation
from fedavg_jax.schedule import sampling


def check_private(
  algorithm: Algorithm, model: Model, variables: Any, federation: Federation
) -> None:
  """Raises InputError where a client may move the sum by more than its clip.

  Args:
    algorithm: an algorithm with a mechanism.
    model: the model.
    variables: the model's variables, or their shapes.
    federation: the clients and the drawing of cohorts.
  """
  mechanism = algorithm.mechanism
  assert mechanism is not None
  wrapper = 'correlated_noise' if mechanism.scheduled else 'privatize'
  for name, hook in mechanism.hooks.items():
    if getattr(algorithm, name) is not hook:
      raise InputError(
        f'algorithm.{name}: was replaced by a wrapper around {wrapper}; must be'
        ' wrapped before, so that nothing changes what is clipped'
      )
  params, state = split(variables)
  client: Any = jax.ShapeDtypeStruct((), jnp.int32)
  own = jax.eval_shape(algorithm.client_init, params, client)
  if jax.tree.leaves(own):
    raise InputError(
      f'algorithm.client_init: returns a state, must return () with {wrapper}:'
      ' what a client keeps shows when it was drawn'
    )
  if jax.tree.leaves(state) and model.state_of != 'nobody':
    raise InputError(
      f"model.state_of = {model.state_of!r}: must be 'nobody' with {wrapper},"
      ' whose noise is added to parameters alone'
    )
  names = ['share']
  if not mechanism.scheduled:  # Which holds them to a schedule.
    names += ['clients', 'reported']
  if name := _cohort_read(algorithm, params, variables, names):
    raise InputError(
      f'algorithm.server_update: reads context.{name}, must not with {wrapper},'
      ' whose server knows the noisy sum alone'
    )
  _check_federation(mechanism, federation, wrapper)


def _check_federation(
  mechanism: Mechanism, federation: Federation, wrapper: str
) -> None:
  """Raises InputError where who counts, or how much, depends on data."""
  for name, needed, why in (
    ('weighting', 'uniform', 'which gives every client the weight 1'),
    ('on_nan', 'skip_client', "whose rounds do not end by one client's data"),
  ):
    if (value := getattr(federation, name)) != needed:
      raise InputError(
        f'{name} = {value!r}: must be {needed!r} with {wrapper}, {why}'
      )
  rules = federation.participation
  for name, given in (
    ('buffer', bool(rules.buffer)),
    ('availability_trace', rules.trace is not None),
    ('unavailable_fraction', bool(rules.unavailable_fraction)),
    ('sampling_weights', rules.sampling_weights is not None),
    ('participation.draw', rules.draw is not None and not mechanism.scheduled),
    ('poisson', rules.poisson and mechanism.scheduled),
    ('participation.completion', rules.completion is not None),
    ('clock.deadline', rules.clock is not None and bool(rules.clock.deadline)),
  ):
    if given:
      raise InputError(
        f'{name}: is not supported with {wrapper}: all clients must be drawn'
        f' {"by a public schedule" if mechanism.scheduled else "alike"}, and no'
        ' data may decide who counts'
      )
  if mechanism.scheduled:
    return
  expected = sampling.expected_cohort(
    federation.clients.num_clients,
    federation.client_fraction,
    poisson=rules.poisson,
  )
  if abs(mechanism.denominator - expected) > 1e-6 * expected:
    raise InputError(
      f'denominator = {mechanism.denominator!r}: must be {expected:g}, the'
      ' expected number of clients of a cohort'
    )


def _cohort_read(
  algorithm: Algorithm, params: Any, variables: Any, names: Sequence[str]
) -> str:
  """Returns what the server reads of the cohort; '' if it reads nothing."""
  shape: Any = jax.ShapeDtypeStruct
  context = ServerContext(
    round=shape((), jnp.int32),
    key=jax.eval_shape(lambda: jax.random.key(0)),
    share=shape((), jnp.float32),
    clients=shape((2,), jnp.int32),
    reported=shape((2,), bool),
  )
  aggregate = jax.eval_shape(
    lambda: algorithm.aggregate.init(message_shapes(algorithm, variables), 2)
  )

  def update(read, params, server, aggregate, context):
    whole = context._replace(**dict(zip(names, read, strict=True)))
    return algorithm.server_update(params, server, aggregate, whole)

  program = jax.make_jaxpr(update)(
    [getattr(context, name) for name in names],
    params,
    jax.eval_shape(algorithm.server_init, params),
    aggregate,
    context,
  ).jaxpr
  used = {id(v) for eqn in program.eqns for v in eqn.invars}
  used |= {id(v) for v in program.outvars}
  read = zip(names, program.invars, strict=False)
  return next((name for name, v in read if id(v) in used), '')
