"""Looking at a step's task gradients while they are there: what `Balancer.watch` and `MAO.watch` take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from equipoise.gradients.batch import Batch
    from equipoise.gradients.jacobian import Rows
    from equipoise.gradients.passes import Passes


class Watcher(Protocol):
    """Is shown the task gradients of the steps it asks for.

    They belong to the step: a watcher changes nothing, and copies what it keeps.
    """

    @property
    def due(self) -> bool:
        """Whether it asks for this step; the same in all its micro-batches, and on all ranks."""

    def around(
        self, passes: Passes, batch: Batch, coefficients: Tensor, scale: Tensor | None, accumulate: bool
    ) -> AbstractContextManager[None]:
        """Encloses one backward pass of `Σ_k c_k L_k`, which by itself has no task gradients to show.

        Args:
            passes: can run others.
            batch: the K' tasks present; their graphs are still there.
            coefficients: `c_k` `[K']`, times `scale`.
            scale: the gradient scaler's, 0-dim.
            accumulate: further micro-batches follow.
        """

    def see_rows(self, rows: Rows) -> None:
        """Takes the rows `c_k g_k` of a step's micro-batches together, unscaled, before they are reduced."""

    def see_weights(self, weights: Mapping[str, Tensor], shared: Sequence[Tensor]) -> None:
        """Takes the aggregator's weights of these rows, which are applied on the shared parameters."""

    def see_taken(self, optimizer: Any, rows: Rows) -> None:
        """Takes rows that MAO has just taken into its moments."""

    def see_result(self, weights: Mapping[str, Tensor]) -> None:
        """Takes what `Balancer.backward` returns, at its end."""
