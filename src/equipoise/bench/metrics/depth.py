"""Depth: absolute and relative error, and the shares of pixels within a factor."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.bench.metrics._base import SumMetric, check_same_shape


class DepthErrors(SumMetric):
    """Errors of a depth map, over all valid pixels of the data.

    With prediction `d̂` and truth `d`: `abs` the mean of `|d̂ − d|`, `rel` the mean of `|d̂ − d| / d`, and
    `δ<1.25`, `δ<1.25²`, `δ<1.25³` the shares of pixels with `max(d̂/d, d/d̂)` below the factor; a prediction
    that is not positive is within no factor. A pixel is valid where its truth is positive and finite. All NaN
    without a valid pixel.

    `update` takes predictions and labels of the same shape, any.

    Source: Eigen et al., "Depth Map Prediction from a Single Image", NeurIPS 2014. Over pixels, not per image,
    as in Vandenhende et al., "Multi-Task Learning for Dense Prediction Tasks", TPAMI 2021.

    Example:
        >>> import torch
        >>> from equipoise.bench.metrics import DepthErrors
        >>> metric = DepthErrors()
        >>> metric.update(torch.tensor([2.0, 3.0]), torch.tensor([4.0, float("nan")]))
        >>> round(metric.compute()["rel"].item(), 3)
        0.5
    """

    absolute: Tensor
    relative: Tensor
    within: Tensor
    pixels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("absolute")
        self.add_sum("relative")
        self.add_sum("within", 3, dtype=torch.int64)
        self.add_sum("pixels", dtype=torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Adds the valid pixels of a batch.

        Raises:
            ValueError: the shapes differ.
        """
        check_same_shape(predictions, labels)
        valid = (labels > 0) & labels.isfinite()
        depth, truth = predictions[valid].float(), labels[valid].float()
        errors = (depth - truth).abs()
        factor = torch.where(depth > 0, torch.maximum(depth / truth, truth / depth), torch.inf)
        self.absolute += errors.sum(dtype=self.absolute.dtype)
        self.relative += (errors / truth).sum(dtype=self.relative.dtype)
        self.within += torch.stack([(factor < 1.25**power).sum() for power in (1, 2, 3)])
        self.pixels += valid.sum()

    def compute(self) -> dict[str, Tensor]:
        """Returns `abs` (in the unit of the labels), `rel`, and the shares `δ<1.25`, `δ<1.25²`, `δ<1.25³`."""
        shares = self.within / self.pixels
        return {
            "abs": self.absolute / self.pixels,
            "rel": self.relative / self.pixels,
            "δ<1.25": shares[0],
            "δ<1.25²": shares[1],
            "δ<1.25³": shares[2],
        }
