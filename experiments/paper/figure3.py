"""Reproduces Figure 3: many local epochs, training loss on Shakespeare.

What the paper claims: with E up to 200 and a learning rate of 1.47, averaging
can plateau or diverge: more local work is not always better.

What to look for: E = 5 overtakes E = 1 within a few rounds; with E = 25 and
above the loss falls at once, then rises again or stagnates.

python -m experiments.paper.figure3 --cells 1-2 --rounds 10

The paper's loss seems to be the sum over a line's characters divided by the 80
positions of a line, and ours is scaled in the same way. On two CPU cores a
round takes 10 s with E = 1 (50 s with E = 5, and so on), and the loss of all
training lines 40 s.
"""

from experiments.paper import cells
from experiments.paper import figures

_RATE = 1.47
# Fraction of the 80 positions of the eBook's 85,978 training lines that have a
# label.
_FILLED = 3_443_085 / (85_978 * 80)


def panels() -> list[figures.Panel]:
  """Returns two panels: IID and by role."""
  found = []
  for title, partition in (('IID', 'iid'), ('by role', 'noniid')):
    curves = [
      figures.Curve(
        label=f'E = {epochs}',
        cell=cells.Cell(
          table='figure 3',
          model='char_lstm',
          dataset='shakespeare',
          partition=partition,
          C=0.1,
          E=epochs,
          B=10,
          algorithm='FedAvg',
          target_accuracy=0.0,
          rounds=60,
          measured='train',
          learning_rate=_RATE,
        ),
        paper=f'E={epochs}',
      )
      for epochs in (1, 5, 25, 50, 100, 200)
    ]
    found.append(
      figures.Panel(
        title=f'Shakespeare, {title}, lr = {_RATE}',
        curves=curves,
        x=('communication rounds', 0, 60),
        y=('training loss', 0.8, 2.2),
        paper=f'fig3_shakespeare_{partition}.csv',
        loss=True,
        loss_scale=_FILLED,
      )
    )
  return found


if __name__ == '__main__':
  figures.main('figure3', __doc__, panels)
