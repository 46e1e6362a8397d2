"""Equal weights."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.objectives._base import Weighting


class Equal(Weighting):
    """Equal weights (EW, "Uniform"): `w_k = 1`, the plain sum of the losses.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.Equal())
    """

    masked = True

    def forward(self, losses: Tensor) -> Tensor:
        """Returns ones `[K']`."""
        return torch.ones_like(losses)
