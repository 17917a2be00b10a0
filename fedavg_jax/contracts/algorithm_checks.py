"""Checks the return values of an algorithm's hooks before compilation.

Each hook is traced with shapes only. An error is one line that names the hook,
its return value and the expected one.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedavg_jax.contracts.algorithm import Algorithm
from fedavg_jax.contracts.algorithm import ClientContext
from fedavg_jax.contracts.algorithm import ClientOutput
from fedavg_jax.contracts.algorithm import ClientResult
from fedavg_jax.contracts.algorithm import ServerContext
from fedavg_jax.contracts.model import Params
from fedavg_jax.contracts.model import Variables
from fedavg_jax.contracts.model import num_bytes
from fedavg_jax.contracts.model import split
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.trees import PyTree

_REAL: Any = jax.ShapeDtypeStruct((), jnp.float32)
_WHOLE: Any = jax.ShapeDtypeStruct((), jnp.int32)


def check_algorithm(
  algorithm: Algorithm, variables: Params | Variables, cohort_size: int
) -> None:
  """Raises InputError where a hook returns an unexpected pytree.

  Args:
    algorithm: the algorithm to check.
    variables: the model's variables, or their shapes (`ShapeDtypeStruct`).
    cohort_size: M.
  """
  params, _ = split(variables)
  result = _result(algorithm, variables)
  context = result.context
  for leaf in jax.tree.leaves(context.client_state):
    if not jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != bool:
      raise InputError(
        f'algorithm.client_init: returns {leaf.dtype}, must return numbers'
      )
  updates, opt_state = _two(
    'client_optimizer.update', _update(algorithm), params, result
  )
  _must_match('client_optimizer.update', 'updates', updates, params)
  _must_match(
    'client_optimizer.update', 'state', opt_state, result.optimizer_state
  )
  if algorithm.client_start is not None:
    start = jax.eval_shape(algorithm.client_start, context)
    _must_match('client_start', 'params', start, params)
  if algorithm.own_model is not None:
    own = jax.eval_shape(algorithm.own_model, context)
    _must_match('own_model', 'params', own, params)
  output = _output(algorithm, result)
  _must_match('client_finish', 'state', output.state, context.client_state)
  message = output.message
  for leaf in jax.tree.leaves(message):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise InputError(
        f'algorithm.client_finish: returns a message of {leaf.dtype}, must be'
        ' floating-point arrays'
      )
  _check_info(output.info)
  _coded_bytes(algorithm, message)
  aggregate = jax.eval_shape(
    lambda weight: algorithm.aggregate.result(
      algorithm.aggregate.init(message, cohort_size), weight
    ),
    _REAL,
  )
  clients: Any = jax.ShapeDtypeStruct((cohort_size,), jnp.int32)
  reported: Any = jax.ShapeDtypeStruct((cohort_size,), bool)
  server = ServerContext(
    round=_WHOLE,
    key=_key(),
    share=_REAL,
    clients=clients,
    reported=reported,
  )
  new_params, new_server = _two(
    'server_update',
    algorithm.server_update,
    params,
    context.server_state,
    aggregate,
    server,
  )
  _must_match('server_update', 'params', new_params, params)
  _must_match('server_update', 'server_state', new_server, context.server_state)


def check_is_delta(
  wrapper: str, message: PyTree, model: Params, *, whole: bool = False
) -> None:
  """Raises InputError unless a message is a delta, or some leaves of one.

  Quotients, products and corrections are sound for means alone: those of
  medians, say, belong to no client.

  Args:
    wrapper: the name of the function that needs a delta.
    message: the message of a client.
    model: a tree with the structure of the model.
    whole: whether the message must have all leaves of the model.
  """

  def shapes(tree):
    return {
      (jax.tree_util.keystr(path), leaf.shape)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

  sent, expected = shapes(message), shapes(model)
  if more := sent - expected:
    raise InputError(
      f'{wrapper}: the message of a client has'
      f' {", ".join(name or "an array" for name, _ in sorted(more))}'
      ' beside the delta of the model, must be the delta alone'
    )
  if whole and sent != expected:
    raise InputError(
      f'{wrapper}: the message of a client has only some leaves of the model,'
      ' must have all of them'
    )


class Traffic(NamedTuple):
  """Counts the bytes that a client receives and sends in a round.

  Attributes:
    down: bytes of what is received of the model, and of the leaves of the
      server state that clients read, such as SCAFFOLD's control variate, but
      not momentum.
    up: bytes of the encoded message; of its arrays if `coded` is True.
    coded: whether the size of a message depends on its values, so that it is
      known only in the round.
  """

  down: int
  up: int
  coded: bool


def traffic(
  algorithm: Algorithm, variables: Params | Variables, state_of: str
) -> Traffic:
  """Counts the bytes that a client receives and sends.

  Args:
    algorithm: the algorithm to trace.
    variables: the model's variables, or their shapes.
    state_of: the `Model.state_of`; with 'everybody' a client also receives and
      sends the state of the model.
  """
  params, state = split(variables)
  message, read = _message_and_reads(algorithm, variables)
  received = params
  if algorithm.received is not None:
    received = jax.eval_shape(algorithm.received, params)
  coded = _coded_bytes(algorithm, message)
  state_bytes = num_bytes(state) if state_of == 'everybody' else 0
  return Traffic(
    down=num_bytes((received, read)) + state_bytes,
    up=(num_bytes(message) if coded is None else coded) + state_bytes,
    coded=coded is None and algorithm.num_bytes is not None,
  )


def check_asynchronous(
  algorithm: Algorithm, variables: Params | Variables
) -> None:
  """Raises InputError for clients that need more of the server than a model.

  The server stores earlier models, but not its earlier states.

  Args:
    algorithm: the algorithm of asynchronous clients.
    variables: the model's variables, or their shapes.
  """
  _, read = _message_and_reads(algorithm, variables)
  if read or algorithm.full_gradient:
    raise InputError(
      'buffer: must be 0 with an algorithm whose clients need the state of the'
      ' server or full gradients, as SCAFFOLD and MimeLite do'
    )


def _message_and_reads(
  algorithm: Algorithm, variables: Params | Variables
) -> tuple[PyTree, list[Any]]:
  """Returns a message, and the leaves of the server state that clients read."""
  result = _result(algorithm, variables)
  server = result.context.server_state

  def one_client(server, result):
    context = result.context._replace(server_state=server)
    result = result._replace(context=context)
    start = algorithm.client_start(context) if algorithm.client_start else ()
    updates, _ = _update(algorithm)(result.params, result)
    return start, updates, algorithm.client_finish(result).message

  program, shapes = jax.make_jaxpr(one_client, return_shape=True)(
    server, result
  )
  traced, message = program.jaxpr, shapes[2]
  used = {id(v) for eqn in traced.eqns for v in eqn.invars}
  used |= {id(v) for v in traced.outvars}
  leaves = jax.tree.leaves(server)
  read = [
    leaf
    for leaf, v in zip(leaves, traced.invars, strict=False)
    if id(v) in used
  ]
  return message, read


def message_shapes(
  algorithm: Algorithm, variables: Params | Variables
) -> PyTree:
  """Returns the shapes of one client's message."""
  return _output(algorithm, _result(algorithm, variables)).message


def _result(algorithm: Algorithm, variables: Params | Variables) -> Any:
  """Returns the shapes of the `ClientResult` that `client_finish` gets."""
  params, model_state = split(variables)
  optimizer = algorithm.client_optimizer
  context = ClientContext(
    global_params=params,
    server_state=jax.eval_shape(algorithm.server_init, params),
    client_state=jax.eval_shape(algorithm.client_init, params, _WHOLE),
    client_id=_WHOLE,
    num_examples=_WHOLE,
    round=_WHOLE,
    key=_key(),
    staleness=_WHOLE,
  )
  return ClientResult(
    delta=params,
    params=params,
    model_state=model_state,
    num_updates=_WHOLE,
    mean_loss=_REAL,
    optimizer_state=jax.eval_shape(optimizer.init, params),
    context=context,
    full_gradient=params if algorithm.full_gradient else (),
  )


def _key() -> Any:
  return jax.eval_shape(lambda: jax.random.key(0))


def _update(algorithm: Algorithm) -> Callable:
  """Returns (grads, result) -> (update, optimizer state) of ONE client."""
  optimizer = optax.with_extra_args_support(algorithm.client_optimizer)

  def update(grads, result):
    return optimizer.update(
      grads,
      result.optimizer_state,
      result.params,
      context=result.context,
      step=result.num_updates,
    )

  return update


def _output(algorithm: Algorithm, result: Any) -> ClientOutput:
  """Returns the shapes of what `client_finish` returns."""
  output = jax.eval_shape(algorithm.client_finish, result)
  if not isinstance(output, ClientOutput):
    raise InputError(
      f'algorithm.client_finish: returns {type(output).__name__}, must return'
      ' a ClientOutput'
    )
  return output


def _check_info(info: Any) -> None:
  if not isinstance(info, dict):
    raise InputError(
      f'algorithm.client_finish: info is {type(info).__name__}, must be a'
      ' dictionary of numbers by name'
    )
  for name, value in info.items():
    shape, dtype = getattr(value, 'shape', None), getattr(value, 'dtype', None)
    if not isinstance(name, str) or shape != ():
      raise InputError(
        f'algorithm.client_finish: info[{name!r}] is {dtype}{shape}, must be'
        ' one number with a string as its key'
      )


def _coded_bytes(algorithm: Algorithm, message: Any) -> int | None:
  """Returns the bytes of a message; None if they depend on its values."""
  if algorithm.num_bytes is None:
    return None
  found: list[Any] = []

  def coded(message):
    found.append(algorithm.num_bytes(message))
    return found[-1]

  shape = jax.eval_shape(coded, message)
  if not hasattr(shape, 'shape') or shape.shape != ():
    raise InputError(
      f'algorithm.num_bytes: returns {_describe(shape)}, must be one number'
    )
  return None if isinstance(found[-1], jax.core.Tracer) else int(found[-1])


def _two(hook: str, fn: Callable, *args: Any) -> tuple[Any, Any]:
  """Returns the shapes of a hook's two results."""
  results = jax.eval_shape(fn, *args)
  if not isinstance(results, tuple) or len(results) != 2:
    raise InputError(
      f'algorithm.{hook}: returns {type(results).__name__}, must return two'
      ' results'
    )
  return results


def _describe(tree: Any) -> dict[str, str]:
  return {
    jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _must_match(hook: str, what: str, got: Any, expected: Any) -> None:
  """Raises InputError unless a tree has the leaves and structure of another."""
  got_leaves, wanted = _describe(got), _describe(expected)
  for path in [*wanted, *got_leaves]:
    if got_leaves.get(path) != wanted.get(path):
      raise InputError(
        f'algorithm.{hook}: returns {what}{path} ='
        f' {got_leaves.get(path, "nothing")}, must be'
        f' {wanted.get(path, "nothing")}, as in the input'
      )
  form, wanted_form = jax.tree.structure(got), jax.tree.structure(expected)
  if form != wanted_form:
    raise InputError(
      f'algorithm.{hook}: returns {what} as {form}, must be {wanted_form}, as'
      ' in the input'
    )
