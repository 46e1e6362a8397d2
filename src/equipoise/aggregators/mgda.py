"""MGDA: the shortest vector in the convex hull of the task gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_choice
from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._normalized import Normalized
from equipoise.aggregators._simplex import minimize_on_simplex
from equipoise.search_space import Choice, SearchSpace

NORMALIZATIONS = ("none", "l2", "loss", "loss+")


class MGDA(GramianAggregator):
    """Weights of the min-norm point of the convex hull of the task gradients.

    `w = argmin ‖Σ_k w_k g_k/s_k‖` over `w ≥ 0`, `Σ_k w_k = 1`. Following its negative lowers every loss, or it is 0
    and the parameters are Pareto-stationary. The problem is solved to rounding, where the authors' Frank–Wolfe
    iteration stops early. A task whose gradient is 0 makes the min-norm point 0: such tasks share the weights.

    As in the authors' code, the scales `s_k` only serve to find the weights, which then apply to the gradients as
    they are: `Σ_k w_k g_k`. The losses in `s_k` are the raw ones.

    Preferences `p_k` are the ratio in which the losses fall: `d` is the min-norm point of the rows `g_k/p_k`, which has
    `⟨d, g_k⟩ = p_k ‖d‖²` for every task with a weight (without scales `s_k`), and the weights are `w_k/p_k`.

    Args:
        normalization: the scale `s_k`: `"none"` 1, `"l2"` `‖g_k‖`, `"loss"` `L_k`, `"loss+"` `L_k ‖g_k‖`.

    Raises:
        ValueError: `normalization` is none of these.

    MGDA-UB takes the gradients at the shared representation, which bounds the norm and needs one backward pass through
    the trunk instead of one a task: `balancer.backward(losses, representation=z)`.

    Source: Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import MGDA
        >>> MGDA()(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([0.4000, 0.8000])
    """

    takes_preferences = True
    permutation_invariant = True
    homogeneous = True
    search_space: ClassVar[SearchSpace] = {"normalization": Choice(NORMALIZATIONS)}

    def __init__(self, normalization: str = "none") -> None:
        super().__init__()
        self.normalization = check_choice("normalization", normalization, NORMALIZATIONS)
        self.requires_positive = normalization in ("loss", "loss+")
        self.non_conflicting = normalization == "none"

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `w` `[K']`, which sums to 1."""
        rows = Normalized(gramian)
        if rows.zero.any():
            return rows.zero / rows.zero.sum(dtype=gramian.dtype)
        norms = rows.norms
        scales = {"none": torch.ones_like(norms), "l2": norms, "loss": losses, "loss+": losses * norms}
        preferences = torch.ones_like(norms) if self.preferences is None else self.preferences
        lengths = norms / scales[self.normalization] / preferences
        weights, _ = minimize_on_simplex(rows.cosines, lengths, linear=torch.zeros_like(norms), factor=1.0)
        return weights / preferences
