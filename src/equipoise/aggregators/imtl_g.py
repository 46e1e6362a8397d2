"""IMTL-G: equal projections on every task's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._normalized import Normalized

REGULARIZATION = 1e-10
"""Added to the cosines' diagonal, so that dependent gradients can be solved for; refined away where it matters."""

REFINEMENTS = 3
"""Each multiplies the error that the regularization leaves by itself, `10⁻¹⁰/λ` for an eigenvalue `λ`."""

CANCELLED = 1e-12
"""Sum of the weights, relative to that of their magnitudes, up to which it is 0 to rounding."""


class IMTLG(GramianAggregator):
    """Weights under which the combined gradient has the same projection on every task's unit gradient.

    `α` with `⟨d, u_k⟩` equal for all k and `Σ_k α_k = 1`, where `d = Σ_k α_k g_k` and `u_k = g_k/‖g_k‖`. With the
    cosines `C = UUᵀ` that is `C β ∝ 1`, `α_k ∝ β_k/‖g_k‖`. A weight can be negative.

    The paper's closed form inverts a matrix that dependent gradients make singular. Here `C` is regularised, and
    the least solution `β` is found; where some combination of the gradients is 0 and no other has equal
    projections, that one is the answer and `d` is 0. A task whose gradient is 0 has no direction to project on: it
    gets weight 0. If the weights sum to 0, and so cannot be made to sum to 1, all are 0.

    Preferences `p_k` are the ratio of the projections: `⟨d, u_k⟩ ∝ p_k`, `C β ∝ p`.

    Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021. IMTL is `IMTLL` with this.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import IMTLG
        >>> IMTLG()(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([0.7500, 0.7500])
    """

    takes_preferences = True
    permutation_invariant = True
    homogeneous = True

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `α` `[K']`, which sums to 1."""
        rows = Normalized(gramian)
        projections = (~rows.zero).to(gramian.dtype)[:, None]
        if self.preferences is not None:
            projections = projections * self.preferences[:, None]
        matrix = rows.cosines.clone()
        matrix.diagonal().add_(REGULARIZATION)
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        beta = torch.linalg.lu_solve(factors, pivots, projections)
        for _ in range(REFINEMENTS):
            beta += torch.linalg.lu_solve(factors, pivots, torch.addmm(projections, rows.cosines, beta, alpha=-1))
        alpha = beta[:, 0] * (rows.norms.amin() / rows.norms)
        total = float(alpha.sum())
        return alpha / total if abs(total) > CANCELLED * float(alpha.abs().sum()) else torch.zeros_like(alpha)
