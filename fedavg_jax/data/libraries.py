"""Reads data sets of other libraries, each imported when it is used.

* `hf:NAME`: Hugging Face datasets, from a folder of `save_to_disk`, or by its
  name, from the cache or the Hub.
* `tfds:NAME`: tensorflow-datasets, which must be prepared as array_record; rows
  are read by their numbers, without TensorFlow.
* `parquet`: a folder with files SPLIT.parquet or SPLIT-*.parquet, through
  pyarrow.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import pathlib
from typing import Any

import numpy as np

from fedavg_jax.core import optional
from fedavg_jax.core.errors import InputError
from fedavg_jax.core.folders import entries
from fedavg_jax.data import tables
from fedavg_jax.data.dataset import Dataset
from fedavg_jax.data.tables import Columns
from fedavg_jax.data.tables import Table


def load(
  name: str,
  folder: pathlib.Path | None,
  columns: Columns = Columns(),  # noqa: B008
) -> Dataset:
  """Loads a data set of another library.

  Args:
    name: a name that `choices.is_of_library` accepts.
    folder: the folder of the data, or of the library's cache; None for the
      library's own.
    columns: the names of columns and splits.

  Raises:
    InputError: the library is not installed, or does not find the data, or a
      column cannot be used.
  """
  columns = tables.check(columns._asdict(), 'columns')
  library, _, own = name.partition(':')
  open_split = {'hf': _hugging_face, 'tfds': _tfds, 'parquet': _parquet}[
    library
  ](name, own, folder, columns)
  with _one_line(name):
    split = [open_split(split) for split in columns.splits]
  return tables.to_dataset(name, columns, split[0], (*split[1:], None)[0])


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
  """Turns any error of a library into an InputError of one line."""
  try:
    yield
  except (InputError, MemoryError):
    raise
  except Exception as error:  # Each library has its own.
    text = ' '.join(str(error).split())[:160]
    raise InputError(
      f'dataset = {name!r}: cannot be read ({type(error).__name__}: {text})'
    ) from error


def _hugging_face(
  name: str, own: str, folder: pathlib.Path | None, columns: Columns
) -> Callable[[str], Table]:
  """Opens a data set of Hugging Face; one saved without splits is `train`."""
  if folder and not folder.is_dir():
    raise InputError(f'data_dir = {str(folder)!r}: must be a folder')
  library = optional.load('datasets', f'dataset = {name!r}', "'fedavg_jax[hf]'")
  with _one_line(name):
    if folder and (folder / 'dataset_dict.json').is_file():
      found = library.load_from_disk(str(folder))
    elif folder and (folder / 'state.json').is_file():
      found = {'train': library.load_from_disk(str(folder))}
    else:
      found = library.load_dataset(own, cache_dir=folder and str(folder))
  tables.check_names(name, 'split', columns.splits, list(found))

  def read(split: str) -> Table:
    rows = found[split]
    tables.check_names(name, 'column', columns.names, rows.column_names)
    label = rows.features[columns.y]
    return Table(
      {
        column: [
          value if isinstance(value, str) else np.asarray(value)
          for value in rows[column]
        ]
        for column in columns.names
      },
      getattr(label, 'names', None) or (),
    )

  return read


def _tfds(
  name: str, own: str, folder: pathlib.Path | None, columns: Columns
) -> Callable[[str], Table]:
  """Opens a prepared data set of tensorflow-datasets."""
  import tensorflow_datasets as library

  with _one_line(name):
    builder: Any = library.builder(own, data_dir=folder and str(folder))
    info = builder.info
    known = list(info.splits)
    if not known:
      raise InputError(
        f'dataset = {name!r}: is not prepared in {builder.data_dir}; prepare it'
        " with file_format='array_record', or set data_dir"
      )
  tables.check_names(name, 'split', columns.splits, known)
  tables.check_names(name, 'column', columns.names, list(info.features))

  def read(split: str) -> Table:
    rows = builder.as_data_source(split)
    found = [rows[i] for i in range(len(rows))]
    return Table(
      {column: [row[column] for row in found] for column in columns.names},
      getattr(info.features[columns.y], 'names', None) or (),
    )

  return read


def _parquet(
  name: str, own: str, folder: pathlib.Path | None, columns: Columns
) -> Callable[[str], Table]:
  """Opens a folder of Parquet files."""
  del own
  parquet = optional.load('pyarrow.parquet', f'dataset = {name!r}', 'pyarrow')
  if folder is None or not folder.is_dir():
    raise InputError(
      f'data_dir = {str(folder or "")!r}: must be a folder of Parquet files'
    )
  files = [path for path in entries(folder) if path.suffix == '.parquet']
  known = sorted({path.stem.partition('-')[0] for path in files})
  tables.check_names(name, 'split', columns.splits, known)

  def read(split: str) -> Table:
    paths = [path for path in files if path.stem.partition('-')[0] == split]
    parts = []
    for path in paths:
      schema = parquet.read_schema(path)
      tables.check_names(name, 'column', columns.names, schema.names)
      _check_types(name, columns.names, schema)
      parts.append(parquet.read_table(path, columns=columns.names))
    return Table(
      {
        column: [row for part in parts for row in _rows(part[column])]
        for column in columns.names
      }
    )

  return read


def _check_types(name: str, columns: list[str], schema: Any) -> None:
  """Raises InputError where a column has structs, such as encoded images."""
  for column in columns:
    kind = str(schema.field(column).type)
    if 'struct<' in kind:
      raise InputError(
        f'dataset = {name!r}: column {column} is of type {kind}; must be'
        ' numbers, texts, or lists of them'
      )


def _rows(column: Any) -> list[Any]:
  """Returns the rows of a column of Arrow: numbers, texts or arrays."""
  rows = column.to_numpy()  # Of lists: an array of arrays.
  if rows.dtype == object and len(rows) and isinstance(rows[0], np.ndarray):
    return [np.stack(list(row)) if row.dtype == object else row for row in rows]
  return list(rows)
