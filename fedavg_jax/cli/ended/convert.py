"""`python -m fedavg_jax.convert`, which is `fedavg-jax convert` now."""

from fedavg_jax.cli import dispatch

if __name__ != '__main__':
  raise ModuleNotFoundError(
    'no module of this name: see fedavg_jax.cli.convert'
  )
dispatch.ended('convert')
