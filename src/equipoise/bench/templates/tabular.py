"""A problem of your own on tabular data: rows of numbers, several things to tell of each.

It runs as it is, on made-up data. Put your own in where a comment says YOURS, and ask now and then

    equipoise check FILE.py:problem                 what is wrong with it, within seconds
    equipoise compare FILE.py:problem --quick       does everything work together?
    equipoise compare FILE.py:problem               which method serves its tasks best
"""

import torch
from torch import Tensor, nn

from equipoise.bench.problems import Classification, Problem, Regression, Splits, Tensors, Training

INPUTS = 12


class Mine(Problem):
    name = "mine"
    description = "is it sold, how soon, and for how much"  # YOURS: one line for tables and reports

    # YOURS: a task a thing to tell. The names are the keys of labels and predictions below. The first measure of a task
    # counts: accuracy of a Classification, mean squared error of a Regression. Another loss or measure: a subclass of
    # Task, see the guide "A problem of your own".
    tasks = (Classification("sold", classes=2), Regression("days"), Regression("price"))

    def data(self, quick: bool = False) -> Splits:
        # YOURS: read your table, for example by pandas.read_csv. Everything below must be the same at every call.
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(3000, INPUTS, generator=generator)
        hidden = (inputs @ torch.randn(INPUTS, 4, generator=generator)).tanh()
        sold = (hidden[:, 0] > 0).long()  # a class is an int64 from 0; -1 where it is not known
        days = 30 * hidden[:, 1].exp()  # a number is a float; NaN where it is not known
        price = 1000 * (hidden[:, 2] + hidden[:, 3]).exp()
        days[sold == 0] = float("nan")

        # YOURS: split by what must not be in two parts, such as a person or a day, and by rows where there is no such
        # thing.
        order = torch.randperm(3000, generator=generator)
        train, validation, test = order[: 500 if quick else 2000], order[2000:2500], order[2500:]

        # Standardise by the training part alone; a loss in euros squared would leave nothing to the others.
        inputs = (inputs - inputs[train].mean(0)) / inputs[train].std(0)
        days, price = ((y - y[train].nanmean()) / y[train][~y[train].isnan()].std() for y in (days, price))

        def part(rows: Tensor) -> Tensors:
            return Tensors(input=inputs[rows], sold=sold[rows], days=days[rows], price=price[rows])

        return Splits(part(train), part(validation), part(test))

    def model(self) -> nn.Module:
        return Network()

    def training(self, quick: bool = False) -> Training:
        return Training(epochs=3 if quick else 30, batch_size=64, lr=1e-3)


class Network(nn.Module):
    """What the tasks share, and a head for each. YOURS: any module whose output has a key a task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(INPUTS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.heads = nn.ModuleDict({"sold": nn.Linear(64, 2), "days": nn.Linear(64, 1), "price": nn.Linear(64, 1)})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.trunk(inputs)
        return {name: head(features) for name, head in self.heads.items()}


problem = Mine()
