"""Penalty-based boundary intersection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise._kept import Kept
from equipoise.objectives._base import Derivatives
from equipoise.objectives._per_task import check_values, per_task
from equipoise.objectives._preferences import PreferenceObjective, unit
from equipoise.search_space import Range, SearchSpace


class PBI(PreferenceObjective):
    """Penalty-based boundary intersection: small losses, in the proportions that are preferred.

    `d_1 + θ d_2`: of the vector `L − z` of losses above a reference point, `d_1 = (L − z)·p̂` is the length along the
    direction `p̂ = p/‖p‖` of the preferences, and `d_2 = ‖(L − z) − d_1 p̂‖` the distance from it. A loss is wanted large
    in proportion to its preference. Coefficients are negative for a loss that is far below its proportion. Without
    the tasks that are missing, vectors are shorter. One backward pass and no state; `d_2` has gradient 0 where it is 0.

    Args:
        theta: θ ≥ 0, the penalty on the distance; the paper takes 5.
        preferences: task → `p_k` ≥ 0; 1 for tasks that are not named. `prefer` changes them.
        reference: task → `z_k`, a lower bound of its loss; 0 for tasks that are not named.

    Raises:
        TypeError: `preferences` or `reference` is no mapping.
        ValueError: a number is out of range, or (once the tasks are known) a name is not a task, or no task is
            preferred.

    Source: Zhang & Li, "MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition", IEEE Transactions on
    Evolutionary Computation 2007.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.PBI(preferences={"depth": 2.0}))
    """

    masked = True
    search_space: ClassVar[SearchSpace] = {"theta": Range(0.5, 50.0, log=True)}
    lowest: Tensor

    def __init__(
        self,
        theta: float = 5.0,
        preferences: Mapping[str, float] | None = None,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(preferences)
        self._direction = Kept[Tensor]()
        self.theta = check_number("theta", theta, at_least=0)
        self.reference = check_values("reference", {} if reference is None else reference)

    def on_bind(self) -> None:
        """Puts preferences and reference into the order of the tasks."""
        super().on_bind()
        assert self.tasks is not None
        lowest = per_task("reference", dict.fromkeys(self.tasks, 0.0) | self.reference, self.tasks)
        self.register_buffer("lowest", lowest, persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `d_1 + θ d_2` of the losses `[K']`."""
        _, along, across = self._parts(losses)
        distance: Tensor = torch.linalg.vector_norm(across)
        return along + self.theta * distance

    def derivatives(self, losses: Tensor) -> Derivatives:
        """Returns `p̂ + θ ((L − z) − d_1 p̂) / d_2` `[K']`."""
        direction, _, across = self._parts(losses)
        return direction + self.theta * unit(across), {}

    def _parts(self, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns `p̂` `[K']`, `d_1`, and `(L − z) − d_1 p̂` `[K']`."""
        active, preference = self.active, self.preference
        direction = self._direction(lambda: unit(active.where(preference, 0.0)), preference, active.mask)
        above = active.where(losses - self.state.lowest, 0.0)
        along = above @ direction
        return direction, along, above - along * direction
