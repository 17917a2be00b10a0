"""Reproduces Figure 5: next words, best accuracy so far, 200 clients per round.

What the paper claims: FedAvg (E = 1, B = 8) needs 35 rounds to 10.5 %, FedSGD
820, on the posts of half a million authors.

What to look for: the number of rounds between the two algorithms. The paper's
posts are private: with other texts the accuracies will differ.

python -m experiments.paper.figure5 --data FOLDER --cells 6 --rounds 50

FOLDER/words is a folder with a file NAME.txt for every author, or a file of
JSON lines with `author` and `text`. The model has five million parameters: a
client takes about 1 s on two CPU cores.
"""

import math

from experiments.paper import cells
from experiments.paper import figures

SETTINGS = (
  ('FedSGD', 1, math.inf, (6.0, 9.0, 18.0, 22.0)),
  ('FedAvg', 1, 8, (3.0, 6.0, 9.0, 18.0)),
)


def curves(table: str, settings, *, tuned: bool) -> list[figures.Curve]:
  """Returns a curve for every setting and learning rate.

  Args:
    table: the name of the figure, such as 'figure 5'.
    settings: (algorithm, E, B, learning rates) of each setting.
    tuned: whether the curves are monotone envelopes.
  """
  found = []
  for algorithm, epochs, batch, rates in settings:
    for rate in rates:
      cell = cells.Cell(
        table=table,
        model='word_lstm',
        dataset='words',
        partition='noniid',
        C=0.0,
        E=epochs,
        B=batch,
        algorithm=algorithm,
        target_accuracy=0.0,
        rounds=1000,
        cohort=200,
        learning_rate=rate,
      )
      name = f'{algorithm} eta={rate}'
      if algorithm == 'FedAvg':
        name = f'{algorithm} E={epochs} eta={rate}'
      found.append(
        figures.Curve(label=name, cell=cell, paper=name, tuned=tuned)
      )
  return found


def panels() -> list[figures.Panel]:
  """Returns one panel with eight monotone curves."""
  return [
    figures.Panel(
      title='next word, 200 clients per round',
      curves=curves('figure 5', SETTINGS, tuned=True),
      x=('communication rounds', 0, 1000),
      y=('best test accuracy so far', 0.0, 0.15),
      paper='fig5_word_lstm_monotonic.csv',
      target=0.105,
    )
  ]


if __name__ == '__main__':
  figures.main('figure5', __doc__, panels)
