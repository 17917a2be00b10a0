"""`python -m fedavg_jax.partition`, which is `fedavg-jax partition` now."""

from fedavg_jax.cli import dispatch

if __name__ != '__main__':
  raise ModuleNotFoundError(
    f'No module named {__name__!r}: see fedavg_jax.data.partition',
    name=__name__,
  )
dispatch.ended('partition')
