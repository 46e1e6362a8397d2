"""What the metrics of this package share: exact sums, and a check that nothing is broadcast by mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SumMetric(Metric):
    """A metric whose state is sums, so that batches and ranks merge by adding up.

    Sums of numbers are float64 (2·10⁸ pixels in float32 would lose digits), or float32 on a device without it;
    counts are int64.
    """

    full_state_update = False
    is_differentiable = False

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """Declares a state of zeros that is added up over batches and ranks."""
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[..., Any], *args: Any) -> SumMetric:
        try:
            super()._apply(fn, *args)
        except TypeError:  # the device has no float64 (MPS)
            for name, default in list(self._defaults.items()):
                if isinstance(default, Tensor) and default.dtype == torch.float64:
                    self._defaults[name] = default.float()
                    setattr(self, name, getattr(self, name).float())
            super()._apply(fn, *args)
        return self


def check_same_shape(predictions: Tensor, labels: Tensor) -> None:
    """Checks that predictions and labels pair up one to one.

    Raises:
        ValueError: their shapes differ.
    """
    if predictions.shape != labels.shape:
        raise ValueError(
            "Predictions and labels must have the same shape, found predictions "
            f"{tuple(predictions.shape)} and labels {tuple(labels.shape)}: reshape one of them."
        )
