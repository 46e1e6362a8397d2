"""DB-MTL: smoothed gradients, all as long as the longest."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise.aggregators._base import Gradients
from equipoise.aggregators._rows import RowStateAggregator, as_gradients, by_task, matrix, squared_norms, weighted
from equipoise.gradients.gramian import wide_dtype
from equipoise.search_space import Range, SearchSpace


class DBMTL(RowStateAggregator):
    """Brings moving averages of the tasks' gradients to the length of the longest, and adds them up.

    `m_k ← β_t m_k + (1 − β_t) g_k` with `β_t = β/t^σ`, from 0, and `d = Σ_k (max_j ‖m_j‖/‖m_k‖) m_k`. That is the half
    of dual balancing which is about gradients; the other is that the losses' logarithms are minimised, heads included:
    `Balancer(tasks, LogSum(), DBMTL(), model=model)`, which is what `make_method("db-mtl", ...)` makes.

    The m are K numbers for every shared element, kept and saved (see `RowStateAggregator`). `t` counts a task's own
    steps. As in LibMTL, whose authors are the method's, m is not corrected for its start at 0.

    Preferences `p_k` multiply the lengths: `d = Σ_k p_k (max_j ‖m_j‖/‖m_k‖) m_k`.

    Args:
        beta: β, in [0, 1): what remains of an average from step to step.
        sigma: σ, at least 0: how quickly it falls.

    Raises:
        ValueError: a number is outside its range.

    Source: Lin et al., "Dual-Balancing for Multi-Task Learning", 2023 (arXiv:2308.12029); the defaults are LibMTL's.

    Example:
        >>> import torch, equipoise as eq
        >>> model = torch.nn.Linear(4, 2)
        >>> balancer = eq.Balancer(["depth", "normals"], eq.LogSum(), eq.DBMTL(), model=model)
    """

    takes_preferences = True
    masked = True
    search_space: ClassVar[SearchSpace] = {"beta": Range(0.1, 0.9), "sigma": Range(0.0, 0.5)}

    def __init__(self, beta: float = 0.9, sigma: float = 0.0) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, at_least=0, below=1)
        self.sigma = check_number("sigma", sigma, at_least=0)
        self.add_row_state("average")
        self.add_state("updates", 0)

    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], None]:
        """Returns `Σ_k (max_j ‖m_j‖/‖m_k‖) m_k` of every parameter; the rows themselves have no weights."""
        state = self.state
        state.updates = state.updates + 1
        shares = 1 - self.beta / state.updates.to(losses.dtype).pow(self.sigma)
        rows = [matrix(column) for column in zip(*gradients, strict=True)]
        before = self.kept_rows("average", rows)
        averages = [torch.lerp(old, new, by_task(shares, new)) for old, new in zip(before, rows, strict=True)]
        self.keep_rows("average", averages)
        norms = self.active.where(squared_norms(averages, wide_dtype(losses.device)).sqrt(), 0.0)
        lengths = self.preferred(torch.where(norms > 0, norms.amax() / norms, 0.0))
        return as_gradients(weighted(averages, lengths), gradients), None
