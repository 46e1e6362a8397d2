"""The exponential moving average of one number per task."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise._kept import Kept
from equipoise._state import TaskModule


class MovingAverage(TaskModule):
    """Exponential moving average `x̃_k ← β x_k + (1−β) x̃_k`, started by the first value of each task.

    Args:
        beta: weight of the newest value, in (0, 1]; checked by who uses it.
    """

    masked = True

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self._started = Kept[bool]()
        self.add_state("value", 0.0)
        self.add_state("count", 0)

    def forward(self, values: Tensor) -> Tensor:
        """Takes the values `[K']` in and returns the averages `[K']`."""
        state = self.state
        count, average = state.count, torch.lerp(state.value, values, self.beta)
        if not (count.is_cpu and self._started(lambda: bool(count.all()), count)):
            average = torch.where(count == 0, values, average)
            state.count = torch.ones_like(count)
        state.value = average
        return average
