"""Figure 3: many local epochs, Shakespeare's training loss, one learning rate.

What the paper claims: with E up to 200 and the rate 1.47 throughout, averaging
can plateau or diverge: more local work is not always better.

What to look for: E = 5 overtakes E = 1 within a few rounds; E = 25 and above
fall at once, then rise again or stand still.

python -m experiments.paper.figure3 --cells 1-2 --rounds 10

The paper's loss is on the scale of a minibatch's: a line's characters over the
80 positions that it could have. Two CPU cores take 10 s a round with E = 1 (50
with E = 5, and so on) and 40 s to compute the loss of all training lines.
"""

from experiments.paper import cells
from experiments.paper import figures

_RATE = 1.47
# Labels of the eBook's 85,978 training lines over their 80 positions.
_FILLED = 3_443_085 / (85_978 * 80)


def panels() -> list[figures.Panel]:
  """IID and by role."""
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
