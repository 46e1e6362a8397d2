"""Nash-MTL: the tasks' bargaining solution."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._normalized import Normalized

REGULARIZATION = 1e-12
"""Added to the cosines' diagonal: rows that cancel would have infinite weights."""

ITERATIONS = 40
"""Most Newton steps. Up to 200 rows, 30 are enough; where the rows cancel, more only move the result within rounding.
"""

CONVERGED = 1e-12
"""Relative change of a weight at which the Newton steps, by then quadratically convergent, end."""


class NashMTL(GramianAggregator):
    """Weights of the Nash bargaining solution between the tasks.

    `α > 0` with `Gα = 1/α`, where `G = JJᵀ`: the combined gradient `d = Σ_k α_k g_k` maximises `Σ_k log⟨g_k, d⟩` for
    its norm, which is `√K`. It is the minimiser of `½αᵀGα − Σ_k log α_k`, found by damped Newton steps.

    A task whose gradient is 0 has no stake: it gets weight 0 and the others bargain among themselves. Where some
    positive combination of the gradients is 0, no solution exists; with rows scaled to norm 1, `10⁻¹²` is added
    to the Gramian's diagonal, so that weights stay below `10⁶/‖g_k‖` and the solution elsewhere is exact to
    `10⁻¹² (α_k ‖g_k‖)²`.

    The authors' code differs: it approximates `α` by a sequence of convex problems from the last step's weights,
    divides `G` by its norm first, which scales `α`, and clips `‖d‖` to 1. This is the paper's equation, with no
    state. As `‖d‖ = √K` whatever the gradients' norms, the learning rate alone sets the size of the step.

    Preferences `p_k` are the tasks' bargaining powers: `α_k (Gα)_k = p_k`, which maximises `Σ_k p_k log⟨g_k, d⟩` for
    the norm `√Σ_k p_k` (Kalai's asymmetric Nash solution).

    Source: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import NashMTL
        >>> NashMTL()(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
        tensor([1., 1.])
    """

    takes_preferences = True
    non_conflicting = True
    permutation_invariant = True
    scale_invariant = True

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `α` `[K']`."""
        rows = Normalized(gramian)
        rows.cosines.diagonal().add_(REGULARIZATION)
        powers = torch.ones_like(rows.norms) if self.preferences is None else self.preferences
        least = powers.amin()
        return torch.where(rows.zero, 0.0, _bargain(rows.cosines, powers / least) * least.sqrt() / rows.norms)


def _bargain(gramian: Tensor, powers: Tensor) -> Tensor:
    """Returns the `α > 0` with `α_k (Gα)_k = p_k` of a positive definite `G` `[K, K]` and powers `p_k ≥ 1` `[K]`.

    Every Newton step is first scaled to the best point on its ray, where `αᵀGα = Σ_k p_k`, and then shortened by
    `1/(1 + max_k |step_k/α_k|)`, which makes each lower the objective and the last ones converge quadratically.
    """
    total = powers.sum()
    alpha = torch.ones_like(gramian[0])
    for _ in range(ITERATIONS):
        alpha = alpha * (total / (alpha @ (gramian @ alpha))).sqrt()
        matrix = gramian * alpha * alpha[:, None]  # in units of the current weights
        defect = powers - matrix.sum(1)
        matrix.diagonal().add_(powers)
        step, _ = torch.linalg.solve_ex(matrix, defect)
        longest = step.abs().amax()
        alpha = alpha * (1 + step / (1 + longest))
        if longest <= CONVERGED:
            break
    return alpha
