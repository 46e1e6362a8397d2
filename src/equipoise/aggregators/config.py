"""ConFIG: equal cosines to all task gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._normalized import Normalized

CANCELLED = 1e-12
"""Squared norm of `v` up to which it is 0 to rounding; of independent gradients it is at least 1."""


class ConFIG(GramianAggregator):
    """The direction with the same cosine to every task's gradient, as long as the sum of the gradients' parts along it.

    With unit rows `U` (`u_k = g_k/‖g_k‖`): the direction is `v = U⁺1`, made a unit vector `û`, and
    `d = (Σ_k ⟨g_k, û⟩) û`. On K numbers, with the cosines `C = UUᵀ`: `v = Uᵀβ` with `β = C⁺1`. Where the gradients are
    independent, all cosines are equal and positive, so that no task's loss rises to first order; where they are
    dependent there may be no such direction, and `v` is the one nearest to it in the least-squares sense.

    A task whose gradient is 0 has no direction and counts for nothing. Where the least-squares direction is 0, as for
    two opposite gradients, so is `d`. As the products are taken first, singular values of `U` count as 0 up to `√(K ε)`
    times the largest (float64's ε), where the authors' code, which keeps `U`, has `P ε`.

    One eigendecomposition of the Gramian, on the host: 128 tasks take some 3 ms.

    Preferences `p_k` are the ratio of the cosines: `v = U⁺p`, the paper's weights of the directions.

    Source: Liu, Chu & Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", ICLR 2025,
    Eq. 2.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import ConFIG
        >>> ConFIG()(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([2., 2.])
    """

    takes_preferences = True
    permutation_invariant = True
    homogeneous = True

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns the coefficients of `d` `[K']`."""
        rows = Normalized(gramian)
        weights = torch.zeros_like(rows.norms)
        some = (~rows.zero).nonzero()[:, 0]
        norms, cosines = rows.norms[some], rows.cosines[some][:, some]
        preferences = torch.ones_like(norms) if self.preferences is None else self.preferences[some]
        if not len(some):
            return weights
        beta = torch.linalg.pinv(cosines, hermitian=True) @ (preferences / preferences.mean())
        projections = cosines @ beta
        squared = beta @ projections
        if squared > CANCELLED:
            weights[some] = (norms @ projections) / squared * beta / norms
        return weights
