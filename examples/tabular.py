"""A problem of one's own, on tabular data.

Compare the methods on it: equipoise compare examples/tabular.py:problem

scikit-learn's wines, from a chemical analysis: which of three cultivars is it, and what are its alcohol content and
its colour intensity? The three tasks share two layers. Some labels are missing, as they often are.
"""

import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn

from equipoise.bench.problems import Classification, Problem, Regression, Splits, Tensors, Training

ASKED = ("alcohol", "color_intensity")


class Wine(Problem):
    name = "wine"
    description = "a wine's cultivar, alcohol content and colour intensity from the rest of its chemical analysis"
    tasks = (Classification("cultivar", classes=3), Regression("alcohol"), Regression("color_intensity"))

    def data(self, quick: bool = False) -> Splits:
        table = load_wine(as_frame=True).frame.sample(frac=1, random_state=0)  # the same split for every seed
        train, validation, test = slice(0, 98), slice(98, 138), slice(138, None)
        cultivar = torch.tensor(table.pop("target").to_numpy())
        numbers = (table - table[train].mean()) / table[train].std()
        numbers.iloc[0:98:5, numbers.columns.get_loc("alcohol")] = float("nan")  # a fifth is not known in training
        asked = {name: torch.tensor(numbers.pop(name).to_numpy(), dtype=torch.float32) for name in ASKED}
        inputs = torch.tensor(numbers.to_numpy(), dtype=torch.float32)

        def split(rows: slice) -> Tensors:
            labels = {name: values[rows] for name, values in asked.items()}
            return Tensors(input=inputs[rows], cultivar=cultivar[rows], **labels)

        return Splits(split(train), split(validation), split(test))

    def model(self) -> nn.Module:
        return Network()

    def training(self, quick: bool = False) -> Training:
        return Training(epochs=5 if quick else 30, batch_size=16, schedule="cosine")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(11, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.heads = nn.ModuleDict({"cultivar": nn.Linear(64, 3), **{name: nn.Linear(64, 1) for name in ASKED}})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.trunk(inputs)
        return {name: head(features) for name, head in self.heads.items()}


problem = Wine()
