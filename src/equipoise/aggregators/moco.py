"""MoCo: the min-norm combination of tracked gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise.aggregators._base import Gradients
from equipoise.aggregators._rows import RowStateAggregator, as_gradients, by_task, matrix, squared_norms, weighted
from equipoise.gradients.gramian import gramian, wide_dtype
from equipoise.search_space import Range, SearchSpace


class MoCo(RowStateAggregator):
    """Follows the tasks' gradients with moving averages, whose weights take small steps towards the min-norm point.

    With normalised gradients `h_k = L_k g_k/‖g_k‖`: `y_k ← y_k + β_t (h_k − y_k)`,
    `λ ← softmax(λ − γ_t (YYᵀ + ρI) λ)`, and `d = Σ_k λ_k y_k`, where `β_t = β/t^{σ_β}` and `γ_t = γ/t^{σ_γ}`. `y_k`
    starts at 0, `λ_k` at 1/K. The noise of single batches biases the min-norm point of `MGDA`; that of the averages
    it biases less.

    The y are K numbers for every shared element, kept and saved (see `RowStateAggregator`). Where tasks are missing,
    the others' λ go on among themselves, sum included, and `t` counts a task's own steps.

    The softmax and the normalised gradients are those of the authors' code, as LibMTL has it; the paper projects λ onto
    the simplex and tracks the gradients as they are (`normalize=False`).

    Preferences `p_k` multiply the `h_k`.

    Args:
        beta: β, in (0, 1].
        beta_sigma: σ_β, at least 0.
        gamma: γ, positive.
        gamma_sigma: σ_γ, at least 0.
        rho: ρ, at least 0.
        normalize: whether gradients are brought to the length of their losses.

    Raises:
        ValueError: a number is outside its range.

    Source: Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach",
    ICLR 2023, Algorithm 1; the defaults are LibMTL's.

    Example:
        >>> import torch, equipoise as eq
        >>> model = torch.nn.Linear(4, 2)
        >>> balancer = eq.Balancer(["depth", "normals"], aggregator=eq.MoCo(), model=model)
    """

    takes_preferences = True
    masked = True
    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.05, 1.0, log=True),
        "gamma": Range(0.01, 1.0, log=True),
    }

    def __init__(
        self,
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, above=0, at_most=1)
        self.beta_sigma = check_number("beta_sigma", beta_sigma, at_least=0)
        self.gamma = check_number("gamma", gamma, above=0)
        self.gamma_sigma = check_number("gamma_sigma", gamma_sigma, at_least=0)
        self.rho = check_number("rho", rho, at_least=0)
        self.normalize = normalize
        self.add_row_state("tracked")
        self.add_state("share", 1.0)
        self.add_state("updates", 0)

    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], None]:
        """Returns `Σ_k λ_k y_k` of every parameter; the rows themselves have no weights."""
        state, active = self.state, self.active
        rows = [matrix(column) for column in zip(*gradients, strict=True)]
        if self.normalize:
            norms = squared_norms(rows, wide_dtype(losses.device)).sqrt()
            lengths = torch.where(norms > 0, losses / norms, 0.0)
            rows = [part * by_task(lengths, part) for part in rows]
        state.updates = state.updates + 1
        steps = state.updates.to(losses.dtype)
        shares = self.beta / steps.pow(self.beta_sigma)
        before = self.kept_rows("tracked", rows)
        tracked = [
            torch.lerp(old, self.preferred(new), by_task(shares, new)) for old, new in zip(before, rows, strict=True)
        ]
        self.keep_rows("tracked", tracked)

        total = active.sum(state.share)
        weights = active.where(state.share / total, 0.0)
        products = gramian(list(zip(*[part.unbind() for part in tracked], strict=True))).to(weights.dtype)
        slope = products @ weights + self.rho * weights
        weights = active.softmax(weights - self.gamma / steps.pow(self.gamma_sigma) * slope)
        state.share = total * weights
        return as_gradients(weighted(tracked, active.where(weights, 0.0)), gradients), None
