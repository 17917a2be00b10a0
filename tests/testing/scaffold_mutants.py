"""Makes SCAFFOLD with the faults of docs/mistakes.md, one in each copy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import fedavg_jax as fa


def random_start(plain: fa.Algorithm) -> fa.Algorithm:
  """Begins with random control variates, as of a new network, not with 0."""

  def client_init(params, client_id):
    key = jax.random.fold_in(jax.random.key(0), client_id)
    return jax.tree.map(lambda w: 0.1 * jax.random.normal(key, w.shape), params)

  return plain._replace(client_init=client_init)


def cohort_for_all(plain: fa.Algorithm) -> fa.Algorithm:
  """Divides the changes of c by |S|, the cohort, not by N, all clients."""

  def server_update(params, server, mean, context):
    context = context._replace(share=jnp.float32(1))
    return plain.server_update(params, server, mean, context)

  return plain._replace(server_update=server_update)


def steps_of_one_epoch(plain: fa.Algorithm) -> fa.Algorithm:
  """Counts the minibatches of one of two epochs as the local updates K."""

  def client_finish(result):
    half = jnp.maximum(result.num_updates // 2, 1)
    return plain.client_finish(result._replace(num_updates=half))

  return plain._replace(client_finish=client_finish)


def epochs_for_steps(plain: fa.Algorithm) -> fa.Algorithm:
  """Counts the epochs, here two, as the local updates K."""

  def client_finish(result):
    two = jnp.full_like(result.num_updates, 2)
    return plain.client_finish(result._replace(num_updates=two))

  return plain._replace(client_finish=client_finish)


def flipped_sign(plain: fa.Algorithm) -> fa.Algorithm:
  """Adds c_i - c to a gradient instead of c - c_i."""
  optimizer = optax.with_extra_args_support(plain.client_optimizer)

  def update(updates, state, params=None, **extra):
    context = extra['context']
    extra['context'] = context._replace(
      client_state=context.server_state.control,
      server_state=context.server_state._replace(control=context.client_state),
    )
    return optimizer.update(updates, state, params, **extra)

  return plain._replace(
    client_optimizer=optax.GradientTransformationExtraArgs(
      optimizer.init, update
    )
  )


def whole_control(plain: fa.Algorithm) -> fa.Algorithm:
  """Sends c_i+ where the server expects its change, c_i+ - c_i."""

  def client_finish(result):
    output = plain.client_finish(result)
    return output._replace(message=(result.delta, output.state))

  return plain._replace(client_finish=client_finish)


def no_change(plain: fa.Algorithm) -> fa.Algorithm:
  """Overwrites c_i before the change is computed, which is then zero."""

  def client_finish(result):
    output = plain.client_finish(result)
    zero = jax.tree.map(jnp.zeros_like, output.state)
    return output._replace(message=(result.delta, zero))

  return plain._replace(client_finish=client_finish)


def two_weightings(plain: fa.Algorithm) -> fa.Algorithm:
  """Weighs deltas by n_k but control variates equally."""

  def client_finish(result):
    delta, change = plain.client_finish(result).message
    # The mean by n_k is divided by n_k over the clients' mean, which is 3.
    own = result.context.num_examples.astype(jnp.float32) / 3
    equal = jax.tree.map(lambda leaf: leaf / own, change)
    output = plain.client_finish(result)
    return output._replace(message=(delta, equal))

  return plain._replace(client_finish=client_finish)


MUTANTS = (
  *(random_start, cohort_for_all, steps_of_one_epoch, epochs_for_steps),
  *(flipped_sign, whole_control, no_change, two_weightings),
)


def one_of(
  algorithms: list[fa.Algorithm],
) -> Callable[[jax.Array], fa.Algorithm]:
  """Combines algorithms to one function of a number, for a sweep over them.

  All of them are compiled in one program, whose hooks pick by the number.

  """

  def of_number(number):
    def pick(name):
      def hook(*args, **extra):
        results = [getattr(own, name)(*args, **extra) for own in algorithms]
        return jax.tree.map(
          lambda *leaves: jnp.stack(leaves)[number.astype(jnp.int32)], *results
        )

      return hook

    optimizers = [own.client_optimizer for own in algorithms]
    first = algorithms[0]
    return first._replace(
      client_optimizer=optax.GradientTransformationExtraArgs(
        first.client_optimizer.init,
        lambda *args, **extra: jax.tree.map(
          lambda *leaves: jnp.stack(leaves)[number.astype(jnp.int32)],
          *[own.update(*args, **extra) for own in optimizers],
        ),
      ),
      client_init=pick('client_init'),
      client_finish=pick('client_finish'),
      server_update=pick('server_update'),
    )

  return of_number
