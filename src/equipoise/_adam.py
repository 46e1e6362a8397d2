"""Adam on one number per task."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise._state import TaskModule

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""PyTorch's defaults."""


class Adam(TaskModule):
    """Adam on one number per task: tasks that are left out keep their moments and their count of updates.

    Args:
        lr: the learning rate; checked by who uses it.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1.
    """

    masked = True

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.add_state("first_moment", 0.0)
        self.add_state("second_moment", 0.0)
        self.add_state("updates", 0)

    def forward(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Returns the values `[K']` after a step down the gradient `[K']`."""
        state = self.state
        state.updates = state.updates + 1
        state.first_moment = torch.lerp(state.first_moment, gradient, 1 - BETAS[0])
        state.second_moment = torch.lerp(state.second_moment, gradient.square(), 1 - BETAS[1])
        updates = state.updates.to(gradient.dtype)
        first = state.first_moment / (1 - BETAS[0] ** updates)
        second = state.second_moment / (1 - BETAS[1] ** updates)
        return values - self.lr * first / (second.sqrt() + EPSILON)
