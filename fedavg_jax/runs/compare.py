"""Compares finished runs in a table, and draws their curves in one picture.

The curves are drawn against rounds, against the bytes that clients and server
have sent, and against simulated seconds where the runs have a clock. Runs on
different data cannot be compared; those with different partitions and seeds
can.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core import references
from fedavg_jax.core.errors import InputError
from fedavg_jax.runs import metric_words
from fedavg_jax.runs import plots
from fedavg_jax.runs.progress import duration
from fedavg_jax.runs.run_dir import check_format
from fedavg_jax.runs.targets import Measure
from fedavg_jax.runs.targets import from_json

# Tests of two runs can be compared if these are equal.
_SAME = ('dataset', 'test_sha256', 'measured_on', 'loss')
_ENDS = ('finished', 'target reached', 'diverged')
_CODE = ('from_python_sha256', 'own_code_sha256')
_NUMBERS = (
  *(
    'seconds',
    'test_accuracy',
    'validation_accuracy',
    'bytes_down',
    'bytes_up',
  ),
  'simulated_seconds',
)


class Run(NamedTuple):
  """Holds the content of a run's folder.

  Attributes:
    name: the name of the run in tables and pictures.
    config: the config of the run.
    data: the values of `_SAME`, which must be equal in all runs compared.
    records: the lines of metrics.jsonl.
    status: the status at its end; 'interrupted' before it.
    measure: the measure that decides target and best model.
    final: its value on the test set at the end; None if there was no such test.
    code: the SHA-256 of user-defined code; None if there is none.
  """

  name: str
  config: dict[str, Any]
  data: dict[str, Any]
  records: list[dict[str, Any]]
  status: str
  measure: Measure = Measure()
  final: float | None = None
  code: Any = None

  @property
  def seed(self) -> int:
    """Returns the seed of the run."""
    return self.config.get('seed', 0)


def read_run(folder: pathlib.Path, name: str | None = None) -> Run:
  """Reads the folder of a run that has ended, or was interrupted.

  Raises:
    InputError: it is not the folder of a run, or one of its files is damaged.
  """
  began = _read(folder, 'config.json')
  check_format(folder / 'config.json', began)
  config = began.get('config')
  if not isinstance(config, dict) or 'dataset' not in config:
    raise InputError(f'{folder / "config.json"}: contains no config of a run')
  summary = _read(folder, 'summary.json')
  path = folder / 'metrics.jsonl'
  measures = [from_json(summary, on) for on in ('validation', 'test')]
  records = _read_records(path, measures)
  # The first measure that any line has.
  measure = next(
    (m for m in measures if any(m.key in r for r in records)), measures[-1]
  )
  if not any(measure.of(record) is not None for record in records):
    raise InputError(f'{path}: contains no test of a model')
  status = _status(summary, config, records)
  return Run(
    name=name or str(folder),
    config=config,
    data={
      'dataset': config['dataset'],
      'test_sha256': began.get('test_sha256'),
      'measured_on': measure.on,
      'loss': _loss(began, measure),
    },
    records=records,
    status=status,
    measure=measure,
    final=_final(summary, measure) if status != 'interrupted' else None,
    code=[began.get(key) for key in _CODE],
  )


def check_ended(run: Run) -> None:
  """Raises InputError where a run was interrupted, or is still training."""
  if run.status not in _ENDS:
    raise InputError(
      f'{run.name}: has not ended (status {run.status!r}, round'
      f' {run.records[-1]["round"]}); the command of the run finishes it'
    )


def _status(
  summary: dict[str, Any],
  config: dict[str, Any],
  records: Sequence[dict[str, Any]],
) -> str:
  """Returns the status of a run at its last line.

  A run that is extended has the summary of its end with fewer rounds until it
  ends again: it is interrupted.
  """
  status, last = str(summary.get('status', '')), records[-1]['round']
  known = summary.get('rounds', last)
  wanted = config.get('rounds', last) if status == 'finished' else last
  return status if known == last == wanted else 'interrupted'


def _final(summary: dict[str, Any], measure: Measure) -> float | None:
  """Returns the test of the last model; None if it has none, or is NaN."""
  value = summary.get(f'final_test_{measure.name}')
  is_number = isinstance(value, (int, float)) and math.isfinite(value)
  return float(value) if is_number else None


def _loss(began: dict[str, Any], measure: Measure) -> Any:
  """Returns what identifies the loss if it is the measure, else None.

  Its name and options do, and of a user-defined one what it computes, or the
  file that it is in.
  """
  config = began['config']
  words = metric_words.split(config.get('metrics', ''))
  if measure.name != 'loss' or words[:1] not in ([], ['loss']):
    return None
  options = config.get('options')
  options = options if isinstance(options, dict) else {}
  name = config.get('loss', '')
  from_python, files = (
    found if isinstance(found := began.get(key), dict) else {} for key in _CODE
  )
  code = from_python.get('loss'), files.get(name.partition(':')[0])
  return name, options.get('loss', {}), code


def _read_records(
  path: pathlib.Path, measures: Sequence[Measure]
) -> list[dict[str, Any]]:
  """Reads metrics.jsonl, whose rounds increase.

  Raises:
    InputError: names the first line that is damaged.
  """
  records: list[dict[str, Any]] = []
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    raise InputError(f'{path}: cannot be read ({reason})') from error
  for number, text in enumerate(lines, 1):
    try:
      record = json.loads(text)
    except (ValueError, RecursionError) as error:
      reason = getattr(error, 'msg', None) or str(error)
      raise InputError(
        f'{path}: cannot be read (line {number}: {reason})'
      ) from error
    if not _is_record(record, measures):
      raise InputError(f'{path}: cannot be read (line {number} is not a round)')
    if records and record['round'] <= records[-1]['round']:
      raise InputError(
        f'{path}: cannot be read (line {number}: round {record["round"]} after'
        f' round {records[-1]["round"]}; rounds must increase)'
      )
    records.append(record)
  return records


def _is_record(record: Any, measures: Sequence[Measure]) -> bool:
  """Returns whether a line of metrics.jsonl has numbers where they are used.

  A round is a whole number; a boolean is none.

  Args:
    record: the parsed line.
    measures: the possible measures of the run; null is a value not finite.
  """
  return (
    isinstance(record, dict)
    and type(record.get('round')) is int
    and all(
      isinstance(record[name], (int, float)) and math.isfinite(record[name])
      for name in _NUMBERS
      if name in record
    )
    and all(
      isinstance(record.get(measure.key), (int, float, type(None)))
      for measure in measures
    )
  )


def _read(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """Reads a JSON object; raises InputError where the file has none."""
  path = folder / name
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    raise InputError(
      f'{path}: cannot be read ({reason}); name folders of runs that have ended'
    ) from error
  if not isinstance(content, dict):
    raise InputError(f'{path}: must hold a JSON object')
  return content


def check_same_data(runs: Sequence[Run]) -> None:
  """Raises InputError where two runs were tested on different data."""
  for run in runs[1:]:
    for key in _SAME:
      names = run.data['dataset'], runs[0].data['dataset']
      if key == 'dataset' and any(map(references.is_from_python, names)):
        continue  # Names may differ; test_sha256 decides.
      if run.data[key] != runs[0].data[key]:
        raise InputError(
          f'{run.name}: has another test than {runs[0].name}: {key} ='
          f' {run.data[key]!r}, not {runs[0].data[key]!r}'
        )
    if run.measure != runs[0].measure:
      raise InputError(
        f'{run.name}: is judged by {run.measure.name}, not by'
        f' {runs[0].measure.name} as {runs[0].name}'
      )


def check_target(name: str, target: float, measure: Measure) -> None:
  """Raises InputError where no run can reach a target.

  Args:
    name: the name of the option, which begins the message.
    target: a value of the measure; 0 is none.
    measure: the measure of the runs.
  """
  if measure.name == 'accuracy' and not 0 <= target <= 1:
    raise InputError(f'{name} {target}: must be in [0, 1]')


def row(run: Run, target: float) -> dict[str, Any]:
  """Returns the row of a run in the table; None for values it does not have.

  Args:
    run: the run.
    target: a value of its measure, up to which costs count; 0 counts all.
  """
  values = [v for r in run.records if (v := run.measure.of(r)) is not None]
  spent = run.records  # All rounds, where there is no target.
  reached, _ = run.measure.crossings(run.records, target)
  if target:
    last = -1 if reached is None else reached
    spent = [r for r in run.records if r['round'] <= last]
  seconds = sum(r.get('seconds', 0.0) for r in run.records)
  return {
    'run': run.name,
    'rounds': run.records[-1]['round'],
    'best': None if run.status == 'diverged' else run.measure.best(values),
    'last': values[-1],
    'to_target': reached,
    'bytes': _sum(spent, 'bytes_down', 'bytes_up'),
    'simulated': _sum(spent, 'simulated_seconds'),
    'pace': run.records[-1]['round'] / seconds if seconds else None,
    'status': run.status,
  }


def _sum(records, *names) -> float | None:
  """Sums entries of all records; returns None where no record has any."""
  found = [r[name] for r in records for name in names if name in r]
  return sum(found) if found else None


def table(
  rows: Sequence[dict[str, Any]],
  target: float,
  measure: Measure = Measure(),  # noqa: B008 (it is frozen)
) -> str:
  """Formats rows of `row` as a table in Markdown."""
  until = f'to {target:g}' if target else 'in all'
  head = ['run', 'rounds', f'best {measure.name}', 'last']
  head += [f'rounds to {target:g}'] if target else []
  head += [f'sent {until}', f'simulated time {until}', 'rounds / s', 'ended']
  lines = [head, ['---'] * len(head)]
  for one in rows:
    cells = [
      one['run'],
      f'{one["rounds"]}',
      _or_dash(one['best'], measure.show),
      measure.show(one['last']),
    ]
    if target:
      cells.append(_or_dash(one['to_target'], str))
    lines.append(
      [
        *cells,
        _or_dash(one['bytes'], amount),
        _or_dash(one['simulated'], duration),
        _or_dash(one['pace'], lambda v: f'{v:.3g}'),
        one['status'],
      ]
    )
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _or_dash(value, show) -> str:
  """Formats a value with `show`, None as a dash."""
  return '—' if value is None else show(value)


def amount(number: float) -> str:
  """Formats a number of bytes in powers of a thousand.

  >>> amount(1_230_000)
  '1.23 MB'
  """
  for unit in ('B', 'kB', 'MB', 'GB', 'TB'):
    if number < 999.5 or unit == 'TB':
      break
    number /= 1000
  return f'{number:.3g} {unit}'


def draw(
  path: pathlib.Path,
  groups: Mapping[str, Sequence[Run]],
  target: float,
  maker: str = plots.COMPARE,
) -> None:
  """Draws the tests of runs against rounds, bytes and simulated seconds.

  Args:
    path: the path of the new picture: a PNG, PDF or SVG, by its end.
    groups: the runs of each name, such as seeds; the curve is their mean, with
      a band from the lowest to the highest.
    target: a value of the measure to draw as a line; 0 is none.
    maker: the maker of the picture, for its metadata.
  """
  everything = [run for runs in groups.values() for run in runs]
  axes = {'round': 'communication round', 'bytes': 'bytes sent, both ways'}
  if all(
    any('simulated_seconds' in r for r in run.records) or len(run.records) == 1
    for run in everything
  ):
    axes['simulated'] = 'simulated seconds'
  curves = {
    name: [_curve(run) for run in runs] for name, runs in groups.items()
  }
  plots.draw_comparison(
    path,
    curves=curves,
    axes=axes,
    measure=everything[0].measure,
    target=target,
    maker=maker,
  )


def _curve(run: Run) -> dict[str, np.ndarray]:
  """Returns the measure of every test, and the costs up to it, each [tests]."""
  sent = np.cumsum(
    [r.get('bytes_down', 0) + r.get('bytes_up', 0) for r in run.records]
  )
  seconds = np.cumsum([r.get('simulated_seconds', 0.0) for r in run.records])
  tested = [
    i for i, r in enumerate(run.records) if run.measure.of(r) is not None
  ]
  return {
    'round': np.array([run.records[i]['round'] for i in tested]),
    'bytes': sent[tested],
    'simulated': seconds[tested],
    'value': np.array([run.measure.of(run.records[i]) for i in tested]),
  }
