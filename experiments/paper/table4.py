"""Table 4: local computation in the 2NN, C = 0.1, rounds to 97 %.

What the paper claims: the more local updates u = 600 E / B a client takes per
round, the fewer rounds of communication are needed, up to 46 times fewer with
IID clients; with two digits a client the gain shrinks to 2 to 4 times.

What to look for: the order of the rows and the gap between the two partitions.
The numbers themselves are lower than the paper's throughout, because of other
initial weights and of a test after every round (the last column tests when the
paper does).

python -m experiments.paper.table4 --cells 1
python -m experiments.paper.table4 --seeds 0,1,2 --minutes 30

A cell takes two CPU cores 5 s to 30 minutes with five learning rates, the whole
table two hours; a GPU was not tried.
"""

from experiments.paper import cells
from experiments.paper import tables


def table() -> list[cells.Cell]:
  """The 18 cells of the appendix."""
  return cells.of_table(
    4, lambda cell: {'rounds': 2 * (cell.paper_rounds or 0) + 100}
  )


if __name__ == '__main__':
  tables.main('table4', __doc__, table)
