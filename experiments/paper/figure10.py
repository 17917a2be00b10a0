"""Reproduces Figure 10: next words, test accuracy per round, also with E = 5.

What the paper claims: FedAvg's accuracy varies less from round to round than
FedSGD's, and E = 5 is slightly worse than E = 1.

What to look for: the noise of the curves, and the order of E = 1 and E = 5.

python -m experiments.paper.figure10 --data FOLDER --cells 9-12 --rounds 50

The data are as in Figure 5, whose runs are drawn again here.
"""

from experiments.paper import figure5
from experiments.paper import figures


def panels() -> list[figures.Panel]:
  """Returns one panel with twelve curves."""
  settings = (*figure5.SETTINGS, ('FedAvg', 5, 8, (3.0, 6.0, 9.0, 18.0)))
  return [
    figures.Panel(
      title='next word, 200 clients per round',
      curves=figure5.curves('figure 10', settings, tuned=False),
      x=('communication rounds', 0, 1000),
      y=('test accuracy', 0.0, 0.15),
      paper='fig10_word_lstm_raw.csv',
    )
  ]


if __name__ == '__main__':
  figures.main('figure10', __doc__, panels)
