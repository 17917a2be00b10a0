"""`python -m fedavg_jax.sweep`, which is `fedavg-jax sweep` now."""

from fedavg_jax.cli import dispatch

if __name__ != '__main__':
  raise ModuleNotFoundError('no module of this name: see fedavg_jax.cli.sweep')
dispatch.ended('sweep')
