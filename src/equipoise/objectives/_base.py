"""What turns K losses into one scalar: `Objective`; and what gives each loss a weight: `Weighting`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from equipoise._kept import Kept
from equipoise._state import TaskModule

Derivatives = tuple[Tensor, dict[str, Tensor]]
"""An objective's derivatives by the losses, `[K']`, and by its declared parameters, name → `[K']`."""


class Objective(TaskModule, ABC):
    """Turns the losses of the tasks present into one scalar.

    `forward` takes losses `[K']` and returns a 0-dim tensor, differentiable in the losses and in the
    objective's own parameters; the Balancer takes the coefficients `c_k = ∂objective/∂L_k` from it. With `masked`,
    it does through `self.active` whatever it does across tasks, the sum included.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "forward" in vars(cls) and "derivatives" not in vars(cls):  # they are another formula's
            cls.derivatives = Objective.derivatives  # type: ignore[method-assign]

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """Returns the scalar objective of the losses `[K']`."""

    def derivatives(self, losses: Tensor) -> Derivatives | None:
        """Returns `c_k = ∂forward/∂L_k` `[K']`, and those by the declared parameters, where the formula gives them.

        It then takes the place of `forward`, state and all, and needs fewer operations. A subclass with a `forward` of
        its own does not inherit it. None, as here: autograd finds them.
        """
        return None


class Weighting(TaskModule, ABC):
    """Gives every task present a weight.

    `forward` takes detached losses `[K']` and returns weights `[K']`. A weighting becomes an objective under
    `WeightedSum` or `GeometricMean`; where an objective is expected, a bare weighting means `WeightedSum`.
    With `masked`, it does through `self.active` whatever it does across tasks; weights of tasks that take no
    part in the step do not matter.
    """

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """Returns the weights `[K']` for the losses `[K']`."""


def _check_weighting(name: str, weighting: object) -> None:
    if not isinstance(weighting, Weighting):
        raise TypeError(f"{name} takes a Weighting instance such as equipoise.EMA(), found {weighting!r}.")


def _weights(weighting: Weighting, losses: Tensor) -> Tensor:
    weights: Tensor = weighting(losses.detach())
    if not isinstance(weights, Tensor) or weights.shape != losses.shape:
        found = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else repr(weights)
        raise ValueError(
            f"{type(weighting).__name__} must return a weight for each of the {len(losses)} losses, found {found}."
        )
    return weights


class WeightedSum(Objective):
    """Weighted sum of the losses, `Σ_k w_k L_k`.

    Args:
        weighting: gives the weights `[K']`; they are constants for the gradient.

    Raises:
        TypeError: `weighting` is something else, an objective for example.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.WeightedSum(eq.EMA(beta=0.1)))
    """

    def __init__(self, weighting: Weighting) -> None:
        super().__init__()
        _check_weighting(type(self).__name__, weighting)
        self.weighting = weighting
        self.masked = weighting.masked
        self.requires_positive = weighting.requires_positive

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `Σ_k w_k L_k` of the losses `[K']`."""
        return (self._active_weights(losses) * losses).sum()

    def derivatives(self, losses: Tensor) -> Derivatives:
        """Returns `w_k` `[K']`: the derivatives of a sum with constant weights."""
        return self._active_weights(losses).detach(), {}

    def _active_weights(self, losses: Tensor) -> Tensor:
        return self.active.where(_weights(self.weighting, losses), 0.0)


class GeometricMean(Objective):
    """Weighted geometric mean of the losses, `Π_k L_k^{w_k}` with weights that sum to 1.

    It is scale-invariant: multiplying one loss by a constant changes no task's share of the gradient, since
    `∂/∂L_k = w_k · (Π_j L_j^{w_j}) / L_k`. Computed in log space. The weights are normalised over the tasks
    present, so that an absent task does not pull the mean to 0 (the AMTL authors' code lets it); weights that
    are all zero count as equal. With `Equal` this is GLS.

    Args:
        weighting: gives the weights `[K']`, constants for the gradient; they must not be negative.

    Raises:
        TypeError: `weighting` is something else, an objective for example.

    Source: Yun & Cho, "Achievement-based Training Progress Balancing for Multi-Task Learning", ICCV 2023;
    GLS: Chennupati et al., "MultiNet++", CVPR Workshops 2019.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.GeometricMean(eq.Equal()))
    """

    requires_positive = True

    def __init__(self, weighting: Weighting) -> None:
        super().__init__()
        _check_weighting(type(self).__name__, weighting)
        self.weighting = weighting
        self.masked = weighting.masked
        self._shares = Kept[Tensor]()

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `Π_k L_k^{w_k}` of the losses `[K']`, all positive."""
        return (self._normalised(losses) * losses.log()).sum().exp()

    def derivatives(self, losses: Tensor) -> Derivatives:
        """Returns `w_k · (Π_j L_j^{w_j}) / L_k` `[K']`."""
        weights = self._normalised(losses).detach()
        return (weights * losses.log()).sum().exp() * weights / losses, {}

    def _normalised(self, losses: Tensor) -> Tensor:
        active = self.active
        weights = _weights(self.weighting, losses)
        return self._shares(lambda: active.shares(weights), weights, active.mask)
