"""CoBa: weights from the slopes of the validation losses."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_count, check_number
from equipoise._kept import Kept
from equipoise.objectives._base import Weighting
from equipoise.search_space import Choice, Range, SearchSpace

HORIZON = 10_000
"""How many slopes, the newest, the divergence factor looks at. In the paper all: but state has to be of a size."""


class CoBa(Weighting):
    """Convergence balancer: more weight for tasks that converge slowly on validation, less for those that diverge.

    The slope `α_k(t)` is that of the least-squares line through the last N validation losses of the task, each divided
    by its first. With the slopes from the end of the warm-up on,

    - `RCS = softmax_k(K α_k(t) / Σ_j |α_j(t)|)`, the relative convergence score: the slower, the more;
    - `ACS = softmax_k(−N α_k(t) / Σ_i |α_k(i)|)` over the task's last N slopes, the absolute convergence score: the
      more a task has slowed down, or has turned, the less;
    - `DF = min(1, t·softmax_t(−τ t α_max(t) / Σ_i |α_max(i)|))`, the divergence factor, with the softmax over all t
      slopes and `α_max = max_k α_k`: small once the slowest task no longer converges as it did;

    and `w = DF·RCS + (1 − DF)·ACS`. K counts the tasks present; `α_max` is over those observed together. The weights
    sum to 1, and are equal until every task present has been observed `warmup` times. Where a task has fewer slopes
    than N, N is their number.

    One backward pass, and a forward pass for every validation batch; 82 kB a task. The losses come with
    `Balancer.observe_validation(losses)`: the paper takes one validation batch before every step. Training losses
    given there would cost no pass, but do not show that a task diverges.

    Args:
        warmup: W, observations of a task until weights are found, ≥ 2; about the batches of the validation split.
        history: N, how many losses a slope is fitted to, ≥ 2; the larger, the less the weights change.
        temperature: τ > 0; the larger, the sooner divergence shows.

    Raises:
        ValueError: `warmup` or `history` is no integer ≥ 2, or `temperature` not positive.

    Source: Gong et al., "CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models", EMNLP 2024; the
    defaults are those of the authors' code (MFTCoder). Its losses are not divided by the first, `α_max` is the slope of
    the largest loss, DF is not bounded by 1, and the weights go through one more softmax and get a least value; here
    all that is as in the paper. The sum in DF is of absolute values, as in the code, so that it does not vanish. DF
    looks at the last 10,000 slopes, so that the state is of a size. A task's history begins with its first validation
    loss above 0.

    Example:
        >>> import torch, equipoise as eq
        >>> balancer = eq.Balancer(["code", "chat"], eq.CoBa(warmup=2))
        >>> for code, chat in ((2.0, 4.0), (1.0, 3.8), (0.6, 3.6)):
        ...     balancer.observe_validation({"code": torch.tensor(code), "chat": torch.tensor(chat)})
        >>> w = torch.ones(2, requires_grad=True)
        >>> weights = balancer.backward({"code": w[0], "chat": w[1]})
        >>> bool(weights["chat"] > weights["code"])
        True
    """

    masked = True
    needs_validation_losses = True
    search_space: ClassVar[SearchSpace] = {
        "history": Choice((200, 300, 500)),
        "temperature": Range(0.5, 50.0, log=True),
    }

    def __init__(self, warmup: int = 100, history: int = 200, temperature: float = 5.0) -> None:
        super().__init__()
        self.warmup = check_count("warmup", warmup, 2)
        self.history = check_count("history", history, 2)
        self.temperature = check_number("temperature", temperature, above=0)
        self._weights = Kept[Tensor]()
        self.add_state("count", 0)
        self.add_state("first", 1.0)
        self.add_state("ratios", 0.0, size=self.history)
        self.add_state("slopes", 0.0, size=HORIZON)
        self.add_state("slope", 0.0)
        self.add_state("convergence", 0.0)
        self.add_state("divergence", 1.0)

    def observe_validation(self, losses: Tensor) -> None:
        """Takes validation losses `[K']`; finds the slopes, what ACS is the softmax of, and DF."""
        state = self.state
        state.count = count = state.count + ((state.count > 0) | (losses > 0))
        state.first = torch.where(count == 1, losses, state.first)
        state.ratios = _shifted(state.ratios, losses / state.first)
        state.slope = slope = newest_slope(state.ratios, count)
        state.slopes = slopes = _shifted(state.slopes, slope)
        found = self.active.where(count - self.warmup + 1, 0)
        recent, mask = slopes[:, -self.history :], _newest(found, min(self.history, HORIZON))
        state.convergence = -_quotient(slope, torch.where(mask, recent.abs(), 0.0).sum(1) / mask.sum(1).clamp(min=1))
        state.divergence = self._divergence(slopes, _newest(found, HORIZON)).expand_as(slope)

    def _divergence(self, slopes: Tensor, mask: Tensor) -> Tensor:
        """Returns DF, 0-dim, of slopes `[K', H]`, the newest last, where the bool `[K', H]` is true."""
        lowest, known = torch.finfo(slopes.dtype).min, mask.any(0)
        steepest = torch.where(known, torch.where(mask, slopes, lowest).amax(0), 0.0)
        steps = known.sum()
        logits = -self.temperature * _quotient(steepest, steepest.abs().sum() / steps.clamp(min=1))
        return (steps * torch.where(known, logits, lowest).softmax(0)[-1]).clamp(max=1)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns the weights `[K']` for the validation losses so far; the losses do not matter."""
        state, active = self.state, self.active
        count, slope, convergence, divergence = state.count, state.slope, state.convergence, state.divergence

        def weights() -> Tensor:
            relative = active.softmax(_quotient(slope, active.mean(slope.abs())))
            absolute = active.softmax(convergence)
            found = divergence * relative + (1 - divergence) * absolute
            return torch.where(active.all(count >= self.warmup), found, active.shares(torch.ones_like(losses)))

        return self._weights(weights, count, slope, convergence, divergence, active.mask, self.warmup)


def newest_slope(values: Tensor, count: Tensor) -> Tensor:
    """Returns the slope of the least-squares line through the last values of each task, `[K]`; 0 where there is one.

    Args:
        values: `[K, N]`, the newest last.
        count: how many values each task has had, `[K]`; of more than N, the last N are taken.
    """
    size = values.shape[1]
    count = count.clamp(max=size).to(values.dtype)[:, None]
    lag = torch.arange(size - 1, -1, -1, dtype=values.dtype, device=values.device)
    place = torch.where(lag < count, (count - 1) / 2 - lag, 0.0)  # from the middle
    squares = (count * (count.square() - 1) / 12).clamp(min=0.5)[:, 0]  # of the places; 0.5 where there are two
    return (place * (values - values[:, -1:])).sum(1) / squares


def _newest(count: Tensor, size: int) -> Tensor:
    """Which of `size` columns are the last `count` `[K]`, bool `[K, size]`."""
    return torch.arange(size, 0, -1, device=count.device) <= count[:, None]


def _shifted(values: Tensor, newest: Tensor) -> Tensor:
    """Returns values `[K, N]` without the oldest and with the newest `[K]` at the end."""
    return torch.cat([values[:, 1:], newest[:, None]], 1)


def _quotient(x: Tensor, mean: Tensor) -> Tensor:
    """Returns x over a mean of absolute values that it is part of, and so 0 where that is 0."""
    return torch.where(mean > 0, x / mean, 0.0)
