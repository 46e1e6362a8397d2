"""Random loss weighting."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.objectives._base import Weighting


class RLW(Weighting):
    """Random weights, drawn anew in each step: `w = softmax(z)`, `z ~ N(0, I)`.

    They sum to 1 over the tasks present. The numbers come from the CPU's generator in float64, so they are the same on
    every device. The generator is the method's own and its state part of `state_dict`.

    Args:
        seed: seed of the generator; None takes one from PyTorch's default generator, so that
            `torch.manual_seed` decides.

    Source: Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning",
    TMLR 2022.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.RLW(seed=0))
    """

    masked = True

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.add_generator(seed)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `softmax(z)` `[K']` of newly drawn z."""
        z = torch.randn(len(losses), generator=self.generator, dtype=torch.float64, device="cpu")
        return self.active.softmax(z.to(losses.device, losses.dtype, non_blocking=True))
