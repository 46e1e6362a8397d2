"""COSMOS: a weighted sum that also rewards the preferred proportions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise._kept import Kept
from equipoise.objectives._base import Derivatives
from equipoise.objectives._preferences import PreferenceObjective, unit
from equipoise.search_space import Range, SearchSpace


class COSMOS(PreferenceObjective):
    """COSMOS: a weighted sum of the losses, less the cosine of the angle between them and the preferences.

    `Σ_k p_k L_k − λ cos(p, L)` with preferences that sum to 1 over the tasks present. The angle draws the losses
    towards the preferred proportions: a loss is wanted large in proportion to its preference. Coefficients can be
    negative for a loss that is far below its proportion. One backward pass and no state.

    In the paper one network learns all trade-offs: it is given the preferences as input, and they are drawn anew in
    each step from a Dirichlet distribution. `prefer` takes them; the input is the network's.

    Args:
        strength: λ ≥ 0. The paper takes 0.01 to 8, by the data set.
        preferences: task → `p_k` ≥ 0, divided by their sum; 1 for tasks that are not named. `prefer` changes them.

    Raises:
        TypeError: `preferences` is no mapping.
        ValueError: a number is out of range, or (once the tasks are known) a name is not a task, or no task is
            preferred.

    Source: Ruchte & Grabocka, "Scalable Pareto Front Approximation for Deep Multi-Objective Learning", ICDM 2021.

    Example:
        >>> import equipoise as eq
        >>> cosmos = eq.COSMOS(strength=2.0)
        >>> balancer = eq.Balancer(["depth", "normals"], cosmos)
        >>> cosmos.prefer({"depth": 0.7, "normals": 0.3})
    """

    masked = True
    search_space: ClassVar[SearchSpace] = {"strength": Range(0.01, 8.0, log=True)}

    def __init__(self, strength: float = 1.0, preferences: Mapping[str, float] | None = None) -> None:
        super().__init__(preferences)
        self._constants = Kept[tuple[Tensor, Tensor]]()
        self.strength = check_number("strength", strength, at_least=0)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `Σ_k p_k L_k − λ cos(p, L)` of the losses `[K']`."""
        preference, direction = self._preferred()
        losses = self.active.where(losses, 0.0)
        return preference @ losses - self.strength * (direction @ unit(losses))

    def derivatives(self, losses: Tensor) -> Derivatives:
        """Returns `p − λ (p̂ − cos(p, L) L̂) / ‖L‖` `[K']`, with `p̂` and `L̂` of length 1."""
        preference, direction = self._preferred()
        losses = self.active.where(losses, 0.0)
        length = torch.linalg.vector_norm(losses).clamp(min=torch.finfo(losses.dtype).tiny)
        along = losses / length
        return preference - self.strength / length * (direction - (direction @ along) * along), {}

    def _preferred(self) -> tuple[Tensor, Tensor]:
        """Returns `p`, which sums to 1, and `p̂`, `[K']`."""
        active, preference = self.active, self.preference

        def preferred() -> tuple[Tensor, Tensor]:
            shares = active.shares(preference)
            return shares, unit(shares)

        return self._constants(preferred, preference, active.mask)
