"""The exponential moving average of one number per task."""

from __future__ import annotations

import torch
from torch import Tensor

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
        self.add_state("value", 0.0)
        self.add_state("count", 0)

    def forward(self, values: Tensor) -> Tensor:
        """Takes the values `[K']` in and returns the averages `[K']`."""
        state = self.state
        state.value = torch.where(state.count == 0, values, torch.lerp(state.value, values, self.beta))
        state.count = state.count + 1
        return state.value
