"""Reproduces Figure 8: many local epochs, training loss of the MNIST CNN.

What the paper claims: unlike on Shakespeare (Figure 3), large E does not make
training diverge, though above some E nothing is gained.

What to look for: after the same number of rounds E = 100 is little better than
E = 25; with the non-IID partition the loss stays higher for large E.

python -m experiments.paper.figure8 --cells 1-2 --rounds 20

The learning rates are the paper's: 0.215 IID, 0.1 non-IID, B = 10. On two CPU
cores a round takes 1.2 s for each epoch, and the loss of all 60,000 training
images 6 s.
"""

from experiments.paper import cells
from experiments.paper import figures


def panels() -> list[figures.Panel]:
  """Returns two panels: IID and non-IID."""
  found = []
  for title, partition, rate, floor in (
    ('IID', 'iid', 0.215, 1e-3),
    ('non-IID', 'noniid', 0.1, 1e-2),
  ):
    read = figures.read_paper(f'fig8_mnist_cnn_{partition}_eta{rate}.csv')
    curves = []
    for epochs in (1, 5, 25, 50, 100, 200, 400):
      name = f'E={epochs}'
      cell = cells.Cell(
        table='figure 8',
        model='cnn',
        dataset='mnist',
        partition=partition,
        C=0.1,
        E=epochs,
        B=10,
        algorithm='FedAvg',
        target_accuracy=0.0,
        rounds=100,
        measured='train',
        learning_rate=rate,
      )
      curves.append(
        figures.Curve(
          label=f'E = {epochs}', cell=cell, paper=name if name in read else ''
        )
      )
    found.append(
      figures.Panel(
        title=f'MNIST CNN, {title}, lr = {rate}',
        curves=curves,
        x=('communication rounds', 0, 100),
        y=('training loss', floor, 1.0),
        paper=f'fig8_mnist_cnn_{partition}_eta{rate}.csv',
        loss=True,
      )
    )
  return found


if __name__ == '__main__':
  figures.main('figure8', __doc__, panels)
