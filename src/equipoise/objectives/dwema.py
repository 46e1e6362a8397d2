"""Dynamic weighted exponential moving average."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from equipoise.objectives._base import Weighting
from equipoise.objectives.dwa import DWA
from equipoise.objectives.ema import EMA
from equipoise.search_space import SearchSpace


class DWEMA(Weighting):
    """Dynamic weighted EMA: losses scaled by their moving average, times the coefficients of DWA.

    `w_k(t) = K·softmax_k(r(t)/T) / L̃_k(t)`, with `L̃_k` as in `EMA` and the training rates `r_k` as in
    `DWA`, here over intervals of one step unless told otherwise.

    Args:
        beta: weight of the newest loss in the average, in (0, 1].
        temperature: T > 0; the larger, the less the training rates matter.
        interval: number of steps in which the task is present, or "epoch" (completed by
        `Balancer.end_epoch`).

    Raises:
        ValueError: `beta` is outside (0, 1], `temperature` is not positive, or `interval` is neither "epoch"
            nor an integer ≥ 1.

    Source: Lakkapragada et al., "Mitigating Negative Transfer in Multi-Task Learning with Exponential Moving
    Average Loss Weighting Strategies", AAAI 2023, Methods.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.DWEMA(beta=0.1, temperature=2.0))
    """

    masked = True
    requires_positive = True
    search_space: ClassVar[SearchSpace] = EMA.search_space | DWA.search_space

    def __init__(self, beta: float = 0.1, temperature: float = 2.0, interval: int | Literal["epoch"] = 1) -> None:
        super().__init__()
        self.ema = EMA(beta)
        self.dwa = DWA(temperature, interval)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `w_k^DWA / L̃_k(t)` `[K']` and takes the losses `[K']` into average and interval."""
        coefficients: Tensor = self.dwa(losses)
        average: Tensor = self.ema.average(losses)
        return coefficients / average
