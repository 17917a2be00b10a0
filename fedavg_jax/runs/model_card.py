"""Writes a trained model as safetensors, beside a model card.

The folder has the form of a model on the Hugging Face Hub: `model.safetensors`
and `README.md`, whose first lines are metadata in YAML.
"""

from collections.abc import Mapping
import pathlib
import shutil
from typing import Any

import numpy as np

import fedavg_jax
from fedavg_jax.core import optional
from fedavg_jax.core import references
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.files import part_name
from fedavg_jax.runs import config_changes
from fedavg_jax.runs import run_config
from fedavg_jax.runs.compare import Run
from fedavg_jax.runs.run_config import RunConfig
from fedavg_jax.runs.titles import describe


def write(
  folder: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  cfg: RunConfig,
  run: Run,
  *,
  best: bool,
) -> None:
  """Writes arrays and card into a new folder, both or none.

  Args:
    folder: the path of the folder, which must not exist.
    arrays: name -> array.
    cfg: the settings of the run.
    run: the results of the run.
    best: whether the model is that of the best test.

  Raises:
    InputError: the folder exists or cannot be created, or safetensors is not
      installed.
  """
  safetensors = optional.load(
    'safetensors.numpy', 'export', "'fedavg_jax[safetensors]'"
  )
  if folder.exists() or folder.is_symlink():
    raise InputError(
      f'folder = {str(folder)!r}: exists already; choose a new path; existing'
      ' files are never overwritten'
    )
  part = folder.with_name(part_name(folder.name))
  shutil.rmtree(part, ignore_errors=True)  # A killed process may have left it.
  try:
    part.mkdir(parents=True)
  except (FileExistsError, NotADirectoryError, PermissionError) as error:
    raise InputError(
      f'folder = {str(folder)!r}: cannot be created ({error.strerror}); its'
      ' parents must be folders'
    ) from error
  try:
    plain = {
      name: np.ascontiguousarray(array) for name, array in arrays.items()
    }
    content = safetensors.save(plain, {'format': 'flax', 'model': cfg.model})
    (part / 'model.safetensors').write_bytes(content)
    text = card(arrays, cfg, run, best=best)
    (part / 'README.md').write_text(text, encoding='utf-8')
    part.rename(folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def card(
  arrays: Mapping[str, np.ndarray], cfg: RunConfig, run: Run, *, best: bool
) -> str:
  """Returns the model card: results, settings that differ, and arrays."""
  measure = run.measure
  values = [v for r in run.records if (v := measure.of(r)) is not None]
  top = measure.show(measure.best(values))
  shown = '—' if run.final is None else measure.show(run.final)
  of = ' (of the last round)' if best else ''  # Other weights than these.
  lines = [
    *('---', 'library_name: fedavg_jax', 'tags: [federated-learning, jax]'),
    *('---', '', f'# {describe(cfg)}', ''),
    f'Trained with fedavg_jax {fedavg_jax.__version__} by the algorithm'
    f' {references.short(cfg.algorithm)},'
    f' {run.records[-1]["round"]} rounds ({run.status}).',
    f'These are the weights of the {"best test" if best else "last round"}.',
    *('', '| result | value |', '|---|---|'),
    f'| final test {measure.name}{of} | {shown} |',
    f'| best {measure.on} {measure.name} | {top} |',
    *_privacy(cfg, run),
    f'| parameters | {sum(a.size for a in arrays.values()):,} |',
    *('', '| setting | value |', '|---|---|'),
    *(f'| {key} | {value} |' for key, value in _settings(cfg).items()),
    *('', '| array | shape | dtype |', '|---|---|---|'),
    *(f'| {n} | {list(a.shape)} | {a.dtype} |' for n, a in arrays.items()),
  ]
  return '\n'.join([*lines, ''])


def _privacy(cfg: RunConfig, run: Run) -> list[str]:
  """Returns the row of what a private run has spent, none for another one."""
  epsilon = run.records[-1].get('epsilon', ())
  if epsilon == ():
    return []
  shown = 'infinite' if epsilon is None else f'{epsilon:.4g}'
  own = cfg.privacy
  of = f'epsilon at delta {own.delta:g} ({own.accounting}), simulated'
  return [f'| {of} | {shown} |']


def _settings(cfg: RunConfig) -> dict[str, Any]:
  """Returns the settings that every card has, and those that differ."""
  default = dict(run_config.flatten(RunConfig()))
  always = ['dataset', 'model', 'partition', 'algorithm', 'rounds']
  if not cfg.privacy.clip:  # Who knows the seed can compute the noise.
    always.append('seed')
  return {
    key: value
    for key, value in run_config.flatten(cfg)
    if key in always
    or (
      key not in (*config_changes.PLACES, 'seed') and value != default.get(key)
    )
  }
