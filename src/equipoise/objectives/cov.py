"""Weights from the coefficient of variation of the loss ratios."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.objectives._base import Weighting

SMALLEST = 1e-8
"""Added to the variance, as in the authors' code."""


class CoV(Weighting):
    """Coefficient of variation: a loss that still varies, relative to its mean, is one that is still being learned.

    `w_k ∝ σ_k / μ_k`, mean and standard deviation of the task's loss ratios `ℓ_k(t) = L_k(t) / L̄_k(t−1)` so far, with
    `L̄_k` the mean of its losses (1 for the first). The weights sum to 1 over the tasks present, and are equal until all
    of these have had two steps. Means and deviations are Welford's running ones, of the steps in which the task was
    present. One backward pass; four numbers a task.

    Source: Groenendijk et al., "Multi-Loss Weighting with Coefficient of Variations", WACV 2021; as in the authors'
    code, the current step's ratio counts from the next step on, and 1e-8 is added to the variance.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.CoV())
    """

    masked = True
    requires_positive = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("steps", 0.0)
        self.add_state("mean_loss", 0.0)
        self.add_state("mean_ratio", 0.0)
        self.add_state("squares", 0.0)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `σ_k / μ_k` over their sum `[K']`, and takes the losses `[K']` into the running statistics."""
        state, active = self.state, self.active
        deviation = (state.squares / state.steps + SMALLEST).sqrt()
        weights = active.shares(torch.where(active.all(state.steps > 1), deviation / state.mean_ratio, 1.0))

        ratio = (losses / state.mean_loss).nan_to_num(1.0, 1.0)  # x/0 in the first step
        state.steps = state.steps + 1
        share = state.steps.reciprocal()
        before = state.mean_ratio
        state.mean_ratio = torch.lerp(before, ratio, share)
        state.squares = torch.addcmul(state.squares, ratio - before, ratio - state.mean_ratio)
        state.mean_loss = torch.lerp(state.mean_loss, losses, share)
        return weights
