"""Learning-rate annealing for physics-informed networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_known, check_number
from equipoise._kept import constants
from equipoise.aggregators._base import Aggregator, Gradients
from equipoise.gradients.gramian import as_real, combine, wide_dtype
from equipoise.gradients.shards import gathered
from equipoise.search_space import Range, SearchSpace


class LRAnnealing(Aggregator):
    """Learning-rate annealing: brings the gradients of a physics-informed network's data terms to that of its residual.

    `λ_k ← (1−α) λ_k + α max|g_r| / mean|g_k|`, maximum and mean over the elements of the shared parameters, with the
    gradient `g_r` of the equation's residual; then `d = g_r + Σ_k λ_k g_k`. λ starts at 1, and stays as it is in steps
    without the residual, or where a gradient is 0. A backward pass a task in the steps that take statistics: the
    authors do so in every tenth (`Balancer(..., every=10)`, which `make_method` chooses), with λ held in between.

    Args:
        residual: the task that the others are brought to; None: the first.
        alpha: α in (0, 1], the weight of the newest ratio.

    Raises:
        ValueError: `alpha` is outside (0, 1], or (once the tasks are known) `residual` is not a task.

    Source: Wang et al., "Understanding and Mitigating Gradient Flow Pathologies in Physics-Informed Neural Networks",
    SIAM Journal on Scientific Computing 2021, Algorithm 1. α is that of the authors' code. The code takes the mean of
    the gradient of the weighted term `λ_k L_k`, and one λ for all terms of the boundary; here each has its own.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import LRAnnealing
        >>> annealing = LRAnnealing("residual", alpha=1.0)
        >>> annealing.bind(["residual", "boundary"])
        >>> with annealing.step():
        ...     annealing(torch.tensor([[4.0, -8.0], [1.0, 1.0]]))
        tensor([12.,  0.])
    """

    masked = True
    weighs = True
    search_space: ClassVar[SearchSpace] = {"alpha": Range(0.01, 1.0, log=True)}

    def __init__(self, residual: str | None = None, alpha: float = 0.1) -> None:
        super().__init__()
        self.residual = residual
        self.alpha = check_number("alpha", alpha, above=0, at_most=1)
        self.add_state("weight", 1.0)

    def on_bind(self) -> None:
        """Checks that the residual is a task."""
        if self.residual is not None and self.tasks is not None:
            check_known("residual", [self.residual], self.tasks)

    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns `g_r + Σ_k λ_k g_k` of every parameter, and the weights `[K']`, 1 and λ."""
        state, weights = self.state, self.state.weight
        known = self.tasks or ()
        present = range(len(known)) if state.present is None else state.present
        own = known.index(self.residual) if self.residual is not None else 0
        if own in present:
            place = list(present).index(own)
            first = [next(g for g in column if g is not None) for column in zip(*gradients, strict=True)]
            count = sum(g.numel() * (2 if g.is_complex() else 1) for g in first)
            means = torch.stack([_absolute(row)[0] for row in gradients]) / count
            target = _absolute(gradients[place])[1] / means
            moves = (means > 0) & (target > 0)  # the residual takes part
            moved = tuple(float(index != place) for index in range(len(weights)))
            others = constants(moved, weights.dtype, weights.device)
            weights = torch.where(moves, torch.lerp(weights, target.to(weights), self.alpha * others), weights)
            state.weight = weights
        return combine(gradients, weights), weights


def _absolute(row: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Returns the sum and the maximum of the absolute values of a task's gradients, 0-dim each."""
    found = [as_real(gathered(gradient)).abs() for gradient in row if gradient is not None]
    wide = wide_dtype(found[0].device)
    return torch.stack([g.sum(dtype=wide) for g in found]).sum(), torch.stack([g.max().to(wide) for g in found]).max()
