"""The papers' tasks on whole images: labels that do not exclude each other, expression, affect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection

from equipoise.bench.metrics import Concordance, MacroF1, MeanAveragePrecision, MeanF1, RegressionErrors
from equipoise.bench.problems._base import Batch, Measure, Predictions, Task
from equipoise.bench.problems._tasks import Classification

F1 = Measure("F1", higher_is_better=True, unit="%", scale=100, digits=2)
AP = Measure("AP", higher_is_better=True, unit="%", scale=100, digits=2)
MEAN_AP = Measure("mAP", higher_is_better=True, unit="%", scale=100, digits=2)
MEAN_F1 = Measure("mF1", higher_is_better=True, unit="%", scale=100, digits=2)
CCC = Measure("CCC", higher_is_better=True, digits=4)

EPSILON = 1e-8
"""What keeps the concordance of a batch finite when all its labels are the same."""


class MultiLabel(Task):
    """Labels that a sample has or has not: binary cross-entropy; average precision or F1, the mean over labels.

    Predictions under the task's name are logits `[B, labels]`; labels are int64 `[B, labels]` (`[B]` if one) of 0 and
    1, −1 where missing.

    Args:
        name: the task's name.
        labels: how many.
        measures: of `F1`, `AP`, `MEAN_AP` and `MEAN_F1`.
        key: what the labels are called in a batch; default: the task's name.
    """

    def __init__(self, name: str, labels: int, measures: Sequence[Measure], key: str | None = None) -> None:
        self.name = name
        self.width = labels
        self.measures = tuple(measures)
        self.key = key or name

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the mean binary cross-entropy over the labels that are there."""
        labels = self._labels(batch)
        known = labels != -1
        if not known.any():
            return None
        return functional.binary_cross_entropy_with_logits(predictions[self.name][known], labels[known].float())

    def labels(self, batch: Batch) -> Tensor:
        """Returns the number of labels that are there."""
        return (self._labels(batch) != -1).sum()

    def metrics(self) -> MetricCollection:
        """Returns average precision or F1, by the measures' names."""
        kinds = {measure: MeanF1 if measure in (F1, MEAN_F1) else MeanAveragePrecision for measure in self.measures}
        return MetricCollection({measure.name: kind(self.width) for measure, kind in kinds.items()})

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds logits and labels."""
        labels = self._labels(batch)
        if (labels != -1).any():
            metrics.update(predictions[self.name], labels)

    def _labels(self, batch: Batch) -> Tensor:
        labels: Tensor = batch[self.key]
        return labels.reshape(len(labels), self.width)


class Expression(Classification):
    """One of several expressions: cross-entropy and macro F1.

    Args:
        classes: how many.
    """

    measures = (F1,)

    def __init__(self, classes: int) -> None:
        super().__init__("expression", classes)

    def metrics(self) -> MetricCollection:
        """Returns macro F1 over the classes that occur."""
        return MetricCollection({"F1": MacroF1(self.classes)})


class ValenceArousal(Task):
    """Valence and arousal in [−1, 1]: one minus the mean concordance within the batch; concordance.

    Predictions under "valence_arousal" and labels are `[B, 2]`; labels are NaN where missing.

    Source: the loss is that of Kollias, "ABAW", CVPR workshops 2022; the EMA paper does not name its own.
    """

    name = "valence_arousal"
    measures = (CCC,)

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns `1 − (CCC_valence + CCC_arousal)/2` over the labelled samples."""
        labels: Tensor = batch[self.name]
        known = ~labels.isnan().any(1)
        if not known.any():
            return None
        found, truth = predictions[self.name][known], labels[known]
        apart = (found.mean(0) - truth.mean(0)).square()
        spreads = found.var(0, correction=0) + truth.var(0, correction=0)
        covariance = ((found - found.mean(0)) * (truth - truth.mean(0))).mean(0)
        concordance: Tensor = 2 * covariance / (spreads + apart + EPSILON)
        return 1 - concordance.mean()

    def labels(self, batch: Batch) -> Tensor:
        """Returns the number of labelled samples; of its parts a concordance is no mean, by whatever weights."""
        labels: Tensor = batch[self.name]
        return (~labels.isnan().any(1)).sum()

    def metrics(self) -> MetricCollection:
        """Returns the mean of both concordance correlation coefficients."""
        return MetricCollection({"CCC": Concordance(2)})

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds the labelled samples."""
        labels: Tensor = batch[self.name]
        if not labels.isnan().all():
            metrics.update(predictions[self.name], labels)

    def accuracy(self, values: Mapping[str, float]) -> float:
        """Returns the concordance, 0 where it is negative."""
        return max(0.0, values["CCC"])


class Dimensions(Task):
    """Numbers on a scale from 1 to 10: mean absolute error as loss; absolute and squared error.

    Predictions under "dimensions" and labels are `[B, numbers]`; labels are NaN where missing.
    """

    name = "dimensions"
    measures = (Measure("MAE", higher_is_better=False, digits=4), Measure("MSE", higher_is_better=False, digits=4))

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the mean absolute error over the labels that are there."""
        labels: Tensor = batch[self.name]
        known = ~labels.isnan()
        if not known.any():
            return None
        return functional.l1_loss(predictions[self.name][known], labels[known])

    def labels(self, batch: Batch) -> Tensor:
        """Returns the number of labels that are there."""
        labels: Tensor = batch[self.name]
        return (~labels.isnan()).sum()

    def metrics(self) -> MetricCollection:
        """Returns mean absolute and mean squared error."""
        return MetricCollection(RegressionErrors())

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds predictions and labels."""
        labels: Tensor = batch[self.name]
        if not labels.isnan().all():
            metrics.update(predictions[self.name], labels)

    def accuracy(self, values: Mapping[str, float]) -> float:
        """Returns one minus the mean absolute error as a share of the scale's length, 9; not below 0."""
        return max(0.0, 1 - values["MAE"] / 9)
