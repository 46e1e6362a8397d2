"""ExcessMTL: more weight for tasks that are far from what they can reach."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise.aggregators._base import Gradients
from equipoise.aggregators._rows import RowStateAggregator, matrix
from equipoise.gradients.gramian import combine, wide_dtype
from equipoise.search_space import Range, SearchSpace

EPSILON = 1e-7
"""Added under the root, as in the authors' code."""


class ExcessMTL(RowStateAggregator):
    """Gives a task weight by its excess risk: how much its loss can still fall, whatever the noise in its labels.

    The excess risk is estimated to second order, with a diagonal approximation of the Hessian:
    `e_k = g_kᵀ diag(√(s_k + 10⁻⁷))^{−1} g_k`, where `s_k` is the sum of the squared gradients `g_k²` so far, this one
    included. Relative to its first value `e_k(0)`: `w_k ← w_k exp(η e_k/e_k(0))`, scaled to sum to the number of tasks;
    `d = Σ_k w_k g_k`. `w_k` starts at 1, and stays in a task's first step.

    The `s_k` are K numbers for every shared element, kept and saved (see `RowStateAggregator`). If tasks are missing,
    the others share their own sum of the weights.

    As in the authors' code the weights sum to K (in the paper to 1), and the baseline is the first step's (in its
    appendix that of a warm-up of three epochs). Their weights multiply the losses, heads included: here, as in every
    aggregator, they act on the shared parameters, and a head gets its own task's gradient.

    Preferences `p_k` multiply the weights.

    Args:
        step_size: η, positive.

    Raises:
        ValueError: `step_size` is not positive, or not finite.

    Source: He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024, Eq. 6, 7 and 9; the default is the
    authors' code's.

    Example:
        >>> import torch, equipoise as eq
        >>> model = torch.nn.Linear(4, 2)
        >>> balancer = eq.Balancer(["depth", "normals"], aggregator=eq.ExcessMTL(), model=model)
    """

    takes_preferences = True
    masked = True
    weighs = True
    search_space: ClassVar[SearchSpace] = {"step_size": Range(1e-3, 1.0, log=True)}

    def __init__(self, step_size: float = 0.01) -> None:
        super().__init__()
        self.step_size = check_number("step_size", step_size, above=0)
        self.add_row_state("squared_sum")
        self.add_state("weight", 1.0)
        self.add_state("baseline", 0.0)

    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns `Σ_k w_k g_k` of every parameter, and the weights `[K']`."""
        state, active, wide = self.state, self.active, wide_dtype(losses.device)
        squares = [matrix(column).square() for column in zip(*gradients, strict=True)]
        sums = [old + new for old, new in zip(self.kept_rows("squared_sum", squares), squares, strict=True)]
        self.keep_rows("squared_sum", sums)
        parts = zip(squares, sums, strict=True)
        excess = sum((new / (every + EPSILON).sqrt()).flatten(1).sum(1, dtype=wide) for new, every in parts)
        baseline = state.baseline
        known = baseline > 0
        state.baseline = torch.where(known, baseline, excess)
        relative = torch.where(known, excess / baseline, 0.0)
        total = active.sum(state.weight)
        shares = active.softmax(state.weight.log() + self.step_size * relative)
        state.weight = total * shares
        weights = self.preferred(active.where(active.count * shares, 0.0))
        return combine(gradients, weights), weights
