"""Relative loss balancing with random lookback."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise.objectives._base import Weighting
from equipoise.search_space import Range, SearchSpace


class ReLoBRaLo(Weighting):
    """Relative loss balancing with random lookback: more weight for losses that have fallen less, recently or ever.

    `b_k(t, t') = K softmax_k(L_k(t) / (T L_k(t')))` compares the losses with earlier ones, and
    `w_k(t) = α (ρ w_k(t−1) + (1−ρ) b_k(t, 0)) + (1−α) b_k(t, t−1)`: a moving average, which looks back to the first
    losses where ρ, drawn in each step for all tasks, is 0. It is 1 with the probability `lookback`. `w_k(0) = 1`, and
    `w_k(1) = b_k(1, 0)` (α = 0), as in the authors' code. K counts the tasks present; times are those of the steps in
    which the task was present. One backward pass; four numbers a task, and a random generator of the method's own.

    Args:
        alpha: α in [0, 1], the weight of the past.
        lookback: the expected value of ρ, in [0, 1]; the lower, the more often the first losses count.
        temperature: T > 0; the larger, the more even the weights.
        seed: of the generator; None takes one from PyTorch's default generator.

    Raises:
        ValueError: a number is out of range.

    Source: Bischof & Kraus, "Multi-Objective Loss Balancing for Physics-Informed Deep Learning", 2021 (CMAME 2025).

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["residual", "boundary"], eq.ReLoBRaLo(temperature=0.1, seed=0))
    """

    masked = True
    requires_positive = True
    search_space: ClassVar[SearchSpace] = {
        "alpha": Range(0.9, 0.9999),
        "lookback": Range(0.5, 1.0),
        "temperature": Range(0.01, 1.0, log=True),
    }

    def __init__(
        self, alpha: float = 0.999, lookback: float = 0.99, temperature: float = 0.1, seed: int | None = None
    ) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, at_least=0, at_most=1)
        self.lookback = check_number("lookback", lookback, at_least=0, at_most=1)
        self.temperature = check_number("temperature", temperature, above=0)
        self.add_generator(seed)
        self.add_state("steps", 0)
        self.add_state("first", 1.0)
        self.add_state("last", 1.0)
        self.add_state("weight", 1.0)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `w(t)` `[K']`, and keeps it and the losses `[K']`."""
        state, steps = self.state, self.state.steps
        stays = torch.rand((), generator=self.generator, device="cpu") < self.lookback
        past = state.weight if stays else self._since(state.first, losses)
        weights = torch.lerp(self._since(state.last, losses), past, self.alpha * (steps > 1).to(losses))
        state.weight = torch.where(steps > 0, weights, 1.0)
        state.first = torch.where(steps > 0, state.first, losses)
        state.last = losses
        state.steps = steps + 1
        return state.weight

    def _since(self, earlier: Tensor, losses: Tensor) -> Tensor:
        """Returns `b` `[K']`, the losses `[K']` beside earlier ones."""
        return self.active.count * self.active.softmax(losses / (self.temperature * earlier))
