"""The final model on disk, through orbax."""

import pathlib

import jax
import numpy as np

_FOLDER = 'final_model'


def save_params(workdir: pathlib.Path, params) -> None:
  """Writes a model into a workdir; takes arrays or numpy arrays."""
  import orbax.checkpoint as ocp  # Heavy; training starts without it.

  host = jax.tree.map(np.asarray, params)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save((workdir / _FOLDER).resolve(), host)


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
