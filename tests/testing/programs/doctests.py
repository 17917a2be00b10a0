"""Runs every doctest of the package; fails where one does, or none are left."""

import doctest
import importlib
import pkgutil
import sys

import fedavg_jax

failed, found = 0, set()
for module in [fedavg_jax.__name__] + [
  m.name
  for m in pkgutil.walk_packages(fedavg_jax.__path__[:1], 'fedavg_jax.')
  if 'ended' not in m.name
]:
  results = doctest.testmod(importlib.import_module(module))
  failed += results.failed
  if results.attempted:
    found.add(module.split('.')[-1])
needed = {
  'fedavg_jax',
  'sizes',
  'targets',
  'run_config',
  'sampling',
  'compare',
  'progress',
}
sys.exit(failed or not needed <= found)
