"""Prints the program that adds a tree up over two devices."""

import jax
import numpy as np

from fedavg_jax.engine import collectives

jax.config.update('jax_num_cpu_devices', 2)
mesh = jax.sharding.Mesh(jax.devices(), ('lanes',))
tree = [np.ones(3, t) for t in ('float32', 'int32', 'uint32', 'float16')]
add = jax.shard_map(
  collectives.sum_over_devices,
  mesh=mesh,
  in_specs=jax.P(),
  out_specs=jax.P(),
  check_vma=False,
)
print(jax.jit(add).lower(tree).as_text())
