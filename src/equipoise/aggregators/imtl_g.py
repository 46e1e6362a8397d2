"""IMTL-G: equal projections on every task's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.aggregators._base import GramianAggregator


class IMTLG(GramianAggregator):
    """Weights under which the combined gradient has the same projection on every task's unit gradient.

    `α` with `⟨Σ_j α_j g_j, u_k⟩` equal for all k and `Σ_k α_k = 1`, where `u_k = g_k/‖g_k‖`. With `G = JJᵀ` and the
    norms `n`, that is `Gα ∝ n`. A weight can be negative.
    """

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `α` `[K']`."""
        alpha = torch.linalg.pinv(gramian, hermitian=True) @ gramian.diagonal().clamp(min=0).sqrt()
        return alpha / alpha.sum()
