"""`python -m fedavg_jax.compare`, which is `fedavg-jax compare` now."""

from fedavg_jax.cli import dispatch

if __name__ != '__main__':
  raise ModuleNotFoundError(
    f'No module named {__name__!r}: see fedavg_jax.runs.compare', name=__name__
  )
dispatch.ended('compare')
