"""Lists all cells of the gallery, the cheapest source first."""

from collections.abc import Sequence
import fnmatch

from experiments.gallery import fedprox_mnist
from experiments.gallery import fedprox_synthetic
from experiments.gallery import flower_mnist
from experiments.gallery import flute
from experiments.gallery import niid_bench
from experiments.gallery import pfl_cifar10
from experiments.gallery.cell import Cell
from experiments.gallery.cell import Source
import fedavg_jax as fa
from fedavg_jax.core.suggest import did_you_mean

CELLS: tuple[Cell, ...] = (
  *fedprox_synthetic.CELLS,
  *fedprox_mnist.CELLS,
  *flute.CELLS,
  *niid_bench.CELLS,
  *pfl_cifar10.CELLS,
  *flower_mnist.CELLS,
)


def sources() -> tuple[Source, ...]:
  """Returns the sources of all cells, in their order."""
  return tuple(dict.fromkeys(cell.source for cell in CELLS))


def of(source: Source) -> tuple[Cell, ...]:
  """Returns the cells of a source, in their order."""
  return tuple(cell for cell in CELLS if cell.source == source)


def named(text: str, cells: Sequence[Cell] = CELLS) -> list[Cell]:
  """Returns the cells of names such as 'flute,niid_bench/mnist/*/fedavg'.

  A name may be that of a cell, its beginning up to a slash, or a pattern.

  Raises:
    InputError: no cell has the name.
  """
  found: list[Cell] = []
  for word in text.split(','):
    hits = [
      cell
      for cell in cells
      if fnmatch.fnmatchcase(cell.name, word)
      or cell.name.startswith(f'{word.rstrip("/")}/')
    ]
    if not hits:
      hint = did_you_mean(word, [cell.name for cell in cells])
      raise fa.InputError(
        f'--run {word}: no cell has this name{hint}; --list shows all'
      )
    found += hits
  return list({cell.name: cell for cell in found}.values())
