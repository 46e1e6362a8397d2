"""Dynamic task prioritization."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from equipoise._checks import check_number
from equipoise.objectives._accuracy import AccuracyWeighting
from equipoise.search_space import Range, SearchSpace

ACCURACY_FLOOR = 1e-20
"""Smoothed accuracies below this count as this, so that a task that gets nothing right weighs 46, not ∞."""


class DTP(AccuracyWeighting):
    """Dynamic task prioritization: the lower a task's accuracy, the larger its weight.

    `w_k = −(1−κ_k)^γ log κ_k` with the smoothed accuracy `κ_k ← m·acc_k + (1−m)·κ_k`, which the first
    accuracy starts. Accuracies come with `Balancer.end_epoch(metrics)`; the weights are 1 until every task
    present has one. `κ_k` below 1e-20 counts as 1e-20 (the authors of AMTL add 1e-20 to it), so an accuracy
    of 0 gives the weight 46.05.

    Args:
        gamma: γ ≥ 0, the focus on difficult tasks.
        momentum: m, the weight of the newest accuracy, in (0, 1].

    Raises:
        ValueError: `gamma` is negative, or `momentum` is outside (0, 1].

    Source: Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018; the smoothing and its
    momentum: the code of Yun & Cho (see `Achievement`).

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.DTP(gamma=1.0))
    """

    masked = True
    search_space: ClassVar[SearchSpace] = {"gamma": Range(0.1, 10.0, log=True)}

    def __init__(self, gamma: float = 1.0, momentum: float = 0.1) -> None:
        super().__init__(momentum)
        self.gamma = check_number("gamma", gamma, at_least=0)

    def focus(self, accuracy: Tensor) -> Tensor:
        """Returns `−(1−κ)^γ log κ` `[K']`."""
        return -((1 - accuracy) ** self.gamma) * accuracy.clamp(min=ACCURACY_FLOOR).log()
