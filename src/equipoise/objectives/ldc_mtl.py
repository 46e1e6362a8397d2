"""Loss discrepancy control."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise.objectives._base import Derivatives, Objective
from equipoise.search_space import Range, SearchSpace


class LDCMTL(Objective):
    """Loss discrepancy control: learned weights, and a penalty on how far the weighted losses are from one another.

    `Σ_k w_k L_k / Σ_k w_k + λ Σ_k |w_k L_k − w_{k+1} L_{k+1}|` with `w_k = sigmoid(θ_k)`, θ learned from 1 and the sum
    of the weights below the first term constant for the gradient. The second sum goes over the neighbours among the
    tasks present, in the Balancer's order. It is the single-level form, with penalty λ, of a bilevel problem: the model
    minimises the weighted losses, the weights minimise their discrepancy.

    The `θ_k` are K 0-dim parameters: give the Balancer's parameters to the optimizer. One backward pass. A coefficient
    can be negative, for a loss that lies below both of its neighbours, where `λ > 1 / (2 Σ_k w_k)`.

    Args:
        penalty: λ ≥ 0; the authors take 0.01 to 0.1, by the data set.

    Raises:
        ValueError: `penalty` is negative.

    Source: Xiao et al., "LDC-MTL: Balancing Multi-Task Learning through Scalable Loss Discrepancy Control", 2025, in
    the form that the authors' code has for CelebA: one learned number a task. For NYUv2 and Cityscapes it takes the
    weights from a small network on the trunk's features, which is the model's business, and for NYUv2 and QM9 it
    divides losses by their first values (and takes logarithms): do so where their units differ.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.LDCMTL(penalty=0.05))
    """

    masked = True
    search_space: ClassVar[SearchSpace] = {"penalty": Range(0.001, 0.1, log=True)}

    def __init__(self, penalty: float = 0.01) -> None:
        super().__init__()
        self.penalty = check_number("penalty", penalty, at_least=0)
        self.add_parameter("logit", 1.0)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns the objective of the losses `[K']`."""
        weights = self.state.logit.sigmoid()
        weighted = weights * losses
        total = self.active.sum(weights.detach())
        return self.active.sum(weighted) / total.clamp(min=torch.finfo(total.dtype).tiny) + self.penalty * (
            self._signs(weighted.detach()) @ self.active.where(weighted, 0.0)
        )

    def derivatives(self, losses: Tensor) -> Derivatives:
        """Returns `w_k (1/Σ_j w_j + λ s_k)` `[K']`, s the derivatives of the discrepancy, and those by the logits."""
        weights = self.state.logit.sigmoid()
        total = self.active.sum(weights)
        each = total.clamp(min=torch.finfo(total.dtype).tiny).reciprocal()
        coefficients = weights * (each + self.penalty * self._signs(weights * losses))
        return coefficients, {"logit": self.active.where(coefficients * losses * (1 - weights), 0.0)}

    def _signs(self, weighted: Tensor) -> Tensor:
        """Returns the derivatives `[K']` of `Σ_k |x_k − x_{k+1}|`, which is their product with the weighted losses."""
        mask = self.active.mask
        if mask is None:
            step = torch.nn.functional.pad(weighted.diff().sign(), (1, 1))
            return -step.diff()
        order = mask.to(torch.int8).argsort(descending=True, stable=True)  # those that take part are neighbours
        both = mask[order][1:]
        step = torch.nn.functional.pad(torch.where(both, weighted[order].diff(), 0.0).sign(), (1, 1))
        return torch.zeros_like(weighted).index_copy(0, order, -step.diff())
