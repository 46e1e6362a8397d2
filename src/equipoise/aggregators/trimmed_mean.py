"""Trimmed mean: the mean of every element without its extremes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_count
from equipoise.aggregators._base import Gradients
from equipoise.aggregators._rows import RowsAggregator, as_gradients, by_task, matrix
from equipoise.search_space import Choice, SearchSpace


class TrimmedMean(RowsAggregator):
    """Takes, in every element of the gradient, the mean without the largest and the smallest numbers.

    Per element, of the K numbers `g_k` in order: the mean of all but the `trim` least and the `trim` greatest. As many
    tasks with arbitrary gradients move the result no further than the others reach. With few tasks
    `trim` is at most `⌊(K − 1)/2⌋`, which gives the median of an odd number and the mean of two; TorchJD refuses fewer
    than `2 trim + 1` rows.

    It needs the rows, sorted: K times a parameter's size, one parameter after the other.

    Preferences `p_k` multiply the gradients, as if they were in front of the losses.

    Args:
        trim: how many numbers are left out at either end, at least 0.

    Raises:
        ValueError: `trim` is no integer, or negative.

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
    Definition 2.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import TrimmedMean
        >>> TrimmedMean()(torch.tensor([[1.0, -9.0], [2.0, 0.0], [90.0, 2.0], [4.0, 4.0]]))
        tensor([3., 1.])
    """

    takes_preferences = True
    masked = True
    robust = True
    permutation_invariant = True
    homogeneous = True
    search_space: ClassVar[SearchSpace] = {"trim": Choice((0, 1, 2))}

    def __init__(self, trim: int = 1) -> None:
        super().__init__()
        self.trim = check_count("trim", trim, at_least=0)

    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], None]:
        """Returns the combined gradient of every parameter; there are no weights."""
        taking = None if self._view is None else self.active.mask
        count: Tensor | int = len(gradients) if taking is None else taking.sum()
        places = torch.arange(len(gradients), device=losses.device)
        trim = min(self.trim, (count - 1) // 2) if isinstance(count, int) else ((count - 1) // 2).clamp(0, self.trim)
        inside = (places >= trim) & (places < count - trim)
        combined = []
        for column in zip(*gradients, strict=True):
            rows = self.preferred(matrix(column))
            if taking is not None:
                rows = torch.where(by_task(taking, rows), rows, torch.inf)  # the others come last
            ordered = torch.where(by_task(inside, rows), rows.sort(0).values, 0.0)
            combined.append(ordered.sum(0) / inside.sum().clamp(min=1))
        return as_gradients(combined, gradients), None
