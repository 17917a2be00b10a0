"""The final model on disk, through orbax."""

import errno
import pathlib

import jax
import numpy as np

_FOLDER = 'final_model'


def bytes_needed(params) -> int:
  """What a run needs on disk: twice the model, and room for the small files."""
  model = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)
  )
  return 2 * model + 2**21


def save_params(workdir: pathlib.Path, params) -> None:
  """Writes a model into a workdir.

  Raises:
    OSError: it cannot be written, for want of space for example.
  """
  import orbax.checkpoint as ocp  # Heavy; training starts without it.

  host = jax.tree.map(np.asarray, params)
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save((workdir / _FOLDER).resolve(), host)
  except (OSError, ValueError) as error:  # Its storage raises ValueError.
    reason = str(error).strip().splitlines()[0][:200]
    raise OSError(
      errno.EIO, f'the model cannot be written ({reason})', str(workdir)
    ) from error


def load_params(workdir: str | pathlib.Path):
  """Loads the final model of a finished run.

  Args:
    workdir: the folder that the run printed.

  Returns:
    A dict of dicts of float32 NumPy arrays, for `Model.apply`.

  Raises:
    FileNotFoundError: there is no final model.
  """
  import orbax.checkpoint as ocp

  path = (pathlib.Path(workdir) / _FOLDER).resolve()
  if not path.is_dir():
    raise FileNotFoundError(f'{path}: no model of a finished run is here')
  with ocp.StandardCheckpointer() as checkpointer:
    structure = checkpointer.metadata(path).item_metadata
    target = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, leaf.dtype), dict(structure)
    )
    return checkpointer.restore(path, target)
