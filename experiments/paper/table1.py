"""Table 1: the fraction C of clients in a round; 2NN to 97 %, CNN to 99 %.

What the paper claims: with B = inf more clients a round help little; with
B = 10 they help, most of all where clients hold two digits, and C = 0.1 is a
good bargain between rounds and work.

What to look for: down a block of five rows, C = 0, 0.1, 0.2, 0.5, 1, how fast
the numbers stop falling. C = 0 is one client a round: it varies most from seed
to seed. The paper's five dashes were not reached in the time it allowed.

python -m experiments.paper.table1 --cells 7-10
python -m experiments.paper.table1 --cells 1-20 --minutes 60

The 2NN cells (1 to 20) with C >= 0.1 take two CPU cores about an hour with five
learning rates, the CNN cells (21 to 40) days; each cell's time is printed.
"""

from experiments.paper import cells
from experiments.paper import tables


def table() -> list[cells.Cell]:
  """The 40 cells, the 2NN first."""
  return cells.of_table(
    1, lambda cell: {'rounds': 2 * (cell.paper_rounds or 1000)}
  )


if __name__ == '__main__':
  tables.main('table1', __doc__, table)
