"""Reproduces Table 2: local computation; CNN to 99 %, LSTM to 54 %.

What the paper claims: more local updates u per round need fewer rounds, by a
factor of 35 with IID clients and of 3 with two digits per client. With natural
clients, the roles of Shakespeare's plays, the factor is even 95, larger than
for an IID partition of the same lines.

What to look for: the gap between the partitions, and its reversal for
Shakespeare. The CNN with B = inf and two digits per client barely reaches 99 %.

python -m experiments.paper.table2 --cells 5
python -m experiments.paper.table2 --cells 1-9 --seeds 0,1,2 --minutes 30

Cells 1 to 18 are the CNN's (minutes to days on two CPU cores), 19 to 30 the
LSTM's (days; meant for a GPU); each cell's time is printed.
"""

from experiments.paper import cells
from experiments.paper import tables


def table() -> list[cells.Cell]:
  """Returns the 30 cells: CNN IID and non-IID, LSTM IID and by role."""
  return cells.of_table(
    2, lambda cell: {'rounds': 2 * (cell.paper_rounds or 0) + 50}
  )


if __name__ == '__main__':
  tables.main('table2', __doc__, table)
