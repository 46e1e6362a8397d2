"""Forty yes-or-no questions about two overlapping handwritten digits: CelebA's shape, embedded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score

from equipoise.bench.problems._base import (
    Batch,
    MapDataset,
    Measure,
    Predictions,
    Problem,
    Splits,
    Task,
    Tensors,
    Training,
)
from equipoise.bench.problems.digits import Digits, Network

Question = Callable[[Tensor, Tensor], Tensor]


Property = Callable[[Tensor], Tensor]


def _of_left(ask: Property) -> Question:
    return lambda left, right: ask(left)


def _of_right(ask: Property) -> Question:
    return lambda left, right: ask(right)


def _among(*digits: int) -> Property:
    return lambda digit: torch.isin(digit, torch.tensor(digits))


PROPERTIES: dict[str, Property] = {
    **{f"is {digit}": _among(digit) for digit in range(10)},
    "is even": _among(0, 2, 4, 6, 8),
    "is at least 5": _among(5, 6, 7, 8, 9),
    "is prime": _among(2, 3, 5, 7),
    "is a multiple of 3": _among(0, 3, 6, 9),
    "has a loop": _among(0, 6, 8, 9),
}
"""What is asked of each of the two digits."""

RELATIONS: dict[str, Question] = {
    "sum is even": lambda left, right: (left + right) % 2 == 0,
    "sum is at least 10": lambda left, right: left + right >= 10,
    "sum is a multiple of 3": lambda left, right: (left + right) % 3 == 0,
    "left is larger": lambda left, right: left > right,
    "equal": lambda left, right: left == right,
    "neighbours": lambda left, right: (left - right).abs() == 1,
    "far apart": lambda left, right: (left - right).abs() >= 5,
    "product is even": lambda left, right: left * right % 2 == 0,
    "product is at least 20": lambda left, right: left * right >= 20,
    "one is zero": lambda left, right: left * right == 0,
}
"""What is asked of the two together."""

QUESTIONS: dict[str, Question] = {
    **{f"left {name}": _of_left(ask) for name, ask in PROPERTIES.items()},
    **{f"right {name}": _of_right(ask) for name, ask in PROPERTIES.items()},
    **RELATIONS,
}
"""All forty."""


class DigitAttributes(Problem):
    """Forty binary tasks on the canvases of `digits`: fifteen about each digit, ten about the pair.

    As in CelebA, every task is a binary cross-entropy of its own, a single dense layer answers all of them, and the
    questions differ in how hard they are and how often the answer is yes (from 10 to 75 %).

    Args:
        seed: decides the split of the scans and their pairs.
    """

    name = "digit-attributes"
    description = "forty yes-or-no questions about two overlapping handwritten digits"

    def __init__(self, seed: int = 0) -> None:
        self._digits = Digits(seed)
        self.tasks = tuple(Attribute(name, index) for index, name in enumerate(QUESTIONS))

    def data(self, quick: bool = False) -> Splits:
        """Returns the examples of `digits` with the forty answers as one label `[40]`."""
        digits = self._digits.data(quick)
        return Splits(_answered(digits.train), _answered(digits.validation), _answered(digits.test))

    def model(self) -> nn.Module:
        """Returns the trunk of `digits` with one dense layer of 40 outputs."""
        return AttributeNetwork()

    def training(self, quick: bool = False) -> Training:
        """Returns 8 epochs at batch size 64 and learning rate 1e-3; 3 epochs if `quick`."""
        return self._digits.training(quick)


class Attribute(Task):
    """One question: binary cross-entropy, F1 and accuracy.

    Args:
        name: the question.
        index: its place among the outputs and labels.
    """

    measures = (
        Measure("F1", higher_is_better=True, unit="%", scale=100, digits=1),
        Measure("accuracy", higher_is_better=True, unit="%", scale=100, digits=1),
    )

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.index = index

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor:
        """Returns the mean binary cross-entropy."""
        return functional.binary_cross_entropy_with_logits(predictions[:, self.index], batch["answers"][:, self.index])

    def labels(self, batch: Batch) -> int:
        """Returns the number of samples."""
        return len(batch["answers"])

    def metrics(self) -> MetricCollection:
        """Returns F1 and accuracy."""
        return MetricCollection(
            {"F1": BinaryF1Score(validate_args=False), "accuracy": BinaryAccuracy(validate_args=False)}
        )

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds logits and answers."""
        metrics.update(predictions[:, self.index], batch["answers"][:, self.index].long())


class AttributeNetwork(nn.Module):
    """The trunk of `digits` and a dense layer; every row of it answers one question."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Network().trunk
        self.answers = nn.Linear(64, len(QUESTIONS))

    def forward(self, images: Tensor) -> Tensor:
        """Takes `[B, 1, 12, 12]`; gives logits `[B, 40]`."""
        logits: Tensor = self.answers(self.trunk(images))
        return logits


def _answered(pairs: MapDataset) -> Tensors:
    assert isinstance(pairs, Tensors)
    left, right = pairs.tensors["left"], pairs.tensors["right"]
    answers = torch.stack([ask(left, right) for ask in QUESTIONS.values()], 1)
    return Tensors(input=pairs.tensors["input"], answers=answers.float())
