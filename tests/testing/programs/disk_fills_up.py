"""Runs the command while another process fills the disk after round 4."""

import sys

from fedavg_jax.cli import dispatch
from fedavg_jax.runs import recorder

simulate = recorder.simulate


def fills(*args, **kwargs):
  for record in simulate(*args, **kwargs):
    if record.round == 4:
      with open('disk/theirs', 'wb', buffering=0) as file:
        try:
          while file.write(bytes(4096)):
            pass
        except OSError:
          pass
    yield record


recorder.simulate = fills
dispatch.start('run', sys.argv[1:])
