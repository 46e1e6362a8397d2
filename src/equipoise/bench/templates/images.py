"""A problem of your own on images: several things to tell of each picture.

It runs as it is, on made-up pictures. Put your own in where a comment says YOURS, and ask now and then

    equipoise check FILE.py:problem                 what is wrong with it, within seconds
    equipoise compare FILE.py:problem --quick       does everything work together?
    equipoise compare FILE.py:problem               which method serves its tasks best
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from equipoise.bench.problems import Classification, Problem, Regression, Splits, Training

SIZE = 24


class Pictures(Dataset[dict[str, Tensor]]):
    """YOURS: an item is a mapping with the network's input and a label a task, read from a file as it is asked for."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.first + index)  # made up: a square, or a disc, on noise
        radius = torch.randint(4, 9, (), generator=generator)
        row, column = torch.randint(8, SIZE - 8, (2,), generator=generator)
        shape = torch.randint(2, (), generator=generator)
        y, x = torch.arange(SIZE)[:, None] - row, torch.arange(SIZE)[None] - column
        inside = torch.maximum(y.abs(), x.abs()) <= radius if shape == 0 else y**2 + x**2 <= radius**2
        picture = 0.3 * torch.randn(3, SIZE, SIZE, generator=generator) + inside
        return {
            "input": picture,
            "shape": shape,  # a class is an int64 from 0; -1 where it is not known
            "size": radius.float() / 4,  # a number is a float; NaN where it is not known
            "place": (row + column).float() / SIZE,
        }


class Mine(Problem):
    name = "mine"
    description = "what shape it is, how large and where"  # YOURS: one line for tables and reports

    # YOURS: a task a thing to tell. The names are the keys of labels and predictions. The first measure of a task
    # counts: accuracy of a Classification, mean squared error of a Regression. Another loss or measure, a label a
    # pixel: a subclass of Task, see the guide "A problem of your own".
    tasks = (Classification("shape", classes=2), Regression("size"), Regression("place"))

    def data(self, quick: bool = False) -> Splits:
        # YOURS: no picture, nor two of the same thing, may be in two of the three. The same at every call.
        train = 500 if quick else 2000
        return Splits(Pictures(0, train), Pictures(10_000, 500), Pictures(20_000, 500))

    def model(self) -> nn.Module:
        return Network()

    def training(self, quick: bool = False) -> Training:
        return Training(epochs=3 if quick else 20, batch_size=64, lr=1e-3)


class Network(nn.Module):
    """What the tasks share, and a head for each. YOURS: any backbone, for example timm's, with a key a task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 64),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({"shape": nn.Linear(64, 2), "size": nn.Linear(64, 1), "place": nn.Linear(64, 1)})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.trunk(inputs)
        return {name: head(features) for name, head in self.heads.items()}


problem = Mine()
