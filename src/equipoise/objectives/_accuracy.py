"""What weightings have in common that follow the tasks' accuracies."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise._kept import Kept
from equipoise.objectives._base import Weighting
from equipoise.objectives._moving_average import MovingAverage

_CONSTANTS = (int, float, str, Tensor)
"""What `focus` can depend on beside the accuracies."""


class AccuracyWeighting(Weighting):
    """Weights from the tasks' smoothed accuracies.

    `κ_k ← m·acc_k + (1−m)·κ_k`, started by the first accuracy of each task. The weights are 1 until every
    task present has been measured.

    Args:
        momentum: m, the weight of the newest accuracy, in (0, 1].

    Raises:
        ValueError: `momentum` is outside (0, 1].
    """

    needs_accuracies = True

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.accuracy = MovingAverage(check_number("momentum", momentum, above=0, at_most=1))
        self._weights = Kept[Tensor]()

    @abstractmethod
    def focus(self, accuracy: Tensor) -> Tensor:
        """Returns the weights `[K']` for the smoothed accuracies `[K']`."""

    def observe(self, accuracies: Tensor) -> None:
        """Takes the accuracies `[K']`, in [0, 1], of the evaluated tasks."""
        self.accuracy(accuracies)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns the weights `[K']` for the accuracies seen so far; the losses do not matter."""
        state = self.accuracy.state

        def weights() -> Tensor:
            measured = self.active.all(state.count > 0)
            return torch.where(measured, self.focus(state.value), torch.ones_like(losses))

        own = (value for value in (*vars(self).values(), *self._buffers.values()) if isinstance(value, _CONSTANTS))
        return self._weights(weights, state.value, state.count, self.active.mask, *own)
