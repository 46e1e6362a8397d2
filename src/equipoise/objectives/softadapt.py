"""SoftAdapt: weights from how fast the losses change."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from equipoise._checks import check_choice, check_number
from equipoise.objectives._base import Weighting
from equipoise.objectives._training_rate import LossChange
from equipoise.search_space import Choice, Range, SearchSpace

VARIANTS = ("original", "normalized", "loss-weighted")


class SoftAdapt(Weighting):
    """SoftAdapt: the softmax of the losses' recent changes, so that a loss that falls slowly, or rises, weighs more.

    `w = softmax(β s)` with `s_k = L̄_k(i−1) − L̄_k(i−2)`, the change of the task's mean loss between its last two
    completed intervals (0 until there are two). The variant "normalized" divides the changes by `Σ_j |s_j|`, and
    "loss-weighted" multiplies what the softmax adds up by the mean losses: `w_k ∝ L̄_k(i−1) e^{β s_k}`. The weights sum
    to 1 over the tasks present. One backward pass; five numbers a task.

    Args:
        beta: β; above 0 the worst loss gets the most, below 0 the best.
        variant: "original", "normalized" or "loss-weighted".
        interval: number of steps in which the task is present, or "epoch" (completed by `Balancer.end_epoch`).

    Raises:
        ValueError: `beta` is not finite, `variant` none of the three, or `interval` neither "epoch" nor an integer ≥ 1.

    Source: Heydari et al., "SoftAdapt: Techniques for Adaptive Loss Weighting of Neural Networks with Multi-Part Loss
    Functions", 2019. The change is the first-order difference; the authors' code also has ones of higher order, from
    more values. It divides by the sum of the signed changes, which can vanish; the paper has their absolute values.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.SoftAdapt(beta=0.1, interval=10))
    """

    masked = True
    search_space: ClassVar[SearchSpace] = {"beta": Range(0.01, 1.0, log=True), "variant": Choice(VARIANTS)}

    def __init__(
        self,
        beta: float = 0.1,
        variant: Literal["original", "normalized", "loss-weighted"] = "original",
        interval: int | Literal["epoch"] = 1,
    ) -> None:
        super().__init__()
        self.beta = check_number("beta", beta)
        self.variant = check_choice("variant", variant, VARIANTS)
        self.change = LossChange(interval)
        self.requires_positive = self.variant == "loss-weighted"

    def forward(self, losses: Tensor) -> Tensor:
        """Returns the weights `[K']`, and takes the losses `[K']` into the current interval."""
        active, last = self.active, self.change.state.last
        change: Tensor = self.change(losses)
        if self.variant == "normalized":
            change = (change / active.sum(change.abs())).nan_to_num(0.0)
        weights = active.softmax(self.beta * change)
        if self.variant == "loss-weighted":
            return active.shares(weights * torch.where(active.all(last > 0), last, 1.0))
        return weights
