"""Loss weighting by the exponential moving average of each loss."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from equipoise._checks import check_number
from equipoise.objectives._base import Weighting
from equipoise.objectives._moving_average import MovingAverage
from equipoise.search_space import Range, SearchSpace


class EMA(Weighting):
    """Scales each loss by its own exponential moving average, so that all stand near one.

    `w_k(t) = 1 / L̃_k(t)` with `L̃_k(t) = β L_k(t) + (1−β) L̃_k(t−1)`; `L̃_k` starts at the first loss seen.

    Args:
        beta: weight of the newest loss in the average, in (0, 1]. The paper takes 0.1, and 0.2 for CelebA.

    Raises:
        ValueError: `beta` is outside (0, 1].

    Source: Lakkapragada et al., "Mitigating Negative Transfer in Multi-Task Learning with Exponential Moving
    Average Loss Weighting Strategies", AAAI 2023, Eq. 1.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.EMA(beta=0.1))
    """

    masked = True
    requires_positive = True
    search_space: ClassVar[SearchSpace] = {"beta": Range(0.01, 1.0, log=True)}

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.average = MovingAverage(check_number("beta", beta, above=0, at_most=1))

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `1 / L̃_k(t)` `[K']` for the losses `[K']`."""
        average: Tensor = self.average(losses)
        return average.reciprocal()
