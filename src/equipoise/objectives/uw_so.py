"""Soft optimal uncertainty weighting."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from equipoise._checks import check_number
from equipoise.objectives._base import Weighting
from equipoise.search_space import Range, SearchSpace


class UWSO(Weighting):
    """Soft optimal uncertainty weighting: the weights are the softmax of the inverse losses, at a temperature.

    `w = softmax(1 / (T L))`: of a loss that an uncertainty weighs (see `UW`), the best uncertainty is the loss itself,
    so that nothing needs to be learned. The weights sum to 1 over the tasks present. One backward pass and no state.

    Args:
        temperature: T > 0; the larger, the more even the weights. The paper tunes it for each data set.

    Raises:
        ValueError: `temperature` is not positive.

    Source: Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", GCPR 2024.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.UWSO(temperature=2.0))
    """

    masked = True
    requires_positive = True
    search_space: ClassVar[SearchSpace] = {"temperature": Range(0.1, 10.0, log=True)}

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_number("temperature", temperature, above=0)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `softmax(1 / (T L))` `[K']`."""
        return self.active.softmax((self.temperature * losses).reciprocal())
