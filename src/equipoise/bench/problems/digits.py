"""Two overlapping handwritten digits: name both, and their sum. Real scans, embedded, no download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection

from equipoise.bench.problems._base import Batch, Measure, Predictions, Problem, Splits, Task, Tensors, Training
from equipoise.bench.problems._splitting import split_by_class
from equipoise.bench.problems._tasks import Classification

SCANS = Path(__file__).with_name("data") / "_digits" / "digits.npz"
CANVAS = 12
SCAN = 8
EXAMPLES = {"train": 8000, "validation": 2000, "test": 4000}
QUICK = {"train": 2000, "validation": 500, "test": 1000}


class Digits(Problem):
    """Each example shows two of the 1,797 scans of 8×8 that `load_scans` returns, overlapping on one canvas.

    The left scan lies in the upper left corner of a 12×12 canvas, the right one in the lower right, and where
    they overlap the darker ink shows. The scans are split into train, validation and test (70, 15 and 15 %,
    classes in equal shares) before they are combined, so that no scan stands in two splits.

    Squared error of a sum between 0 and 18 is tens of times a cross-entropy: with equal weights `sum` decides
    where the trunk goes.

    Args:
        seed: decides the split of the scans and their pairs.
    """

    name = "digits"
    description = "two overlapping handwritten digits: name the left one, the right one, and tell their sum"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.tasks = (Classification("left", 10), Classification("right", 10), Sum())

    def data(self, quick: bool = False) -> Splits:
        """Returns 8,000, 2,000 and 4,000 examples; a quarter of that if `quick`."""
        scans, labels = load_scans()
        images = torch.from_numpy(scans.astype(np.float32)) / 16
        digits = torch.from_numpy(labels.astype(np.int64))
        generator = torch.Generator().manual_seed(self.seed)
        sizes = QUICK if quick else EXAMPLES
        return Splits(
            **{
                split: _pairs(images[indices], digits[indices], sizes[split], generator)
                for split, indices in split_scans(labels, self.seed).items()
            }
        )

    def model(self) -> nn.Module:
        """Returns a trunk of three convolutions and a dense layer, with a linear head per task."""
        return Network()

    def training(self, quick: bool = False) -> Training:
        """Returns 10 epochs at batch size 64 and a learning rate that falls from 3e-3; 3 epochs if `quick`."""
        return Training(
            epochs=3 if quick else 10, batch_size=64, evaluation_batch_size=1000, lr=3e-3, schedule="cosine"
        )

    def picture(self, predictions: Predictions, batch: Batch) -> Figure:
        """Draws ten examples with the truth and what was predicted."""
        figure = Figure(figsize=(10, 5.2), layout="constrained")
        left, right = predictions["left"].argmax(1), predictions["right"].argmax(1)
        for index, axes in enumerate(figure.subplots(2, 5).flat):
            axes.imshow(batch["input"][index, 0].numpy(force=True), cmap="gray_r", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(
                f"truth: {batch['left'][index]} and {batch['right'][index]}, sum {batch['sum'][index]:.0f}\n"
                f"network: {left[index]} and {right[index]}, sum {predictions['sum'][index].item():.1f}",
                fontsize=9,
            )
        return figure


class Sum(Task):
    """The two digits' sum, by squared error, unscaled. Its accuracy: how often the rounded sum is right."""

    name = "sum"
    measures = (
        Measure("MSE", higher_is_better=False),
        Measure("MAE", higher_is_better=False),
        Measure("right", higher_is_better=True, unit="%", scale=100, digits=1),
    )

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor:
        """Returns the mean squared error."""
        return functional.mse_loss(predictions["sum"], batch["sum"])

    def labels(self, batch: Batch) -> int:
        """Returns the number of samples."""
        return len(batch["sum"])

    def metrics(self) -> MetricCollection:
        """Returns mean squared error, mean absolute error and the share of rounded sums that are right."""
        return MetricCollection({"MSE": MeanSquaredError(), "MAE": MeanAbsoluteError(), "right": RoundedAccuracy()})

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds predictions and sums."""
        metrics.update(predictions["sum"], batch["sum"])

    def accuracy(self, values: Mapping[str, float]) -> float:
        """Returns the share of rounded sums that are right."""
        return values["right"]


class RoundedAccuracy(Metric):
    """Share of predictions that are right once rounded to the nearest whole number."""

    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Counts a batch."""
        self.right += (predictions.round() == labels).sum()
        self.total += labels.numel()

    def compute(self) -> Tensor:
        """Returns the share."""
        return self.right / self.total


class Network(nn.Module):
    """The trunk and a linear head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 5 * 5, 64),
            nn.ReLU(),
        )
        self.left = nn.Linear(64, 10)
        self.right = nn.Linear(64, 10)
        self.sum = nn.Linear(64, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Takes `[B, 1, 12, 12]`; gives logits `[B, 10]` for the digits and `[B]` for the sum."""
        features = self.trunk(images)
        return {
            "left": self.left(features),
            "right": self.right(features),
            "sum": self.sum(features).squeeze(1),
        }


def load_scans() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns 1,797 scanned digits `[N, 8, 8]` of 0 to 16, and what each shows, `[N]`.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    1998, the test set; under CC BY 4.0, shipped with this package.
    """
    with np.load(SCANS, allow_pickle=False) as file:
        return file["images"], file["labels"]


def split_scans(labels: NDArray[np.uint8], seed: int) -> dict[str, NDArray[np.int64]]:
    """Returns the indices of the scans in each split: of every class 70, 15 and 15 %, in random order."""
    return split_by_class(labels, seed, (0.7, 0.85))


def _pairs(images: Tensor, digits: Tensor, count: int, generator: torch.Generator) -> Tensors:
    """Draws `count` pairs of scans and lays each on a canvas, from corner to corner."""
    first, second = torch.randint(len(images), (2, count), generator=generator)
    canvas = torch.zeros(count, 1, CANVAS, CANVAS)
    canvas[:, 0, :SCAN, :SCAN] = images[first]
    canvas[:, 0, -SCAN:, -SCAN:] = torch.maximum(canvas[:, 0, -SCAN:, -SCAN:], images[second])
    left, right = digits[first], digits[second]
    return Tensors(input=canvas, left=left, right=right, sum=(left + right).float())
