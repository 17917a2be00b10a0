"""`python -m fedavg_jax.compare`, which is `fedavg-jax compare` now."""

from fedavg_jax.cli import dispatch

if __name__ != '__main__':
  raise ModuleNotFoundError(
    'no module of this name: see fedavg_jax.cli.compare'
  )
dispatch.ended('compare')
