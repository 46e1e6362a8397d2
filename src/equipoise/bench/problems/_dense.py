"""Tasks with a label per pixel: classes, depth and surface normals. Missing labels are masked out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection

from equipoise.bench.metrics import AngularErrors, DepthErrors, Segmentation
from equipoise.bench.problems._base import Batch, Measure, Predictions, Task
from equipoise.bench.problems._fitting import (
    CLASSES,
    FLOATS,
    check_measured,
    cross_entropy,
    labels_of,
    prediction_of,
)


class SegmentationTask(Task):
    """A class per pixel: cross-entropy, mIoU and pixel accuracy.

    Predictions under the task's name are logits `[B, classes, H, W]`; labels are int64 `[B, H, W]`, −1 where
    missing.

    Args:
        classes: how many.
        name: the task's name.
        label_smoothing: share of a label that goes evenly to all classes, in the loss.
    """

    measures: Sequence[Measure] = (
        Measure("mIoU", higher_is_better=True, unit="%", scale=100, digits=2),
        Measure("pAcc", higher_is_better=True, unit="%", scale=100, digits=2),
    )

    def __init__(self, classes: int, name: str = "segmentation", label_smoothing: float = 0.0) -> None:
        self.name = name
        self.classes = classes
        self.label_smoothing = label_smoothing

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the mean cross-entropy over labelled pixels."""
        labels = self._labels(batch)
        if labels is None or not (labels != -1).any():
            return None
        logits = self._logits(predictions, labels)
        return cross_entropy(self.name, logits, labels, ignore_index=-1, label_smoothing=self.label_smoothing)

    def labels(self, batch: Batch) -> int | Tensor:
        """Returns the number of labelled pixels."""
        labels: Tensor | None = batch.get(self.name)
        return 0 if labels is None else (labels != -1).sum()

    def metrics(self) -> MetricCollection:
        """Returns mIoU and pixel accuracy."""
        return MetricCollection(Segmentation(self.classes))

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds the likeliest classes and labels."""
        labels = self._labels(batch)
        if labels is not None and (labels != -1).any():
            check_measured(self.name, labels, self.classes)
            metrics.update(self._logits(predictions, labels).argmax(1), labels)

    def _labels(self, batch: Batch) -> Tensor | None:
        return labels_of(self.name, batch, CLASSES, ("B", "H", "W")) if batch.get(self.name) is not None else None

    def _logits(self, predictions: Predictions, labels: Tensor) -> Tensor:
        size = (len(labels), self.classes, *labels.shape[1:])
        return prediction_of(self.name, predictions, labels, f"logits [B, {self.classes}, H, W]", (size,))


class DepthTask(Task):
    """Metres per pixel: mean absolute error as loss; absolute and relative error. Its accuracy is δ<1.25.

    Predictions under the task's name and labels are float `[B, 1, H, W]`; labels are NaN where missing.

    Args:
        name: the task's name.
    """

    measures: Sequence[Measure] = (
        Measure("abs", higher_is_better=False, unit="m", digits=4),
        Measure("rel", higher_is_better=False, digits=4),
    )

    def __init__(self, name: str = "depth") -> None:
        self.name = name

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the mean absolute error over valid pixels."""
        labels = _floats(self.name, batch)
        if labels is None:
            return None
        valid = labels.isfinite()
        if not valid.any():
            return None
        errors: Tensor = (_like(self.name, predictions, labels) - labels.nan_to_num()).abs()
        return errors.where(valid, 0).sum() / valid.sum()

    def labels(self, batch: Batch) -> int | Tensor:
        """Returns the number of valid pixels."""
        labels: Tensor | None = batch.get(self.name)
        return 0 if labels is None else labels.isfinite().sum()

    def metrics(self) -> MetricCollection:
        """Returns absolute and relative error and the shares within 1.25, 1.25² and 1.25³."""
        return MetricCollection(DepthErrors())

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds depths."""
        labels = _floats(self.name, batch)
        if labels is not None and labels.isfinite().any():
            metrics.update(_like(self.name, predictions, labels), labels)

    def accuracy(self, values: Mapping[str, float]) -> float:
        """Returns the share of pixels with the greater of prediction and truth within 1.25 times the smaller."""
        return values["δ<1.25"]


class NormalsTask(Task):
    """A direction per pixel: one minus the cosine as loss; mean and median angle. Its accuracy: within 11.25°.

    Predictions under the task's name are `[B, 3, H, W]` of any length; labels are unit vectors, NaN where missing.

    Args:
        name: the task's name.
    """

    measures: Sequence[Measure] = (
        Measure("mean", higher_is_better=False, unit="°", digits=2),
        Measure("median", higher_is_better=False, unit="°", digits=2),
    )

    def __init__(self, name: str = "normals") -> None:
        self.name = name

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns one minus the mean cosine over valid pixels."""
        labels = _floats(self.name, batch)
        if labels is None:
            return None
        valid = labels.isfinite().all(1)
        if not valid.any():
            return None
        cosines = functional.cosine_similarity(_like(self.name, predictions, labels), labels.nan_to_num(), dim=1)
        return 1 - cosines.where(valid, 0).sum() / valid.sum()

    def labels(self, batch: Batch) -> int | Tensor:
        """Returns the number of valid pixels."""
        labels: Tensor | None = batch.get(self.name)
        return 0 if labels is None else labels.isfinite().all(1).sum()

    def metrics(self) -> MetricCollection:
        """Returns mean and median angle and the shares within 11.25°, 22.5° and 30°."""
        return MetricCollection(AngularErrors())

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds directions."""
        labels = _floats(self.name, batch)
        if labels is not None and labels.isfinite().any():
            metrics.update(_like(self.name, predictions, labels), labels)

    def accuracy(self, values: Mapping[str, float]) -> float:
        """Returns the share of normals within 11.25°."""
        return values["<11.25°"]


class DeeplySupervised(Task):
    """A dense task whose initial predictions, as of MTI-Net and PAD-Net, are supervised too, by the same loss.

    Args:
        task: the task.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.name = task.name
        self.measures = task.measures

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the loss of the final prediction plus those of the initial ones."""
        from equipoise.bench.models import initial_predictions  # needs timm, which these tasks else do without

        size = batch["input"].shape[-2:]
        found = [predictions[self.name], *initial_predictions(predictions, self.name, size)]
        losses = [self.task.loss({self.name: prediction}, batch) for prediction in found]
        known = [loss for loss in losses if loss is not None]
        return torch.stack(known).sum() if known else None

    def labels(self, batch: Batch) -> int | Tensor | None:
        """Returns the task's number of labels."""
        return self.task.labels(batch)

    def metrics(self) -> MetricCollection:
        """Returns the task's metrics."""
        return self.task.metrics()

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds the final prediction."""
        self.task.update(metrics, predictions, batch)

    def accuracy(self, values: Mapping[str, float]) -> float:
        """Returns the task's accuracy."""
        return self.task.accuracy(values)


def _floats(task: str, batch: Batch) -> Tensor | None:
    """A task's labels, numbers per pixel."""
    return labels_of(task, batch, FLOATS, ("B", "C", "H", "W")) if batch.get(task) is not None else None


def _like(task: str, predictions: Predictions, labels: Tensor) -> Tensor:
    """A task's predictions, of the shape of its labels."""
    return prediction_of(task, predictions, labels, "of the labels' shape", (labels.shape,))


def normals_as_colors(normals: Tensor) -> Tensor:
    """Returns directions `[3, H, W]` as RGB in [0, 1] `[H, W, 3]`, NaN as black."""
    unit = functional.normalize(normals.float(), dim=0)
    return torch.where(unit.isfinite(), (unit + 1) / 2, 0).movedim(0, -1)
