"""PCD: one task first, and some progress for all others."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_known, check_number
from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._cone import multipliers
from equipoise.aggregators._normalized import Normalized
from equipoise.search_space import Range, SearchSpace

CANCELLED = 1e-14
"""Squared norm of a direction, in units of its coefficients' sum squared, up to which it is 0 to rounding."""


class PCD(GramianAggregator):
    """Follows one task's gradient as closely as some progress of every other task allows.

    With normalised gradients `g̃_k = g_k/√(v̂_k + ε)`, where `v̂_k` is the moving average of `‖g_k‖²` with decay β and
    Adam's bias correction, and with the primary task 1: `d̃` is the nearest to `g̃_1` of the directions that have
    `⟨d̃, g̃_k⟩ ≥ τ ‖g̃_k‖²` for all others; `d` is `d̃` at the length of `g_1`. So each of the others gets at least a share
    τ of the progress that a step along its own gradient would give it.

    The program is solved exactly on K numbers (see `_cone`), where the authors' code tries out all sets of active
    constraints, whose number doubles with each task. If the constraints contradict one another, `d` is `g_1`, as in
    TorchJD; where `g_1` or `d̃` is 0, `d` is 0. A task whose gradient is 0 constrains nothing.

    In a step that lacks the primary task, the first of the tasks present takes its place. `v̂_k` is part of the state,
    a number a task, and counts the steps in which the task was there.

    Preferences `p_k` multiply the gradients, as if they were in front of the losses; on the constraints, which are
    relative, they have no effect.

    Args:
        primary: the task that comes first; None: the first one.
        tau: τ, in [0, 1].
        beta: β, in [0, 1).
        eps: ε, at least 0.

    Raises:
        ValueError: a number is outside its range; on `bind`, `primary` is no task.

    Source: "Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical Multi-Objective
    Optimization", TMLR 2026 (arXiv:2606.29521).

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["reward", "safety"], aggregator=eq.PCD(primary="reward", tau=0.1))
    """

    search_space: ClassVar[SearchSpace] = {"tau": Range(0.002, 0.2, log=True)}

    def __init__(self, primary: str | None = None, tau: float = 0.02, beta: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__()
        self.primary = primary
        self.tau = check_number("tau", tau, at_least=0, at_most=1)
        self.beta = check_number("beta", beta, at_least=0, below=1)
        self.eps = check_number("eps", eps, at_least=0)
        self.add_state("squared_norm", 0.0)
        self.add_state("updates", 0)

    def on_bind(self) -> None:
        """Checks the primary task."""
        if self.primary is not None and self.tasks is not None:
            check_known("primary", [self.primary], self.tasks)

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns the coefficients of `d` `[K']`, and keeps the moving averages."""
        rows = Normalized(gramian)
        norms = torch.where(rows.zero, 0.0, rows.norms)
        state = self.state
        state.updates = state.updates + 1
        state.squared_norm = torch.lerp(norms.square(), state.squared_norm, self.beta)
        scales = (state.squared_norm / (1 - self.beta ** state.updates.double()) + self.eps).rsqrt()
        lengths = torch.where(rows.zero, 0.0, scales * norms)
        lengths = lengths / lengths.amax().clamp(min=torch.finfo(lengths.dtype).tiny)  # `d` is rescaled at last

        primary = torch.zeros_like(rows.zero)
        tasks = self.present_tasks
        primary[tasks.index(self.primary) if self.primary in tasks else 0] = True
        others, first = (~primary).nonzero()[:, 0], primary.nonzero()[0, 0]
        found = torch.where(primary, lengths, 0.0)  # coefficients of `d̃` on the unit rows
        slopes = (rows.cosines[first] * lengths[first] - self.tau * lengths)[others]
        solution = multipliers(rows.cosines[others][:, others], slopes[None])[0]
        found[others] = solution.nan_to_num(0.0)
        squared = found @ (rows.cosines @ found)
        if squared <= CANCELLED * found.sum().square():
            return torch.zeros_like(norms)
        return found / rows.norms * (norms[first] / squared.sqrt())
