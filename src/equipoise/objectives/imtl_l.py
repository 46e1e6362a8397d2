"""The loss-balancing half of impartial multi-task learning."""

from __future__ import annotations

from torch import Tensor

from equipoise.objectives._base import Derivatives, Objective


class IMTLL(Objective):
    """IMTL-L: learns a scale for each loss that brings all scaled losses to one.

    `Σ_k e^{s_k} L_k − s_k` with `s_k` learned from 0; at the optimum `e^{s_k} L_k = 1`.

    The `s_k` are K 0-dim parameters: give the Balancer's parameters to the optimizer. Only those
    of the tasks present get a gradient, `e^{s_k} L_k − 1`. A task whose loss stays at or
    below 0 has no such optimum: its scale grows on and on.

    Source: Liu et al., "Towards Impartial Multi-Task Learning", ICLR 2021.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.IMTLL())
    """

    masked = True

    def __init__(self) -> None:
        super().__init__()
        self.add_parameter("log_scale", 0.0)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `Σ_k e^{s_k} L_k − s_k` of the losses `[K']`."""
        log_scale = self.state.log_scale
        return self.active.sum(log_scale.exp() * losses - log_scale)

    def derivatives(self, losses: Tensor) -> Derivatives:
        """Returns `e^{s_k}` `[K']`, and those by the log-scales, `e^{s_k} L_k − 1`."""
        weights = self.state.log_scale.exp()
        return weights, {"log_scale": self.active.where(weights * losses - 1, 0.0)}
