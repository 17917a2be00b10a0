"""Makes a quickstart whose plan fails on process 1."""

import sys

from configs import quickstart
from fedavg_jax.schedule import planning


def get_config():
  if '--process_id=1' in sys.argv:
    planning.Planner.cohort = lambda self, number: {}[number]
  return quickstart.get_config()
