"""Numbers per sample: mean absolute and squared error, and concordance."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.bench.metrics._base import SumMetric, check_same_shape


class RegressionErrors(SumMetric):
    """Mean absolute and mean squared error over all labels that are there.

    A missing label is NaN, and left out by itself: not the whole sample. Both NaN without a label.

    `update` takes predictions and labels of the same shape, any.

    Example:
        >>> import torch
        >>> from equipoise.bench.metrics import RegressionErrors
        >>> metric = RegressionErrors()
        >>> metric.update(torch.tensor([1.0, 5.0]), torch.tensor([3.0, float("nan")]))
        >>> [value.item() for value in metric.compute().values()]
        [2.0, 4.0]
    """

    absolute: Tensor
    squared: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("absolute")
        self.add_sum("squared")
        self.add_sum("count", dtype=torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Raises:
            ValueError: the shapes differ.
        """
        check_same_shape(predictions, labels)
        labelled = ~labels.isnan()
        errors = (predictions[labelled] - labels[labelled]).to(self.absolute.dtype)
        self.absolute += errors.abs().sum()
        self.squared += errors.square().sum()
        self.count += labelled.sum()

    def compute(self) -> dict[str, Tensor]:
        """Returns `MAE` and `MSE`."""
        return {"MAE": self.absolute / self.count, "MSE": self.squared / self.count}


class Concordance(SumMetric):
    """Mean over the outputs of Lin's concordance correlation coefficient.

    `CCC = 2 σ_xy / (σ_x² + σ_y² + (μ_x − μ_y)²)` with population moments, as the AffWild2 challenge computes it;
    torchmetrics' class takes sample variances and cannot leave out a single label. A missing label is NaN. NaN
    for an output without a label, or where predictions and labels are one and the same constant. The state is the
    sums of the powers, in float64: meant for numbers of order one, such as valence and arousal in [−1, 1].

    `update` takes predictions and labels `[B, outputs]`.

    Args:
        outputs: how many.

    Source: Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility", Biometrics 1989.

    Example:
        >>> import torch
        >>> from equipoise.bench.metrics import Concordance
        >>> metric = Concordance(outputs=1)
        >>> metric.update(torch.tensor([[0.0], [0.5]]), torch.tensor([[0.0], [1.0]]))
        >>> round(metric.compute().item(), 3)
        0.667
    """

    higher_is_better = True

    count: Tensor
    moments: Tensor

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs
        self.add_sum("count", outputs, dtype=torch.int64)
        self.add_sum("moments", 5, outputs)  # Σx, Σy, Σx², Σy², Σxy

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Raises:
            ValueError: the shapes differ or are not `[B, outputs]`.
        """
        check_same_shape(predictions, labels)
        if labels.dim() != 2 or labels.shape[1] != self.outputs:
            raise ValueError(f"Labels must have shape [B, {self.outputs}], found {tuple(labels.shape)}.")
        labelled = ~labels.isnan()
        x, y = (torch.where(labelled, tensor, 0).to(self.moments.dtype) for tensor in (predictions, labels))
        self.count += labelled.sum(0)
        self.moments += torch.stack([x, y, x * x, y * y, x * y]).sum(1)

    def compute(self) -> Tensor:
        """Returns the mean coefficient, in [−1, 1]."""
        mean_x, mean_y, square_x, square_y, product = self.moments / self.count
        covariance = product - mean_x * mean_y
        # σ_x² + σ_y² + (μ_x − μ_y)² is the sum of the mean squares less 2 μ_x μ_y
        each: Tensor = 2 * covariance / (square_x + square_y - 2 * mean_x * mean_y)
        return each.mean()
