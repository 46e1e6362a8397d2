"""The sum of the losses' logarithms."""

from __future__ import annotations

from torch import Tensor

from equipoise.objectives._base import Derivatives, Objective


class LogSum(Objective):
    """Sum of the losses' logarithms, `Σ_k log L_k`, whose derivatives are `1/L_k`.

    So the scale of a loss does not matter to its gradient, the heads' included. It is IMTL-L at the optimum of its
    scales, and the half of DB-MTL that is about losses; beside the geometric mean of the losses, it lacks their common
    factor.

    Source: Lin et al., "Dual-Balancing for Multi-Task Learning", 2023 (arXiv:2308.12029).

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.LogSum())
    """

    masked = True
    requires_positive = True

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `Σ_k log L_k` of the losses `[K']`, all positive."""
        return self.active.sum(losses.log())

    def derivatives(self, losses: Tensor) -> Derivatives:
        """Returns `1/L_k` `[K']`."""
        return self.active.where(1 / losses, 0.0), {}
