"""The most common tasks, ready-made: a class, a yes or no, and a number per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score

from equipoise.bench.metrics import MeanAveragePrecision
from equipoise.bench.problems._base import Batch, Measure, Predictions, Task
from equipoise.bench.problems._fitting import (
    CLASSES,
    FLOATS,
    YES_OR_NO,
    check_measured,
    cross_entropy,
    labels_of,
    numbers_of,
    prediction_of,
)


class Classification(Task):
    """One of several classes per sample: cross-entropy, accuracy and macro F1.

    Predictions under the task's name are logits `[B, classes]`; labels are int64 `[B]`, −1 if missing.

    Args:
        name: the task's name.
        classes: how many.
    """

    measures: Sequence[Measure] = (
        Measure("accuracy", higher_is_better=True, unit="%", scale=100, digits=1),
        Measure("F1", higher_is_better=True, unit="%", scale=100, digits=1),
    )

    def __init__(self, name: str, classes: int) -> None:
        self.name = name
        self.classes = classes

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the mean cross-entropy over labelled samples."""
        logits, labels = self._labelled(predictions, batch)
        return cross_entropy(self.name, logits, labels) if len(labels) else None

    def labels(self, batch: Batch) -> Tensor:
        """Returns the number of labelled samples."""
        return (labels_of(self.name, batch, CLASSES) != -1).sum()

    def metrics(self) -> MetricCollection:
        """Returns accuracy (share of samples that are right) and macro F1."""
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(self.classes, average="micro", validate_args=False),
                "F1": MulticlassF1Score(self.classes, average="macro", validate_args=False),
            }
        )

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds logits and labels."""
        logits, labels = self._labelled(predictions, batch)
        check_measured(self.name, labels, self.classes)
        if len(labels):
            metrics.update(logits, labels)

    def _labelled(self, predictions: Predictions, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = labels_of(self.name, batch, CLASSES)
        wanted = f"logits [B, {self.classes}]"
        logits = prediction_of(self.name, predictions, labels, wanted, ((len(labels), self.classes),))
        return _labelled(logits, labels, labels != -1)


class BinaryClassification(Task):
    """Yes or no per sample: binary cross-entropy, area under the ROC curve and average precision.

    The area is the main measure: it needs no threshold, under which F1 is 0 for a label that one sample in fifty has,
    and its floor of one half is the same for every label. That of average precision is the label's share, beside which
    a relative gain means nothing where the label is rare.

    Predictions under the task's name are logits `[B]` or `[B, 1]`; labels are int64 `[B]`, −1 if missing.

    Args:
        name: the task's name.
    """

    measures: Sequence[Measure] = (
        Measure("AUC", higher_is_better=True, unit="%", scale=100, digits=1),
        Measure("AP", higher_is_better=True, unit="%", scale=100, digits=1),
    )
    classes = 2

    def __init__(self, name: str) -> None:
        self.name = name

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the mean binary cross-entropy over labelled samples."""
        logits, labels = self._labelled(predictions, batch)
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)) if len(labels) else None

    def labels(self, batch: Batch) -> Tensor:
        """Returns the number of labelled samples."""
        return (labels_of(self.name, batch, YES_OR_NO) != -1).sum()

    def metrics(self) -> MetricCollection:
        """Returns the area under the ROC curve and average precision."""
        return MetricCollection({"AUC": BinaryAUROC(validate_args=False), "AP": MeanAveragePrecision(labels=1)})

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds logits and labels."""
        logits, labels = self._labelled(predictions, batch)
        check_measured(self.name, labels, self.classes)
        if len(labels):
            metrics["AUC"].update(logits.sigmoid(), labels)
            metrics["AP"].update(logits[:, None], labels[:, None])

    def _labelled(self, predictions: Predictions, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, labels = numbers_of(self.name, predictions, batch, YES_OR_NO, "logits ")
        return _labelled(logits, labels, labels != -1)


class Regression(Task):
    """A number per sample: mean squared or absolute error, and R².

    Predictions under the task's name are `[B]` or `[B, 1]`; labels are float `[B]`, NaN if missing.
    Its accuracy is R², not below 0.

    Args:
        name: the task's name.
        loss: `torch.nn.functional.mse_loss` or another function of predictions and labels.
        digits: decimals of the errors in tables.
    """

    def __init__(
        self, name: str, loss: Callable[[Tensor, Tensor], Tensor] = functional.mse_loss, digits: int = 3
    ) -> None:
        self.name = name
        self.function = loss
        self.measures = (
            Measure("MSE", higher_is_better=False, digits=digits),
            Measure("MAE", higher_is_better=False, digits=digits),
            Measure("R²", higher_is_better=True, digits=3),
        )

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the mean loss over labelled samples."""
        values, labels = self._labelled(predictions, batch)
        return self.function(values, labels) if len(labels) else None

    def labels(self, batch: Batch) -> Tensor:
        """Returns the number of labelled samples."""
        return (~torch.isnan(labels_of(self.name, batch, FLOATS))).sum()

    def metrics(self) -> MetricCollection:
        """Returns mean squared error, mean absolute error and R²."""
        return MetricCollection({"MSE": MeanSquaredError(), "MAE": MeanAbsoluteError(), "R²": R2Score()})

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds predictions and labels."""
        values, labels = self._labelled(predictions, batch)
        if len(labels):
            metrics.update(values, labels)

    def accuracy(self, values: Mapping[str, float]) -> float:
        """Returns R², 0 where it is negative."""
        return max(0.0, values["R²"])

    def _labelled(self, predictions: Predictions, batch: Batch) -> tuple[Tensor, Tensor]:
        values, labels = numbers_of(self.name, predictions, batch, FLOATS, "")
        return _labelled(values, labels, ~torch.isnan(labels))


def _labelled(predictions: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The labelled samples; on the CPU, where the question is free, without a copy if that is all of them."""
    if mask.device.type == "cpu" and bool(mask.all()):
        return predictions, labels
    return predictions[mask], labels[mask]
