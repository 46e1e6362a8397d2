"""Smooth Tchebycheff scalarization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise._kept import Kept
from equipoise.objectives._base import Derivatives
from equipoise.objectives._preferences import PreferenceObjective
from equipoise.search_space import Choice, Range, SearchSpace


class STCH(PreferenceObjective):
    """Smooth Tchebycheff scalarization: a smooth maximum of the log losses, which the worst task decides.

    `K μ log Σ_k exp(p_k log(L_k / n_k) / μ)` with the nadir `n_k`: the task's mean loss in the epoch that ends a
    warm-up, in which the objective is `Σ_k p_k log L_k`. A task is in its warm-up for the first `warmup + 1` epochs
    that it was present in; the objective is the warm-up's until every task present has a nadir. K counts the tasks
    present, and `p_k` are the preferences. One backward pass; four numbers a task.

    Args:
        mu: μ > 0; the smaller, the nearer to the maximum.
        warmup: epochs (ended by `Balancer.end_epoch`) before the one in which the nadir is found, ≥ 0.
        preferences: task → `p_k` ≥ 0, how much its loss counts; 1 for tasks that are not named. `prefer` changes them.

    Raises:
        TypeError: `preferences` is no mapping.
        ValueError: an argument is out of range, or (once the tasks are known) a name in `preferences` is not a task, or
            no task is preferred.

    Source: Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024; log losses,
    warm-up, nadir, the factor K and both defaults are those of the authors' multi-task code. It adds 1e-20 to the
    losses; here a loss at or below 0 leaves its task out.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.STCH(mu=0.5, warmup=1))
    """

    masked = True
    requires_positive = True
    search_space: ClassVar[SearchSpace] = {"mu": Range(0.01, 1.0, log=True), "warmup": Choice((1, 2, 4))}

    def __init__(self, mu: float = 1.0, warmup: int = 4, preferences: Mapping[str, float] | None = None) -> None:
        super().__init__(preferences)
        self.mu = check_number("mu", mu, above=0)
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
            raise ValueError(f"warmup must be a number of epochs ≥ 0, found {warmup!r}.")
        self.warmup = warmup
        self._constants = Kept[tuple[Tensor, Tensor, Tensor]]()
        self.add_state("total", 0.0)
        self.add_state("steps", 0)
        self.add_state("epochs", 0)
        self.add_state("nadir", 0.0)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns the objective of the losses `[K']`, and takes them into the epoch's mean."""
        ready, scale, offset = self._taken(losses)
        active, logs = self.active, losses.log()
        scaled = active.where(scale * logs - torch.where(ready, offset, 0.0), torch.finfo(losses.dtype).min)
        return torch.where(ready, active.count * self.mu * scaled.logsumexp(0), self.mu * active.sum(scale * logs))

    def derivatives(self, losses: Tensor) -> Derivatives:
        """Returns `K softmax_k(p log(L/n)/μ) p_k / L_k` `[K']`, and `p_k / L_k` in the warm-up."""
        ready, scale, offset = self._taken(losses)
        active, preference = self.active, self.preference
        share = active.count * active.softmax(scale * losses.log() - offset)
        return torch.where(ready, share * preference, preference) / losses, {}

    def _taken(self, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes the losses `[K']` into the epoch's mean.

        Returns:
            Whether all nadirs are known, 0-dim; `p_k / μ` and `p_k log(n_k) / μ`, `[K']`.
        """
        state = self.state
        nadir, preference = state.nadir, self.preference
        state.total = state.total + losses
        state.steps = state.steps + 1

        def constants() -> tuple[Tensor, Tensor, Tensor]:
            scale = preference / self.mu
            return self.active.all(nadir > 0), scale, scale * nadir.log()

        return self._constants(constants, nadir, preference, self.active.mask, self.mu)

    def end_epoch(self) -> None:
        """Ends the epoch of the tasks that it had; for some it is the one in which the nadir is found."""
        state = self.state
        present = state.steps > 0
        state.nadir = torch.where(present & (state.epochs == self.warmup), state.total / state.steps, state.nadir)
        state.epochs = state.epochs + present
        state.total = state.total.masked_fill(present, 0.0)
        state.steps = state.steps.masked_fill(present, 0)
