"""Locks the folder of a run, and is killed while it has it."""

import os
import pathlib
import signal
import sys

from fedavg_jax.core.errors import InputError
from fedavg_jax.runs.run_dir import Workdir

try:
  Workdir(pathlib.Path(sys.argv[1]))
except InputError as error:
  print(error)
else:
  os.kill(os.getpid(), signal.SIGKILL)
