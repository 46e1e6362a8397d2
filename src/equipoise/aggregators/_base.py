"""What reduces K task gradients on the shared parameters to one: `Aggregator`, and its Gramian kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from equipoise._state import TaskModule
from equipoise.gradients.gramian import combine, gramian

Gradients = Sequence[Sequence[Tensor | None]]
"""K' rows (tasks present) of n gradients (shared parameters); None where a task does not reach a parameter."""


class Aggregator(TaskModule, ABC):
    """Reduces the Jacobian `J [K', P]` of the tasks present (rows: their gradients) to one gradient `[P]`.

    The Jacobian is never built: `aggregate` takes the gradients parameter by parameter. Where a method needs only
    the Gramian `JJᵀ`, subclass `GramianAggregator`.

    What a method promises of its result `d`, for any gradients `g_k`; nothing unless it says so:

    Attributes:
        non_conflicting: `⟨d, g_k⟩ ≥ 0` for every task.
        permutation_invariant: `d` does not depend on the order of the tasks.
        homogeneous: all gradients multiplied by a positive number give `d` multiplied by it.
        scale_invariant: `d` stays as it is where any task's gradient is multiplied by a positive number.
    """

    non_conflicting: bool = False
    permutation_invariant: bool = False
    homogeneous: bool = False
    scale_invariant: bool = False

    @abstractmethod
    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Returns the combined gradient of every parameter and the weights `[K']`, if the method has any.

        Args:
            gradients: the rows. The aggregator may overwrite them.
            losses: the raw losses `[K']`, detached.
        """

    def forward(self, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
        """Returns the combined gradient `[P]` of a Jacobian `[K', P]`, for use and tests outside a Balancer.

        Args:
            jacobian: one row a task.
            losses: the losses `[K']`; ones if left out.
        """
        rows = [[row.clone()] for row in jacobian]
        losses = jacobian.new_ones(len(rows)) if losses is None else losses
        return self.aggregate(rows, losses)[0][0]


class GramianAggregator(Aggregator):
    """An aggregator whose result is a weighted sum of the rows, with weights that depend on `JJᵀ` alone.

    Weights are found on the host, in float64: there some hundred operations on `K'²` numbers take less than a
    millisecond, on an accelerator each is a launch. A subclass's state and parts stay on the host for that: `.to()` and
    casts leave them as they are.
    """

    @abstractmethod
    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns the rows' weights `[K']`, float64 on the CPU as both arguments are.

        Args:
            gramian: `JJᵀ` `[K', K']`, finite.
            losses: the raw losses `[K']`, detached.
        """

    def finite_weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `weights` on the Gramian's device, or NaN for every row where the Gramian is not finite.

        So no method has to care, and none fails where float16 overflowed and a `GradScaler` is about to drop the step.
        This is where the host waits for an accelerator, once: Gramian and losses come in one transfer.
        """
        together = torch.cat((gramian, losses.to(gramian)[None])).cpu().double()
        on_host, values = together[:-1], together[-1]
        weights = self.weights(on_host, values) if on_host.isfinite().all() else torch.full_like(values, torch.nan)
        return weights.to(gramian.dtype).to(gramian.device, non_blocking=True)

    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns `Σ_k w_k g_k` of every parameter, and the weights `[K']`."""
        weights = self.finite_weights(gramian(gradients), losses)
        return combine(gradients, weights), weights

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GramianAggregator:
        """Moves and casts nothing: the state stays where the weights are found."""
        return self
