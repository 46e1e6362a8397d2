"""CAGrad: the best worst-case improvement within a ball around the mean gradient."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_choice, check_number
from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._normalized import Normalized
from equipoise.aggregators._simplex import minimize_on_simplex
from equipoise.search_space import Range, SearchSpace

RESCALES = ("none", "1+c2", "1+c")

RESOLVED = 1e-6
"""Norm of `g_w`, relative to `Σ w_k ‖g_k‖`, below which its direction is rounding in float32 gradients."""


class CAGrad(GramianAggregator):
    """The update near the mean gradient that helps the worst-off task most.

    `d = g_0 + c‖g_0‖ g_w/‖g_w‖`, where `g_0` is the mean of the task gradients, `g_w = Σ_k w_k g_k`, and `w` minimises
    `⟨g_w, g_0⟩ + c‖g_0‖‖g_w‖` over `w ≥ 0`, `Σ_k w_k = 1`. That `d` maximises `min_k ⟨g_k, d⟩` over
    `‖d − g_0‖ ≤ c‖g_0‖`. A task whose gradient is 0 counts in `g_0` and is left out of the minimum. Where `g_w` is 0
    (the parameters are Pareto-stationary) it has no direction and `d = g_0`.

    The problem is solved to rounding; the authors hand it to a general solver and add 1e-8 under the root, which
    gives `d = g_0` in that case as well.

    Preferences `p_k` multiply the gradients, as if they were in front of the losses.

    Args:
        c: radius of the ball relative to `‖g_0‖`, at least 0. With 0, `d` is the mean gradient; below 1 the mean loss
            still converges.
        rescale: what `d` is divided by: `"none"` 1 (the paper), `"1+c2"` `1 + c²` (the authors' code's default),
            `"1+c"` `1 + c`.

    Raises:
        ValueError: `c` is negative or not finite, or `rescale` is none of these.

    Source: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, Algorithm 1.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import CAGrad
        >>> CAGrad(c=0.5)(torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
        tensor([3., 3.])
    """

    permutation_invariant = True
    homogeneous = True
    search_space: ClassVar[SearchSpace] = {"c": Range(0.1, 0.9)}

    def __init__(self, c: float = 0.5, rescale: str = "none") -> None:
        super().__init__()
        self.c = check_number("c", c, at_least=0)
        self.rescale = check_choice("rescale", rescale, RESCALES)
        self._divisor = {"none": 1.0, "1+c2": 1 + self.c**2, "1+c": 1 + self.c}[rescale]

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `1/K' + c‖g_0‖ w/‖g_w‖` `[K']`, divided by what `rescale` names."""
        mean = torch.full_like(gramian[0], 1 / len(gramian))
        radius = self.c * math.sqrt(max(float(gramian.mean()), 0.0))
        if radius == 0:
            return mean / self._divisor
        rows = Normalized(gramian)
        some = (~rows.zero).nonzero()[:, 0]
        norms = rows.norms[some]
        inner, norm = minimize_on_simplex(rows.cosines[some][:, some], norms, gramian.mean(1)[some], radius)
        if norm > RESOLVED * float(inner @ norms):
            mean[some] += radius / norm * inner
        return mean / self._divisor
