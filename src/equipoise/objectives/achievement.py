"""Achievement-based weights: how far each task is from what it reaches alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from equipoise._checks import check_choice, check_number
from equipoise._kept import Kept
from equipoise.objectives._accuracy import AccuracyWeighting
from equipoise.objectives._per_task import check_values, per_task
from equipoise.search_space import Choice, Range, SearchSpace


class Achievement(AccuracyWeighting):
    """Achievement-based weighting (AMTL): the further a task is from what it reaches alone, the heavier.

    `w_k = (1 − κ_k/p_k)^γ`, 0 where `κ_k > p_k`, then normalised over the tasks present. `κ_k` is the
    accuracy, smoothed as in `DTP`; `p_k` is the task's potential, its single-task accuracy times
    `1 + margin`. Accuracies come with `Balancer.end_epoch(metrics)`; the weights are equal until every task
    present has one.

    The paper's loss is `GeometricMean(Achievement(potentials))` ("amtl"); a bare `Achievement(potentials)`
    means the weighted sum ("amtl-a"). The potentials belong to the constructor, not to `state_dict`.

    Args:
        potentials: each task's single-task accuracy in (0, 1], by name.
        gamma: γ > 0, the focus on tasks that are far behind.
        margin: ≥ 0; how far above the single-task accuracy the potential lies, relative to it.
        momentum: weight of the newest accuracy in the smoothed one, in (0, 1].
        normalization: "softmax" (the authors' default) or "sum". With "sum", weights that are all zero become
            equal.

    Raises:
        TypeError: `potentials` is not a mapping.
        ValueError: a potential is outside (0, 1], another argument is out of range, or (once the tasks are
            known) a task has no potential or a name is not a task.

    Source: Yun & Cho, "Achievement-based Training Progress Balancing for Multi-Task Learning", ICCV 2023, and
    the authors' code. Unlike there, a task above its potential gets weight 0 before normalising; the code's
    even γ makes it grow again.

    Example:
        >>> import equipoise as eq
        >>> potentials = {"depth": 0.81, "normals": 0.46}
        >>> balancer = eq.Balancer(["depth", "normals"], eq.GeometricMean(eq.Achievement(potentials)))
    """

    masked = True
    search_space: ClassVar[SearchSpace] = {
        "gamma": Range(0.2, 20.0, log=True),
        "margin": Range(0.005, 0.5, log=True),
        "normalization": Choice(("softmax", "sum")),
    }
    potential: Tensor

    def __init__(
        self,
        potentials: Mapping[str, float],
        gamma: float = 2.0,
        margin: float = 0.05,
        momentum: float = 0.1,
        normalization: Literal["softmax", "sum"] = "softmax",
    ) -> None:
        super().__init__(momentum)
        self.potentials = check_values("potentials", potentials, above=0, at_most=1)
        self.gamma = check_number("gamma", gamma, above=0)
        self.margin = check_number("margin", margin, at_least=0)
        self.normalization = check_choice("normalization", normalization, ["softmax", "sum"])
        self._shares = Kept[Tensor]()

    def on_bind(self) -> None:
        """Puts the potentials, with their margin, into the order of the tasks."""
        assert self.tasks is not None
        potential = per_task("potentials", self.potentials, self.tasks) * (1 + self.margin)
        self.register_buffer("potential", potential, persistent=False)

    def focus(self, accuracy: Tensor) -> Tensor:
        """Returns `(1 − κ/p)^γ` `[K']`, 0 above the potential."""
        return (1 - accuracy / self.state.potential).clamp(min=0) ** self.gamma

    def forward(self, losses: Tensor) -> Tensor:
        """Returns the normalised weights `[K']` for the accuracies seen so far; the losses do not matter."""
        weights = super().forward(losses)
        normalized = self.active.softmax if self.normalization == "softmax" else self.active.shares
        return self._shares(lambda: normalized(weights), weights, self.active.mask, self.normalization)
