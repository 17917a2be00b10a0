"""`python -m fedavg_jax.partition`, which is `fedavg-jax partition` now."""

from fedavg_jax.cli import dispatch

if __name__ != '__main__':
  raise ModuleNotFoundError(
    'no module of this name: see fedavg_jax.cli.partition'
  )
dispatch.ended('partition')
