"""FairGrad: gradients combined for α-fair improvements."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._normalized import Normalized
from equipoise.search_space import Range, SearchSpace

REGULARIZATION = 1e-12
"""Added to the cosines' diagonal: rows that cancel would have infinite weights."""

ITERATIONS = 100
"""Most Newton steps."""

CONVERGED = 1e-12
"""Relative change of a weight at which the Newton steps, by then quadratically convergent, end."""


class FairGrad(GramianAggregator):
    """Weights under which the tasks' improvements are α-fair.

    `w > 0` with `(Gw)_k = w_k^{−1/α}`, where `G = JJᵀ`: the combined gradient `d = Σ_k w_k g_k` maximises
    `Σ_k ⟨g_k, d⟩^{1−α}/(1−α)` for its norm. α near 0 takes the sum of the improvements, 1 is proportional fairness
    (Nash-MTL), 2 looks at potential delays, and a large α at the least improvement.

    It is the minimiser of `½wᵀGw − Σ_k ∫w_k^{−1/α}`, which is convex, found by damped Newton steps: K numbers on the
    host, where the authors hand the equation to SciPy's nonlinear least squares. A task whose gradient is 0 gets weight
    0. Where some positive combination of the gradients is 0 no solution exists; with rows scaled to norm 1, `10⁻¹²`
    is added to the Gramian's diagonal.

    Multiplying all gradients by s multiplies `d` by `s^{(1−α)/(1+α)}`: as in Nash-MTL, the learning rate has more to
    say about the size of the step than the gradients.

    Preferences `p_k` multiply the gradients, as if they were in front of the losses.

    Args:
        alpha: α, positive. The paper tries 0.5 to 10; LibMTL's default is 1.

    Raises:
        ValueError: `alpha` is not positive, or not finite.

    Source: Ban & Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, Eq. 4.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import FairGrad
        >>> FairGrad(alpha=1.0)(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
        tensor([1., 1.])
    """

    non_conflicting = True
    permutation_invariant = True
    search_space: ClassVar[SearchSpace] = {"alpha": Range(0.5, 10.0, log=True)}

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, above=0)
        self.scale_invariant = alpha == 1

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `w` `[K']`."""
        rows = Normalized(gramian)
        weights = torch.zeros_like(rows.norms)
        some = (~rows.zero).nonzero()[:, 0]
        if not len(some):
            return weights
        norms, cosines = rows.norms[some], rows.cosines[some][:, some]
        cosines.diagonal().add_(REGULARIZATION)
        unit = norms.log().mean().exp()  # with all rows divided by it, neither powers nor products overflow
        shares = (norms / unit).pow(1 / self.alpha - 1)
        length = unit.pow((1 - self.alpha) / (1 + self.alpha))  # of `d`, if all rows had the norm `unit`
        weights[some] = length / norms * _fair(cosines, shares, 1 / self.alpha)
        return weights


def _fair(cosines: Tensor, shares: Tensor, power: float) -> Tensor:
    """Returns the `β > 0` with `(Cβ)_k = s_k β_k^{−γ}` of a positive definite `C` `[K, K]`, shares `s` and a power `γ`.

    Newton steps in units of the current weights, each halved until it lowers the objective enough. They start at the
    solution for orthogonal rows, scaled to the best point on its ray.
    """
    weights = shares.pow(1 / (1 + power))
    for _ in range(ITERATIONS):
        inner = weights @ (cosines @ weights)
        weights = weights * ((shares * weights.pow(1 - power)).sum() / inner).pow(1 / (1 + power))
        aims = shares * weights.pow(1 - power)
        products = weights * (cosines @ weights)
        curvature = cosines * weights * weights[:, None]
        curvature.diagonal().add_(power * aims)
        units = curvature.diagonal().rsqrt()  # the tasks' numbers may differ by many decades
        factors, _ = torch.linalg.cholesky_ex(curvature * units * units[:, None])
        step = torch.cholesky_solve(((aims - products) * units)[:, None], factors)[:, 0] * units
        descent = float((products - aims) @ step)
        length = 1 / (1 + max(0.0, float(-step.amin())))
        rounding = 1e-14 * float(aims.sum())
        while _change(products, curvature, aims, power, length * step) > 1e-4 * length * descent + rounding:
            length *= 0.5
        weights = weights * (1 + length * step)
        if float(step.abs().amax()) <= CONVERGED:
            break
    return weights


def _change(products: Tensor, curvature: Tensor, aims: Tensor, power: float, step: Tensor) -> float:
    """Returns by how much a relative step changes the objective `½βᵀCβ − Σ_k s_k ∫β_k^{−γ}`."""
    quadratic = 0.5 * (step @ (curvature @ step) - power * (aims * step.square()).sum())
    grown = step.log1p() if power == 1 else ((1 - power) * step.log1p()).expm1() / (1 - power)
    return float(products @ step + quadratic - aims @ grown)
