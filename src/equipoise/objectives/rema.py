"""Rated exponential moving average."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from equipoise.objectives._base import Weighting
from equipoise.objectives._training_rate import TrainingRate
from equipoise.objectives.ema import EMA
from equipoise.search_space import SearchSpace


class REMA(Weighting):
    """Rated EMA: losses scaled by their moving average, then shifted towards the tasks that converge slowly.

    `w_k(t) = r_k(t) / L̃_k(t)` with `L̃_k` as in `EMA` and the training rate `r_k`, the ratio of the task's
    mean losses in its last two completed intervals (1 until there are two). With the default interval of one
    step, `r_k(t) = L_k(t−1) / L_k(t−2)`.

    Args:
        beta: weight of the newest loss in the average, in (0, 1].
        interval: number of steps in which the task is present, or "epoch" (completed by
        `Balancer.end_epoch`).

    Raises:
        ValueError: `beta` is outside (0, 1], or `interval` is neither "epoch" nor an integer ≥ 1.

    Source: Lakkapragada et al., "Mitigating Negative Transfer in Multi-Task Learning with Exponential Moving
    Average Loss Weighting Strategies", AAAI 2023, Eq. 2.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.REMA(beta=0.1))
    """

    masked = True
    requires_positive = True
    search_space: ClassVar[SearchSpace] = EMA.search_space

    def __init__(self, beta: float = 0.1, interval: int | Literal["epoch"] = 1) -> None:
        super().__init__()
        self.ema = EMA(beta)
        self.rate = TrainingRate(interval)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `r_k(t) / L̃_k(t)` `[K']` and takes the losses `[K']` into average and interval."""
        rate: Tensor = self.rate(losses)
        average: Tensor = self.ema.average(losses)
        return rate / average
