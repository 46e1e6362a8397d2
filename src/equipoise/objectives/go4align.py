"""Group optimization for multi-task alignment."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise.objectives._base import Weighting
from equipoise.search_space import Choice, Range, SearchSpace


class GO4Align(Weighting):
    """GO4Align: weights that bring the losses to one scale and follow their risk, equal within groups of tasks.

    The risk-guided weights are `v_k = q_k Σ_j L_j / L_k` with `q = softmax(ξ)` and `ξ_k ← ξ_k − η L_k` in every step;
    then the tasks are put into groups by k-means of their `v_k`, and the weight of each is the mean of its group. Sums
    are over the tasks present. One backward pass; one number a task.

    Args:
        groups: how many groups, at most; ≥ 1. Each task is its own where there are as many.
        step_size: η > 0.

    Raises:
        ValueError: `groups` is no integer ≥ 1, or `step_size` not positive.

    Source: Shen et al., "GO4Align: Group Optimization for Multi-Task Alignment", NeurIPS 2024. η is the authors' code's
    default; it leaves the number of groups to the data set. The code's k-means starts at random; here it is solved
    exactly, as can be done for numbers: groups are neighbours in sorted order.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals", "segmentation"], eq.GO4Align(groups=2))
    """

    masked = True
    requires_positive = True
    search_space: ClassVar[SearchSpace] = {"groups": Choice((1, 2, 3)), "step_size": Range(1e-5, 1e-3, log=True)}

    def __init__(self, groups: int = 2, step_size: float = 1e-4) -> None:
        super().__init__()
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups must be a number of groups ≥ 1, found {groups!r}.")
        self.groups = groups
        self.step_size = check_number("step_size", step_size, above=0)
        self.add_state("logit", 0.0)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns the weights `[K']` for the losses `[K']`, and moves the logits."""
        state, active = self.state, self.active
        state.logit = logit = state.logit - self.step_size * losses
        risk = active.softmax(logit) * active.sum(losses) / losses
        return group_means(risk, active.where(torch.ones_like(risk), 0.0), min(self.groups, len(risk)))


def group_means(values: Tensor, counts: Tensor, groups: int) -> Tensor:
    """Returns for each value the mean of its group, `[K]`, where groups have the least squares within: 1-D k-means.

    By dynamic programming over the values in sorted order, whose groups are intervals; all on the device.

    Args:
        values: the numbers `[K]`.
        counts: 1 where a number counts, 0 where it does not, `[K]`.
        groups: how many groups, from 1 to K.
    """
    count = len(values)
    order = torch.where(counts > 0, values, torch.inf).argsort()
    x, one = torch.where(counts > 0, values, 0.0)[order], counts[order]
    sums = torch.stack([one, one * x, one * x.square()]).cumsum(1)
    until = torch.nn.functional.pad(sums, (1, 0))[:, :count, None]
    n, total, squares = (sums[:, None, :] - until).unbind()  # of the interval from i to j, [K, K]
    within = (squares - total.square() / n.clamp(min=1)).clamp(min=0)
    within = within.masked_fill(torch.ones_like(within, dtype=torch.bool).tril(-1), torch.inf)
    least, starts = within[0], []
    for _ in range(groups - 1):  # the last interval of the first j values, after those of one group fewer
        before = torch.nn.functional.pad(least, (1, 0), value=torch.inf)[:count, None]
        least, start = (before + within).min(0)
        starts.append(start)
    last = torch.full((1,), count - 1, dtype=torch.int64, device=values.device)
    place = torch.arange(count, device=values.device)
    label = torch.zeros_like(place)
    for start in reversed(starts):
        first = start.gather(0, last)
        label = label + (place >= first)
        last = first - 1
    means = torch.zeros_like(x).index_add(0, label, one * x) / torch.zeros_like(x).index_add(0, label, one).clamp(min=1)
    return torch.empty_like(x).index_copy(0, order, means[label])
