"""Makes data sets of columns: inputs, labels and, if there are any, clients."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from fedavg_jax.core.client_data import Examples
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.suggest import did_you_mean
from fedavg_jax.data import forms
from fedavg_jax.data.dataset import Dataset


class Columns(NamedTuple):
  """Holds the names of columns and splits of a data set of another library.

  >>> import fedavg_jax as fa
  >>> fa.data.Columns(x='img', client='writer').y
  'label'

  Attributes:
    x: the column of the inputs.
    y: the column of the labels, numbers or texts.
    client: the column of the natural clients, numbers or texts; '' is none.
    train: the split of the training examples.
    test: the split of the test set; or, without one, the fraction of the
      training examples to draw for it, in (0, 1).
  """

  x: str = 'image'
  y: str = 'label'
  client: str = ''
  train: str = 'train'
  test: str | float = 'test'

  @property
  def names(self) -> list[str]:
    """Returns the names of the columns to read."""
    return [name for name in (self.x, self.y, self.client) if name]

  @property
  def splits(self) -> list[str]:
    """Returns the names of the splits to read, that of training first."""
    return [self.train, *([self.test] if isinstance(self.test, str) else [])]


class Table(NamedTuple):
  """Holds the columns of a split.

  Attributes:
    columns: name -> the value of each row, [n].
    classes: the names of the labels, in their order; () if unknown.
  """

  columns: Mapping[str, Sequence[Any]]
  classes: Sequence[str] = ()


def check(
  options: Mapping[str, Any], where: str = 'options.dataset'
) -> Columns:
  """Makes columns of the options of a config, or of `Columns._asdict`.

  Args:
    options: field of `Columns` -> its value; others have their defaults.
    where: the name of the options in messages.

  Raises:
    InputError: an option is unknown, or has another type, or training and test
      set are the same split.

  >>> check({'x': 'img', 'test': 0.2}).test
  0.2
  """
  for key, value in options.items():
    if key not in Columns._fields:
      raise InputError(
        f'{where}.{key}: must be one of {", ".join(Columns._fields)}'
        f'{did_you_mean(key, Columns._fields)}'
      )
    if isinstance(value, str) and (value or key == 'client'):
      continue
    if key != 'test' or not isinstance(value, float) or not 0 < value < 1:
      also = ', or a fraction in (0, 1)' if key == 'test' else ''
      raise InputError(f'{where}.{key} = {value!r}: must be a name{also}')
  columns = Columns(**options)
  if columns.train == columns.test:
    raise InputError(
      f'{where}.test = {columns.test!r}: is the split of training too; must be'
      ' another, or a fraction in (0, 1)'
    )
  return columns


def check_names(
  name: str, what: str, wanted: Sequence[str], known: Sequence[str]
) -> None:
  """Raises InputError where columns, or splits, do not exist.

  Args:
    name: the name of the data set.
    what: the word for them in the message.
    wanted: the names to find.
    known: the names that exist.
  """
  for one in wanted:
    if one not in known:
      raise InputError(
        f'dataset = {name!r}: has no {what} {one}; must be one of'
        f' {", ".join(known)}{did_you_mean(one, known)}; see'
        ' config.options.dataset'
      )


def to_dataset(
  name: str, columns: Columns, train: Table, test: Table | None
) -> Dataset:
  """Makes a data set of the columns of its splits.

  Args:
    name: the name of the data set, in messages too.
    columns: the names of the columns.
    train: the training examples.
    test: the test set; None draws `columns.test` of the training examples.

  Raises:
    InputError: a column cannot be converted by `forms.form`, a label or client
      is missing, or a test label does not occur in training.
  """
  where = f'dataset = {name!r}'
  _check_complete(f'{where}: train', train, (columns.y, columns.client))
  if test is not None:
    _check_complete(f'{where}: test', test, (columns.y,))
  classes = tuple(train.classes) or _texts(train.columns[columns.y])
  formed = _form(f'{where}: train', columns, train, classes)
  owners, ids = None, ()
  if columns.client:
    values = np.array([_text(v) for v in train.columns[columns.client]])
    ids, owners = np.unique(values, return_inverse=True)
    owners = owners.astype(np.int32)
  if test is None:
    number = len(formed.examples.y)
    order = np.random.default_rng(0).permutation(number)
    first = max(int(number * float(columns.test)), 1)
    rows, others = np.sort(order[:first]), np.sort(order[first:])
    if not others.size:
      raise InputError(f'{where}: has too few examples to draw a test set of')
    tested = Examples(formed.examples.x[rows], formed.examples.y[rows])
    trained = Examples(formed.examples.x[others], formed.examples.y[others])
    owners = None if owners is None else owners[others]
  else:
    trained = formed.examples
    of_test = _form(f'{where}: test', columns, test, classes)
    forms.check_scale(formed.max_value, of_test.max_value, f'{where}: train')
    tested = of_test.examples
    if tested.x.shape[1:] != trained.x.shape[1:]:
      raise InputError(
        f'{where}: {columns.x} has the shape {list(trained.x.shape[1:])} in'
        f' training, {list(tested.x.shape[1:])} in the test set; must be equal'
      )
  largest = max(int(part.y.max(initial=0)) for part in (trained, tested))
  return Dataset(
    name,
    trained,
    tested,
    num_classes=max(len(classes), largest + 1),
    max_value=formed.max_value,
    owners=owners,
    client_names=tuple(map(str, ids)),
    classes=classes,
  )


def _form(
  where: str, columns: Columns, table: Table, classes: Sequence[str]
) -> forms.Formed:
  """Converts the inputs and labels of a split."""
  x, y = table.columns[columns.x], table.columns[columns.y]
  if not len(x):
    raise InputError(f'{where}: must have at least one example')
  shapes = {np.shape(value) for value in x}
  if len(shapes) > 1:
    raise InputError(
      f'{where}: {columns.x} has the shapes'
      f' {", ".join(map(str, sorted(shapes)[:3]))}; must be equal'
    )
  if _texts(y):
    numbers = {text: number for number, text in enumerate(classes)}
    texts = [_text(value) for value in y]
    for text in texts:
      if text not in numbers:
        raise InputError(
          f'{where}: {columns.y} has {text!r}, which is no label in training'
        )
    y = [numbers[text] for text in texts]
  return forms.form(np.stack([np.asarray(v) for v in x]), np.asarray(y), where)


def _check_complete(where: str, table: Table, names: Sequence[str]) -> None:
  """Raises InputError where a label or a client is missing."""
  for name in filter(None, names):
    for row, value in enumerate(table.columns[name]):
      if _is_missing(value):
        raise InputError(
          f'{where}: {name} is missing in row {row} (the first is row 0); must'
          ' have a value in every row'
        )


def _is_missing(value: Any) -> bool:
  """Returns whether a value is null; NaN stands for null among numbers."""
  if isinstance(value, np.ndarray):
    return not value.ndim and _is_missing(value[()])
  return value is None or value != value


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
  """Returns the sorted different texts of a column; () if it has numbers."""
  if not len(values) or not isinstance(values[0], (str, bytes)):
    return ()
  return tuple(sorted({_text(value) for value in values}))


def _text(value: Any) -> Any:
  """Returns bytes, which tensorflow-datasets has for texts, as a text."""
  return value.decode(errors='replace') if isinstance(value, bytes) else value
