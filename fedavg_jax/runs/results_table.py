"""Formats the statistics of settings as CSV, Markdown and LaTeX."""

from collections.abc import Callable
from collections.abc import Sequence
import csv
import io
from typing import Any

from fedavg_jax.runs.compare import amount
from fedavg_jax.runs.seed_statistics import Columns
from fedavg_jax.runs.seed_statistics import Moments
from fedavg_jax.runs.seed_statistics import Setting
from fedavg_jax.runs.targets import Measure

_NONE, _MINUS = '—', '−'
_LATEX = {
  **{'\\': r'\textbackslash{}', '~': r'\textasciitilde{}'},
  **{'^': r'\textasciicircum{}', '±': r'$\pm$', _NONE: '--', _MINUS: '$-$'},
  **{character: f'\\{character}' for character in '&%$#_{}'},
}


def to_csv(
  rows: Sequence[Setting], target: float, measure: Measure, chosen: str = ''
) -> str:
  """Returns all statistics, one line per setting; what is unknown is empty.

  Args:
    rows: the settings.
    target: the value to which rounds, bytes and seconds count; 0 is none.
    measure: the measure of their runs.
    chosen: the name of the setting that was chosen; '' is none.
  """
  names = _names(measure)
  head = ['setting', 'seeds', 'diverged', 'chosen', 'target', 'reached']
  for name in names:
    head += [f'{name}_mean', f'{name}_std']
  for name in names:
    head += [f'{name}_difference_{what}' for what in Moments._fields]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(head)
  for row in rows:
    line: list[Any] = [
      row.name,
      row.seeds,
      row.diverged,
      int(row.name == chosen),
    ]
    line += [target, row.reached] if target else ['', '']
    for found in row.moments:
      line += found[:2] if found else ['', '']
    for found in row.differences:
      line += found or ['', '', '']
    writer.writerow(line)
  return text.getvalue()


def to_markdown(
  rows: Sequence[Setting], target: float, measure: Measure, chosen: str = ''
) -> str:
  """Returns the table in Markdown; the arguments are those of `to_csv`."""
  head, *lines = _cells(rows, target, measure)
  for row, line in zip(rows, lines, strict=True):
    if row.name == chosen:
      line[0] = f'**{line[0]}**'
  table = [head, ['---', *['---:'] * (len(head) - 1)], *lines]
  text = '\n'.join('| ' + ' | '.join(line) + ' |' for line in table)
  return f'{text}\n\n{_note(rows)}\n'


def to_latex(
  rows: Sequence[Setting], target: float, measure: Measure, chosen: str = ''
) -> str:
  """Returns the table in LaTeX, for the package booktabs, as `to_csv`."""
  head, *lines = [
    [_escape(cell) for cell in line] for line in _cells(rows, target, measure)
  ]
  for row, line in zip(rows, lines, strict=True):
    if row.name == chosen:
      line[0] = f'\\textbf{{{line[0]}}}'
  return '\n'.join(
    [
      f'% {_note(rows)} Needs \\usepackage{{booktabs}}.',
      f'\\begin{{tabular}}{{l{"r" * (len(head) - 1)}}}',
      '\\toprule',
      ' & '.join(head) + r' \\',
      '\\midrule',
      *(' & '.join(line) + r' \\' for line in lines),
      '\\bottomrule',
      '\\end{tabular}',
      '',
    ]
  )


FORMATS: dict[str, Callable[..., str]] = {
  '.csv': to_csv,
  '.md': to_markdown,
  '.tex': to_latex,
}


def _names(measure: Measure) -> Columns[str]:
  """Returns the names of the columns in a CSV."""
  return Columns(
    final=f'final_test_{measure.name}',
    best=f'best_{measure.key}',
    rounds='rounds_to_target',
    bytes='bytes_to_target',
    seconds='simulated_seconds_to_target',
  )


def _cells(
  rows: Sequence[Setting], target: float, measure: Measure
) -> list[list[str]]:
  """Returns the head and the lines of a table; columns without values go."""
  titles = Columns(
    final=f'final test {measure.name}',
    best=f'best {measure.on} {measure.name}',
    rounds=f'rounds to {target:g}',
    bytes=f'sent to {target:g}',
    seconds=f'simulated s to {target:g}',
  )
  shows = Columns(
    measure.show, measure.show, '{:.4g}'.format, amount, '{:.4g}'.format
  )
  table = [['setting', *(row.name for row in rows)]]
  table.append(['seeds', *(f'{row.seeds}' for row in rows)])
  for i, (title, show) in enumerate(zip(titles, shows, strict=True)):
    found = [row.moments[i] for row in rows]
    if any(found):
      table.append([title, *(cell(one, show) for one in found)])
  if target:
    table.append(['reached by', *(f'{row.reached}' for row in rows)])
  for name, show in (
    ('final', measure.show),
    ('best', measure.show),
    ('rounds', '{:.4g}'.format),
  ):
    found = [getattr(row.differences, name) for row in rows]
    if any(found):
      title = f'difference of {name}'
      table.append([title, *(_difference(one, show) for one in found)])
      break  # The best where no run has a final test, or else the rounds.
  if any(row.diverged for row in rows):
    table.append(['diverged', *(f'{row.diverged}' for row in rows)])
  return [list(line) for line in zip(*table, strict=True)]


def cell(found: Moments | None, show: Callable[[float], str]) -> str:
  """Returns 'mean ± std', or the mean alone."""
  if found is None:
    return _NONE
  if found.std is None:
    return show(found.mean)
  return f'{show(found.mean)} ± {show(found.std)}'


def _difference(found: Moments | None, show: Callable[[float], str]) -> str:
  """Returns a mean with its sign, the standard deviation, and n."""
  if found is None:
    return _NONE
  sign = _MINUS if found.mean < 0 else '+'
  shown = found._replace(mean=abs(found.mean))
  return f'{sign}{cell(shown, show)} (n = {found.n})'


def _note(rows: Sequence[Setting]) -> str:
  """Returns what the numbers of a table are."""
  note = 'Mean ± standard deviation over seeds, if every seed has the value'
  if len(rows) > 1:
    note += (
      f'; difference to {rows[0].name}, seed by seed, if every seed that both'
      ' have run has the value'
    )
  if any(row.stopped for row in rows):
    note += (
      '; no final and best values, because runs ended when they reached their'
      ' target, after different rounds'
    )
  return f'{note}.'


def _escape(text: str) -> str:
  """Returns a text as LaTeX writes it."""
  return ''.join(_LATEX.get(character, character) for character in text)
