"""Trains the same federation in several processes; prints what each compiled.

cached_programs.py CASE ...

The processes are forks, one after another. Each prints a line of JSON: the
programs that were read from the compilation cache and that were compiled, the
SHA-256 of the last models, and what was written to standard error. The case
'again' trains with another seed too.

"""

import hashlib
import json
import os
import sys
import tempfile

from absl import logging
import jax
from jax import monitoring
import numpy as np
import optax

import fedavg_jax as fa
from fedavg_jax.engine import compile_cache


def damage(folder):
  """Flips the last bit of every file of the cache."""
  for path in folder.iterdir():
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def train(seed) -> str:
  """Returns the SHA-256 of the model after three rounds."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(90, 4)).astype(np.float32)
  data = fa.Examples(x, rng.integers(0, 3, 90).astype(np.int32))
  parts = fa.partition.dirichlet(
    data.y, num_clients=10, alpha=5.0, min_size=1, seed=seed
  )
  model = fa.Model(
    'linear',
    jax.jit(lambda key: jax.random.normal(key, (4, 3))),
    lambda w, x: x @ w,
  )
  simulation = fa.build_simulation(
    model,
    fa.Federation(
      fa.build_clients(data, parts),
      data,
      client_fraction=0.5,
      epochs=1,
      batch_size=4,
      seed=seed,
    ),
    fa.fedavg(optax.sgd(0.1), optax.sgd(1.0)),
  )
  params = fa.run(simulation, rounds=3).params
  return hashlib.sha256(np.asarray(params).tobytes()).hexdigest()


def run_case(case) -> None:
  """Trains in this process and prints what happened."""
  events: list[str] = []
  monitoring.register_event_listener(lambda event, **_: events.append(event))
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  if case == 'damaged':
    damage(compile_cache.default_folder())
  if case == 'other processor':
    compile_cache.processor = lambda: 'another one'
  with tempfile.TemporaryFile('w+') as written:
    stderr = os.dup(2)
    os.dup2(written.fileno(), 2)
    models = [train(seed) for seed in range(1 + (case == 'again'))]
    os.dup2(stderr, 2)
    written.seek(0)
    found = {
      'read': events.count('/jax/compilation_cache/cache_hits'),
      'compiled': events.count('/jax/compilation_cache/cache_misses'),
      'models': models,
      'stderr': written.read(),
    }
  print(json.dumps(found), flush=True)


for name in sys.argv[1:]:
  child = os.fork()
  if not child:
    try:
      run_case(name)
    finally:
      sys.stderr.flush()
      os._exit(0)
  os.waitpid(child, 0)
