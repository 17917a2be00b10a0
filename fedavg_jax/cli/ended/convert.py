"""Refers users of `python -m fedavg_jax.convert` to its successor."""

from fedavg_jax.cli import dispatch

if __name__ != '__main__':
  raise ModuleNotFoundError(
    f'No module named {__name__!r}: see fedavg_jax.data.stored_writer',
    name=__name__,
  )
dispatch.ended('convert')
