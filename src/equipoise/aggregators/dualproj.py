"""DualProj: the mean gradient, freed of its conflicts."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._cone import multipliers
from equipoise.aggregators._normalized import Normalized


class DualProj(GramianAggregator):
    """Projects the mean gradient onto the directions that conflict with no task.

    `d = π(g_0)`, where `g_0` is the mean of the task gradients and `π(g)` is the point nearest to `g` of the dual cone
    `{d : ⟨d, g_j⟩ ≥ 0 for all j}`. On K numbers: `d = Jᵀv`, where `v` minimises `½vᵀGv` subject to `v_k ≥ 1/K`. One
    program, solved exactly, where `UPGrad` solves one a task.

    Its authors apply it to the gradients of a task at hand and of remembered ones; for several tasks at once it is in
    Quinton & Rey. Theirs (TorchJD) adds 1e-4 to the diagonal of the Gramian, which leaves conflicts of that size; here
    none is added.

    Preferences `p_k` weigh the mean: `g_0 = Σ_k p_k g_k / Σ_k p_k`.

    Source: Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, Eq. 11; Quinton & Rey,
    "Jacobian Descent for Multi-Objective Optimization", 2024 (arXiv:2406.16232), Section 3.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import DualProj
        >>> DualProj()(torch.tensor([[1.0, 0.0], [-4.0, 1.0]]))
        tensor([0.0000, 0.5000])
    """

    takes_preferences = True
    non_conflicting = True
    permutation_invariant = True
    homogeneous = True

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `v` `[K']`."""
        rows = Normalized(gramian)
        preferences = torch.ones_like(rows.norms) if self.preferences is None else self.preferences
        shares = preferences / preferences.sum()
        lengths = shares * rows.norms
        mean = rows.cosines @ (lengths / lengths.sum())  # its products with the unit rows
        return shares + lengths.sum() * multipliers(rows.cosines, mean[None])[0] / rows.norms
