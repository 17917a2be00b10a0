"""Logs the lines of metrics.jsonl to CSV, TensorBoard and Weights & Biases.

A logger receives each line once, and is closed once. The libraries of a logger
are imported when one is constructed.
"""

from collections.abc import Callable
from collections.abc import Sequence
import csv
import importlib
import pathlib
import secrets
import time
from typing import Any
from typing import Protocol

from fedavg_jax.core import choices
from fedavg_jax.core import optional
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.errors import first_lines
from fedavg_jax.core.files import atomic_write
from fedavg_jax.core.files import write_text

_SECONDS_BETWEEN_FLUSHES = 5.0


class Logger(Protocol):
  """Defines the contract of a logger of a run's lines."""

  def line(self, record: dict[str, Any]) -> None:
    """Logs the line of a round; rounds ascend."""

  def close(self) -> None:
    """Writes what is not yet written; called once."""


class _Csv:
  """Writes metrics.csv, one line per round, when the run ends."""

  def __init__(
    self,
    folder: pathlib.Path,
    before: Sequence[dict[str, Any]],
    check: Callable[[], None],
  ):
    self._path, self._check = folder / 'metrics.csv', check
    self._records = list(before)

  def line(self, record: dict[str, Any]) -> None:
    self._records.append(record)

  def close(self) -> None:
    self._check()  # Another run may have replaced the folder.
    columns = list(dict.fromkeys(key for r in self._records for key in r))
    with (
      atomic_write(self._path) as part,
      open(part, 'w', newline='', encoding='utf-8') as file,
    ):
      writer = csv.DictWriter(file, columns, restval='')
      writer.writeheader()
      writer.writerows(self._records)


class _TensorBoard:
  """Writes event files under tensorboard/, without TensorFlow.

  They are not written by a thread of the library: one that cannot write ends,
  and the run would wait for it forever.
  """

  def __init__(self, folder: pathlib.Path, before: Sequence[dict[str, Any]]):
    from tensorboardX import event_file_writer
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    proto: Any = event_pb2  # Its classes are made at import.
    self._event, self._scalar = proto.Event, summary.scalar
    events = folder / 'tensorboard'
    events.mkdir(exist_ok=True)
    self._file = event_file_writer.EventsWriter(str(events / 'events'))
    self._flushed = time.monotonic()
    # Later rounds of the interrupted run are superseded.
    done = before[-1]['round'] + 1 if before else 0
    start = proto.SessionLog(status=proto.SessionLog.START)
    self._write(done, session_log=start)

  def _write(self, number: int, **content: Any) -> None:
    """Writes an event of a round."""
    event = self._event(wall_time=time.time(), step=number, **content)
    self._file.write_event(event)

  def line(self, record: dict[str, Any]) -> None:
    for key, value in record.items():
      if key != 'round' and value is not None:
        self._write(record['round'], summary=self._scalar(key, value))
    if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
      self._file.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    self._file.close()


class _Wandb:
  """Logs to Weights & Biases, whose environment variables name the run."""

  def __init__(self, folder: pathlib.Path, config: dict[str, Any]):
    wandb: Any = importlib.import_module('wandb')  # Only where installed.
    try:
      self._run = wandb.init(
        dir=str(folder),
        config=config,
        id=_wandb_id(folder / 'wandb' / 'run_id'),
        resume='allow',
      )
    except wandb.Error as error:  # No login, or no network.
      raise InputError(
        f"log = 'wandb': {first_lines(error)}; log in, or set WANDB_MODE to"
        " 'offline'"
      ) from error

  def line(self, record: dict[str, Any]) -> None:
    found = {k: v for k, v in record.items() if v is not None}
    self._run.log(found, step=record['round'])

  def close(self) -> None:
    self._run.finish()


def _wandb_id(path: pathlib.Path) -> str:
  """Returns the id of a run for Weights & Biases, stored in its folder.

  A resumed run has the same id, even if its folder was moved; two folders never
  share one, even with equal names on other machines.
  """
  if path.is_file() and (found := path.read_text(encoding='utf-8').strip()):
    return found
  path.parent.mkdir(exist_ok=True)
  made = secrets.token_hex(8)
  write_text(path, made + '\n')
  return made


def check(names: str) -> None:
  """Raises InputError where a logger is unknown or not installed."""
  for name in _split(names):
    if name not in choices.LOGGERS:
      raise InputError(
        f'log = {names!r}: must be a comma-separated list of'
        f' {", ".join(choices.LOGGERS)}'
      )
    if name == 'tensorboard':
      optional.load(
        'tensorboardX', f'log = {names!r}', "'fedavg_jax[tensorboard]'"
      )
    elif name == 'wandb':
      optional.load('wandb', f'log = {names!r}', 'wandb')


def open_loggers(
  names: str,
  folder: pathlib.Path,
  config: dict[str, Any],
  before: Sequence[dict[str, Any]],
  check: Callable[[], None] = lambda: None,
) -> list[Logger]:
  """Opens the loggers of a run.

  Args:
    names: words of `choices.LOGGERS`, comma-separated; '' is none.
    folder: the folder of the run.
    config: the config of the run.
    before: the lines of an interrupted run, up to its checkpoint.
    check: a function that raises InputError where the folder was replaced.
  """
  make = {
    'csv': lambda: _Csv(folder, before, check),
    'tensorboard': lambda: _TensorBoard(folder, before),
    'wandb': lambda: _Wandb(folder, config),
  }
  return [make[name]() for name in _split(names)]


def _split(names: str) -> list[str]:
  """Splits comma-separated names."""
  return [name.strip() for name in names.split(',') if name.strip()]
