"""Implements a custom algorithm, without a change in the package.

Clients send only the largest entries of their delta and keep the rest until
they are drawn again: sparsification with error feedback. Two functions of an
`Algorithm` change: `client_finish`, which makes a client's output, and
`client_init`, which makes its initial state.

    corrected = delta + memory
    sent = the largest entries of corrected, zero elsewhere
    memory <- corrected - sent

python -m experiments.gallery.custom_algorithm
"""

import jax
from jax import lax
import jax.numpy as jnp
import optax

import fedavg_jax as fa


def send_largest(algorithm: fa.Algorithm, share: float) -> fa.Algorithm:
  """Makes clients send only the largest entries of their delta.

  Args:
    algorithm: an algorithm without client state.
    share: the fraction of the entries of each array that is sent, in (0, 1].
  """

  def largest(corrected):
    size = jnp.abs(corrected).ravel()
    number = max(1, int(share * size.size))
    threshold = lax.top_k(size, number)[0][-1]
    return jnp.where(jnp.abs(corrected) >= threshold, corrected, 0.0)

  def client_finish(result: fa.ClientResult):
    memory = result.context.client_state
    corrected = jax.tree.map(jnp.add, result.delta, memory)
    sent = jax.tree.map(largest, corrected)
    return fa.ClientOutput(sent, jax.tree.map(jnp.subtract, corrected, sent))

  def client_init(params, client_id):
    del client_id
    return jax.tree.map(jnp.zeros_like, params)

  return algorithm._replace(
    client_finish=client_finish, client_init=client_init
  )


def run(algorithm: fa.Algorithm, rounds: int) -> float:
  """Returns the final test accuracy on the package's digits, non-IID."""
  data = fa.load_dataset('digits')
  parts = fa.partition.shards(
    data.train.y, num_clients=50, shards_per_client=2, seed=0
  )
  federation = fa.Federation(
    fa.build_clients(data.train, parts),
    data.test,
    client_fraction=0.5,
    epochs=5,
    batch_size=10,
  )
  simulation = fa.build_simulation(
    fa.build_model('2nn', data), federation, algorithm
  )
  history = fa.run(simulation, rounds=rounds, eval_every=rounds)
  return history['test_accuracy'][-1]


def main() -> None:
  """Prints the accuracy when clients send all, 10 % and 1 % of their delta."""
  fa.use_cpu_devices(0)
  fedavg = fa.fedavg(optax.sgd(0.1), optax.sgd(1.0))
  print(f'FedAvg                    {run(fedavg, 100):.4f}')
  for share in (0.1, 0.01):
    accuracy = run(send_largest(fedavg, share), 100)
    print(f'{100 * share:2.0f} % of the delta is sent  {accuracy:.4f}')


if __name__ == '__main__':
  main()
