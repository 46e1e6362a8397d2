"""The tasks that take part in a step, and what a formula does across them."""

from __future__ import annotations

import torch
from torch import Tensor


class Active:
    """The tasks that take part in a step, among the K' present, and what a formula does across them.

    Which losses a method can use is on an accelerator known to the device alone. So formulas are evaluated for all K'
    tasks, and only what they do across tasks is restricted to those that take part. With no `mask` all do, and every
    method here is the PyTorch operation of its name. Where no task takes part, no result is NaN.

    Args:
        count: K'.
        dtype: of the step's numbers.
        mask: bool `[K']`, true for the tasks that take part; None: all do.
    """

    def __init__(self, count: int, dtype: torch.dtype, mask: Tensor | None = None) -> None:
        self.mask = mask
        self._count = count
        self._dtype = dtype

    def without(self, left_out: Tensor) -> Active:
        """Returns those of these tasks for which the bool `[K']` is false."""
        mask = ~left_out if self.mask is None else self.mask & ~left_out
        return Active(self._count, self._dtype, mask)

    @property
    def count(self) -> int | Tensor:
        """How many tasks take part; with a mask, 0-dim in the step's dtype."""
        return self._count if self.mask is None else self.mask.sum(dtype=self._dtype)

    def where(self, x: Tensor, other: Tensor | float) -> Tensor:
        """Returns `x` `[K']`, and `other` for the tasks that do not take part."""
        return x if self.mask is None else torch.where(self.mask, x, other)

    def sum(self, x: Tensor) -> Tensor:
        """Returns the 0-dim sum of `x` `[K']`."""
        return self.where(x, 0.0).sum()

    def mean(self, x: Tensor) -> Tensor:
        """Returns the 0-dim mean of `x` `[K']`; 0 where no task takes part."""
        return x.mean() if self.mask is None else self.sum(x) / self.mask.sum(dtype=self._dtype).clamp(min=1)

    def softmax(self, x: Tensor) -> Tensor:
        """Returns the softmax of `x` `[K']`, which is 0 for tasks that do not take part; equal where none does."""
        return self.where(x, torch.finfo(x.dtype).min).softmax(0)

    def shares(self, weights: Tensor) -> Tensor:
        """Returns the weights `[K']`, none negative, divided by their sum; equal ones if all are 0."""
        if self.mask is None:
            return (weights / weights.sum()).nan_to_num(1 / self._count)
        total = self.sum(weights)
        return self.where(torch.where(total > 0, weights / total, 1 / self.count), 0.0)

    def all(self, x: Tensor) -> Tensor:
        """Returns whether the bool `x` `[K']` holds for all tasks, 0-dim."""
        return (x if self.mask is None else x | ~self.mask).all()

    def any(self, x: Tensor) -> Tensor:
        """Returns whether the bool `x` `[K']` holds for a task, 0-dim."""
        return (x if self.mask is None else x & self.mask).any()
